//! Parts of large objects, read to where they are handed out and checked by their block seals.
//! Twin: `read_sealed` in `src/nexus/storage/object_store/segment_file.py`.
//!
//! A block of which only a part is wanted is read aside, since its seal covers all of it. Every
//! other block is read in place, and checked while it is in the processor's cache.
//!
//! Invariant: what was filled was checked; after a failure nothing of it is to be used.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

use crate::xxh3::xxh3_64;

use crate::sealed_chunks::BLOCK_BYTES;

const SEAL_BYTES: usize = 8;

thread_local! {
    /// Where a thread reads the first and the last block of a part to.
    static EDGES: RefCell<Vec<u8>> = RefCell::new(vec![0; 2 * BLOCK_BYTES]);
}

/// A part of an object in a file that stays open.
pub struct Part<'a> {
    /// The file.
    pub descriptor: RawFd,
    /// Where the object's bytes start in it.
    pub offset_bytes: u64,
    /// How many the object has.
    pub size_bytes: usize,
    /// Which of them are wanted: from here on,
    pub start: usize,
    /// and so many.
    pub count: usize,
    /// The seals of all blocks of the object.
    pub seals: &'a [u8],
}

/// Fill `target` with parts, one after the other. False unless all could be read, are sealed and
/// make up the target.
pub fn read_sealed(target: &mut [MaybeUninit<u8>], parts: &[Part]) -> bool {
    let mut rest = target;
    for part in parts {
        if part.count == 0 || part.count > rest.len() {
            return false;
        }
        let (filled, after) = rest.split_at_mut(part.count);
        if !EDGES.with_borrow_mut(|edges| part.read(filled, edges)) {
            return false;
        }
        rest = after;
    }
    rest.is_empty()
}

impl Part<'_> {
    fn read(&self, target: &mut [MaybeUninit<u8>], edges: &mut [u8]) -> bool {
        let stop = self.start.saturating_add(self.count);
        let blocks = self.size_bytes.div_ceil(BLOCK_BYTES);
        if stop > self.size_bytes || self.seals.len() != blocks * SEAL_BYTES {
            return false;
        }
        let (first, last) = (self.start / BLOCK_BYTES, (stop - 1) / BLOCK_BYTES);
        // How much of the target lies in a first and in a last block that are not wanted whole.
        let first_is_whole = self.start.is_multiple_of(BLOCK_BYTES) && stop >= self.end_of(first);
        let head = if first_is_whole {
            0
        } else {
            stop.min(self.end_of(first)) - self.start
        };
        let tail = if head == self.count || stop == self.end_of(last) {
            0
        } else {
            stop - last * BLOCK_BYTES
        };
        let (head_block, tail_block) = edges.split_at_mut(BLOCK_BYTES);
        let head_block = &mut head_block[..if head > 0 { self.bytes_of(first) } else { 0 }];
        let tail_block = &mut tail_block[..if tail > 0 { self.bytes_of(last) } else { 0 }];
        let (head_target, rest) = target.split_at_mut(head);
        let (whole, tail_target) = rest.split_at_mut(rest.len() - tail);
        let offset = self.offset_bytes + (first * BLOCK_BYTES) as u64;
        if !fill(self.descriptor, offset, head_block, whole, tail_block) {
            return false;
        }
        // SAFETY: `fill` has written all of it.
        let whole = unsafe { std::slice::from_raw_parts(whole.as_ptr().cast::<u8>(), whole.len()) };
        let between = first + usize::from(head > 0);
        let sealed = (head == 0 || self.is_sealed(first, head_block))
            && (tail == 0 || self.is_sealed(last, tail_block))
            && (between..)
                .zip(whole.chunks(BLOCK_BYTES))
                .all(|(block, bytes)| self.is_sealed(block, bytes));
        if sealed {
            let skipped = self.start % BLOCK_BYTES;
            copy(
                &head_block[skipped.min(head_block.len())..][..head],
                head_target,
            );
            copy(&tail_block[..tail], tail_target);
        }
        sealed
    }

    fn end_of(&self, block: usize) -> usize {
        self.size_bytes.min((block + 1) * BLOCK_BYTES)
    }

    fn bytes_of(&self, block: usize) -> usize {
        self.end_of(block) - block * BLOCK_BYTES
    }

    fn is_sealed(&self, block: usize, bytes: &[u8]) -> bool {
        let at = block * SEAL_BYTES;
        self.seals.get(at..at + SEAL_BYTES) == Some(&xxh3_64(bytes).to_be_bytes())
    }
}

fn copy(from: &[u8], to: &mut [MaybeUninit<u8>]) {
    for (from, to) in from.iter().zip(to) {
        to.write(*from);
    }
}

/// Read three buffers, one after the other in the file, in one call; false unless all come.
fn fill(
    descriptor: RawFd,
    offset: u64,
    before: &mut [u8],
    middle: &mut [MaybeUninit<u8>],
    after: &mut [u8],
) -> bool {
    let Ok(offset) = libc::off_t::try_from(offset) else {
        return false;
    };
    let buffers = [
        (before.as_mut_ptr(), before.len()),
        (middle.as_mut_ptr().cast(), middle.len()),
        (after.as_mut_ptr(), after.len()),
    ]
    .map(|(bytes, length)| libc::iovec {
        iov_base: bytes.cast(),
        iov_len: length,
    });
    let wanted = before.len() + middle.len() + after.len();
    // SAFETY: the three buffers are writable, apart from one another, and as long as is said.
    let came = unsafe { libc::preadv(descriptor, buffers.as_ptr(), 3, offset) };
    came.try_into() == Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    const OFFSET: u64 = 100;

    /// An object with bytes around it, in a file that has no name any more.
    struct Stored {
        file: File,
        bytes: Vec<u8>,
        seals: Vec<u8>,
    }

    impl Stored {
        fn new(size: usize) -> Self {
            let mut bytes = vec![0; size];
            blake3::Hasher::new().finalize_xof().fill(&mut bytes);
            let seal = |block: &[u8]| xxh3_64(block).to_be_bytes();
            let seals = bytes.chunks(BLOCK_BYTES).flat_map(seal).collect();
            let stored = Self {
                file: tempfile(),
                bytes,
                seals,
            };
            stored.write();
            stored
        }

        fn write(&self) {
            self.file.write_all_at(&[7; OFFSET as usize], 0).unwrap();
            self.file.write_all_at(&self.bytes, OFFSET).unwrap();
            let end = OFFSET + self.bytes.len() as u64;
            self.file.write_all_at(&[9; 100], end).unwrap();
        }

        fn part(&self, start: usize, count: usize) -> Part<'_> {
            Part {
                descriptor: self.file.as_raw_fd(),
                offset_bytes: OFFSET,
                size_bytes: self.bytes.len(),
                start,
                count,
                seals: &self.seals,
            }
        }

        fn read(&self, start: usize, count: usize) -> Option<Vec<u8>> {
            read(count, &[self.part(start, count)])
        }
    }

    fn tempfile() -> File {
        let name = format!(
            "nexus-sealed-read-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = std::env::temp_dir().join(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn read(count: usize, parts: &[Part]) -> Option<Vec<u8>> {
        let mut target = vec![MaybeUninit::new(0); count];
        // SAFETY: every byte was written when it was made.
        let byte = |byte: &MaybeUninit<u8>| unsafe { byte.assume_init() };
        read_sealed(&mut target, parts).then(|| target.iter().map(byte).collect())
    }

    /// What lies at an edge of a block, on either side, and at the ends.
    fn positions(size: usize) -> Vec<usize> {
        let edges = (0..=size.div_ceil(BLOCK_BYTES)).map(|block| block * BLOCK_BYTES);
        let mut around: Vec<usize> = edges
            .flat_map(|edge| [edge.saturating_sub(1), edge, edge + 1])
            .chain([size - 1, size])
            .filter(|&position| position <= size)
            .collect();
        around.sort_unstable();
        around.dedup();
        around
    }

    #[test]
    fn any_part_is_what_was_stored() {
        for size in [
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            3 * BLOCK_BYTES + 5,
        ] {
            let stored = Stored::new(size);
            for start in positions(size) {
                for stop in positions(size) {
                    if start < stop {
                        let found = stored.read(start, stop - start);
                        assert_eq!(found.as_deref(), Some(&stored.bytes[start..stop]));
                    }
                }
            }
        }
    }

    #[test]
    fn parts_follow_one_another() {
        let (one, other) = (Stored::new(200_000), Stored::new(70_000));
        let parts = [one.part(150_001, 49_999), other.part(0, 66_000)];
        let found = read(115_999, &parts).unwrap();
        assert_eq!(found[..49_999], one.bytes[150_001..]);
        assert_eq!(found[49_999..], other.bytes[..66_000]);
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_its_block_is_touched_and_nowhere_else() {
        let mut stored = Stored::new(3 * BLOCK_BYTES + 5);
        let damaged = BLOCK_BYTES + 17;
        stored.bytes[damaged] ^= 8;
        stored.write();
        for start in positions(stored.bytes.len()) {
            for stop in positions(stored.bytes.len()) {
                if start < stop {
                    let touched = start < 2 * BLOCK_BYTES && stop > BLOCK_BYTES;
                    assert_eq!(stored.read(start, stop - start).is_none(), touched);
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_whole_gives_nothing() {
        let stored = Stored::new(100_000);
        assert_eq!(stored.read(99_999, 2), None);
        assert_eq!(stored.read(usize::MAX, 2), None);
        assert_eq!(stored.read(0, 0), None);
        stored.file.set_len(OFFSET + 99_999).unwrap();
        assert_eq!(stored.read(0, 100_000), None);
        assert!(stored.read(0, 10).is_some());
    }

    #[test]
    fn parts_that_do_not_make_up_the_target_give_nothing() {
        let stored = Stored::new(100_000);
        assert_eq!(read(11, &[stored.part(0, 10)]), None);
        assert_eq!(read(9, &[stored.part(0, 10)]), None);
        assert_eq!(read(0, &[]), Some(vec![]));
    }

    #[test]
    fn seals_of_another_size_give_nothing() {
        let stored = Stored::new(100_000);
        let mut part = stored.part(0, 10);
        part.seals = &stored.seals[..8];
        assert_eq!(read(10, &[part]), None);
    }
}
