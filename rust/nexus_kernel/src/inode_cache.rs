//! What one volume keeps in memory of its records. Twin: `nexus.core.inode_cache`, which has the
//! invariants.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Records.
    pub records: usize,
    /// Names in all listings, and again of those that may be there.
    pub names: usize,
    /// Names in one directory.
    pub largest_listing: usize,
}

/// A map that says which of its keys was inserted first.
#[derive(Debug)]
struct Fifo<V> {
    entries: HashMap<Arc<str>, (u64, V)>,
    order: VecDeque<(u64, Arc<str>)>, // also of entries that went; their stamps match no more
    stamp: u64,
}

impl<V> Default for Fifo<V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
            stamp: 0,
        }
    }
}

impl<V> Fifo<V> {
    fn get(&self, key: &str) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, value)| value)
    }

    /// Put a value, where the old one was if there is one, else last; return the old one.
    fn insert(&mut self, key: &str, value: V) -> Option<V> {
        if let Some((_, there)) = self.entries.get_mut(key) {
            return Some(std::mem::replace(there, value));
        }
        let key: Arc<str> = key.into();
        self.stamp += 1;
        self.order.push_back((self.stamp, key.clone()));
        self.entries.insert(key, (self.stamp, value));
        if self.order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.order
                .retain(|(stamp, key)| entries.get(key).is_some_and(|(its, _)| its == stamp));
        }
        None
    }

    fn remove(&mut self, key: &str) -> Option<V> {
        self.entries.remove(key).map(|(_, value)| value)
    }

    fn pop_oldest(&mut self) -> Option<(Arc<str>, V)> {
        while let Some((stamp, key)) = self.order.pop_front() {
            if self.entries.get(&key).is_some_and(|(its, _)| *its == stamp) {
                let (_, value) = self.entries.remove(&key)?;
                return Some((key, value));
            }
        }
        None
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values().map(|(_, value)| value)
    }
}

/// The lists of a directory.
#[derive(Debug)]
struct Listing<L> {
    names: L,
    count: usize,
    directories: Option<L>,
}

/// What is known of a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Known<V> {
    /// Nothing: the store has to be asked.
    Unknown,
    /// That nothing is there.
    Absent,
    /// Its record.
    Present(V),
}

/// What a commit does to names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moves<'a> {
    /// Paths at which something appears or becomes another kind of entry.
    pub appearing: &'a [&'a str],
    /// Paths at which nothing is any more.
    pub vanishing: &'a [&'a str],
    /// New directories in which nothing is.
    pub empty: &'a [&'a str],
}

/// Records of type `R` and lists of names of type `L`, by path.
///
/// What falls out of it is collected in [`InodeCache::take_dropped`]: letting go of a value may
/// call into its owner.
#[derive(Debug)]
pub struct InodeCache<R, L> {
    limits: Limits,
    records: Fifo<Option<R>>,
    listings: Fifo<Listing<L>>,
    listed_names: usize,
    possible: Fifo<HashSet<Box<str>>>,
    possible_names: usize,
    epoch: u64,
    committing: HashSet<usize>,
    dropped: Vec<R>,
    dropped_lists: Vec<L>,
}

impl<R, L> InodeCache<R, L> {
    /// A cache of which nothing is known yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            records: Fifo::default(),
            listings: Fifo::default(),
            listed_names: 0,
            possible: Fifo::default(),
            possible_names: 0,
            epoch: 0,
            committing: HashSet::new(),
            dropped: Vec::new(),
            dropped_lists: Vec::new(),
        }
    }

    /// What readers ask for before they ask the store.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What is known of a path.
    pub fn look(&self, path: &str) -> Known<&R> {
        if let Some(found) = self.records.get(path) {
            return found.as_ref().map_or(Known::Absent, Known::Present);
        }
        let (directory, name) = split(path);
        match self.possible.get(directory) {
            Some(names) if !names.contains(name) => Known::Absent,
            _ => Known::Unknown,
        }
    }

    /// The list that was kept of a directory.
    pub fn names(&self, directory: &str) -> Option<&L> {
        self.listings.get(directory).map(|listing| &listing.names)
    }

    /// The list that was kept of the directories in a directory.
    pub fn directories(&self, directory: &str) -> Option<&L> {
        self.listings.get(directory)?.directories.as_ref()
    }

    /// Keep what the store has at a path, unless a commit came since an epoch.
    pub fn keep(&mut self, path: &str, record: Option<R>, epoch: u64) {
        if self.is_current(epoch) {
            self.put(path, record);
        } else {
            self.dropped.extend(record);
        }
    }

    /// Keep the names in a directory, `count` of them, unless a commit came since an epoch.
    pub fn keep_listing(
        &mut self,
        directory: &str,
        names: L,
        count: usize,
        directories: Option<L>,
        epoch: u64,
    ) {
        if !self.is_current(epoch) {
            self.dropped_lists.push(names);
            self.dropped_lists.extend(directories);
            return;
        }
        self.forget_listing(directory);
        self.listed_names += count;
        while self.listed_names > self.limits.names {
            let Some((_, oldest)) = self.listings.pop_oldest() else {
                break;
            };
            self.let_go(oldest);
        }
        let listing = Listing {
            names,
            count,
            directories,
        };
        self.listings.insert(directory, listing);
    }

    /// Drop what a commit is about to change, and keep nothing new until it ends.
    pub fn begin<'a>(
        &mut self,
        commit: usize,
        changed: impl Iterator<Item = &'a str>,
        moves: Moves<'_>,
    ) {
        self.committing.insert(commit);
        self.epoch += 1;
        for path in changed {
            let dropped = self.records.remove(path);
            self.dropped.extend(dropped.flatten());
        }
        if self.listings.len() > 0 {
            for path in moves.appearing.iter().chain(moves.vanishing) {
                self.forget_listing(split(path).0);
                self.forget_listing(path);
            }
        }
        for path in moves.vanishing {
            self.forget_possible(path);
        }
        for path in moves.empty {
            self.forget_possible(path);
            self.possible.insert(path, HashSet::new());
        }
        for path in moves.appearing {
            self.note_possible(path);
        }
        while self.possible_names > self.limits.names {
            let Some((_, names)) = self.possible.pop_oldest() else {
                break;
            };
            self.possible_names -= names.len();
        }
    }

    /// Keep what a commit has written.
    pub fn end<'a>(&mut self, commit: usize, written: impl Iterator<Item = (&'a str, R)>) {
        self.epoch += 1;
        for (path, record) in written {
            self.put(path, Some(record));
        }
        self.committing.remove(&commit);
    }

    /// Forget everything.
    pub fn clear(&mut self) {
        self.epoch += 1;
        let records = std::mem::take(&mut self.records);
        let values = records.entries.into_values();
        self.dropped.extend(values.filter_map(|(_, value)| value));
        while let Some((_, listing)) = self.listings.pop_oldest() {
            self.let_go(listing);
        }
        self.listed_names = 0;
        self.possible = Fifo::default();
        self.possible_names = 0;
    }

    /// What has fallen out since this was last asked.
    pub fn take_dropped(&mut self) -> (Vec<R>, Vec<L>) {
        (
            std::mem::take(&mut self.dropped),
            std::mem::take(&mut self.dropped_lists),
        )
    }

    /// Every record that is kept.
    pub fn records(&self) -> impl Iterator<Item = &R> {
        self.records.values().flatten()
    }

    fn is_current(&self, epoch: u64) -> bool {
        epoch == self.epoch && self.committing.is_empty()
    }

    fn put(&mut self, path: &str, record: Option<R>) {
        if self.records.len() >= self.limits.records && self.records.get(path).is_none() {
            let oldest = self.records.pop_oldest();
            self.dropped.extend(oldest.and_then(|(_, value)| value));
        }
        let replaced = self.records.insert(path, record);
        self.dropped.extend(replaced.flatten());
    }

    fn forget_listing(&mut self, directory: &str) {
        if let Some(listing) = self.listings.remove(directory) {
            self.let_go(listing);
        }
    }

    fn let_go(&mut self, listing: Listing<L>) {
        self.listed_names = self.listed_names.saturating_sub(listing.count);
        self.dropped_lists.push(listing.names);
        self.dropped_lists.extend(listing.directories);
    }

    fn note_possible(&mut self, path: &str) {
        let (directory, name) = split(path);
        let Some(names) = self.possible.get_mut(directory) else {
            return;
        };
        if names.insert(name.into()) {
            self.possible_names += 1;
        }
        if names.len() > self.limits.largest_listing {
            self.forget_possible(directory);
        }
    }

    fn forget_possible(&mut self, directory: &str) {
        if let Some(names) = self.possible.remove(directory) {
            self.possible_names -= names.len();
        }
    }
}

/// The directory and the name of a canonical path.
fn split(path: &str) -> (&str, &str) {
    match path.rfind('/') {
        Some(0) | None => ("/", path.trim_start_matches('/')),
        Some(slash) => (&path[..slash], &path[slash + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Cache = InodeCache<u32, Vec<&'static str>>;

    fn cache(records: usize, names: usize) -> Cache {
        Cache::new(Limits {
            records,
            names,
            largest_listing: 3,
        })
    }

    fn commit(cache: &mut Cache, moves: Moves<'_>, written: &[(&str, u32)]) {
        let paths = moves.appearing.iter().chain(moves.vanishing);
        let paths: Vec<&str> = paths
            .chain(written.iter().map(|(p, _)| p))
            .copied()
            .collect();
        cache.begin(1, paths.into_iter(), moves);
        cache.end(1, written.iter().copied());
    }

    #[test]
    fn what_was_read_before_a_commit_is_not_kept_after_it() {
        let mut cache = cache(8, 8);
        let epoch = cache.epoch();
        cache.begin(1, ["/a"].into_iter(), Moves::default());
        cache.keep("/b", Some(1), cache.epoch());
        cache.end(1, [].into_iter());
        cache.keep("/a", Some(1), epoch);
        assert_eq!(cache.look("/a"), Known::Unknown);
        assert_eq!(cache.look("/b"), Known::Unknown);
        cache.keep("/a", Some(2), cache.epoch());
        assert_eq!(cache.look("/a"), Known::Present(&2));
    }

    #[test]
    fn a_name_that_never_came_into_a_directory_made_here_is_not_there() {
        let mut cache = cache(8, 8);
        let made = Moves {
            appearing: &["/d"],
            empty: &["/d"],
            ..Moves::default()
        };
        commit(&mut cache, made, &[("/d", 1)]);
        assert_eq!(cache.look("/d/a"), Known::Absent);
        let came = Moves {
            appearing: &["/d/a"],
            ..Moves::default()
        };
        cache.begin(1, ["/d/a"].into_iter(), came);
        assert_eq!(cache.look("/d/a"), Known::Unknown);
        cache.end(1, [].into_iter());
        assert_eq!(cache.look("/d/a"), Known::Unknown);
        assert_eq!(cache.look("/d/b"), Known::Absent);
        let gone = Moves {
            vanishing: &["/d"],
            ..Moves::default()
        };
        commit(&mut cache, gone, &[]);
        assert_eq!(cache.look("/d/b"), Known::Unknown);
    }

    #[test]
    fn the_oldest_records_go_first_and_what_goes_is_handed_out() {
        let mut cache = cache(2, 8);
        for (number, path) in ["/a", "/b", "/c"].into_iter().enumerate() {
            cache.keep(path, Some(number as u32), cache.epoch());
        }
        assert_eq!(cache.look("/a"), Known::Unknown);
        assert_eq!(cache.look("/c"), Known::Present(&2));
        assert_eq!(cache.take_dropped().0, [0]);
        for _ in 0..1_000 {
            commit(&mut cache, Moves::default(), &[("/b", 7)]);
        }
        assert!(cache.records.order.len() < 100);
        assert_eq!(cache.look("/b"), Known::Present(&7));
    }

    #[test]
    fn listings_are_bounded_by_their_names_and_go_with_what_moves_in_them() {
        let mut cache = cache(8, 3);
        cache.keep_listing("/a", vec!["x", "y"], 2, Some(vec!["x"]), cache.epoch());
        cache.keep_listing("/b", vec!["z"], 1, None, cache.epoch());
        assert_eq!(cache.directories("/a"), Some(&vec!["x"]));
        cache.keep_listing("/c", vec!["z"], 1, None, cache.epoch());
        assert_eq!(cache.names("/a"), None);
        let came = Moves {
            appearing: &["/b/y"],
            ..Moves::default()
        };
        commit(&mut cache, came, &[("/b/y", 1)]);
        assert_eq!(cache.names("/b"), None);
        assert_eq!(cache.names("/c"), Some(&vec!["z"]));
    }
}
