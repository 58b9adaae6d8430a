//! Builds a damaged store anew from every entry that can still be reached.
//!
//! For a checker that was told to accept losses: damage in one page hides that page's entries, in a
//! page above leaves those of all beneath, and the rest of the tree is whole. Pages are looked at
//! one by one for where leaves begin and end, but entries are read through the tree: pages that are
//! free keep entries which were deleted or replaced long ago, and nothing in them says so. What no
//! path leads to any more is therefore lost, and a damaged root or header loses everything: that is
//! what a backup is for.
//!
//! Invariant: only the new file is written; the damaged one at most repaired by the engine.

use std::fs::{File, OpenOptions};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Builder, Database};

use crate::commit_log::Operation;
use crate::memtable::Memtable;
use crate::store_error::{StoreError, engine, guarded};
use crate::tree_file::{self, Entry, Snapshot, TreeFile};

const PAGE_BYTES: u64 = 4096;
const LEAF: u8 = 1;
/// How much of a page is looked at; larger ones hold few entries, whose keys come first.
const WINDOW_BYTES: usize = 16 << 10;
/// More than a leaf can have.
const MOST_ENTRIES: usize = 1024;
/// What an entry takes in a leaf at least: two ends, and a version. A damaged tree may go in a ring.
const LEAST_ENTRY_BYTES: u64 = 16;
const ROWS_AT_ONCE: usize = 4096;
const ROWS_WRITTEN_AT_ONCE: usize = 1 << 16;
const CACHE_BYTES: usize = 64 << 20;

/// Whether every entry can be reached, in order and by its key.
///
/// Checksums of pages are not compared: the engine would mark a file whose check fails as one to be
/// repaired, which it then cannot be. Whoever seals the values sees what else is damaged.
pub fn is_whole(path: &Path) -> Result<bool, StoreError> {
    // Outside the guard: a file that is closed amid a panic would be one to be repaired as well.
    let outcome = guarded(|| opened(path)).and_then(|database| {
        let found = guarded(|| read_in_order(&database));
        found.and(guarded(|| database.close().map_err(engine)))
    });
    match outcome {
        Ok(()) => Ok(true),
        Err(StoreError::Damaged(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn read_in_order(database: &Database) -> Result<(), StoreError> {
    tree_file::read_meta(database)?;
    let table = tree_file::entries(database)?;
    let mut after = Bound::Unbounded;
    loop {
        let newer = std::iter::empty();
        let lower = after.as_ref().map(Vec::as_slice);
        let found = tree_file::merge(&table, newer, lower, Bound::Unbounded, ROWS_AT_ONCE)?;
        for (key, _, version) in &found {
            if tree_file::get(&table, key, |_, found| found)? != Some(*version) {
                return Err(StoreError::Damaged("a key is not found".to_owned()));
            }
        }
        match found.into_iter().last() {
            Some((key, ..)) => after = Bound::Excluded(key),
            None => return Ok(()),
        }
    }
}

/// Make a store at `rebuilt` from what the one at `path` still holds; return how many entries.
///
/// It is the same store, whose logs go on from it; `spare_identity` is for one that is not known.
/// Where damage has made two keys one, the entry is kept of which `is_proved` says that it belongs
/// to its key.
pub fn rebuild(
    path: &Path,
    rebuilt: &Path,
    spare_identity: u64,
    mut is_proved: impl FnMut(&[u8], &[u8]) -> bool,
) -> Result<u64, StoreError> {
    let database = guarded(|| opened(path))?;
    let table = tree_file::entries(&database)?;
    let known = guarded(|| tree_file::read_meta(&database)).ok();
    let identity = known.map_or(spare_identity, |(identity, _)| identity);
    tree_file::create(rebuilt, identity)?;
    let target = TreeFile::open_with_cache(rebuilt, CACHE_BYTES)?;
    let (mut newest, mut entries, mut pending) = (0, Memtable::default(), 0);
    let mut enter = |(key, value, version): Entry| -> Result<(), StoreError> {
        let there = entries.get(&key).and_then(|slot| slot.value.as_deref());
        if there.is_none_or(|there| !is_proved(&key, there)) {
            entries.apply(version, &[Operation::Put(&key, &value)]);
            newest = newest.max(version);
            pending += 1;
        }
        if pending >= ROWS_WRITTEN_AT_ONCE {
            target.write(&std::mem::take(&mut entries), 0)?;
            pending = 0;
        }
        Ok(())
    };
    // From one entry to the next no key is compared, so that a damaged one is in nobody's way.
    let most = usize::try_from(path.metadata()?.len() / LEAST_ENTRY_BYTES).unwrap_or(usize::MAX);
    if !from_one_to_the_next(&table, most, &mut enter)? {
        for span in leaves(path)? {
            reachable(&table, &span)
                .into_iter()
                .try_for_each(&mut enter)?;
        }
    }
    // Not more than the file knew of: the logs go on from there.
    let revision = known.map_or(newest, |(_, revision)| revision);
    target.write(&entries, revision)?;
    let count = target.count()?;
    target.close()?;
    Ok(count)
}

fn opened(path: &Path) -> Result<Database, StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    let backend = FileBackend::new(file).map_err(engine)?;
    builder.create_with_backend(backend).map_err(engine)
}

/// Take every entry in the order of the tree, up to what cannot be read; whether that is its end.
fn from_one_to_the_next(
    table: &Snapshot,
    most: usize,
    enter: &mut impl FnMut(Entry) -> Result<(), StoreError>,
) -> Result<bool, StoreError> {
    let mut failed = Ok(());
    let read = guarded(|| {
        for next in table.range::<&[u8]>(..).map_err(engine)?.take(most) {
            let (key, stored) = next.map_err(engine)?;
            if let Ok((version, value)) = tree_file::split(stored.value()) {
                failed = enter((key.value().to_vec(), value.to_vec(), version));
                if failed.is_err() {
                    break;
                }
            }
        }
        Ok(())
    });
    failed.map(|()| read.is_ok())
}

/// The entries from the first to the last key of a span, up to what is damaged.
fn reachable(table: &Snapshot, span: &Span) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    let (first, last) = (span.first.as_slice(), span.last.as_slice());
    let read = guarded(|| {
        let range = table.range::<&[u8]>(first..=last).map_err(engine)?;
        for next in range.take(MOST_ENTRIES) {
            let (key, stored) = next.map_err(engine)?;
            let key = key.value();
            let follows = found.last().map_or(key >= first, |before| *before.0 < *key);
            if !follows || key > last {
                return Err(StoreError::Damaged("keys are out of order".to_owned()));
            }
            if let Ok((version, value)) = tree_file::split(stored.value()) {
                found.push((key.to_vec(), value.to_vec(), version));
            }
        }
        Ok(())
    });
    drop(read); // what was found up to there counts
    found
}

/// The first and the last key of a page that looks like a leaf.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first: Vec<u8>,
    last: Vec<u8>,
}

/// The spans of all pages that look like leaves, free ones too, in order.
fn leaves(path: &Path) -> Result<Vec<Span>, StoreError> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / PAGE_BYTES;
    let mut found = Vec::new();
    let mut window = vec![0; WINDOW_BYTES];
    for page in 0..pages {
        let mut length = 0;
        while length < WINDOW_BYTES {
            match file.read_at(&mut window[length..], page * PAGE_BYTES + length as u64)? {
                0 => break,
                count => length += count,
            }
        }
        found.extend(keys_of_leaf(&window[..length]));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// What a page would have as its keys if it were a leaf: see "Leaf page" in redb's design.md.
fn keys_of_leaf(page: &[u8]) -> Option<Span> {
    let count = usize::from(u16::from_le_bytes(page.get(2..4)?.try_into().ok()?));
    if page[0] != LEAF || !(1..=MOST_ENTRIES).contains(&count) {
        return None;
    }
    let end = |number: usize| -> Option<usize> {
        let field = page.get(4 + 4 * number..8 + 4 * number)?;
        usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
    };
    let start = 4 + 8 * count;
    let first = page.get(start..end(0)?)?;
    let last = match count {
        1 => first,
        _ => page.get(end(count - 2)?..end(count - 1)?)?,
    };
    (first <= last).then(|| Span {
        first: first.to_vec(),
        last: last.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    const PAGE: usize = 4096;
    const BRANCH: u8 = 2;
    const ROWS: u64 = 5000;

    fn key(number: u64) -> Vec<u8> {
        format!("zone\0volume\0/some/folder/file-{number:06}").into_bytes()
    }

    /// A store of many pages, closed, in a folder of its own.
    fn store(name: &str) -> PathBuf {
        let name = format!("salvage-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("a new folder");
        let path = folder.join("store");
        tree_file::create(&path, 7).expect("a store");
        let file = TreeFile::open_with_cache(&path, CACHE_BYTES).expect("a store");
        let mut entries = Memtable::default();
        for number in 0..ROWS {
            entries.apply(number + 1, &[Operation::Put(&key(number), &[7; 100])]);
        }
        file.write(&entries, ROWS).expect("written");
        file.close().expect("closed");
        path
    }

    fn rows(path: &Path) -> Vec<Entry> {
        let database = opened(path).expect("a whole file");
        let table = tree_file::entries(&database).expect("a table");
        let all = (Bound::Unbounded, Bound::Unbounded);
        tree_file::merge(&table, std::iter::empty(), all.0, all.1, usize::MAX).expect("rows")
    }

    /// Where pages of a kind with keys of ours begin.
    fn pages(path: &Path, kind: u8) -> Vec<usize> {
        let bytes = fs::read(path).expect("a file");
        let holds = |at: &usize| {
            let page = &bytes[*at..*at + PAGE];
            let has_keys = page.windows(12).any(|window| window == b"zone\0volume\0");
            page[0] == kind && has_keys
        };
        (PAGE..bytes.len()).step_by(PAGE).filter(holds).collect()
    }

    fn overwrite(path: &Path, at: usize, data: &[u8]) {
        let mut bytes = fs::read(path).expect("a file");
        bytes[at..at + data.len()].copy_from_slice(data);
        fs::write(path, bytes).expect("written");
    }

    fn salvaged(path: &Path) -> Vec<Entry> {
        assert!(!is_whole(path).expect("an answer"));
        let rebuilt = path.with_extension("rebuilt");
        let count = rebuild(path, &rebuilt, 9, |_, _| false).expect("a store");
        assert!(is_whole(&rebuilt).expect("an answer"));
        let found = rows(&rebuilt);
        assert_eq!(count, found.len() as u64);
        let file = TreeFile::open_with_cache(&rebuilt, CACHE_BYTES).expect("a store");
        assert_eq!((file.identity, file.revision), (7, ROWS));
        fs::remove_dir_all(path.parent().expect("a folder")).expect("removed");
        found
    }

    #[test]
    fn zeroed_leaves_lose_their_own_entries_and_no_others() {
        let path = store("leaves");
        let before = rows(&path);
        let leaves = pages(&path, LEAF);
        assert!(leaves.len() > 100);
        for leaf in [0, 1, 40, 90, leaves.len() - 1] {
            overwrite(&path, leaves[leaf], &[0; PAGE]);
        }
        let found = salvaged(&path);
        assert!(found.len() as u64 >= ROWS - 5 * 40, "{}", found.len());
        assert!(found.len() < before.len());
        let expected: Vec<Entry> = before
            .into_iter()
            .filter(|row| found.contains(row))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_length_in_a_leaf_loses_no_more_than_the_leaf() {
        for (at, value) in [(2, 0xff), (3, 0x7f), (5, 0x80), (7, 0x80), (9, 0xff)] {
            let path = store(&format!("length-{at}"));
            let leaves = pages(&path, LEAF);
            overwrite(&path, leaves[leaves.len() / 2] + at, &[value]);
            assert!(salvaged(&path).len() as u64 >= ROWS - 40);
        }
    }

    #[test]
    fn a_damaged_key_loses_no_other_entry() {
        for (digits, value) in [(5, b'1'), (5, b'z'), (0, 0), (0, 0xff)] {
            let path = store(&format!("key-{digits}-{value}"));
            let mut bytes = fs::read(&path).expect("a file");
            let (damaged, mut found) = (key(2500), 0);
            for at in 0..bytes.len() - damaged.len() {
                if bytes[at..].starts_with(&damaged) {
                    bytes[at + damaged.len() - 6 + digits] = value;
                    found += 1;
                }
            }
            assert!(found > 0);
            fs::write(&path, bytes).expect("written");
            let rebuilt = path.with_extension("rebuilt");
            rebuild(&path, &rebuilt, 9, |_, _| true).expect("a store");
            let found = rows(&rebuilt);
            let others = found
                .iter()
                .filter(|(key, ..)| key.starts_with(b"zone\0volume\0/some"));
            assert!(others.count() as u64 >= ROWS - 1, "{}", found.len());
            fs::remove_dir_all(path.parent().expect("a folder")).expect("removed");
        }
    }

    #[test]
    fn a_zeroed_branch_loses_what_is_beneath_it() {
        let path = store("branch");
        let branches = pages(&path, BRANCH);
        assert!(branches.len() > 1);
        overwrite(&path, branches[0], &[0; PAGE]);
        let found = salvaged(&path);
        assert!(!found.is_empty());
        assert!((found.len() as u64) < ROWS);
    }

    #[test]
    fn a_store_that_is_whole_is_known_as_such() {
        let path = store("whole");
        assert!(is_whole(&path).expect("an answer"));
        fs::remove_dir_all(path.parent().expect("a folder")).expect("removed");
    }
}
