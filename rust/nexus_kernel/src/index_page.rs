//! A page of the object index: its bytes, and what they can say.
//!
//! Knows neither files nor which page an entry belongs in; [`crate::object_index`] does. Format:
//! docs/formats.md.

use crate::xxh3::xxh3_64_with_seed;

use crate::segment_record::ObjectId;

/// How long a page is, and the header of the file.
pub const PAGE_BYTES: usize = 4096;

/// How many leading bits of a hash a page can be named by.
pub const MAX_DEPTH: u8 = 28;

/// How many entries a page has room for.
pub const PAGE_ENTRIES: usize = (PAGE_BYTES - HEADER_BYTES) / ENTRY_BYTES;

const HEADER_BYTES: usize = 16; // checksum, prefix u32, depth u8, 0, entries u16
const PREFIX_AT: usize = 8;
const DEPTH_AT: usize = 12;
const COUNT_AT: usize = 14;
const ENTRY_BYTES: usize = 56; // id, segment u32, offset u32, size u32, aside u32, at_ns u64
const ID_BYTES: usize = 32;

/// Where a record starts. Later records are at greater places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The number of the segment.
    pub segment: u32,
    /// In the segment, in units of 8 bytes.
    pub offset: u32,
}

/// Where an object lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which object.
    pub object_id: ObjectId,
    /// Where its record starts.
    pub place: Place,
    /// How many bytes it has.
    pub size: u32,
    /// 1 for an object that the collector has set aside, else 0.
    pub aside: u32,
    /// When it was stored or set aside.
    pub at_ns: u64,
}

/// The bytes of a page, sealed or about to be.
#[derive(Clone, PartialEq, Eq)]
pub struct Page(Box<[u8; PAGE_BYTES]>);

impl Page {
    /// A page of entries as they are stored, not sealed yet.
    pub fn of(prefix: u32, depth: u8, entries: &[Entry]) -> Self {
        let mut page = Self(Box::new([0; PAGE_BYTES]));
        page.0[PREFIX_AT..DEPTH_AT].copy_from_slice(&prefix.to_le_bytes());
        page.0[DEPTH_AT] = depth;
        for (index, entry) in entries.iter().enumerate() {
            page.put_at(index, entry);
        }
        page.set_count(entries.len());
        page
    }

    /// The page that bytes of the file are, if they are one of that number.
    pub fn sealed(number: u32, bytes: Box<[u8; PAGE_BYTES]>) -> Option<Self> {
        let page = Self(bytes);
        let stored = u64::from_le_bytes(page.array(0));
        (stored == page.checksum(number) && page.is_possible()).then_some(page)
    }

    /// Put the checksum in its place, and give the bytes for the file.
    pub fn seal(&mut self, number: u32) -> &[u8; PAGE_BYTES] {
        let checksum = self.checksum(number).to_le_bytes();
        self.0[..PREFIX_AT].copy_from_slice(&checksum);
        &self.0
    }

    /// The leading bits that the hashes of its entries have.
    pub fn prefix(&self) -> u32 {
        u32::from_le_bytes(self.array(PREFIX_AT))
    }

    /// How many leading bits those are.
    pub fn depth(&self) -> u8 {
        self.0[DEPTH_AT]
    }

    /// The entries, in the order of the page.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..self.count()).map(|index| self.entry(index))
    }

    /// The entry of an object.
    pub fn get(&self, object_id: &ObjectId) -> Option<Entry> {
        self.find(object_id).map(|index| self.entry(index))
    }

    /// Put an entry in place of any other of its object; false where the page is full.
    pub fn set(&mut self, entry: &Entry) -> bool {
        if let Some(index) = self.find(&entry.object_id) {
            self.put_at(index, entry);
            return true;
        }
        let count = self.count();
        if count == PAGE_ENTRIES {
            return false;
        }
        self.put_at(count, entry);
        self.set_count(count + 1);
        true
    }

    /// Take an object's entry out; the last one takes its place.
    pub fn remove(&mut self, object_id: &ObjectId) {
        let Some(index) = self.find(object_id) else {
            return;
        };
        let last = start_of(self.count() - 1);
        self.0
            .copy_within(last..last + ENTRY_BYTES, start_of(index));
        self.0[last..last + ENTRY_BYTES].fill(0);
        self.set_count(self.count() - 1);
    }

    fn find(&self, object_id: &ObjectId) -> Option<usize> {
        (0..self.count()).find(|&index| {
            let start = start_of(index);
            self.0[start..start + ID_BYTES] == object_id[..]
        })
    }

    fn entry(&self, index: usize) -> Entry {
        let start = start_of(index);
        let number = |at: usize| u32::from_le_bytes(self.array(start + ID_BYTES + at));
        Entry {
            object_id: self.array(start),
            place: Place {
                segment: number(0),
                offset: number(4),
            },
            size: number(8),
            aside: number(12),
            at_ns: u64::from_le_bytes(self.array(start + ID_BYTES + 16)),
        }
    }

    fn put_at(&mut self, index: usize, entry: &Entry) {
        let bytes = &mut self.0[start_of(index)..][..ENTRY_BYTES];
        bytes[..ID_BYTES].copy_from_slice(&entry.object_id);
        let numbers = [
            entry.place.segment,
            entry.place.offset,
            entry.size,
            entry.aside,
        ];
        for (stored, number) in bytes[ID_BYTES..].chunks_exact_mut(4).zip(numbers) {
            stored.copy_from_slice(&number.to_le_bytes());
        }
        bytes[ID_BYTES + 16..].copy_from_slice(&entry.at_ns.to_le_bytes());
    }

    fn count(&self) -> usize {
        usize::from(u16::from_le_bytes(self.array(COUNT_AT)))
    }

    fn set_count(&mut self, count: usize) {
        // No more than fit into a page, so both bytes hold it.
        self.0[COUNT_AT..HEADER_BYTES].copy_from_slice(&(count as u16).to_le_bytes());
    }

    fn is_possible(&self) -> bool {
        let depth = self.depth();
        depth <= MAX_DEPTH && self.prefix() >> depth == 0 && self.count() <= PAGE_ENTRIES
    }

    fn checksum(&self, number: u32) -> u64 {
        xxh3_64_with_seed(&self.0[PREFIX_AT..], number.into())
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut found = [0; N];
        found.copy_from_slice(&self.0[at..at + N]);
        found
    }
}

fn start_of(index: usize) -> usize {
    HEADER_BYTES + index * ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u8) -> Entry {
        Entry {
            object_id: [number; 32],
            place: Place {
                segment: 1,
                offset: number.into(),
            },
            size: 5,
            aside: 0,
            at_ns: 1 << 40,
        }
    }

    fn stored(page: &mut Page, number: u32) -> Box<[u8; PAGE_BYTES]> {
        Box::new(*page.seal(number))
    }

    #[test]
    fn a_page_gives_the_entries_it_was_made_of() {
        let entries = [entry(1), entry(2), entry(3)];
        let mut page = Page::of(5, 3, &entries);
        let bytes = stored(&mut page, 9);
        let read = Page::sealed(9, bytes).expect("it is sealed");
        assert_eq!((read.prefix(), read.depth()), (5, 3));
        assert_eq!(read.entries().collect::<Vec<_>>(), entries);
        assert_eq!(read.get(&[2; 32]), Some(entry(2)));
        assert_eq!(read.get(&[4; 32]), None);
    }

    #[test]
    fn a_page_is_no_other_number_and_no_flipped_bit_passes() {
        let mut page = Page::of(0, 0, &[entry(1)]);
        let bytes = stored(&mut page, 1);
        assert!(Page::sealed(2, bytes.clone()).is_none());
        for bit in 0..80 * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Page::sealed(1, damaged).is_none());
        }
    }

    #[test]
    fn a_sealed_page_that_no_index_has_is_none() {
        for (prefix, depth) in [(0, MAX_DEPTH + 1), (0, 255), (2, 1)] {
            let bytes = stored(&mut Page::of(prefix, depth, &[]), 1);
            assert!(Page::sealed(1, bytes).is_none());
        }
        let mut page = Page::of(0, 0, &[]);
        page.set_count(PAGE_ENTRIES + 1);
        assert!(Page::sealed(1, stored(&mut page, 1)).is_none());
    }

    #[test]
    fn a_full_page_takes_changes_and_nothing_new() {
        let mut page = Page::of(0, 0, &[]);
        for number in 0..PAGE_ENTRIES as u8 {
            assert!(page.set(&entry(number)));
        }
        assert!(!page.set(&entry(200)));
        let changed = Entry {
            aside: 1,
            ..entry(3)
        };
        assert!(page.set(&changed));
        assert_eq!(page.get(&[3; 32]), Some(changed));
    }

    #[test]
    fn what_is_removed_leaves_no_trace_and_the_others_stay() {
        let mut page = Page::of(0, 0, &[entry(1), entry(2), entry(3)]);
        page.remove(&[1; 32]);
        page.remove(&[9; 32]);
        assert!(page == Page::of(0, 0, &[entry(3), entry(2)]));
    }
}
