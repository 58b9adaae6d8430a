//! The latest messages of a stream, bounded by bytes. Twin: `nexus.storage.stream.stream_buffer`.
//!
//! Invariants:
//!
//! 1. A message is at its offset until it is let go of. Offsets count up from 0; none is used twice.
//! 2. The charges of the messages held never exceed the capacity; the oldest go first.
//! 3. A message is charged its bytes and [`RECORD_BYTES`].

use std::collections::VecDeque;

/// What a message takes up beside its bytes: `nexus.contracts.stream_backend.RECORD_BYTES`.
pub const RECORD_BYTES: usize = 32;

/// The messages of a stream. The owner synchronises.
pub struct StreamBuffer<M> {
    messages: VecDeque<(M, usize)>,
    begin: u64,
    capacity_bytes: usize,
    used_bytes: usize,
}

impl<M> StreamBuffer<M> {
    /// An empty buffer.
    pub fn new(capacity_bytes: usize) -> Self {
        Self {
            messages: VecDeque::new(),
            begin: 0,
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

    /// The offset of the oldest message held.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// The offset of the next message.
    pub fn end(&self) -> u64 {
        self.begin + self.messages.len() as u64
    }

    /// Add a message of `size_bytes`; its offset, and those that it takes the place of. None, with
    /// nothing changed, where it would not fit an empty buffer.
    pub fn append(&mut self, message: M, size_bytes: usize) -> Option<(u64, Vec<M>)> {
        let charge = size_bytes.saturating_add(RECORD_BYTES);
        let most = self.capacity_bytes.checked_sub(charge)?;
        let mut gone = Vec::new();
        while self.used_bytes > most {
            let (oldest, its_charge) = self.messages.pop_front()?;
            self.begin += 1;
            self.used_bytes -= its_charge;
            gone.push(oldest);
        }
        let offset = self.end();
        self.messages.push_back((message, charge));
        self.used_bytes += charge;
        Some((offset, gone))
    }

    /// The message at an offset.
    pub fn read(&self, offset: u64) -> Option<&M> {
        let index = usize::try_from(offset.checked_sub(self.begin)?).ok()?;
        self.messages.get(index).map(|(message, _)| message)
    }

    /// Let go of every message.
    pub fn drain(&mut self) -> Vec<M> {
        self.begin = self.end();
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
    fn invariant_1_a_message_is_at_its_offset_until_it_goes() {
        let mut buffer = StreamBuffer::new(2 * RECORD_BYTES + 2);
        assert_eq!(buffer.append("a", 1), Some((0, vec![])));
        assert_eq!(buffer.append("b", 1), Some((1, vec![])));
        assert_eq!(buffer.append("c", 1), Some((2, vec!["a"])));
        let read: Vec<_> = (0..4).map(|offset| buffer.read(offset)).collect();
        assert_eq!(read, [None, Some(&"b"), Some(&"c"), None]);
        assert_eq!((buffer.begin(), buffer.end()), (1, 3));
    }

    #[test]
    fn invariant_1_offsets_go_on_after_everything_was_let_go_of() {
        let mut buffer = StreamBuffer::new(100);
        buffer.append("a", 1);
        assert_eq!(buffer.drain(), ["a"]);
        assert_eq!(
            (buffer.begin(), buffer.end(), buffer.used_bytes()),
            (1, 1, 0)
        );
        assert_eq!(buffer.append("b", 1), Some((1, vec![])));
    }

    #[test]
    fn invariant_2_a_message_takes_the_place_of_several() {
        let mut buffer = StreamBuffer::new(3 * RECORD_BYTES);
        for message in ["a", "b", "c"] {
            buffer.append(message, 0);
        }
        let size = RECORD_BYTES + 1;
        assert_eq!(buffer.append("d", size), Some((3, vec!["a", "b", "c"])));
        assert_eq!(buffer.used_bytes(), size + RECORD_BYTES);
        assert_eq!(buffer.append("e", 2 * RECORD_BYTES + 1), None);
        assert_eq!(buffer.append("e", usize::MAX), None);
        assert_eq!(buffer.read(3), Some(&"d"));
    }

    #[test]
    fn invariant_3_empty_messages_are_bounded_too() {
        let mut buffer = StreamBuffer::new(2 * RECORD_BYTES);
        for _ in 0..5 {
            buffer.append((), 0);
        }
        assert_eq!((buffer.begin(), buffer.end()), (3, 5));
    }
}
