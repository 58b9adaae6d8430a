//! What is registered for paths, found by path: a tree of their components. Twin:
//! `nexus.core.path_trie`.
//!
//! Paths are canonical. Invariants:
//!
//! 1. Finding costs the components of the path asked for and the items found, not those there are.
//! 2. Items of one path stay in the order in which they came.
//! 3. A node has an item, or one beneath it.

use std::collections::BTreeMap;

/// Items by path. The owner synchronises.
pub struct PathTrie<T> {
    root: Node<T>,
}

struct Node<T> {
    items: Vec<T>,
    children: BTreeMap<Box<str>, Node<T>>,
}

impl<T> Node<T> {
    fn new() -> Self {
        Self {
            items: Vec::new(),
            children: BTreeMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.children.is_empty()
    }
}

impl<T> PathTrie<T> {
    /// A trie without an item.
    pub fn new() -> Self {
        Self { root: Node::new() }
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// Add an item at a path, after those that are there.
    pub fn insert(&mut self, path: &str, item: T) {
        let mut node = &mut self.root;
        for name in names(path) {
            node = node.children.entry(name.into()).or_insert_with(Node::new);
        }
        node.items.push(item);
    }

    /// Take out the first item at a path that is wanted.
    pub fn remove(&mut self, path: &str, is_wanted: impl Fn(&T) -> bool) -> Option<T> {
        let names: Vec<&str> = names(path).collect();
        taken(&mut self.root, &names, &is_wanted)
    }

    /// The items at exactly this path.
    pub fn at(&self, path: &str) -> &[T] {
        self.node(path).map_or(&[], |node| &node.items)
    }

    /// The items at a path and at every directory above it, those of the deepest first.
    pub fn covering(&self, path: &str) -> impl Iterator<Item = &T> {
        let mut levels = vec![self.root.items.as_slice()];
        let mut node = &self.root;
        for name in names(path) {
            let Some(child) = node.children.get(name) else {
                break;
            };
            node = child;
            levels.push(&node.items);
        }
        levels.into_iter().rev().flatten()
    }

    /// The items strictly beneath a path, each directory's before those of what is in it.
    pub fn below(&self, path: &str) -> impl Iterator<Item = &T> {
        let mut waiting: Vec<&Node<T>> = match self.node(path) {
            Some(node) => node.children.values().rev().collect(),
            None => Vec::new(),
        };
        std::iter::from_fn(move || {
            let node = waiting.pop()?;
            waiting.extend(node.children.values().rev());
            Some(&node.items)
        })
        .flatten()
    }

    /// Every item, in the order of [`PathTrie::below`].
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.root.items.iter().chain(self.below("/"))
    }

    fn node(&self, path: &str) -> Option<&Node<T>> {
        names(path).try_fold(&self.root, |node, name| node.children.get(name))
    }
}

impl<T> Default for PathTrie<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// The components of a canonical path; the root has none.
fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty())
}

/// Take an item out of what lies along these names, and what is empty then with it.
fn taken<T>(node: &mut Node<T>, names: &[&str], is_wanted: &impl Fn(&T) -> bool) -> Option<T> {
    let Some((name, rest)) = names.split_first() else {
        let place = node.items.iter().position(is_wanted)?;
        return Some(node.items.remove(place));
    };
    let child = node.children.get_mut(*name)?;
    let found = taken(child, rest, is_wanted)?;
    if child.is_empty() {
        node.children.remove(*name);
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trie(paths: &[&'static str]) -> PathTrie<&'static str> {
        let mut trie = PathTrie::new();
        for path in paths {
            trie.insert(path, *path);
        }
        trie
    }

    fn covering(trie: &PathTrie<&'static str>, path: &str) -> Vec<&'static str> {
        trie.covering(path).copied().collect()
    }

    fn below(trie: &PathTrie<&'static str>, path: &str) -> Vec<&'static str> {
        trie.below(path).copied().collect()
    }

    #[test]
    fn what_covers_a_path_is_found_deepest_first() {
        let trie = trie(&["/", "/a", "/a/b", "/ab", "/a/b/c"]);
        assert_eq!(covering(&trie, "/a/b"), ["/a/b", "/a", "/"]);
        assert_eq!(covering(&trie, "/a/bc/d"), ["/a", "/"]);
        assert_eq!(covering(&trie, "/"), ["/"]);
    }

    #[test]
    fn what_lies_below_is_found_directories_first() {
        let trie = trie(&["/", "/ab", "/a/c", "/a", "/a/b/d", "/a/b"]);
        assert_eq!(below(&trie, "/"), ["/a", "/a/b", "/a/b/d", "/a/c", "/ab"]);
        assert_eq!(below(&trie, "/a"), ["/a/b", "/a/b/d", "/a/c"]);
        assert_eq!(below(&trie, "/x"), Vec::<&str>::new());
        assert_eq!(trie.iter().count(), 6);
    }

    #[test]
    fn invariant_2_items_of_one_path_stay_in_order() {
        let mut trie = PathTrie::new();
        for item in [3, 1, 2, 1] {
            trie.insert("/a", item);
        }
        assert_eq!(trie.remove("/a", |item| *item == 1), Some(1));
        assert_eq!(trie.at("/a"), [3, 2, 1]);
    }

    #[test]
    fn invariant_3_nothing_is_left_of_a_path_without_an_item() {
        let mut trie = trie(&["/a/b/c", "/a"]);
        assert_eq!(trie.remove("/a/b", |_| true), None);
        assert_eq!(trie.remove("/a/b/c", |_| true), Some("/a/b/c"));
        assert!(trie.root.children["a"].children.is_empty());
        assert_eq!(trie.remove("/a", |_| true), Some("/a"));
        assert!(trie.is_empty());
    }

    #[test]
    fn the_deepest_path_there_can_be_is_added_and_taken_out() {
        let deep = "/a".repeat(2048);
        let mut trie = PathTrie::new();
        trie.insert(&deep, ());
        assert_eq!(trie.covering(&deep).count() + trie.below("/a").count(), 2);
        assert_eq!(trie.remove(&deep, |()| true), Some(()));
        assert!(trie.is_empty());
    }
}
