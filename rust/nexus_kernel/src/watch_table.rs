//! Who watches what, found by what an event is about. Twin: `nexus.core.watch_table`.
//!
//! Paths are canonical. Invariants:
//!
//! 1. A match costs the depth of the event's paths and the watches found, not those there are.
//! 2. A watch is found once, whichever of an event's paths it is found by.

use std::collections::{HashMap, HashSet};

use crate::path_trie::PathTrie;

/// The watches of every zone. The owner synchronises.
pub struct WatchTable<W> {
    zones: HashMap<String, Zone<W>>,
    /// Numbers the watches, so that one is known again.
    next: u64,
}

struct Zone<W> {
    recursive: PathTrie<Numbered<W>>,
    direct: PathTrie<Numbered<W>>,
}

type Numbered<W> = (u64, W);

/// What an event is about.
pub struct Concern<'a> {
    /// The path that it is about.
    pub path: &'a str,
    /// Where that has gone, for a rename.
    pub new_path: Option<&'a str>,
    /// Whether it stands for everything beneath its paths too.
    pub of_subtree: bool,
}

impl<W> Zone<W> {
    fn new() -> Self {
        Self {
            recursive: PathTrie::new(),
            direct: PathTrie::new(),
        }
    }

    fn trie(&mut self, recursive: bool) -> &mut PathTrie<Numbered<W>> {
        if recursive {
            &mut self.recursive
        } else {
            &mut self.direct
        }
    }

    fn collect<'a>(&'a self, path: &str, of_subtree: bool, to: &mut Vec<&'a Numbered<W>>) {
        to.extend(self.recursive.covering(path));
        to.extend(self.direct.at(path));
        if path != "/" {
            to.extend(self.direct.at(parent(path)));
        }
        if of_subtree {
            to.extend(self.recursive.below(path));
            to.extend(self.direct.below(path));
        }
    }
}

impl<W> WatchTable<W> {
    /// A table without a watch.
    pub fn new() -> Self {
        Self {
            zones: HashMap::new(),
            next: 0,
        }
    }

    /// Whether there is no watch.
    pub fn is_empty(&self) -> bool {
        self.zones.is_empty()
    }

    /// Add a watch of a path: of its entries too, or `recursive` of all beneath.
    pub fn insert(&mut self, zone_id: &str, path: &str, recursive: bool, watch: W) {
        let zone = self.zones.entry(zone_id.to_owned());
        let trie = zone.or_insert_with(Zone::new).trie(recursive);
        trie.insert(path, (self.next, watch));
        self.next += 1;
    }

    /// Take out the first watch of a path that is wanted.
    pub fn remove(
        &mut self,
        zone_id: &str,
        path: &str,
        recursive: bool,
        is_wanted: impl Fn(&W) -> bool,
    ) -> Option<W> {
        let zone = self.zones.get_mut(zone_id)?;
        let trie = zone.trie(recursive);
        let (_, found) = trie.remove(path, |(_, watch)| is_wanted(watch))?;
        if zone.recursive.is_empty() && zone.direct.is_empty() {
            self.zones.remove(zone_id);
        }
        Some(found)
    }

    /// The watches that an event concerns.
    pub fn concerned(&self, zone_id: &str, event: &Concern<'_>) -> Vec<&W> {
        let Some(zone) = self.zones.get(zone_id) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        zone.collect(event.path, event.of_subtree, &mut found);
        if let Some(path) = event.new_path {
            zone.collect(path, event.of_subtree, &mut found);
            let mut seen = HashSet::new();
            found.retain(|(number, _)| seen.insert(*number));
        }
        found.into_iter().map(|(_, watch)| watch).collect()
    }

    /// Every watch, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &W> {
        let zones = self.zones.values();
        let tries = zones.flat_map(|zone| [&zone.recursive, &zone.direct]);
        tries.flat_map(PathTrie::iter).map(|(_, watch)| watch)
    }
}

impl<W> Default for WatchTable<W> {
    fn default() -> Self {
        Self::new()
    }
}

/// The directory that holds a canonical path.
fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(end) if end > 0 => &path[..end],
        _ => "/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> WatchTable<&'static str> {
        let mut table = WatchTable::new();
        for path in ["/", "/a", "/a/b", "/a/b/c"] {
            table.insert("root", path, false, path);
        }
        for (path, name) in [("/", "//**"), ("/a", "/a/**"), ("/x", "/x/**")] {
            table.insert("root", path, true, name);
        }
        table
    }

    fn concerned(path: &str, new_path: Option<&str>, of_subtree: bool) -> Vec<&'static str> {
        let event = Concern {
            path,
            new_path,
            of_subtree,
        };
        let table = table();
        let mut found: Vec<_> = table
            .concerned("root", &event)
            .into_iter()
            .copied()
            .collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_change_concerns_its_path_its_directory_and_recursive_watches_above() {
        assert_eq!(
            concerned("/a/b", None, false),
            ["//**", "/a", "/a/**", "/a/b"]
        );
        assert_eq!(concerned("/", None, false), ["/", "//**"]);
        assert_eq!(concerned("/ab", None, false), ["/", "//**"]);
    }

    #[test]
    fn a_change_of_a_directory_as_a_whole_concerns_what_is_beneath() {
        let found = ["/", "//**", "/a", "/a/**", "/a/b", "/a/b/c"];
        assert_eq!(concerned("/a", None, true), found);
    }

    #[test]
    fn invariant_2_a_watch_is_found_once_by_two_paths() {
        let found = ["/", "//**", "/a", "/a/**", "/x/**"];
        assert_eq!(concerned("/a/f", Some("/x"), false), found);
    }

    #[test]
    fn zones_do_not_see_one_another_and_end_with_their_last_watch() {
        let mut table = WatchTable::new();
        table.insert("one", "/", true, 1);
        let event = Concern {
            path: "/f",
            new_path: None,
            of_subtree: false,
        };
        assert_eq!(table.concerned("one", &event), [&1]);
        assert_eq!(table.concerned("two", &event), Vec::<&i32>::new());
        assert_eq!(table.remove("one", "/", false, |_| true), None);
        assert_eq!(table.remove("one", "/", true, |_| true), Some(1));
        assert!(table.is_empty());
    }
}
