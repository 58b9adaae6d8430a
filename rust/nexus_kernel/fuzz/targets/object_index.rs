//! `object_index` over sealed pages that hold anything: looked into, and then changed.
//!
//! What is found is of the object that was asked for, and a change that was answered is found; the
//! bytes of a stored directory give pages that there are.

#![no_main]

use std::cell::RefCell;
use std::io;

use libfuzzer_sys::fuzz_target;
use nexus_kernel::index_page::{Entry, PAGE_BYTES, Place};
use nexus_kernel::object_index::{IndexFile, ObjectIndex, directory_of};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const BOOT: u64 = 7;
const PIECE_BYTES: usize = 128;
const MOST_PAGES: usize = 8;
const MOST_CHANGES: usize = 200;

/// A file in memory.
struct Bytes(RefCell<Vec<u8>>);

impl IndexFile for Bytes {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let bytes = self.0.borrow();
        let rest = bytes.get(at as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_all_at(&self, written: &[u8], at: u64) -> io::Result<()> {
        let mut bytes = self.0.borrow_mut();
        let end = at as usize + written.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at as usize..end].copy_from_slice(written);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.borrow_mut().truncate(size as usize);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    check_directory(data);
    let file = Bytes(RefCell::new(pages(data)));
    let Ok(mut index) = ObjectIndex::open(file, "/dev/null/index".into(), BOOT) else {
        return;
    };
    index.damaged_pages().expect("memory never fails");
    for number in 1..index.reader().page_count() {
        for entry in index.entries_in(number).unwrap_or_default() {
            found(&index, &entry);
        }
    }
    for change in data.chunks_exact(8).take(MOST_CHANGES) {
        let mut object_id = [0; 32];
        object_id[..8].copy_from_slice(change);
        let entry = Entry {
            object_id,
            place: Place::default(),
            size: 1,
            aside: 0,
            at_ns: 0,
        };
        if index.put_many(&[entry]).is_ok() {
            assert_eq!(index.get(&object_id).ok(), Some(Some(entry)));
        }
    }
});

fn found(index: &ObjectIndex<Bytes>, entry: &Entry) {
    if let Ok(found) = index.get(&entry.object_id) {
        assert!(found.is_none_or(|found| found.object_id == entry.object_id));
        assert_eq!(index.reader().peek(&entry.object_id), found);
    }
}

/// A header that counts within this boot, and sealed pages.
fn pages(data: &[u8]) -> Vec<u8> {
    let mut pieces = data.chunks(PIECE_BYTES).take(MOST_PAGES);
    let mut header = pieces.next().unwrap_or_default().to_vec();
    header.resize(48, 0);
    header[..8].copy_from_slice(b"NXOI\x02\0\0\0");
    header[16..24].copy_from_slice(&BOOT.to_le_bytes());
    header[24..28].fill(0);
    header.extend(xxh3_64(&header).to_le_bytes());
    header.resize(PAGE_BYTES, 0);
    let mut bytes = header;
    for (piece, number) in pieces.zip(1..) {
        let mut page = piece.to_vec();
        page.resize(PAGE_BYTES, 0);
        let checksum = xxh3_64_with_seed(&page[8..], number);
        page[..8].copy_from_slice(&checksum.to_le_bytes());
        bytes.extend(page);
    }
    bytes
}

fn check_directory(data: &[u8]) {
    const SEED: u64 = 9;
    const PAGE_COUNT: u32 = 5;
    let checksum = xxh3_64_with_seed(data, SEED ^ u64::from(PAGE_COUNT)).to_le_bytes();
    for stored in [data, &[&checksum[..], data].concat()] {
        if let Some(pages) = directory_of(stored, SEED, PAGE_COUNT) {
            assert!(pages.len().is_power_of_two());
            assert!(pages.iter().all(|page| (1..PAGE_COUNT).contains(page)));
        }
    }
}
