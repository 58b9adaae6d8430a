//! What the store promises, each by its number.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;

use super::faults::Faults;

const OPTIONS: Options = Options {
    log_limit_bytes: 4096,
    scarce_log_limit_bytes: 4096,
    cache_bytes: 1 << 20,
    faults: None,
};

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("nexus_kernel-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn store(&self) -> Store {
        self.open(OPTIONS).expect("a store")
    }

    fn open(&self, options: Options) -> Result<Store, StoreError> {
        let path = self.0.join("store");
        if !path.exists() {
            create(&path, 7).expect("a new store");
        }
        Store::open(&path, options)
    }

    /// What a kill would leave now, between two checkpoints: a copy is not of one moment.
    fn killed(&self, store: &Store, name: &str) -> Self {
        let _writer = store.shared.idle().expect("the writer");
        self.killed_now(name)
    }

    fn killed_now(&self, name: &str) -> Self {
        let other = Self::new(name);
        for file in ["store", "store.log", "store.log2"] {
            fs::copy(self.0.join(file), other.0.join(file)).expect("a copy");
        }
        other
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the folder");
    }
}

fn all(store: &Store) -> Vec<Entry> {
    store
        .scan(Bound::Unbounded, Bound::Unbounded, usize::MAX)
        .expect("entries")
}

#[test]
fn invariant_1_a_kill_at_any_commit_loses_none() {
    let folder = Folder::new("kill");
    let store = folder.store();
    for number in 1..=200_u64 {
        let (key, value) = (number.to_be_bytes(), [number as u8; 100]);
        let gone = (number / 2).to_be_bytes();
        let operations = [Operation::Delete(&gone), Operation::Put(&key, &value)];
        let revision = store
            .commit(&operations, &[], number % 3 == 0)
            .expect("a commit");
        if number % 7 == 0 {
            let copy = folder.killed(&store, &format!("kill-{number}"));
            let again = copy.store();
            assert_eq!(again.revision().expect("a revision"), revision);
            assert_eq!(all(&again), all(&store));
            again.close().expect("closed");
        }
    }
    store.close().expect("closed");
}

#[test]
fn invariant_2_a_log_that_is_cut_leaves_a_commit_before() {
    let folder = Folder::new("cut");
    let store = folder.store();
    for number in 1..=5_u8 {
        store
            .commit(&[Operation::Put(b"n", &[number])], &[], false)
            .expect("a commit");
    }
    let log = fs::read(folder.0.join("store.log")).expect("a log");
    for end in (0..log.len()).step_by(5) {
        let copy = folder.killed(&store, &format!("cut-{end}"));
        fs::write(copy.0.join("store.log"), &log[..end]).expect("a shorter log");
        let again = copy.store();
        let revision = again.revision().expect("a revision");
        let value = again.get(b"n", |value, _| value[0]).expect("an answer");
        assert_eq!(u64::from(value.unwrap_or(0)), revision);
        assert!(revision < 5);
        again.close().expect("closed");
    }
    store.close().expect("closed");
}

#[test]
fn invariant_3_after_a_failed_sync_the_next_commit_checkpoints_everything() {
    let folder = Folder::new("fail");
    let store = folder.store();
    store
        .commit(&[Operation::Put(b"a", b"1")], &[], false)
        .expect("a commit");
    // The end of a pipe cannot be synced.
    let (pipe, _other) = io::pipe().expect("a pipe");
    let log = std::mem::replace(
        &mut lock(&store.shared.syncing).logs[0],
        File::from(OwnedFd::from(pipe)),
    );
    for _ in 0..2 {
        let outcome = store.commit(&[Operation::Put(b"a", b"2")], &[], true);
        assert!(matches!(outcome, Err(StoreError::Failed(_))));
        assert!(store.shared.sync_failed.load(Ordering::Acquire));
        store.sync().expect("all of it in the file");
        assert!(!store.shared.sync_failed.load(Ordering::Acquire));
        lock(&store.shared.syncing).logs.swap(0, 1);
    }
    lock(&store.shared.syncing).logs[0] = log;
    assert_eq!(all(&store)[0].2, 3); // not acknowledged, but stored
    store.close().expect("closed");
    assert!(matches!(
        store.get(b"a", |_, _| ()),
        Err(StoreError::Closed)
    ));
}

#[test]
fn a_failed_condition_changes_nothing() {
    let folder = Folder::new("condition");
    let store = folder.store();
    store
        .commit(&[Operation::Put(b"a", b"1")], &[(b"a", 0)], false)
        .expect("a commit");
    let outcome = store.commit(&[Operation::Delete(b"a")], &[(b"a", 1), (b"b", 3)], false);
    assert!(matches!(outcome, Err(StoreError::Conflict(1, 0))));
    assert_eq!(all(&store), [(b"a".to_vec(), b"1".to_vec(), 1)]);
    store.close().expect("closed");
}

#[test]
fn loaded_entries_keep_their_versions_and_survive_a_kill() {
    let folder = Folder::new("load");
    let store = folder.store();
    store
        .load(&[(b"a", b"1", 5)], 9)
        .and_then(|()| store.load(&[(b"b", b"2", 3)], 9))
        .expect("a load");
    let copy = folder.killed(&store, "load-killed");
    let again = copy.store();
    assert_eq!(again.revision().expect("a revision"), 9);
    let wanted = [
        (b"a".to_vec(), b"1".to_vec(), 5),
        (b"b".to_vec(), b"2".to_vec(), 3),
    ];
    assert_eq!(all(&again), wanted);
    let put = [Operation::Put(b"a", b"3")];
    assert_eq!(
        again.commit(&put, &[(b"a", 5)], false).expect("a commit"),
        10
    );
    again.close().expect("closed");
    store.close().expect("closed");
}

#[test]
fn a_second_opening_is_busy() {
    let folder = Folder::new("busy");
    let store = folder.store();
    let second = Store::open(&folder.0.join("store"), OPTIONS);
    assert!(matches!(second, Err(StoreError::Busy(_))));
    store.close().expect("closed");
}

#[test]
fn durable_commits_of_many_threads_are_all_synced() {
    let folder = Folder::new("group");
    let store = folder.store();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..20_u8 {
                    let key = [thread, number];
                    let put = [Operation::Put(&key, b"")];
                    let revision = store.commit(&put, &[], true).expect("a commit");
                    assert!(lock(&store.shared.syncing).synced >= revision);
                }
            });
        }
    });
    assert_eq!(store.revision().expect("a revision"), 80);
    store.close().expect("closed");
}

#[test]
fn a_store_of_another_format_is_refused_by_its_number() {
    let folder = Folder::new("format");
    let path = folder.0.join("store");
    create(&path, 7).expect("a store");
    let database = redb::Database::open(&path).expect("a database");
    let transaction = database.begin_write().expect("a transaction");
    {
        let name = redb::TableDefinition::<&str, u64>::new("meta");
        let mut meta = transaction.open_table(name).expect("a table");
        meta.insert("format", 1).expect("written");
    }
    transaction.commit().expect("committed");
    drop(database);
    let outcome = Store::open(&path, OPTIONS);
    assert!(
        matches!(outcome, Err(StoreError::Damaged(reason)) if reason == "its format is 1, not 2")
    );
}

/// A sequence that looks random and is the same every time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// Commit something random to both, with a condition that holds.
fn commit_both(store: &Store, model: &mut Model, draw: &mut Draw) {
    let revision = store.revision().expect("a revision") + 1;
    let count = draw.below(6);
    let rows: Vec<(Vec<u8>, Option<Vec<u8>>)> = (0..count)
        .map(|_| {
            let key = draw.below(300).to_be_bytes()[6..].to_vec();
            let size = usize::try_from(draw.below(120)).expect("small");
            (key, (draw.below(3) > 0).then(|| vec![revision as u8; size]))
        })
        .collect();
    let operations: Vec<Operation<'_>> = rows
        .iter()
        .map(|(key, value)| match value {
            Some(value) => Operation::Put(key, value),
            None => Operation::Delete(key),
        })
        .collect();
    let conditions: Vec<Condition<'_>> = rows
        .iter()
        .map(|(key, _)| (&**key, model.get(key).map_or(0, |(_, version)| *version)))
        .collect();
    let outcome = store.commit(&operations, &conditions, draw.below(20) == 0);
    assert_eq!(outcome.expect("a commit"), revision);
    for (key, value) in rows {
        match value {
            Some(value) => drop(model.insert(key, (value, revision))),
            None => drop(model.remove(&key)),
        }
    }
}

fn compare(store: &Store, model: &Model, draw: &mut Draw) {
    let low = draw.below(300).to_be_bytes()[6..].to_vec();
    let high = draw.below(300).to_be_bytes()[6..].to_vec();
    let limit = usize::try_from(draw.below(40)).expect("small");
    let lower = match draw.below(2) {
        0 => Bound::Included(&*low),
        _ => Bound::Excluded(&*low),
    };
    let found = store.scan(lower, Bound::Excluded(&high), limit);
    let expected: Vec<Entry> = match low < high {
        false => Vec::new(),
        true => model
            .range::<[u8], _>((lower, Bound::Excluded(&*high)))
            .take(limit)
            .map(|(key, (value, version))| (key.clone(), value.clone(), *version))
            .collect(),
    };
    assert_eq!(found.expect("entries"), expected);
    let one = store.get(&low, |value, version| (value.to_vec(), version));
    assert_eq!(one.expect("an answer").as_ref(), model.get(&low));
}

#[test]
fn invariant_4_it_answers_as_a_map_does_across_checkpoints_openings_and_kills() {
    for seed in 1..=4 {
        let mut draw = Draw(seed);
        let folder = Folder::new(&format!("model-{seed}"));
        let (mut store, mut model) = (folder.store(), Model::new());
        for round in 0..1000 {
            commit_both(&store, &mut model, &mut draw);
            compare(&store, &model, &mut draw);
            if round % 5 == 0 {
                std::thread::yield_now();
            }
            match draw.below(150) {
                0 => {
                    let revision = store.revision().expect("a revision");
                    store.close().expect("closed");
                    store = folder.store();
                    assert_eq!(store.revision().expect("a revision"), revision);
                }
                1 => {
                    drop(store);
                    store = folder.store();
                }
                2 => {
                    let copy = folder.killed(&store, &format!("model-{seed}-{round}"));
                    compare(&copy.store(), &model, &mut draw);
                }
                3 => store
                    .skip_to(store.revision().expect("one") + 9)
                    .expect("skipped"),
                _ => (),
            }
        }
        let found: Model = all(&store)
            .into_iter()
            .map(|(key, value, version)| (key, (value, version)))
            .collect();
        assert_eq!(found, model);
        store.close().expect("closed");
    }
}

#[test]
fn invariant_4_scans_beside_writers_and_checkpoints_see_one_moment() {
    let folder = Folder::new("threads");
    let store = folder.store();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2_u8)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..4000_u64 {
                        // Each commit moves the whole group on.
                        let value = number.to_le_bytes();
                        let keys: Vec<[u8; 2]> = (0..5).map(|part| [writer, part]).collect();
                        let mut puts: Vec<Operation<'_>> =
                            keys.iter().map(|key| Operation::Put(key, &value)).collect();
                        if number % 2 == 1 {
                            puts[2] = Operation::Delete(&keys[2]);
                        }
                        store
                            .commit(&puts, &[], number % 500 == 0)
                            .expect("a commit");
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let found = all(&store);
                    for writer in 0..2 {
                        let group: Vec<&Entry> =
                            found.iter().filter(|(key, ..)| key[0] == writer).collect();
                        let Some((_, value, version)) = group.first() else {
                            continue;
                        };
                        assert!(group.iter().all(|row| row.1 == *value && row.2 == *version));
                        assert_eq!(group.len(), 5 - usize::from(value[0] % 2));
                    }
                    let key = [1, 0];
                    store.get(&key, |_, version| version).expect("an answer");
                }
            });
        }
        for writer in writers {
            writer.join().expect("a writer");
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(store.revision().expect("a revision"), 8000);
    store.close().expect("closed");
    assert_eq!(all(&folder.store()).len(), 8);
}

/// A store whose disk can be made to fail.
fn faulty(folder: &Folder) -> (Store, &'static Faults) {
    // Options are copied about, so what they refer to stays for good, where it can be found.
    static KEPT: Mutex<Vec<&'static Faults>> = Mutex::new(Vec::new());
    let faults: &'static Faults = Box::leak(Box::default());
    lock(&KEPT).push(faults);
    let options = Options {
        faults: Some(faults),
        ..OPTIONS
    };
    (folder.open(options).expect("a store"), faults)
}

#[test]
fn invariant_3_a_checkpoint_that_fails_anywhere_loses_nothing_and_is_made_good() {
    for (after, error) in (0..25).flat_map(|after| [(after, libc::EIO), (after, libc::ENOSPC)]) {
        let folder = Folder::new(&format!("checkpoint-{after}-{error}"));
        let (store, faults) = faulty(&folder);
        let mut acknowledged = 0_u64;
        let mut commit = |expect_all: bool| {
            for _ in 0..60 {
                let key = acknowledged.to_be_bytes();
                match store.commit(&[Operation::Put(&key, &[7; 200])], &[], false) {
                    Ok(_) => acknowledged += 1,
                    Err(failure) => assert!(!expect_all, "{failure:?}"),
                }
                match store.scan(Bound::Unbounded, Bound::Unbounded, usize::MAX) {
                    Ok(found) => assert_eq!(found.len() as u64, acknowledged),
                    Err(failure) => assert!(!expect_all, "{failure:?}"),
                }
            }
            acknowledged
        };
        commit(true);
        drop(store.shared.idle().expect("the writer"));
        faults.fail(after, 1000, error);
        let before = faults.calls();
        commit(false);
        drop(store.shared.at_rest());
        assert!(faults.calls() > before);
        faults.heal();
        let acknowledged = commit(true);
        store.sync().expect("synced");
        let kept = all(&store);
        assert_eq!(kept.len() as u64, acknowledged);
        // Whole in the file, though a power cut has what no sync has confirmed.
        store
            .skip_to(store.revision().expect("a revision") + 1)
            .expect("a checkpoint");
        let cut = Folder::new(&format!("cut-off-{after}-{error}"));
        fs::write(cut.0.join("store"), faults.on_disk()).expect("a file");
        assert_eq!(all(&cut.store()), kept);
        store.close().expect("closed");
    }
}

#[test]
fn invariant_3_nothing_is_acknowledged_while_checkpoints_keep_failing() {
    let folder = Folder::new("refuses");
    let (store, faults) = faulty(&folder);
    faults.fail(0, u64::MAX / 2, libc::EIO);
    let put = [Operation::Put(b"k", &[7; 5000])];
    store.commit(&put, &[], false).expect("a commit in the log");
    drop(store.shared.at_rest());
    for _ in 0..3 {
        let outcome = store.commit(&put, &[], false);
        assert!(matches!(outcome, Err(StoreError::Failed(_))), "{outcome:?}");
        assert!(matches!(store.sync(), Err(StoreError::Failed(_))));
        assert_eq!(store.revision().expect("a revision"), 1);
    }
    faults.heal();
    assert_eq!(store.commit(&put, &[], false).expect("a commit"), 2);
    store.close().expect("closed");
}

#[test]
fn invariant_5_commits_wait_while_the_last_map_is_being_written() {
    let folder = Folder::new("bounded");
    let store = folder.store();
    for number in 0..2000_u64 {
        let key = number.to_be_bytes();
        store
            .commit(&[Operation::Put(&key, &[7; 500])], &[], false)
            .expect("a commit");
        let writer = lock(&store.shared.writer);
        let log = store.shared.view().log;
        assert!(writer.logs[log].size_bytes() <= OPTIONS.log_limit_bytes + 600);
    }
    store.close().expect("closed");
}

#[test]
fn invariant_2_a_log_whose_predecessor_was_cut_is_not_applied_later() {
    let folder = Folder::new("ghost");
    let store = folder.store();
    let fill = |store: &Store, until: u64| {
        while store.revision().expect("a revision") < until {
            let key = store.revision().expect("a revision").to_be_bytes();
            store
                .commit(&[Operation::Put(&key, &[7; 100])], &[], false)
                .expect("a commit");
        }
    };
    // Both logs hold what no checkpoint has written: as after a power cut amid a checkpoint.
    fill(&store, 10);
    let mut writer = store.shared.idle().expect("the writer");
    store.shared.freeze(&mut writer);
    drop(writer);
    fill(&store, 20);
    for [earlier, later] in [["store.log", "store.log2"], ["store.log2", "store.log"]] {
        let copy = folder.killed_now(&format!("ghost-{later}"));
        let bytes = fs::read(folder.0.join("store.log")).expect("a log");
        let newer = fs::read(folder.0.join("store.log2")).expect("a log");
        fs::write(copy.0.join(earlier), &bytes[..bytes.len() / 2]).expect("a log cut short");
        fs::write(copy.0.join(later), &newer).expect("a log");
        let again = copy.store();
        let revision = again.revision().expect("a revision");
        assert!((1..10).contains(&revision), "{revision}");
        fill(&again, 10);
        let expected = all(&again);
        drop(again);
        assert_eq!(all(&copy.store()), expected);
    }
}

#[test]
fn a_panic_of_the_engine_is_an_answer_and_prints_nothing() {
    use crate::store_error::guarded;
    let printed = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "store::tests::panics_guarded",
            "--ignored",
            "--nocapture",
        ])
        .output()
        .expect("a process");
    assert!(printed.status.success());
    assert!(!String::from_utf8_lossy(&printed.stderr).contains("damaged page"));
    let answer: Result<(), _> = guarded(|| panic!("damaged page"));
    assert!(matches!(answer, Err(StoreError::Damaged(reason)) if reason.contains("damaged page")));
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn panics_guarded() {
    let answer: Result<(), _> = crate::store_error::guarded(|| panic!("damaged page"));
    assert!(answer.is_err());
}
