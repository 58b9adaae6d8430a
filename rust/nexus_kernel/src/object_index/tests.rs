//! What the index promises, by the numbers of the twin's invariants.

use super::*;
use std::cell::Cell;

const BOOT: u64 = 7;

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("object_index-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new folder");
        Self(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("objects.idx")
    }

    fn create(&self) -> ObjectIndex<File> {
        let file = create_file(&self.path()).expect("a new file");
        let mut index = ObjectIndex::open(file, self.path(), BOOT).expect("an index");
        index.soil().expect("room");
        index
    }

    fn reopen(&self) -> Result<ObjectIndex<File>> {
        ObjectIndex::open(open_file(&self.path())?, self.path(), BOOT)
    }

    fn segment(&self) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        options.open(self.0.join("1.seg")).expect("a new file")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the folder");
    }
}

/// A file that fails from one changing call on, or at that one only.
struct Faulty {
    file: File,
    calls_left: Cell<Option<u32>>,
    heals: bool,
}

impl Faulty {
    fn change(&self) -> io::Result<()> {
        let Some(left) = self.calls_left.get() else {
            return Ok(());
        };
        if left > 0 {
            self.calls_left.set(Some(left - 1));
            return Ok(());
        }
        if self.heals {
            self.calls_left.set(None);
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }
}

impl IndexFile for Faulty {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        IndexFile::read_at(&self.file, buffer, at)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.change()?;
        IndexFile::write_all_at(&self.file, bytes, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change()?;
        IndexFile::sync_data(&self.file)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        IndexFile::truncate(&self.file, size)
    }
}

fn faulty(folder: &Folder, calls: u32, heals: bool) -> ObjectIndex<Faulty> {
    drop(folder.create());
    let file = Faulty {
        file: open_file(&folder.path()).expect("the file"),
        calls_left: Cell::new(Some(calls)),
        heals,
    };
    ObjectIndex::open(file, folder.path(), BOOT).expect("an index")
}

fn entry(number: u32) -> Entry {
    let mut object_id = [0; 32];
    object_id[..4].copy_from_slice(&number.to_le_bytes());
    Entry {
        object_id,
        place: Place {
            segment: 1,
            offset: number,
        },
        size: 4096,
        aside: 0,
        at_ns: number.into(),
    }
}

fn entries(numbers: std::ops::Range<u32>) -> Vec<Entry> {
    numbers.map(entry).collect()
}

fn assert_holds<F: IndexFile>(index: &ObjectIndex<F>, entries: &[Entry]) {
    for entry in entries {
        let found = index.get(&entry.object_id).expect("a whole index");
        assert_eq!(found, Some(*entry));
    }
}

#[test]
fn every_entry_is_found_however_many_pages_have_split_and_after_a_clean_close() {
    let folder = Folder::new("splits");
    let mut index = folder.create();
    let all = entries(0..5_000);
    index.put_many(&all).expect("room");
    assert!(index.reader().page_count() > 70);
    assert_holds(&index, &all);
    let end = Some(End {
        segment: 3,
        offset: 640,
    });
    index.close(end).expect("room");
    let index = folder.reopen().expect("an index");
    assert_eq!(index.end(), end);
    assert_holds(&index, &all);
    assert_eq!(index.get(&[255; 32]).expect("a whole index"), None);
}

#[test]
fn invariant_1_a_kill_after_any_write_loses_nothing_then_or_later() {
    for calls in 0.. {
        let folder = Folder::new(&format!("kill-{calls}"));
        let mut index = faulty(&folder, calls, false);
        let mut written = 0;
        while written < 300 && index.put_many(&entries(written..written + 3)).is_ok() {
            written += 3;
        }
        drop(index);
        let mut index = folder.reopen().expect("an index");
        assert_holds(&index, &entries(0..written));
        index.put_many(&entries(300..400)).expect("room");
        drop(index);
        let index = folder.reopen().expect("an index");
        assert_holds(&index, &entries(0..written));
        assert_holds(&index, &entries(300..400));
        if written >= 300 {
            return;
        }
    }
}

#[test]
fn invariant_1_a_write_that_fails_once_loses_nothing_that_was_acknowledged() {
    for calls in 0..60 {
        let folder = Folder::new(&format!("fail-{calls}"));
        let mut index = faulty(&folder, calls, true);
        for number in 0..300 {
            if index.put_many(&[entry(number)]).is_err() {
                index.put_many(&[entry(number)]).expect("room again");
            }
        }
        assert_holds(&index, &entries(0..300));
        drop(index);
        assert_holds(&folder.reopen().expect("an index"), &entries(0..300));
    }
}

#[test]
fn invariant_2_a_damaged_page_is_an_error_and_no_answer() {
    let folder = Folder::new("damage");
    let mut index = folder.create();
    index.put_many(&entries(0..3)).expect("room");
    index.close(Some(End::default())).expect("room");
    let file = open_file(&folder.path()).expect("the file");
    FileExt::write_all_at(&file, b"x", PAGE_BYTES as u64 + 20).expect("room");
    let index = folder.reopen().expect("an index");
    let found = index.get(&entry(1).object_id);
    assert!(matches!(found, Err(IndexError::Damaged(reason)) if reason.contains("page 1")));
    assert_eq!(index.damaged_pages().expect("a disk"), [1]);
    fs::remove_file(index.directory_path()).expect("the directory");
    assert!(matches!(folder.reopen(), Err(IndexError::Lost(_))));
}

#[test]
fn invariant_3_the_first_change_takes_cleanness_back() {
    let folder = Folder::new("clean");
    folder.create().close(Some(End::default())).expect("room");
    let other_boot = || {
        let file = open_file(&folder.path()).expect("the file");
        ObjectIndex::open(file, folder.path(), BOOT + 1)
    };
    let mut index = other_boot().expect("it is clean");
    index.add(&[]).expect("room");
    drop(index);
    assert!(matches!(folder.reopen(), Err(IndexError::Lost(_))));
    assert_eq!(other_boot().expect("of that boot").end(), None);
}

#[test]
fn invariant_4_a_page_that_went_from_memory_is_read_again() {
    let mut view = View::default();
    for number in 0..CACHED_PAGES as u32 + 2 {
        view.keep(number, Page::of(0, 0, &[entry(number)]));
        view.keep(number, Page::of(0, 0, &[entry(number)]));
    }
    assert_eq!(view.pages.len(), CACHED_PAGES);
    assert!(!view.pages.contains_key(&1) && view.pages.contains_key(&2));
}

#[test]
fn invariant_5_an_entry_that_waits_is_newer_than_any_in_a_page() {
    let folder = Folder::new("waits");
    let mut index = folder.create();
    index.put_many(&[entry(1)]).expect("room");
    let moved = Entry {
        place: Place {
            segment: 2,
            offset: 9,
        },
        ..entry(1)
    };
    index.add(&[moved]).expect("room");
    assert_holds(&index, &[moved]);
    assert_eq!(index.reader().peek(&moved.object_id), Some(moved));
    assert_eq!(index.entries_in(1).expect("a whole index"), [moved]);
    index.flush().expect("room");
    assert!(index.reader().waiting().is_empty());
    drop(index);
    assert_holds(&folder.reopen().expect("an index"), &[moved]);
}

#[test]
fn what_waits_is_bounded_and_the_pages_have_all_before_the_place_that_is_covered() {
    let folder = Folder::new("covered");
    let mut index = folder.create();
    for number in 0..6_000 {
        index.add(&[entry(number)]).expect("room");
        assert!(index.memory.read().waiting.len() <= WAITING_ENTRIES);
    }
    assert_holds(&index, &entries(0..6_000));
    drop(index);
    let index = folder.reopen().expect("an index");
    assert!(index.covered().offset > 0);
    assert_holds(&index, &entries(0..index.covered().offset));
}

const DATA: &[u8] = b"some bytes";

fn append(index: &mut ObjectIndex<File>, log: &impl IndexFile, ids: &[u8]) -> Result<bool> {
    let object = |id: &u8| NewObject {
        object_id: [*id; 32],
        data: DATA,
    };
    let objects: Vec<_> = ids.iter().map(object).collect();
    index.append_new(log, 1, 64, &objects, 5)
}

#[test]
fn objects_that_are_new_are_appended_and_entered_in_their_order() {
    let folder = Folder::new("append");
    let (mut index, log) = (folder.create(), folder.segment());
    assert!(append(&mut index, &log, &[1, 2]).expect("room"));
    let length = record_bytes(DATA.len());
    let mut records = vec![0; 64 + 2 * length];
    assert_eq!(
        IndexFile::read_at(&log, &mut records, 0).expect("a disk"),
        records.len()
    );
    for (id, record) in [1, 2].into_iter().zip(records[64..].chunks(length)) {
        let found = index.get(&[id; 32]).expect("a whole index").expect("it");
        assert_eq!(found.size as usize, DATA.len());
        assert_eq!(
            found.place.offset as usize * UNIT_BYTES,
            64 + (usize::from(id) - 1) * length
        );
        let object = &record[..crate::segment_record::HEADER_BYTES + DATA.len()];
        let bytes = crate::segment_record::sealed_bytes(object, &[id; 32]);
        assert_eq!(bytes, Some(DATA));
    }
}

#[test]
fn objects_of_which_one_is_there_or_twice_or_large_are_not_appended() {
    let folder = Folder::new("unusual");
    let (mut index, log) = (folder.create(), folder.segment());
    assert!(append(&mut index, &log, &[1]).expect("room"));
    let before = log.size().expect("a disk");
    assert!(!append(&mut index, &log, &[2, 1]).expect("room"));
    assert!(!append(&mut index, &log, &[3, 4, 3]).expect("room"));
    let large = NewObject {
        object_id: [5; 32],
        data: &vec![0; LARGEST_APPENDED + 1],
    };
    assert!(!index.append_new(&log, 1, 64, &[large], 5).expect("room"));
    assert_eq!(log.size().expect("a disk"), before);
    assert_eq!(index.reader().waiting().len(), 1);
}

#[test]
fn objects_whose_records_could_not_be_written_are_not_entered() {
    let folder = Folder::new("full");
    let mut index = folder.create();
    let log = Faulty {
        file: folder.segment(),
        calls_left: Cell::new(Some(0)),
        heals: true,
    };
    assert!(matches!(
        append(&mut index, &log, &[1]),
        Err(IndexError::Io(_))
    ));
    assert_eq!(index.get(&[1; 32]).expect("a whole index"), None);
    assert!(append(&mut index, &log, &[1]).expect("room again"));
}

#[test]
fn a_directory_counts_only_with_its_own_pages() {
    let numbers: Vec<u8> = [1_u32, 2].into_iter().flat_map(u32::to_le_bytes).collect();
    let sealed = |numbers: &[u8]| {
        let checksum = xxh3_64_with_seed(numbers, directory_seed(9, 3));
        [&checksum.to_le_bytes()[..], numbers].concat()
    };
    assert_eq!(directory_of(&sealed(&numbers), 9, 3), Some(vec![1, 2]));
    assert_eq!(directory_of(&sealed(&numbers), 9, 4), None);
    assert_eq!(directory_of(&sealed(&numbers[..7]), 9, 3), None);
    assert_eq!(directory_of(&sealed(&[0; 4]), 9, 3), None);
    assert_eq!(directory_of(&sealed(&[3, 0, 0, 0]), 9, 3), None);
    assert_eq!(directory_of(b"short", 9, 3), None);
}

#[test]
fn pages_are_an_index_only_if_they_share_all_hashes() {
    let found = |pages: &[(u8, u32)]| {
        let numbered = pages.iter().copied().zip(1..);
        pages_of(&numbered.collect())
    };
    assert_eq!(found(&[(0, 0)]), Ok(vec![1]));
    assert_eq!(found(&[(1, 0), (2, 3), (2, 2)]), Ok(vec![1, 1, 3, 2]));
    assert!(found(&[]).is_err());
    assert!(found(&[(1, 0)]).is_err());
    assert!(found(&[(MAX_DEPTH, 0)]).is_err());
    assert!(found(&[(1, 0), (2, 0), (2, 1)]).is_err());
}
