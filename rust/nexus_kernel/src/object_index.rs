//! Where in the segments an object lies, in one file of hashed pages. Twin:
//! `nexus.storage.object_store.object_index`, which has the format and the invariants.
//!
//! Locks: none; the owner takes turns.

use std::collections::hash_map::{self, RandomState};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions, rename};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::segment_record::{ObjectId, fill_record, record_bytes};
use crate::waiting_entries::WaitingEntries;

/// How long a page is.
pub const PAGE_BYTES: usize = 4096;

const MAGIC: &[u8; 4] = b"NXOI";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 48;
const CHECKSUM_BYTES: usize = 8;
const PAGE_HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 56;
const PAGE_ENTRIES: usize = (PAGE_BYTES - PAGE_HEADER_BYTES) / ENTRY_BYTES;
const MAX_DEPTH: u8 = 28;
const HASH_BITS: u32 = 64;
const NO_BOOT: u64 = 0;
const CACHED_PAGES: usize = 4096;
const DIRTY_PAGES: usize = 256;
const WAITING_ENTRIES: usize = 4096;
const WAITING_BYTES: u64 = 32 << 20;

/// Where an object lies: twin of `nexus.storage.object_store.entry.Entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The object.
    pub object_id: ObjectId,
    /// The number of the segment.
    pub segment: u32,
    /// In the segment, in units of 8 bytes.
    pub offset: u32,
    /// How many bytes the object has.
    pub size: u32,
    /// 1 for an object that the collector has set aside, else 0.
    pub aside: u32,
    /// When it was stored or set aside.
    pub at_ns: u64,
}

/// A segment, and an offset in it, in units of 8 bytes.
pub type Place = (u32, u32);

/// A segment, and an offset in it, in bytes.
pub type End = (u32, u64);

/// Why an index does not answer.
#[derive(Debug)]
pub enum IndexError {
    /// The disk fails.
    Io(io::Error),
    /// What is stored is not what an index has.
    Damaged(String),
    /// There is no index to go on with: it has to be made anew.
    Lost(String),
}

impl From<io::Error> for IndexError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

type Page = [u8; PAGE_BYTES];
type Outcome<T> = Result<T, IndexError>;

impl Entry {
    fn place(&self) -> Place {
        (self.segment, self.offset)
    }

    fn packed(&self) -> [u8; ENTRY_BYTES] {
        let mut packed = [0; ENTRY_BYTES];
        packed[..32].copy_from_slice(&self.object_id);
        let numbers = [self.segment, self.offset, self.size, self.aside];
        packed[32..48].copy_from_slice(numbers.map(u32::to_le_bytes).as_flattened());
        packed[48..].copy_from_slice(&self.at_ns.to_le_bytes());
        packed
    }

    fn unpacked(packed: &[u8]) -> Self {
        let mut object_id = [0; 32];
        object_id.copy_from_slice(&packed[..32]);
        Self {
            object_id,
            segment: u32_at(packed, 32),
            offset: u32_at(packed, 36),
            size: u32_at(packed, 40),
            aside: u32_at(packed, 44),
            at_ns: u64_at(packed, 48),
        }
    }
}

/// What the header of the file says.
struct Header {
    seed: u64,
    boot: u64,
    end: Option<End>,
    covered: Place,
}

impl Header {
    fn packed(&self) -> Page {
        let (segment, offset) = self.end.unwrap_or_default();
        let mut page = [0; PAGE_BYTES];
        page[..4].copy_from_slice(MAGIC);
        page[4..8].copy_from_slice(&VERSION.to_le_bytes());
        page[8..16].copy_from_slice(&self.seed.to_le_bytes());
        page[16..24].copy_from_slice(&self.boot.to_le_bytes());
        page[24..28].copy_from_slice(&u32::from(self.end.is_some()).to_le_bytes());
        page[28..32].copy_from_slice(&segment.to_le_bytes());
        page[32..40].copy_from_slice(&offset.to_le_bytes());
        page[40..44].copy_from_slice(&self.covered.0.to_le_bytes());
        page[44..48].copy_from_slice(&self.covered.1.to_le_bytes());
        let checksum = xxh3_64(&page[..HEADER_BYTES]);
        page[HEADER_BYTES..HEADER_BYTES + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    fn unpacked(page: &[u8]) -> Outcome<Self> {
        let lost = |reason: &str| IndexError::Lost(reason.to_owned());
        let is_whole = page.len() == PAGE_BYTES
            && u64_at(page, HEADER_BYTES) == xxh3_64(&page[..HEADER_BYTES])
            && page[HEADER_BYTES + CHECKSUM_BYTES..]
                .iter()
                .all(|b| *b == 0);
        if !is_whole {
            return Err(lost("the header of the index is damaged"));
        }
        if !page.starts_with(MAGIC) || u32_at(page, 4) != VERSION {
            return Err(lost("the index has another format"));
        }
        let end = (u32_at(page, 28), u64_at(page, 32));
        Ok(Self {
            seed: u64_at(page, 8),
            boot: u64_at(page, 16),
            end: (u32_at(page, 24) != 0).then_some(end),
            covered: (u32_at(page, 40), u32_at(page, 44)),
        })
    }
}

/// The directory, and how far a hash is shifted to give its place there.
struct Map {
    pages: Vec<u32>,
    shift: u32,
}

impl Map {
    /// Of a number of pages that is a power of two.
    fn of(pages: Vec<u32>) -> Self {
        let shift = HASH_BITS - pages.len().ilog2();
        Self { pages, shift }
    }

    fn page(&self, hashed: u64) -> u32 {
        let place = hashed.checked_shr(self.shift).unwrap_or(0);
        self.pages[usize::try_from(place).unwrap_or(0)]
    }

    /// Have the second half of a page's hashes lead to another page.
    fn split(&mut self, prefix: u32, depth: u8, moved: u32) {
        let depth = u32::from(depth);
        if depth == HASH_BITS - self.shift {
            self.pages = self.pages.iter().flat_map(|page| [*page; 2]).collect();
            self.shift -= 1;
        }
        let width = 1_usize << (HASH_BITS - self.shift - depth - 1);
        let first = (prefix as usize * 2 + 1) * width;
        self.pages[first..first + width].fill(moved);
    }
}

/// Pages in memory; the oldest are forgotten first.
#[derive(Default)]
struct PageCache {
    pages: HashMap<u32, Arc<Page>>,
    order: VecDeque<u32>,
}

impl PageCache {
    fn keep(&mut self, number: u32, page: Arc<Page>) {
        if self.pages.insert(number, page).is_none() {
            self.order.push_back(number);
            if self.order.len() > CACHED_PAGES
                && let Some(oldest) = self.order.pop_front()
            {
                self.pages.remove(&oldest);
            }
        }
    }
}

/// An open index file.
pub struct ObjectIndex {
    path: PathBuf,
    file: File,
    boot: u64,
    seed: u64,
    cache: PageCache,
    waiting: WaitingEntries,
    map: Map,
    page_count: u32,
    end: Option<End>,
    covered: Place,
}

impl ObjectIndex {
    /// Write an empty index to a path, in place of what is there.
    pub fn write_empty(path: &Path) -> io::Result<()> {
        let file = options().create(true).truncate(true).open(path)?;
        let header = Header {
            seed: RandomState::new().build_hasher().finish(),
            boot: NO_BOOT,
            end: Some((0, 0)), // clean for the moment in which it holds nothing
            covered: (0, 0),
        };
        let page = sealed(1, build_page(0, 0, &[]));
        file.write_all_at(&[header.packed(), page].concat(), 0)
    }

    /// Open an index within the boot of a number.
    pub fn open(path: &Path, boot: u64) -> Outcome<Self> {
        let file = match options().open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IndexError::Lost("there is no index".to_owned()));
            }
            Err(error) => return Err(error.into()),
        };
        let header = Header::unpacked(&read_up_to(&file, PAGE_BYTES, 0)?)?;
        if header.end.is_none() && (header.boot == NO_BOOT || header.boot != boot) {
            let reason = "the machine went down while the index was in use";
            return Err(IndexError::Lost(reason.to_owned()));
        }
        let page_count = file.metadata()?.len() / PAGE_BYTES as u64;
        let mut index = Self {
            path: path.to_owned(),
            file,
            boot,
            seed: header.seed,
            cache: PageCache::default(),
            waiting: WaitingEntries::default(),
            map: Map::of(vec![0]),
            page_count: u32::try_from(page_count).map_err(io::Error::other)?,
            end: header.end,
            covered: header.covered,
        };
        let stored = match index.end {
            Some(_) => index.load_map()?,
            None => None,
        };
        let pages = match stored {
            Some(pages) => pages,
            None => index.map_from_pages()?,
        };
        index.map = Map::of(pages);
        Ok(index)
    }

    /// Flush, and take the place of what is at a path.
    pub fn put_in_place(&mut self, path: &Path) -> Outcome<()> {
        self.flush()?;
        self.soil()?;
        rename(&self.path, path)?;
        path.clone_into(&mut self.path);
        Ok(())
    }

    // Looking up

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entry of an object, if it is known from memory.
    pub fn peek(&self, object_id: &ObjectId) -> Option<Entry> {
        if let Some(entry) = self.waiting.get(object_id) {
            return Some(*entry);
        }
        let page = self.cache.pages.get(&self.map.page(self.hash(object_id)))?;
        let position = find(&page[..], object_id)?;
        Some(Entry::unpacked(&page[position..position + ENTRY_BYTES]))
    }

    /// The entry of an object.
    pub fn get(&mut self, object_id: &ObjectId) -> Outcome<Option<Entry>> {
        if let Some(entry) = self.waiting.get(object_id) {
            return Ok(Some(*entry));
        }
        let page = self.page(self.map.page(self.hash(object_id)))?;
        let found = find(&page[..], object_id);
        Ok(found.map(|position| Entry::unpacked(&page[position..position + ENTRY_BYTES])))
    }

    /// How many pages there are, the header's with them.
    pub fn page_count(&self) -> u32 {
        self.page_count
    }

    /// The entries of a page, with those that wait in the place of older ones.
    pub fn entries_in(&self, number: u32) -> Outcome<Vec<Entry>> {
        let page = match self.cache.pages.get(&number) {
            Some(page) => page.clone(),
            None => Arc::new(self.read_page(number)?),
        };
        let newer = |entry: Entry| *self.waiting.get(&entry.object_id).unwrap_or(&entry);
        Ok(entries(&page[..]).map(newer).collect())
    }

    /// The entries that are in no page yet.
    pub fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.waiting.values()
    }

    /// The numbers of the pages that are damaged in the file.
    pub fn damaged_pages(&self) -> Outcome<Vec<u32>> {
        let mut found = Vec::new();
        for number in 1..self.page_count {
            match self.read_page(number) {
                Ok(_) => {}
                Err(IndexError::Damaged(_)) => found.push(number),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Where the last segment ends, as a clean close left it.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The pages have the entry of every record before this place.
    pub fn covered(&self) -> Place {
        self.covered
    }

    // Changing

    /// Enter records that were just appended, in the order of the log.
    pub fn add(&mut self, added: &[Entry]) -> Outcome<()> {
        self.prepare(added.len())?;
        self.enter(added);
        Ok(())
    }

    /// Do all of entering so many records that can fail.
    pub fn prepare(&mut self, count: usize) -> Outcome<()> {
        self.soil()?;
        self.make_room(count)
    }

    /// Enter records for which there is room.
    pub fn enter(&mut self, added: &[Entry]) {
        for entry in added {
            self.waiting.add(*entry, self.hash(&entry.object_id));
        }
    }

    fn make_room(&mut self, needed: usize) -> Outcome<()> {
        while let Some(oldest) = self.waiting.oldest() {
            let is_full = self.waiting.len() + needed > WAITING_ENTRIES;
            if !is_full && self.waiting.size_bytes() <= WAITING_BYTES {
                break;
            }
            let hashed = self.hash(&oldest.object_id);
            let group = self.waiting.group(hashed);
            self.put_in_pages(&group)?;
            self.waiting.discard_group(hashed);
            self.cover(&group)?;
        }
        Ok(())
    }

    /// Note in the file from where on the log has entries that no page has.
    fn cover(&mut self, written: &[Entry]) -> Outcome<()> {
        let last = written.iter().map(Entry::place).max();
        let oldest = self.waiting.oldest().map(|entry| entry.place());
        self.covered = oldest.or(last).unwrap_or(self.covered);
        self.write_header(None)
    }

    /// Write the entries that wait to their pages.
    pub fn flush(&mut self) -> Outcome<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.soil()?;
        let written: Vec<Entry> = self.waiting.values().copied().collect();
        self.put_in_pages(&written)?;
        self.waiting = WaitingEntries::default();
        self.cover(&written)
    }

    /// Change entries; they are in the file when this returns.
    pub fn put_many(&mut self, changed: &[Entry]) -> Outcome<()> {
        self.soil()?;
        self.put_in_pages(changed)?;
        for entry in changed {
            let hashed = self.hash(&entry.object_id);
            self.waiting.discard(&entry.object_id, hashed);
        }
        Ok(())
    }

    fn put_in_pages(&mut self, changed: &[Entry]) -> Outcome<()> {
        let mut dirty: HashMap<u32, Page> = HashMap::new();
        for entry in changed {
            let hashed = self.hash(&entry.object_id);
            loop {
                let number = self.map.page(hashed);
                if set(self.changing(number, &mut dirty)?, entry) {
                    break;
                }
                if let Some(page) = dirty.remove(&number) {
                    self.write_page(number, page)?; // the split starts from the file
                }
                self.split(number)?;
            }
            if dirty.len() > DIRTY_PAGES {
                self.write_pages(&mut dirty)?;
            }
        }
        self.write_pages(&mut dirty)
    }

    /// Remove entries; an absent one is no error.
    pub fn remove_many(&mut self, object_ids: &[ObjectId]) -> Outcome<()> {
        self.soil()?;
        let mut dirty: HashMap<u32, Page> = HashMap::new();
        for object_id in object_ids {
            let hashed = self.hash(object_id);
            self.waiting.discard(object_id, hashed);
            let page = self.changing(self.map.page(hashed), &mut dirty)?;
            if let Some(position) = find(page, object_id) {
                let left = count(page) - 1;
                let last = PAGE_HEADER_BYTES + left * ENTRY_BYTES;
                page.copy_within(last..last + ENTRY_BYTES, position);
                page[last..last + ENTRY_BYTES].fill(0);
                set_count(page, left);
            }
            if dirty.len() > DIRTY_PAGES {
                self.write_pages(&mut dirty)?;
            }
        }
        self.write_pages(&mut dirty)
    }

    /// Move the entries with the next bit set to a new page at the end of the file.
    fn split(&mut self, number: u32) -> Outcome<()> {
        let page = self.page(number)?;
        let (prefix, depth) = (u32_at(&page[..], 8), page[12]);
        if depth == MAX_DEPTH {
            return Err(self.damaged("too many objects meet in one page"));
        }
        let (stay, moving) = self.halves(&page);
        let moved = self.page_count;
        let written = self.write_page(moved, moving);
        if let Err(error) = written.and_then(|()| self.write_page(number, stay)) {
            // A page of the file that is not in the directory would count after a restart, without
            // what came into its range until then.
            self.cache.keep(number, page);
            self.file.set_len(u64::from(moved) * PAGE_BYTES as u64)?;
            return Err(error);
        }
        self.page_count = moved + 1;
        self.map.split(prefix, depth, moved);
        Ok(())
    }

    /// What a split leaves in a page, and what it moves out.
    fn halves(&self, page: &Page) -> (Page, Page) {
        let (prefix, depth) = (u32_at(&page[..], 8), page[12]);
        let shift = HASH_BITS - 1 - u32::from(depth);
        let is_moving = |entry: &Entry| self.hash(&entry.object_id) >> shift & 1 == 1;
        let (moving, staying): (Vec<Entry>, Vec<Entry>) = entries(&page[..]).partition(is_moving);
        (
            build_page(prefix << 1, depth + 1, &staying),
            build_page(prefix << 1 | 1, depth + 1, &moving),
        )
    }

    // Closing

    /// Say durably that the index is complete, if it is not said.
    pub fn finish(&mut self, end: End) -> Outcome<()> {
        if self.end == Some(end) {
            return Ok(());
        }
        self.flush()?;
        self.store_map()?;
        self.file.sync_all()?;
        self.write_header(Some(end))?;
        Ok(self.file.sync_all()?)
    }

    fn soil(&mut self) -> Outcome<()> {
        if self.end.is_some() {
            self.write_header(None)?;
            self.file.sync_data()?;
            self.end = None;
        }
        Ok(())
    }

    fn write_header(&self, end: Option<End>) -> Outcome<()> {
        let header = Header {
            seed: self.seed,
            boot: self.boot,
            end,
            covered: self.covered,
        };
        Ok(self.file.write_all_at(&header.packed(), 0)?)
    }

    // The file

    fn hash(&self, object_id: &ObjectId) -> u64 {
        xxh3_64_with_seed(object_id, self.seed)
    }

    fn damaged(&self, reason: &str) -> IndexError {
        IndexError::Damaged(reason.to_owned())
    }

    fn changing<'a>(
        &mut self,
        number: u32,
        dirty: &'a mut HashMap<u32, Page>,
    ) -> Outcome<&'a mut Page> {
        Ok(match dirty.entry(number) {
            hash_map::Entry::Occupied(page) => page.into_mut(),
            hash_map::Entry::Vacant(place) => place.insert(*self.page(number)?),
        })
    }

    fn page(&mut self, number: u32) -> Outcome<Arc<Page>> {
        if let Some(page) = self.cache.pages.get(&number) {
            return Ok(page.clone());
        }
        let page = Arc::new(self.read_page(number)?);
        self.cache.keep(number, page.clone());
        Ok(page)
    }

    fn write_pages(&mut self, dirty: &mut HashMap<u32, Page>) -> Outcome<()> {
        let mut numbers: Vec<u32> = dirty.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            if let Some(page) = dirty.remove(&number) {
                self.write_page(number, page)?;
            }
        }
        Ok(())
    }

    fn write_page(&mut self, number: u32, page: Page) -> Outcome<()> {
        let page = sealed(number, page);
        self.file.write_all_at(&page, page_offset(number))?;
        self.cache.keep(number, Arc::new(page));
        Ok(())
    }

    fn read_page(&self, number: u32) -> Outcome<Page> {
        let read = read_up_to(&self.file, PAGE_BYTES, page_offset(number))?;
        match Page::try_from(read) {
            Ok(page) if u64_at(&page, 0) == seal(number, &page) && is_possible(&page) => Ok(page),
            _ => Err(self.damaged(&format!("page {number} of the index is damaged"))),
        }
    }

    fn map_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".map");
        name.into()
    }

    /// The directory that a clean close stored; None where it is missing or damaged.
    fn load_map(&self) -> Outcome<Option<Vec<u32>>> {
        let stored = match std::fs::read(self.map_path()) {
            Ok(stored) => stored,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Some((checksum, pages)) = stored.split_at_checked(CHECKSUM_BYTES) else {
            return Ok(None);
        };
        if u64_at(checksum, 0) != self.map_checksum(pages) {
            return Ok(None);
        }
        let pages = (pages.len().is_power_of_two() && pages.len() >= 4)
            .then(|| pages.chunks_exact(4).map(|page| u32_at(page, 0)));
        let pages: Option<Vec<u32>> = pages.map(Iterator::collect);
        Ok(pages.filter(|pages| pages.iter().all(|page| (1..self.page_count).contains(page))))
    }

    fn store_map(&self) -> Outcome<()> {
        let pages: Vec<[u8; 4]> = self
            .map
            .pages
            .iter()
            .map(|page| page.to_le_bytes())
            .collect();
        let pages = pages.as_flattened();
        let mut stored = self.map_checksum(pages).to_le_bytes().to_vec();
        stored.extend(pages);
        let path = self.map_path();
        let file = options().create(true).truncate(true).open(path)?;
        file.write_all_at(&stored, 0)?;
        Ok(file.sync_all()?)
    }

    fn map_checksum(&self, pages: &[u8]) -> u64 {
        xxh3_64_with_seed(pages, self.seed ^ u64::from(self.page_count))
    }

    /// The directory that the pages' own headers give.
    fn map_from_pages(&mut self) -> Outcome<Vec<u32>> {
        let mut found: HashMap<(u8, u32), u32> = HashMap::new();
        for number in 1..self.page_count {
            let page = self.read_page(number).map_err(|error| match error {
                IndexError::Damaged(reason) => IndexError::Lost(reason),
                other => other,
            })?;
            found.insert((page[12], u32_at(&page, 8)), number);
        }
        self.finish_split(&mut found)?;
        let lost = |reason: &str| Err(IndexError::Lost(reason.to_owned()));
        let bits = found.keys().map(|(depth, _)| *depth).max().unwrap_or(0);
        // Before the directory is made: it is larger than the file where that holds no such pages.
        let covered: u64 = found.keys().map(|(depth, _)| 1_u64 << (bits - depth)).sum();
        if covered != 1 << bits {
            return lost("a page of the index is missing");
        }
        let mut pages = vec![0; 1 << bits];
        for (&(depth, prefix), &number) in &found {
            let width = 1_usize << (bits - depth);
            pages[prefix as usize * width..][..width].fill(number);
        }
        match pages.contains(&0) {
            true => lost("a page of the index is missing, and two are of the same hashes"),
            false => Ok(pages),
        }
    }

    /// Take out of the old page of a split what a kill left there though it has moved.
    fn finish_split(&mut self, found: &mut HashMap<(u8, u32), u32>) -> Outcome<()> {
        for ((depth, prefix), number) in found.clone() {
            if found.contains_key(&(depth + 1, prefix << 1 | 1)) {
                self.soil()?;
                let (stay, _) = self.halves(&self.read_page(number)?);
                self.write_page(number, stay)?;
                found.remove(&(depth, prefix));
                found.insert((depth + 1, prefix << 1), number);
            }
        }
        Ok(())
    }
}

/// Objects that are not stored yet, on their way to the end of a segment.
pub struct Appending {
    records: Vec<u8>,
    entries: Vec<Entry>,
}

impl Appending {
    /// The records, one after the other.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// What enters them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl ObjectIndex {
    /// Pack the records of objects for the place where a segment ends, ready to be entered.
    ///
    /// None where one of them is here already, comes twice, or the records would pass `limit`.
    pub fn append_new(
        &mut self,
        objects: &[(ObjectId, &[u8])],
        segment: u32,
        end: u64,
        limit: u64,
        at_ns: u64,
    ) -> Outcome<Option<Appending>> {
        let length: usize = objects
            .iter()
            .map(|(_, data)| record_bytes(data.len()))
            .sum();
        if end + length as u64 > limit {
            return Ok(None);
        }
        let mut appending = Appending {
            records: vec![0; length],
            entries: Vec::with_capacity(objects.len()),
        };
        let mut start = 0;
        let mut ids = HashSet::new();
        for &(object_id, data) in objects {
            let comes_twice = objects.len() > 1 && !ids.insert(object_id);
            if comes_twice || self.get(&object_id)?.is_some() {
                return Ok(None);
            }
            let record = &mut appending.records[start..start + record_bytes(data.len())];
            let (Ok(size), Ok(offset)) = (
                u32::try_from(data.len()),
                u32::try_from((end + start as u64) / 8),
            ) else {
                return Ok(None);
            };
            fill_record(record, &object_id, data, size, at_ns);
            start += record.len();
            appending.entries.push(Entry {
                object_id,
                segment,
                offset,
                size,
                aside: 0,
                at_ns,
            });
        }
        self.prepare(objects.len())?;
        Ok(Some(appending))
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn page_offset(number: u32) -> u64 {
    u64::from(number) * PAGE_BYTES as u64
}

/// Up to so many bytes, fewer only at the end of the file.
fn read_up_to(file: &File, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut got = 0;
    while got < length {
        match file.read_at(&mut bytes[got..], offset + got as u64) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(got);
    Ok(bytes)
}

fn seal(number: u32, page: &[u8]) -> u64 {
    xxh3_64_with_seed(&page[CHECKSUM_BYTES..], u64::from(number))
}

fn sealed(number: u32, mut page: Page) -> Page {
    let checksum = seal(number, &page);
    page[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    page
}

fn build_page(prefix: u32, depth: u8, entries: &[Entry]) -> Page {
    let mut page = [0; PAGE_BYTES];
    page[8..12].copy_from_slice(&prefix.to_le_bytes());
    page[12] = depth;
    set_count(&mut page, entries.len());
    for (entry, place) in entries
        .iter()
        .zip(page[PAGE_HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES))
    {
        place.copy_from_slice(&entry.packed());
    }
    page
}

fn entries(page: &[u8]) -> impl Iterator<Item = Entry> {
    let packed = page[PAGE_HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
    packed.take(count(page)).map(Entry::unpacked)
}

/// Where the entry of an object starts in a page.
fn find(page: &[u8], object_id: &ObjectId) -> Option<usize> {
    let mut packed = page[PAGE_HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
    let position = packed
        .by_ref()
        .take(count(page))
        .position(|entry| entry[..32] == object_id[..])?;
    Some(PAGE_HEADER_BYTES + position * ENTRY_BYTES)
}

/// Put an entry into a page; false where that is full.
fn set(page: &mut Page, entry: &Entry) -> bool {
    let position = match find(page, &entry.object_id) {
        Some(position) => position,
        None => {
            let there = count(page);
            if there == PAGE_ENTRIES {
                return false;
            }
            set_count(page, there + 1);
            PAGE_HEADER_BYTES + there * ENTRY_BYTES
        }
    };
    page[position..position + ENTRY_BYTES].copy_from_slice(&entry.packed());
    true
}

fn is_possible(page: &Page) -> bool {
    let (prefix, depth) = (u32_at(page, 8), page[12]);
    depth <= MAX_DEPTH && prefix >> depth == 0 && count(page) <= PAGE_ENTRIES
}

fn count(page: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([page[14], page[15]]))
}

fn set_count(page: &mut Page, count: usize) {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    page[14..16].copy_from_slice(&count.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
