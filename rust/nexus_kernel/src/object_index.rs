//! Where in the segments an object lies, in one file of hashed pages: twin of
//! `nexus.storage.object_store.object_index`, which has the reasons and the invariants.
//!
//! The owner of an [`ObjectIndex`] calls it from one thread at a time. What it knows in memory is in
//! a [`View`] that any thread looks into by a [`Reader`], never while a file is waited for: the
//! lock of the view is held for memory alone. A page is written before the view has it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::index_page::{Entry, MAX_DEPTH, PAGE_BYTES, Page, Place};
use crate::segment_record::{ObjectId, UNIT_BYTES, fill_record, record_bytes};
use crate::waiting_entries::WaitingEntries;

#[cfg(test)]
mod tests;

/// The largest object that is appended together with others.
pub const LARGEST_APPENDED: usize = 64 << 10;

/// The number of a boot that has no name: no two of them are known to be the same.
const NO_BOOT: u64 = 0;
const MAGIC: &[u8; 4] = b"NXOI";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 48;
const HASH_BITS: u32 = 64;
const CACHED_PAGES: usize = 4096;
const DIRTY_PAGES: usize = 256;
const WAITING_ENTRIES: usize = 4096;
const WAITING_BYTES: u64 = 32 << 20;

/// Where the last segment ends, as a clean close left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The number of the segment.
    pub segment: u32,
    /// In bytes.
    pub offset: u64,
}

/// Why a call of the index has no answer.
#[derive(Debug)]
pub enum IndexError {
    /// There is no index to go on with.
    Lost(String),
    /// A page is damaged.
    Damaged(String),
    /// The operating system refused.
    Io(io::Error),
}

impl From<io::Error> for IndexError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An answer of the index.
pub type Result<T> = std::result::Result<T, IndexError>;

/// An object on its way to a segment.
pub struct NewObject<'a> {
    /// Its id.
    pub object_id: ObjectId,
    /// Its bytes.
    pub data: &'a [u8],
}

/// The calls by which an index reaches its file, and the segment it appends to.
pub trait IndexFile {
    /// Fill a buffer from a place on, as far as the file goes; return how far.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Write every byte.
    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Have the bytes survive a power cut.
    fn sync_data(&self) -> io::Result<()>;
    /// How long the file is.
    fn size(&self) -> io::Result<u64>;
    /// Cut the file.
    fn truncate(&self, size: u64) -> io::Result<()>;
}

impl IndexFile for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut got = 0;
        while got < buffer.len() {
            match FileExt::read_at(self, &mut buffer[got..], at + got as u64) {
                Ok(0) => break,
                Ok(more) => got += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(got)
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, at)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }
}

/// What an index has in memory. A page in it is never changed, only replaced.
#[derive(Default)]
struct View {
    waiting: WaitingEntries,
    directory: Directory,
    pages: HashMap<u32, Page>,
    kept: VecDeque<u32>, // the keys of `pages`, the one to go next first
    page_count: u32,
}

/// What memory says of an object.
pub enum Known {
    /// It has this entry.
    Here(Entry),
    /// It has none.
    Nowhere,
    /// If it has one, that is in a page which is not in memory.
    InPage(u32),
}

impl View {
    fn known(&self, object_id: &ObjectId, hashed: u64) -> Known {
        if let Some(entry) = self.waiting.get(object_id) {
            return Known::Here(entry);
        }
        let number = self.directory.number_of(hashed);
        match self.pages.get(&number) {
            Some(page) => page.get(object_id).map_or(Known::Nowhere, Known::Here),
            None => Known::InPage(number),
        }
    }

    fn keep(&mut self, number: u32, page: Page) {
        if self.pages.insert(number, page).is_some() {
            return;
        }
        self.kept.push_back(number);
        if self.kept.len() > CACHED_PAGES
            && let Some(first) = self.kept.pop_front()
        {
            self.pages.remove(&first);
        }
    }
}

/// Which page has the hashes with some leading bits.
#[derive(Default)]
struct Directory {
    pages: Vec<u32>,
    bits: u32,
}

impl Directory {
    fn of(pages: Vec<u32>) -> Self {
        let bits = pages.len().ilog2();
        Self { pages, bits }
    }

    fn number_of(&self, hashed: u64) -> u32 {
        let place = hashed.checked_shr(HASH_BITS - self.bits).unwrap_or(0);
        self.pages[place as usize]
    }

    /// Have the second half of a page's hashes in another; false if they are not where it says.
    fn split(&mut self, prefix: u32, depth: u8, moved: u32) -> bool {
        let depth = u32::from(depth);
        if depth == self.bits {
            self.pages = self.pages.iter().flat_map(|&page| [page; 2]).collect();
            self.bits += 1;
        }
        let Some(shift) = self.bits.checked_sub(depth + 1) else {
            return false;
        };
        let first = (prefix as usize * 2 + 1) << shift;
        let Some(part) = self.pages.get_mut(first..first + (1 << shift)) else {
            return false;
        };
        part.fill(moved);
        true
    }
}

/// Looks into what an index has in memory. Shared by all threads.
#[derive(Clone)]
pub struct Reader {
    seed: u64,
    view: Arc<RwLock<View>>,
}

impl Reader {
    /// The entry of an object, if it is known from memory.
    pub fn peek(&self, object_id: &ObjectId) -> Option<Entry> {
        match self.known(object_id) {
            Known::Here(entry) => Some(entry),
            Known::Nowhere | Known::InPage(_) => None,
        }
    }

    /// How many pages there are, with the header.
    pub fn page_count(&self) -> u32 {
        self.read().page_count
    }

    /// The entries that are in no page yet, in the order of the log.
    pub fn waiting(&self) -> Vec<Entry> {
        self.read().waiting.iter().collect()
    }

    /// What memory says of an object.
    pub fn known(&self, object_id: &ObjectId) -> Known {
        self.read().known(object_id, self.hash(object_id))
    }

    fn hash(&self, object_id: &ObjectId) -> u64 {
        xxh3_64_with_seed(object_id, self.seed)
    }

    fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open index file. Belongs to one store, which takes turns on it.
pub struct ObjectIndex<F> {
    file: F,
    path: PathBuf,
    boot: u64,
    end: Option<End>,
    covered: Place,
    memory: Reader,
}

/// Open the file of an index.
pub fn open_file(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => IndexError::Lost("there is no index".to_owned()),
        _ => error.into(),
    })
}

/// Make the file of an empty index, clean for the moment, in place of any other.
pub fn create_file(path: &Path) -> io::Result<File> {
    let seed = RandomState::new().build_hasher().finish();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.mode(0o600).open(path)?;
    let header = header(seed, NO_BOOT, Some(End::default()), Place::default());
    let mut page = Page::of(0, 0, &[]);
    FileExt::write_all_at(&file, &[&header[..], page.seal(1)].concat(), 0)?;
    Ok(file)
}

impl<F: IndexFile> ObjectIndex<F> {
    /// Take an opened file for an index.
    pub fn open(file: F, path: PathBuf, boot: u64) -> Result<Self> {
        let mut bytes = [0; PAGE_BYTES];
        let read = file.read_at(&mut bytes, 0)?;
        let stored = Header::of(&bytes).filter(|_| read == PAGE_BYTES);
        let stored = stored.ok_or_else(|| lost("the header of the index is damaged"))?;
        if (&stored.magic, stored.version) != (MAGIC, VERSION) {
            return Err(lost("the index has another format"));
        }
        if stored.end.is_none() && (stored.boot == NO_BOOT || stored.boot != boot) {
            return Err(lost("the machine went down while the index was in use"));
        }
        let pages = file.size()? / PAGE_BYTES as u64;
        let page_count = u32::try_from(pages).map_err(|_| lost("the index is too long"))?;
        let view = View {
            page_count,
            ..View::default()
        };
        let mut index = Self {
            file,
            path,
            boot,
            end: stored.end,
            covered: stored.covered,
            memory: Reader {
                seed: stored.seed,
                view: Arc::new(RwLock::new(view)),
            },
        };
        let stored = match index.end {
            Some(_) => index.stored_directory()?,
            None => None,
        };
        let pages = match stored {
            Some(pages) => pages,
            None => index.directory_of_pages()?,
        };
        index.memory.write().directory = Directory::of(pages);
        Ok(index)
    }

    /// Looks into it for other threads.
    pub fn reader(&self) -> Reader {
        self.memory.clone()
    }

    /// Where the last segment ends; none unless the index was closed cleanly and is unchanged.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The pages have the entry of every record before it; of later ones the log tells.
    pub fn covered(&self) -> Place {
        self.covered
    }

    /// The path as it was given, or taken.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entry of an object.
    pub fn get(&self, object_id: &ObjectId) -> Result<Option<Entry>> {
        Ok(match self.memory.known(object_id) {
            Known::Here(entry) => Some(entry),
            Known::Nowhere => None,
            Known::InPage(number) => self.page(number)?.get(object_id),
        })
    }

    /// The entries of a page as they are now; see the twin.
    pub fn entries_in(&self, number: u32) -> Result<Vec<Entry>> {
        let page = self.memory.read().pages.get(&number).cloned();
        let page = page.map_or_else(|| self.read_page(number), Ok)?;
        let waiting = &self.memory.read().waiting;
        let newest = |entry: Entry| waiting.get(&entry.object_id).unwrap_or(entry);
        Ok(page.entries().map(newest).collect())
    }

    /// The numbers of the pages that are damaged in the file.
    pub fn damaged_pages(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for number in 1..self.memory.page_count() {
            match self.read_page(number) {
                Ok(_) => {}
                Err(IndexError::Io(error)) => return Err(error),
                Err(_) => found.push(number),
            }
        }
        Ok(found)
    }

    /// Enter records that were just appended, in the order of the log.
    pub fn add(&mut self, entries: &[Entry]) -> Result<()> {
        self.soil()?;
        self.make_room(entries.len())?; // first: what is not entered yet is not acknowledged either
        self.enter(entries);
        Ok(())
    }

    /// Append the records of objects to a segment, in one write, and enter them.
    ///
    /// False, with nothing written, unless each is small, and the only one of its id.
    pub fn append_new(
        &mut self,
        log: &impl IndexFile,
        segment: u32,
        start: u64,
        objects: &[NewObject<'_>],
        at_ns: u64,
    ) -> Result<bool> {
        if !self.are_new(objects)? {
            return Ok(false);
        }
        let Some((records, entries)) = packed(segment, start, objects, at_ns) else {
            return Ok(false);
        };
        self.soil()?;
        self.make_room(objects.len())?; // once the records are written, nothing fails any more
        log.write_all_at(&records, start)?;
        self.enter(&entries);
        Ok(true)
    }

    fn are_new(&self, objects: &[NewObject<'_>]) -> Result<bool> {
        for object in objects {
            if object.data.len() > LARGEST_APPENDED || self.get(&object.object_id)?.is_some() {
                return Ok(false);
            }
        }
        let mut ids: Vec<&ObjectId> = objects.iter().map(|object| &object.object_id).collect();
        ids.sort_unstable();
        Ok(ids.windows(2).all(|pair| pair[0] != pair[1]))
    }

    fn enter(&self, entries: &[Entry]) {
        let waiting = &mut self.memory.write().waiting;
        for entry in entries {
            waiting.add(entry, self.memory.hash(&entry.object_id));
        }
    }

    fn make_room(&mut self, needed: usize) -> Result<()> {
        while let Some(hashed) = self.group_to_write(needed) {
            let group = self.memory.read().waiting.group(hashed);
            self.put_in_pages(&group)?;
            self.memory.write().waiting.discard_group(hashed); // readers look here first
            self.cover(&group)?;
        }
        Ok(())
    }

    /// The hash of the oldest entry that waits, if there have come to be too many.
    fn group_to_write(&self, needed: usize) -> Option<u64> {
        let waiting = &self.memory.read().waiting;
        let full = waiting.len() + needed > WAITING_ENTRIES || waiting.size_bytes() > WAITING_BYTES;
        let oldest = waiting.oldest().filter(|_| full)?;
        Some(self.memory.hash(&oldest.object_id))
    }

    /// Note in the file from where on the log has entries that no page has.
    fn cover(&mut self, written: &[Entry]) -> Result<()> {
        let oldest = self.memory.read().waiting.oldest();
        let last = written.iter().map(|entry| entry.place).max();
        if let Some(place) = oldest.map(|entry| entry.place).or(last) {
            self.covered = place;
        }
        Ok(self.file.write_all_at(&self.header(None), 0)?)
    }

    /// Write the entries that wait to their pages.
    pub fn flush(&mut self) -> Result<()> {
        let entries = self.memory.waiting();
        if entries.is_empty() {
            return Ok(());
        }
        self.soil()?;
        self.put_in_pages(&entries)?;
        self.memory.write().waiting = WaitingEntries::default(); // readers look here first
        self.cover(&entries)
    }

    /// Change entries; they are in the file when this returns.
    pub fn put_many(&mut self, entries: &[Entry]) -> Result<()> {
        self.soil()?;
        self.put_in_pages(entries)?;
        let waiting = &mut self.memory.write().waiting;
        for entry in entries {
            waiting.discard(&entry.object_id, self.memory.hash(&entry.object_id));
        }
        Ok(())
    }

    /// Remove entries; an absent one is no error.
    pub fn remove_many(&mut self, object_ids: &[ObjectId]) -> Result<()> {
        self.soil()?;
        let mut dirty = BTreeMap::new();
        for object_id in object_ids {
            let hashed = self.memory.hash(object_id);
            self.memory.write().waiting.discard(object_id, hashed);
            self.changing(hashed, &mut dirty)?.1.remove(object_id);
            if dirty.len() > DIRTY_PAGES {
                self.write_pages(&mut dirty)?;
            }
        }
        self.write_pages(&mut dirty)
    }

    fn put_in_pages(&mut self, entries: &[Entry]) -> Result<()> {
        let mut dirty = BTreeMap::new();
        for entry in entries {
            let hashed = self.memory.hash(&entry.object_id);
            loop {
                let (number, page) = self.changing(hashed, &mut dirty)?;
                if page.set(entry) {
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

    /// The page of a hash among those that are being changed.
    fn changing<'a>(
        &self,
        hashed: u64,
        dirty: &'a mut BTreeMap<u32, Page>,
    ) -> Result<(u32, &'a mut Page)> {
        let number = self.memory.read().directory.number_of(hashed);
        let page = match dirty.entry(number) {
            std::collections::btree_map::Entry::Occupied(page) => page.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => place.insert(self.page(number)?),
        };
        Ok((number, page))
    }

    /// Move the entries with the next bit set to a new page at the end of the file.
    fn split(&mut self, number: u32) -> Result<()> {
        let page = self.page(number)?;
        let (prefix, depth) = (page.prefix(), page.depth());
        if depth == MAX_DEPTH {
            let reason = "too many objects meet in one page";
            return Err(IndexError::Damaged(reason.to_owned()));
        }
        let (stay, moving) = self.halves(&page);
        let moved = self.memory.page_count();
        let written = self
            .write_page(moved, moving)
            .and_then(|()| self.write_page(number, stay));
        if let Err(error) = written {
            // A page of the file that is not in the directory would count after a restart, without
            // what came into its range until then.
            self.memory.write().keep(number, page);
            self.file.truncate(start_of(moved))?;
            return Err(error);
        }
        let mut view = self.memory.write();
        view.page_count = moved + 1;
        match view.directory.split(prefix, depth, moved) {
            true => Ok(()),
            false => Err(damaged(number)),
        }
    }

    /// What a split leaves in a page, and what it moves out.
    fn halves(&self, page: &Page) -> (Page, Page) {
        let shift = HASH_BITS - 1 - u32::from(page.depth());
        let moves = |entry: &Entry| self.memory.hash(&entry.object_id) >> shift & 1 == 1;
        let (moving, staying): (Vec<_>, Vec<_>) = page.entries().partition(moves);
        let (prefix, depth) = (page.prefix() << 1, page.depth() + 1);
        let stay = Page::of(prefix, depth, &staying);
        (stay, Page::of(prefix | 1, depth, &moving))
    }

    /// Close; with `end`, say durably that the index is complete.
    pub fn close(mut self, end: Option<End>) -> Result<()> {
        if end.is_none() || self.end == end {
            return Ok(());
        }
        self.flush()?;
        self.store_directory()?;
        self.file.sync_data()?;
        self.file.write_all_at(&self.header(end), 0)?;
        Ok(self.file.sync_data()?)
    }

    /// Take the place of the index at another path, with all that was entered.
    pub fn take_place(&mut self, path: PathBuf) -> Result<()> {
        self.flush()?;
        self.soil()?;
        fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
    }

    fn soil(&mut self) -> Result<()> {
        if self.end.is_some() {
            self.file.write_all_at(&self.header(None), 0)?;
            self.file.sync_data()?;
            self.end = None;
        }
        Ok(())
    }

    fn header(&self, end: Option<End>) -> [u8; PAGE_BYTES] {
        header(self.memory.seed, self.boot, end, self.covered)
    }

    fn page(&self, number: u32) -> Result<Page> {
        if let Some(page) = self.memory.read().pages.get(&number) {
            return Ok(page.clone());
        }
        let page = self.read_page(number)?;
        self.memory.write().keep(number, page.clone());
        Ok(page)
    }

    fn read_page(&self, number: u32) -> Result<Page> {
        let mut bytes = Box::new([0; PAGE_BYTES]);
        let read = self.file.read_at(&mut bytes[..], start_of(number))?;
        let page = Page::sealed(number, bytes).filter(|_| read == PAGE_BYTES);
        page.ok_or_else(|| damaged(number))
    }

    fn write_pages(&mut self, dirty: &mut BTreeMap<u32, Page>) -> Result<()> {
        while let Some((number, page)) = dirty.pop_first() {
            self.write_page(number, page)?;
        }
        Ok(())
    }

    fn write_page(&mut self, number: u32, mut page: Page) -> Result<()> {
        self.file
            .write_all_at(page.seal(number), start_of(number))?;
        self.memory.write().keep(number, page);
        Ok(())
    }

    fn directory_path(&self) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(".map");
        path.into()
    }

    /// The directory that a clean close stored, if it is there and whole.
    fn stored_directory(&self) -> io::Result<Option<Vec<u32>>> {
        let stored = match fs::read(self.directory_path()) {
            Ok(stored) => stored,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let page_count = self.memory.page_count();
        Ok(directory_of(&stored, self.memory.seed, page_count))
    }

    fn store_directory(&self) -> io::Result<()> {
        let mut stored = vec![0; 8];
        for page in &self.memory.read().directory.pages {
            stored.extend(page.to_le_bytes());
        }
        let seed = directory_seed(self.memory.seed, self.memory.page_count());
        let checksum = xxh3_64_with_seed(&stored[8..], seed);
        stored[..8].copy_from_slice(&checksum.to_le_bytes());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(self.directory_path())?;
        FileExt::write_all_at(&file, &stored, 0)?;
        file.sync_all()
    }

    /// The directory that the pages' own headers give.
    fn directory_of_pages(&mut self) -> Result<Vec<u32>> {
        let mut found = BTreeMap::new();
        for number in 1..self.memory.page_count() {
            let page = self.read_page(number).map_err(|error| match error {
                IndexError::Damaged(reason) => IndexError::Lost(reason),
                other => other,
            })?;
            found.insert((page.depth(), page.prefix()), number);
        }
        self.finish_split(&mut found)?;
        pages_of(&found).map_err(lost)
    }

    /// Take out of the old page of a split what a kill left there though it has moved.
    ///
    /// The next split of that page would move it once more, over what came to the new page since.
    fn finish_split(&mut self, found: &mut BTreeMap<(u8, u32), u32>) -> Result<()> {
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

/// The records of objects that are appended at a place, and their entries; none past the last place.
fn packed(
    segment: u32,
    start: u64,
    objects: &[NewObject<'_>],
    at_ns: u64,
) -> Option<(Vec<u8>, Vec<Entry>)> {
    let lengths = objects.iter().map(|object| record_bytes(object.data.len()));
    let mut records = vec![0; lengths.sum()];
    let mut entries = Vec::with_capacity(objects.len());
    let mut at = 0;
    for NewObject { object_id, data } in objects {
        let size = u32::try_from(data.len()).ok()?;
        let offset = (start + at as u64) / UNIT_BYTES as u64;
        let offset = u32::try_from(offset).ok()?;
        let next = at + record_bytes(data.len());
        fill_record(&mut records[at..next], object_id, data, size, at_ns);
        entries.push(Entry {
            object_id: *object_id,
            place: Place { segment, offset },
            size,
            aside: 0,
            at_ns,
        });
        at = next;
    }
    Some((records, entries))
}

/// The directory in the bytes of its file, if it is that of an index with so many pages.
pub fn directory_of(stored: &[u8], seed: u64, page_count: u32) -> Option<Vec<u32>> {
    let (checksum, numbers) = stored.split_first_chunk::<8>()?;
    if u64::from_le_bytes(*checksum) != xxh3_64_with_seed(numbers, directory_seed(seed, page_count))
        || numbers.len() < 4
        || !numbers.len().is_power_of_two()
    {
        return None;
    }
    let (numbers, _) = numbers.as_chunks::<4>();
    let pages: Vec<u32> = numbers.iter().copied().map(u32::from_le_bytes).collect();
    let all_there = pages.iter().all(|number| (1..page_count).contains(number));
    all_there.then_some(pages)
}

/// With the number of pages in it, so that one of an earlier close never counts.
fn directory_seed(seed: u64, page_count: u32) -> u64 {
    seed ^ u64::from(page_count)
}

/// The directory of pages by their depth and prefix, or why there is none.
pub fn pages_of(found: &BTreeMap<(u8, u32), u32>) -> std::result::Result<Vec<u32>, &'static str> {
    let bits = found.keys().map(|(depth, _)| *depth).max().unwrap_or(0);
    // Before the directory is made: it is larger than the file where that holds no such pages.
    let shares = found.keys().map(|(depth, _)| 1_u64 << (bits - depth));
    if shares.sum::<u64>() != 1 << bits {
        return Err("a page of the index is missing");
    }
    let mut pages = vec![0; 1 << bits];
    for (&(depth, prefix), &number) in found {
        let shift = bits - depth;
        let first = (prefix as usize) << shift;
        pages[first..first + (1 << shift)].fill(number);
    }
    if pages.contains(&0) {
        return Err("a page of the index is missing, and two are of the same hashes");
    }
    Ok(pages)
}

struct Header {
    magic: [u8; 4],
    version: u32,
    seed: u64,
    boot: u64,
    end: Option<End>,
    covered: Place,
}

impl Header {
    /// What the first page of the file says, if it is sealed.
    fn of(bytes: &[u8; PAGE_BYTES]) -> Option<Self> {
        if sealed_header(&bytes[..HEADER_BYTES]) != *bytes {
            return None;
        }
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes[at..].first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes[at..].first_chunk()?));
        let end = End {
            segment: u32_at(28)?,
            offset: u64_at(32)?,
        };
        Some(Self {
            magic: *bytes.first_chunk()?,
            version: u32_at(4)?,
            seed: u64_at(8)?,
            boot: u64_at(16)?,
            end: (u32_at(24)? != 0).then_some(end),
            covered: Place {
                segment: u32_at(40)?,
                offset: u32_at(44)?,
            },
        })
    }
}

fn header(seed: u64, boot: u64, end: Option<End>, covered: Place) -> [u8; PAGE_BYTES] {
    let clean = u32::from(end.is_some());
    let end = end.unwrap_or_default();
    let mut fields = Vec::with_capacity(HEADER_BYTES);
    fields.extend(MAGIC);
    fields.extend(VERSION.to_le_bytes());
    fields.extend(seed.to_le_bytes());
    fields.extend(boot.to_le_bytes());
    fields.extend(clean.to_le_bytes());
    fields.extend(end.segment.to_le_bytes());
    fields.extend(end.offset.to_le_bytes());
    fields.extend(covered.segment.to_le_bytes());
    fields.extend(covered.offset.to_le_bytes());
    sealed_header(&fields)
}

fn sealed_header(fields: &[u8]) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    page[..HEADER_BYTES].copy_from_slice(fields);
    page[HEADER_BYTES..][..8].copy_from_slice(&xxh3_64(fields).to_le_bytes());
    page
}

fn start_of(number: u32) -> u64 {
    u64::from(number) * PAGE_BYTES as u64
}

fn damaged(number: u32) -> IndexError {
    IndexError::Damaged(format!("page {number} of the index is damaged"))
}

fn lost(reason: &str) -> IndexError {
    IndexError::Lost(reason.to_owned())
}
