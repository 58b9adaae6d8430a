//! Messages in the order in which they came, bounded by bytes. Twin: `nexus.core.ring_buffer`.
//!
//! Invariants:
//!
//! 1. First in, first out; a message is taken whole, once.
//! 2. The charges of the messages held never exceed the capacity, but for what was put back.
//! 3. A message is charged its bytes, and one byte at least.

use std::collections::VecDeque;

/// The messages of a pipe. The owner synchronises.
pub struct RingBuffer<M> {
    messages: VecDeque<(M, usize)>,
    capacity_bytes: usize,
    used_bytes: usize,
}

impl<M> RingBuffer<M> {
    /// An empty buffer.
    pub fn new(capacity_bytes: usize) -> Self {
        Self {
            messages: VecDeque::new(),
            capacity_bytes,
            used_bytes: 0,
        }
    }

    /// How many bytes the messages may be charged together.
    pub fn capacity_bytes(&self) -> usize {
        self.capacity_bytes
    }

    /// How many bytes they are charged.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Add a message of `size_bytes` at the end; false, with nothing changed, where it does not fit.
    pub fn put_nowait(&mut self, message: M, size_bytes: usize) -> bool {
        let charge = size_bytes.max(1);
        if self.used_bytes.saturating_add(charge) > self.capacity_bytes {
            return false;
        }
        self.used_bytes += charge;
        self.messages.push_back((message, charge));
        true
    }

    /// Make a message that was taken the first one again, whether or not it fits.
    pub fn put_back(&mut self, message: M, size_bytes: usize) {
        let charge = size_bytes.max(1);
        self.used_bytes += charge;
        self.messages.push_front((message, charge));
    }

    /// Take the first message.
    pub fn get_nowait(&mut self) -> Option<M> {
        let (message, charge) = self.messages.pop_front()?;
        self.used_bytes -= charge;
        Some(message)
    }

    /// Take every message out.
    pub fn drain(&mut self) -> Vec<M> {
        self.used_bytes = 0;
        self.messages
            .drain(..)
            .map(|(message, _)| message)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invariant_1_and_2_it_is_a_bounded_queue() {
        let mut ring = RingBuffer::new(4);
        assert!(ring.put_nowait("abc", 3));
        assert!(!ring.put_nowait("de", 2));
        assert!(ring.put_nowait("f", 1));
        assert_eq!(ring.used_bytes(), 4);
        assert_eq!(ring.get_nowait(), Some("abc"));
        assert_eq!(ring.get_nowait(), Some("f"));
        assert_eq!(ring.get_nowait(), None);
        assert_eq!(ring.used_bytes(), 0);
    }

    #[test]
    fn invariant_2_what_is_put_back_comes_first_even_where_it_does_not_fit() {
        let mut ring = RingBuffer::new(1);
        assert!(ring.put_nowait("a", 1));
        ring.put_back("bc", 2);
        assert!(!ring.put_nowait("", 0));
        assert_eq!(ring.drain(), ["bc", "a"]);
        assert_eq!((ring.len(), ring.used_bytes()), (0, 0));
    }

    #[test]
    fn invariant_3_empty_messages_are_bounded_too() {
        let mut ring = RingBuffer::new(2);
        assert!(ring.put_nowait((), 0) && ring.put_nowait((), 0));
        assert!(!ring.put_nowait((), 0));
    }
}
