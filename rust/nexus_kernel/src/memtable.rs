//! The newest entries of a store, in memory and in key order, until a checkpoint writes them.
//!
//! A deleted key is an entry without a value: it hides what lies beneath. Nothing here is stored;
//! every commit is in the log before it is here.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;

use crate::commit_log::Operation;

/// What the newest commit to a key left there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The revision of that commit.
    pub version: u64,
    /// The value, None for a deleted key.
    pub value: Option<Box<[u8]>>,
}

impl Slot {
    /// The version that a condition compares with: 0 for an absent key.
    pub fn found_version(&self) -> u64 {
        self.value.as_ref().map_or(0, |_| self.version)
    }
}

/// An ordered map of the keys that commits have touched.
#[derive(Debug, Default)]
pub struct Memtable {
    slots: BTreeMap<Box<[u8]>, Slot>,
}

impl Memtable {
    /// Take in the operations of the commit that made a revision.
    pub fn apply(&mut self, revision: u64, operations: &[Operation<'_>]) {
        for operation in operations {
            let (key, value) = match *operation {
                Operation::Delete(key) => (key, None),
                Operation::Put(key, value) => (key, Some(value.into())),
            };
            let slot = Slot {
                version: revision,
                value,
            };
            match self.slots.get_mut(key) {
                Some(found) => *found = slot,
                None => drop(self.slots.insert(key.into(), slot)),
            }
        }
    }

    /// What is known of a key; None where the answer lies beneath.
    pub fn get(&self, key: &[u8]) -> Option<&Slot> {
        self.slots.get(key)
    }

    /// Whether no commit has touched anything.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The slots of a range of keys, in order. The range must not be an inverted one.
    pub fn range(&self, lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> impl Iterator<Item = Row<'_>> {
        self.slots
            .range::<[u8], _>((lower, upper))
            .map(|(key, slot)| (&**key, slot))
    }

    /// Copies of the slots of a range that `limit` entries of a scan can meet.
    pub fn copy(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        limit: usize,
    ) -> Vec<(Box<[u8]>, Slot)> {
        let mut copied = Vec::new();
        let mut values = 0;
        for (key, slot) in self.range(lower, upper) {
            copied.push((key.into(), slot.clone()));
            values += usize::from(slot.value.is_some());
            if values == limit {
                break;
            }
        }
        copied
    }
}

/// A key and what the newest commit left there.
pub type Row<'a> = (&'a [u8], &'a Slot);

/// Two sorted layers as one; a key of the upper hides that of the lower.
pub struct Overlay<Upper: Iterator, Lower: Iterator> {
    upper: Peekable<Upper>,
    lower: Peekable<Lower>,
}

impl<'a, Upper: Iterator<Item = Row<'a>>, Lower: Iterator<Item = Row<'a>>> Overlay<Upper, Lower> {
    /// Lay `upper` over `lower`.
    pub fn new(upper: Upper, lower: Lower) -> Self {
        Self {
            upper: upper.peekable(),
            lower: lower.peekable(),
        }
    }
}

impl<'a, Upper: Iterator<Item = Row<'a>>, Lower: Iterator<Item = Row<'a>>> Iterator
    for Overlay<Upper, Lower>
{
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        match (self.upper.peek(), self.lower.peek()) {
            (Some((key, _)), Some((below, _))) => {
                if key > below {
                    return self.lower.next();
                }
                if key == below {
                    self.lower.next();
                }
                self.upper.next()
            }
            (Some(_), None) => self.upper.next(),
            (None, _) => self.lower.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys<'a>(rows: impl Iterator<Item = Row<'a>>) -> Vec<(u8, u64)> {
        rows.map(|(key, slot)| (key[0], slot.found_version()))
            .collect()
    }

    fn table(revision: u64, puts: &[u8], deletes: &[u8]) -> Memtable {
        let mut table = Memtable::default();
        for key in puts {
            table.apply(revision, &[Operation::Put(&[*key], b"v")]);
        }
        for key in deletes {
            table.apply(revision, &[Operation::Delete(&[*key])]);
        }
        table
    }

    fn all(table: &Memtable) -> impl Iterator<Item = Row<'_>> {
        table.range(Bound::Unbounded, Bound::Unbounded)
    }

    #[test]
    fn the_upper_layer_hides_the_lower_in_key_order() {
        let (upper, lower) = (table(2, &[1, 4], &[3]), table(1, &[0, 1, 3, 5], &[2]));
        let merged = keys(Overlay::new(all(&upper), all(&lower)));
        assert_eq!(merged, [(0, 1), (1, 2), (2, 0), (3, 0), (4, 2), (5, 1)]);
    }

    #[test]
    fn a_copy_has_as_many_values_as_a_scan_can_take_and_the_deletes_between() {
        let table = table(1, &[1, 3, 5], &[2, 4]);
        let copied = table.copy(Bound::Excluded(&[1]), Bound::Unbounded, 1);
        assert_eq!(
            keys(copied.iter().map(|(key, slot)| (&**key, slot))),
            [(2, 0), (3, 1)]
        );
    }

    #[test]
    fn an_operation_replaces_those_before() {
        let mut table = table(1, &[1], &[]);
        table.apply(2, &[Operation::Delete(&[1]), Operation::Put(&[1], b"w")]);
        assert_eq!(keys(all(&table)), [(1, 2)]);
    }
}
