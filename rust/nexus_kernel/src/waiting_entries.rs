//! Entries of an object index that are in none of its pages yet: twin of
//! `nexus.storage.object_store.waiting_entries`, which has the reasons.

use std::collections::{BTreeMap, HashMap};

use crate::index_page::Entry;
use crate::segment_record::ObjectId;

/// A hash of 64 bits names its group by the eight leading ones.
const GROUP_SHIFT: u32 = 56;

/// Entries by object id, in the order of the log, and in groups that share pages.
#[derive(Default)]
pub struct WaitingEntries {
    by_id: HashMap<ObjectId, (u64, Entry)>, // with its key in `order`
    order: BTreeMap<u64, ObjectId>,
    groups: HashMap<u64, Vec<ObjectId>>,
    next: u64,
    size_bytes: u64,
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
    pub fn get(&self, object_id: &ObjectId) -> Option<Entry> {
        self.by_id.get(object_id).map(|(_, entry)| *entry)
    }

    /// The entries, in the order of the log.
    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.order.values().filter_map(|id| self.get(id))
    }

    /// Put an entry last, in place of any other of its object.
    pub fn add(&mut self, entry: &Entry, hashed: u64) {
        let id = entry.object_id;
        match self.by_id.insert(id, (self.next, *entry)) {
            Some((order, replaced)) => {
                self.order.remove(&order);
                self.size_bytes -= u64::from(replaced.size);
            }
            None => self.groups.entry(group_of(hashed)).or_default().push(id),
        }
        self.order.insert(self.next, id);
        self.next += 1;
        self.size_bytes += u64::from(entry.size);
    }

    /// Forget an object's entry, if there is one.
    pub fn discard(&mut self, object_id: &ObjectId, hashed: u64) {
        if self.forget(object_id)
            && let Some(group) = self.groups.get_mut(&group_of(hashed))
        {
            group.retain(|other| other != object_id);
        }
    }

    /// The entry whose record is the first in the log.
    pub fn oldest(&self) -> Option<Entry> {
        self.iter().next()
    }

    /// The entries of the group that a hash belongs to.
    pub fn group(&self, hashed: u64) -> Vec<Entry> {
        let group = self.groups.get(&group_of(hashed));
        let ids = group.into_iter().flatten();
        ids.filter_map(|id| self.get(id)).collect()
    }

    /// Forget the entries of a group.
    pub fn discard_group(&mut self, hashed: u64) {
        for id in self.groups.remove(&group_of(hashed)).unwrap_or_default() {
            self.forget(&id);
        }
    }

    fn forget(&mut self, object_id: &ObjectId) -> bool {
        let Some((order, entry)) = self.by_id.remove(object_id) else {
            return false;
        };
        self.order.remove(&order);
        self.size_bytes -= u64::from(entry.size);
        true
    }
}

fn group_of(hashed: u64) -> u64 {
    hashed >> GROUP_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index_page::Place;

    const ONE: u64 = 1 << GROUP_SHIFT;
    const TWO: u64 = 2 << GROUP_SHIFT;

    fn entry(number: u8, size: u32) -> Entry {
        Entry {
            object_id: [number; 32],
            place: Place {
                segment: 1,
                offset: number.into(),
            },
            size,
            aside: 0,
            at_ns: 0,
        }
    }

    #[test]
    fn the_oldest_is_the_first_of_those_not_moved_to_the_end() {
        let mut waiting = WaitingEntries::default();
        waiting.add(&entry(1, 10), ONE);
        waiting.add(&entry(2, 10), TWO);
        assert_eq!(waiting.oldest(), Some(entry(1, 10)));
        waiting.add(&entry(1, 30), ONE);
        assert_eq!(waiting.oldest(), Some(entry(2, 10)));
        assert_eq!((waiting.len(), waiting.size_bytes()), (2, 40));
        assert_eq!(waiting.group(ONE), [entry(1, 30)]);
    }

    #[test]
    fn a_group_goes_as_a_whole_and_one_entry_by_itself() {
        let mut waiting = WaitingEntries::default();
        for (number, hashed) in [(1, ONE), (2, TWO), (3, ONE | 7), (4, TWO)] {
            waiting.add(&entry(number, 1), hashed);
        }
        waiting.discard(&[4; 32], TWO);
        waiting.discard(&[9; 32], TWO);
        waiting.discard_group(ONE);
        assert_eq!(waiting.iter().collect::<Vec<_>>(), [entry(2, 1)]);
        assert_eq!(waiting.group(TWO), [entry(2, 1)]);
        assert_eq!(waiting.size_bytes(), 1);
        waiting.discard_group(TWO);
        assert!(waiting.is_empty());
        assert_eq!(waiting.oldest(), None);
    }
}
