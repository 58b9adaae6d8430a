//! Which mount serves a path: the longest prefix in an in-memory table. Twin: `nexus.core.router`.
//!
//! Invariant: a zone's table is replaced, never changed in place, so that whoever holds one sees
//! one state of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// A zone's mounts by their canonical point.
pub struct Table<M> {
    mounts: HashMap<String, M>,
    deepest: usize,
}

impl<M> Table<M> {
    fn new(mounts: HashMap<String, M>) -> Self {
        let deepest = mounts.keys().map(|point| depth(point)).max().unwrap_or(0);
        Self { mounts, deepest }
    }

    /// The mount with the longest point that contains the canonical path, and that point's length.
    pub fn route(&self, path: &str) -> Option<(&M, usize)> {
        let mut point = at_most_deep(path, self.deepest);
        loop {
            if let Some(mount) = self.mounts.get(point) {
                return Some((mount, point.len()));
            }
            point = match point.rfind('/') {
                Some(0) if point.len() > 1 => "/",
                Some(end) if end > 0 => &point[..end],
                _ => return None,
            };
        }
    }

    /// The mount at exactly this point.
    pub fn at(&self, point: &str) -> Option<&M> {
        self.mounts.get(point)
    }

    /// Every point with its mount, sorted by point.
    pub fn sorted(&self) -> Vec<(&str, &M)> {
        let mut all: Vec<_> = self.mounts.iter().map(|(p, m)| (p.as_str(), m)).collect();
        all.sort_unstable_by_key(|(point, _)| *point);
        all
    }

    /// The points strictly beneath a path, sorted.
    pub fn points_below(&self, path: &str) -> Vec<&str> {
        let stem = path.trim_end_matches('/');
        let beneath = |point: &str| {
            point.len() > 1
                && point
                    .strip_prefix(stem)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        let mut found: Vec<_> = self.mounts.keys().map(String::as_str).collect();
        found.retain(|point| beneath(point));
        found.sort_unstable();
        found
    }
}

/// The mount tables of all zones. Shared by all threads; writers take turns.
pub struct Router<M> {
    tables: RwLock<HashMap<String, Arc<Table<M>>>>,
}

impl<M: Clone> Router<M> {
    /// A router without a mount.
    pub fn new() -> Self {
        Self {
            tables: RwLock::new(HashMap::new()),
        }
    }

    /// The table of a zone as it is now.
    pub fn table(&self, zone_id: &str) -> Option<Arc<Table<M>>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(zone_id).cloned()
    }

    /// Mount at a canonical point; false, with nothing changed, where it is taken.
    pub fn add(&self, zone_id: &str, point: &str, mount: M) -> bool {
        self.replace(zone_id, |mounts| {
            let free = !mounts.contains_key(point);
            if free {
                mounts.insert(point.to_owned(), mount);
            }
            free
        })
    }

    /// Take a mount out of the table.
    pub fn remove(&self, zone_id: &str, point: &str) -> Option<M> {
        self.replace(zone_id, |mounts| mounts.remove(point))
    }

    /// Forget every mount.
    pub fn clear(&self) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let dropped = std::mem::take(&mut *tables);
        drop(tables);
        drop(dropped); // dropping a mount may call into its owner
    }

    /// Visit every mount, unless a writer is at work.
    pub fn for_each<E>(&self, mut visit: impl FnMut(&M) -> Result<(), E>) -> Result<(), E> {
        let Ok(tables) = self.tables.try_read() else {
            return Ok(());
        };
        let mut mounts = tables.values().flat_map(|table| table.mounts.values());
        mounts.try_for_each(&mut visit)
    }

    fn replace<R>(&self, zone_id: &str, change: impl FnOnce(&mut HashMap<String, M>) -> R) -> R {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let mut mounts = match tables.get(zone_id) {
            Some(table) => table.mounts.clone(),
            None => HashMap::new(),
        };
        let answer = change(&mut mounts);
        let old = tables.insert(zone_id.to_owned(), Arc::new(Table::new(mounts)));
        drop(tables);
        drop(old); // as above
        answer
    }
}

impl<M: Clone> Default for Router<M> {
    fn default() -> Self {
        Self::new()
    }
}

fn depth(point: &str) -> usize {
    match point {
        "/" => 0,
        _ => point.bytes().filter(|byte| *byte == b'/').count(),
    }
}

/// The first `deepest` components of a path, which may have thousands of them.
fn at_most_deep(path: &str, deepest: usize) -> &str {
    let slashes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/');
    match slashes.map(|(at, _)| at).nth(deepest) {
        Some(0) => "/",
        Some(end) => &path[..end],
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(points: &[&'static str], path: &str) -> Option<&'static str> {
        let router = Router::new();
        for point in points {
            assert!(router.add("zone", point, *point));
        }
        let table = router.table("zone")?;
        table.route(path).map(|(mount, _)| *mount)
    }

    #[test]
    fn the_longest_point_wins() {
        let points = ["/", "/a", "/a/b"];
        assert_eq!(routed(&points, "/a/b/c/d"), Some("/a/b"));
        assert_eq!(routed(&points, "/a/bc"), Some("/a"));
        assert_eq!(routed(&points, "/ab"), Some("/"));
        assert_eq!(routed(&points, "/"), Some("/"));
    }

    #[test]
    fn a_path_without_a_mount_has_none() {
        assert_eq!(routed(&["/b/c"], "/b"), None);
        assert_eq!(routed(&["/b/c"], "/b/cd"), None);
        assert_eq!(routed(&["/b/c"], "/"), None);
        assert_eq!(routed(&[], "/a"), None);
    }

    #[test]
    fn routes_agree_with_a_search_through_all_points() {
        let names = ["a", "b", "a-", "ab"];
        let paths: Vec<String> = (0..85)
            .map(|number: usize| {
                let digits = [number / 16 % 5, number / 4 % 4, number % 4];
                let parts = digits.iter().filter_map(|d| names.get(*d));
                "/".to_owned() + &parts.copied().collect::<Vec<_>>().join("/")
            })
            .collect();
        let router = Router::new();
        for point in paths.iter().step_by(7) {
            router.add("zone", point, point.clone());
        }
        let table = router.table("zone").expect("a table");
        for path in &paths {
            let covers = |point: &&String| {
                let stem = point.trim_end_matches('/');
                path == *point || path.starts_with(&format!("{stem}/"))
            };
            let longest = paths
                .iter()
                .step_by(7)
                .filter(covers)
                .max_by_key(|p| p.len());
            assert_eq!(table.route(path).map(|(mount, _)| mount), longest, "{path}");
        }
    }

    #[test]
    fn points_below_are_strictly_below_and_sorted() {
        let router = Router::new();
        for point in ["/", "/a", "/a/c", "/a/b", "/ab"] {
            router.add("zone", point, ());
        }
        let table = router.table("zone").expect("a table");
        assert_eq!(table.points_below("/a"), ["/a/b", "/a/c"]);
        assert_eq!(table.points_below("/"), ["/a", "/a/b", "/a/c", "/ab"]);
    }

    #[test]
    fn a_taken_point_keeps_its_mount() {
        let router = Router::new();
        assert!(router.add("zone", "/a", 1));
        let before = router.table("zone").expect("a table");
        assert!(!router.add("zone", "/a", 2));
        assert_eq!(router.remove("zone", "/a"), Some(1));
        assert_eq!(router.remove("zone", "/a"), None);
        assert_eq!(
            before.at("/a"),
            Some(&1),
            "who holds a table sees one state of it"
        );
    }
}
