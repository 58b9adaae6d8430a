//! Entries of an object index that are in none of its pages yet. Twin:
//! `nexus.storage.object_store.waiting_entries`.

use std::collections::{HashMap, VecDeque};

use crate::object_index::Entry;
use crate::segment_record::ObjectId;

const GROUPS: usize = 256;
const GROUP_SHIFT: u32 = 56; // a hash names its group by the eight leading bits

/// Entries by object id, in the order of the log.
#[derive(Debug)]
pub struct WaitingEntries {
    by_id: HashMap<ObjectId, (u64, Entry)>,
    order: VecDeque<(u64, ObjectId)>, // also of entries that went; their stamps match no more
    groups: Vec<Vec<ObjectId>>,
    stamp: u64,
    size_bytes: u64,
}

impl Default for WaitingEntries {
    fn default() -> Self {
        Self {
            by_id: HashMap::new(),
            order: VecDeque::new(),
            groups: vec![Vec::new(); GROUPS],
            stamp: 0,
            size_bytes: 0,
        }
    }
}

fn group_of(hashed: u64) -> usize {
    usize::try_from(hashed >> GROUP_SHIFT).unwrap_or_default()
}

impl WaitingEntries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// What the objects of the entries take in the log, all together.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The entry of an object.
    pub fn get(&self, object_id: &ObjectId) -> Option<&Entry> {
        self.by_id.get(object_id).map(|(_, entry)| entry)
    }

    /// Every entry, in no order.
    pub fn values(&self) -> impl Iterator<Item = &Entry> {
        self.by_id.values().map(|(_, entry)| entry)
    }

    /// Put an entry last, in place of any other of its object.
    pub fn add(&mut self, entry: Entry, hashed: u64) {
        self.stamp += 1;
        let id = entry.object_id;
        self.size_bytes += u64::from(entry.size);
        match self.by_id.insert(id, (self.stamp, entry)) {
            Some((_, replaced)) => self.size_bytes -= u64::from(replaced.size),
            None => self.groups[group_of(hashed)].push(id),
        }
        self.order.push_back((self.stamp, id));
        if self.order.len() > 2 * self.by_id.len() + 64 {
            let by_id = &self.by_id;
            self.order
                .retain(|(stamp, id)| by_id.get(id).is_some_and(|(its, _)| its == stamp));
        }
    }

    /// Forget an object's entry, if there is one.
    pub fn discard(&mut self, object_id: &ObjectId, hashed: u64) {
        if let Some((_, entry)) = self.by_id.remove(object_id) {
            self.size_bytes -= u64::from(entry.size);
            self.groups[group_of(hashed)].retain(|id| id != object_id);
        }
    }

    /// The entry whose record is the first in the log.
    pub fn oldest(&mut self) -> Option<Entry> {
        while let Some((stamp, id)) = self.order.front() {
            match self.by_id.get(id) {
                Some((its, entry)) if its == stamp => return Some(*entry),
                _ => drop(self.order.pop_front()),
            }
        }
        None
    }

    /// The entries of the group that a hash belongs to.
    pub fn group(&self, hashed: u64) -> Vec<Entry> {
        let ids = self.groups[group_of(hashed)].iter();
        ids.filter_map(|id| self.get(id).copied()).collect()
    }

    /// Forget the entries of a group.
    pub fn discard_group(&mut self, hashed: u64) {
        for id in std::mem::take(&mut self.groups[group_of(hashed)]) {
            if let Some((_, entry)) = self.by_id.remove(&id) {
                self.size_bytes -= u64::from(entry.size);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u8, offset: u32) -> Entry {
        Entry {
            object_id: [number; 32],
            segment: 1,
            offset,
            size: 10,
            aside: 0,
            at_ns: 0,
        }
    }

    fn hashed(number: u8) -> u64 {
        u64::from(number) << GROUP_SHIFT
    }

    #[test]
    fn the_oldest_is_the_first_in_the_log_also_after_one_has_moved_to_its_end() {
        let mut waiting = WaitingEntries::default();
        for number in 0..3 {
            waiting.add(entry(number, u32::from(number)), hashed(number));
        }
        waiting.add(entry(0, 9), hashed(0));
        assert_eq!(waiting.oldest(), Some(entry(1, 1)));
        waiting.discard(&[1; 32], hashed(1));
        waiting.discard_group(hashed(2));
        assert_eq!(waiting.oldest(), Some(entry(0, 9)));
        assert_eq!((waiting.len(), waiting.size_bytes()), (1, 10));
    }

    #[test]
    fn a_group_has_each_of_its_entries_once_and_only_those_that_wait() {
        let mut waiting = WaitingEntries::default();
        for offset in 0..300 {
            waiting.add(entry(7, offset), hashed(7));
        }
        assert_eq!(waiting.group(hashed(7)), [entry(7, 299)]);
        assert!(waiting.order.len() < 100);
        waiting.discard(&[7; 32], hashed(7));
        assert_eq!(waiting.group(hashed(7)), []);
        assert_eq!(waiting.oldest(), None);
    }
}
