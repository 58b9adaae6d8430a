//! Who holds a counted name, and until when. Twin: `nexus.lib.holders`.
//!
//! A state machine without a clock or a wait: each call is told what time it is, and the queue of
//! those who wait is its owner's, since a waiter may have gone when its turn comes.
//!
//! Invariants:
//!
//! 1. A hold is put only while there are fewer live ones than any of them, and the new one, bears.
//! 2. A hold that is due by the time a call is told is gone before the call looks.
//! 3. A name exists while it is held.

use std::collections::HashMap;

/// One hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who holds.
    pub id: String,
    /// How many holders it bears, itself counted.
    pub max_holders: i64,
    /// When it ends.
    pub expires_at_ns: i64,
}

/// The holders of all names. The owner synchronises.
#[derive(Default)]
pub struct Holders(HashMap<String, Vec<Holder>>);

impl Holders {
    /// Whether a hold that bears so many would be granted.
    pub fn admits(&mut self, name: &str, max_holders: i64, now_ns: i64) -> bool {
        match self.live(name, now_ns) {
            Some(holders) => has_room(holders, max_holders),
            None => max_holders > 0,
        }
    }

    /// Put a hold where there is room for it; return whether there was.
    pub fn try_put(&mut self, name: &str, holder: Holder, now_ns: i64) -> bool {
        let admitted = self.admits(name, holder.max_holders, now_ns);
        if admitted {
            self.put(name, holder);
        }
        admitted
    }

    /// Put a hold as it was granted elsewhere, or in place of the one of the same id.
    pub fn put(&mut self, name: &str, holder: Holder) {
        let Some(holders) = self.0.get_mut(name) else {
            self.0.insert(name.to_owned(), vec![holder]);
            return;
        };
        match holders.iter_mut().find(|held| held.id == holder.id) {
            Some(held) => *held = holder,
            None => holders.push(holder),
        }
    }

    /// End a hold; return whether it was there.
    pub fn remove(&mut self, name: &str, id: &str, now_ns: i64) -> bool {
        let Some(holders) = self.live(name, now_ns) else {
            return false;
        };
        let Some(place) = holders.iter().position(|held| held.id == id) else {
            return false;
        };
        holders.remove(place);
        if holders.is_empty() {
            self.0.remove(name);
        }
        true
    }

    /// Have a hold end at another time; return whether it was there.
    pub fn extend(&mut self, name: &str, id: &str, expires_at_ns: i64, now_ns: i64) -> bool {
        let held = self.live(name, now_ns);
        let held = held.and_then(|holders| holders.iter_mut().find(|held| held.id == id));
        held.map(|held| held.expires_at_ns = expires_at_ns)
            .is_some()
    }

    /// End every hold of a name; return how many there were.
    pub fn clear(&mut self, name: &str, now_ns: i64) -> usize {
        self.live(name, now_ns);
        self.0.remove(name).map_or(0, |holders| holders.len())
    }

    /// The holds of a name, in the order in which they were granted.
    pub fn of(&mut self, name: &str, now_ns: i64) -> &[Holder] {
        self.live(name, now_ns).map_or(&[], |holders| holders)
    }

    fn live(&mut self, name: &str, now_ns: i64) -> Option<&mut Vec<Holder>> {
        let holders = self.0.get_mut(name)?;
        holders.retain(|held| held.expires_at_ns > now_ns);
        if holders.is_empty() {
            self.0.remove(name);
        }
        self.0.get_mut(name)
    }
}

fn has_room(holders: &[Holder], max_holders: i64) -> bool {
    let bears = holders.iter().map(|held| held.max_holders).min();
    let most = bears.map_or(max_holders, |least| least.min(max_holders));
    i64::try_from(holders.len()).is_ok_and(|count| count < most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(id: &str, max_holders: i64, expires_at_ns: i64) -> Holder {
        Holder {
            id: id.to_owned(),
            max_holders,
            expires_at_ns,
        }
    }

    #[test]
    fn invariant_1_as_many_hold_as_every_holder_bears() {
        let mut holders = Holders::default();
        assert!(holders.try_put("s", holder("a", 3, 10), 0));
        assert!(holders.try_put("s", holder("b", 5, 10), 0));
        assert!(!holders.admits("s", 2, 0));
        assert!(holders.try_put("s", holder("c", 3, 10), 0));
        assert!(!holders.try_put("s", holder("d", 9, 10), 0));
        assert!(holders.try_put("other", holder("d", 1, 10), 0));
    }

    #[test]
    fn invariant_2_a_hold_ends_when_it_is_due_unless_extended() {
        let mut holders = Holders::default();
        holders.put("s", holder("a", 1, 10));
        assert!(!holders.admits("s", 1, 9));
        assert!(holders.extend("s", "a", 20, 9));
        assert!(!holders.admits("s", 1, 19));
        assert!(!holders.remove("s", "a", 20));
        assert!(holders.admits("s", 1, 20));
    }

    #[test]
    fn invariant_3_nothing_is_kept_of_a_name_that_nobody_holds() {
        let mut holders = Holders::default();
        holders.put("s", holder("a", 2, 10));
        holders.put("s", holder("b", 2, 10));
        assert_eq!(holders.clear("s", 0), 2);
        holders.put("s", holder("a", 1, 10));
        assert!(holders.remove("s", "a", 0));
        holders.put("s", holder("a", 1, 10));
        assert!(holders.of("s", 10).is_empty());
        assert!(holders.0.is_empty());
    }
}
