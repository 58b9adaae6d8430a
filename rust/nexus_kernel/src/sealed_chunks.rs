//! Content cut into chunks, each with its hash and the seals of its blocks. Twin:
//! `nexus.lib.chunking`.
//!
//! Cutting, hashing and sealing each read every byte. Here they follow one another over a strip of
//! bytes that stays in the processor's cache; one after the other over a whole chunk, or in three
//! threads, each would wait for memory.
//!
//! Invariants:
//!
//! 1. What is said of a chunk depends on the chunk's bytes alone, not on the pieces they came in.
//! 2. Between two calls at most one block of bytes is held.

use crate::xxh3::xxh3_64;
use blake3::Hasher;

use crate::chunker::Chunker;

/// How many bytes one seal covers.
pub const BLOCK_BYTES: usize = 64 << 10;

/// So many bytes are cut and then hashed: what the second-level cache of most processors holds.
const STRIP_BYTES: usize = 128 << 10;

/// A chunk that has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct SealedChunk {
    /// Where it ends, relative to the piece: -1 for before the last byte of the pieces until now.
    pub end: isize,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
    /// XXH3-64 of each of its blocks, big endian.
    pub seals: Vec<u8>,
}

/// Cuts, hashes and seals one content. The owner keeps the bytes.
pub struct ChunkSealer {
    chunker: Chunker,
    chunk: OpenChunk,
}

impl ChunkSealer {
    /// One that begins a content, to be cut as `chunker` says.
    pub fn new(chunker: Chunker) -> Self {
        Self {
            chunker,
            chunk: OpenChunk::default(),
        }
    }

    /// Take the next bytes; return the chunks that have ended.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<SealedChunk> {
        let mut found = Vec::new();
        let mut taken = 0;
        for (number, strip) in piece.chunks(STRIP_BYTES).enumerate() {
            let start = number * STRIP_BYTES;
            for end in self.chunker.feed(strip) {
                let end = start as isize + end;
                found.push(if end < 0 {
                    self.chunk.end_before_last(end)
                } else {
                    self.chunk.end(&piece[taken..end as usize], end)
                });
                taken = end.max(0) as usize;
            }
            taken += self.chunk.take_blocks(&piece[taken..start + strip.len()]);
        }
        self.chunk.held.extend_from_slice(&piece[taken..]);
        found
    }

    /// End the content; return its last chunk, which ends where the pieces do. None for no bytes.
    pub fn finish(&mut self) -> Option<SealedChunk> {
        let begun = self.chunk.hasher.count() > 0 || !self.chunk.held.is_empty();
        begun.then(|| self.chunk.end(&[], 0))
    }
}

/// The chunk at hand.
#[derive(Default)]
struct OpenChunk {
    hasher: Hasher,
    seals: Vec<u8>,
    /// The bytes after those that were hashed: never none but at the start of a chunk, since the
    /// chunk may end before the last byte.
    held: Vec<u8>,
}

impl OpenChunk {
    /// Hash the whole blocks of the next bytes that are not the last; return how many bytes.
    fn take_blocks(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        if !self.held.is_empty() {
            let missing = BLOCK_BYTES - self.held.len();
            if bytes.len() <= missing {
                return 0;
            }
            self.held.extend_from_slice(&bytes[..missing]);
            taken = missing;
            let block = std::mem::take(&mut self.held);
            self.seal(&block);
            self.held = block;
            self.held.clear();
        }
        while bytes.len() - taken > BLOCK_BYTES {
            self.seal(&bytes[taken..taken + BLOCK_BYTES]);
            taken += BLOCK_BYTES;
        }
        taken
    }

    fn seal(&mut self, block: &[u8]) {
        self.hasher.update(block);
        self.seals.extend_from_slice(&xxh3_64(block).to_be_bytes());
    }

    /// End the chunk after the next bytes.
    fn end(&mut self, bytes: &[u8], end: isize) -> SealedChunk {
        let taken = self.take_blocks(bytes);
        let rest = &bytes[taken..];
        if self.held.is_empty() {
            if !rest.is_empty() {
                self.seal(rest);
            }
        } else {
            let mut block = std::mem::take(&mut self.held);
            block.extend_from_slice(rest);
            self.seal(&block);
            block.clear();
            self.held = block;
        }
        let digest = self.hasher.finalize().into();
        self.hasher.reset();
        let seals = std::mem::take(&mut self.seals);
        SealedChunk { end, digest, seals }
    }

    fn end_before_last(&mut self, end: isize) -> SealedChunk {
        let last = self.held.pop();
        let chunk = self.end(&[], end);
        self.held.extend(last);
        chunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: (usize, usize, usize) = (64, 256, 1024);
    const LARGE: (usize, usize, usize) = (64 << 10, 256 << 10, 1 << 20);

    /// The end, the hash and the seals of each chunk of pieces of a size.
    fn sealed(bytes: &[u8], piece: usize, sizes: (usize, usize, usize)) -> Vec<SealedChunk> {
        let mut sealer = ChunkSealer::new(Chunker::new(sizes.0, sizes.1, sizes.2));
        let mut chunks = Vec::new();
        for (number, piece_bytes) in bytes.chunks(piece).enumerate() {
            for mut chunk in sealer.feed(piece_bytes) {
                chunk.end += (number * piece) as isize;
                chunks.push(chunk);
            }
            assert!(sealer.chunk.held.len() <= BLOCK_BYTES, "invariant 2");
        }
        if let Some(last) = sealer.finish() {
            chunks.push(SealedChunk {
                end: bytes.len() as isize,
                ..last
            });
        }
        chunks
    }

    fn sealed_at_once(bytes: &[u8], sizes: (usize, usize, usize)) -> Vec<SealedChunk> {
        let mut ends = Chunker::new(sizes.0, sizes.1, sizes.2).feed(bytes);
        if ends.last().is_none_or(|&end| end < bytes.len() as isize) && !bytes.is_empty() {
            ends.push(bytes.len() as isize);
        }
        let starts = std::iter::once(0).chain(ends.clone());
        let one = |(start, end): (isize, isize)| {
            let chunk = &bytes[start as usize..end as usize];
            let seal = |block: &[u8]| xxh3_64(block).to_be_bytes();
            SealedChunk {
                end,
                digest: blake3::hash(chunk).into(),
                seals: chunk.chunks(BLOCK_BYTES).flat_map(seal).collect(),
            }
        };
        starts.zip(ends.clone()).map(one).collect()
    }

    fn noise(count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut reader = Hasher::new().finalize_xof();
        reader.fill(&mut bytes);
        bytes
    }

    #[test]
    fn invariant_1_small_chunks_do_not_depend_on_the_pieces() {
        let bytes = noise(20_000);
        let whole = sealed_at_once(&bytes, SMALL);
        for piece in [1, 2, 3, 63, 64, 65, 500, 1_023, 30_000] {
            assert_eq!(sealed(&bytes, piece, SMALL), whole, "{piece}");
        }
    }

    #[test]
    fn invariant_1_large_chunks_do_not_depend_on_the_pieces() {
        let bytes = noise(3 << 20);
        let whole = sealed_at_once(&bytes, LARGE);
        for piece in [
            4_095,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            STRIP_BYTES,
            1 << 20,
            4 << 20,
        ] {
            assert_eq!(sealed(&bytes, piece, LARGE), whole, "{piece}");
        }
    }

    #[test]
    fn a_chunk_of_the_largest_size_is_hashed_to_its_end() {
        let zeros = vec![0; (5 << 20) + 1];
        let whole = sealed_at_once(&zeros, LARGE);
        for piece in [100_000, 1 << 20, (1 << 20) + 1, 8 << 20] {
            assert_eq!(sealed(&zeros, piece, LARGE), whole, "{piece}");
        }
    }

    #[test]
    fn a_chunk_that_ends_before_the_last_byte_of_a_piece_does_not_hold_it() {
        let bytes = noise(1 << 20);
        let whole = sealed_at_once(&bytes, LARGE);
        let first = whole[0].end as usize;
        for position in [first - 1, first, first + 1] {
            let mut sealer = ChunkSealer::new(Chunker::new(LARGE.0, LARGE.1, LARGE.2));
            let mut found = sealer.feed(&bytes[..position]);
            found.extend(sealer.feed(&bytes[position..]));
            found.extend(sealer.finish());
            let said = |chunks: &[SealedChunk]| -> Vec<_> {
                let one = |chunk: &SealedChunk| (chunk.digest, chunk.seals.clone());
                chunks.iter().map(one).collect()
            };
            assert_eq!(said(&found), said(&whole), "{position}");
        }
    }

    #[test]
    fn a_chunk_that_ends_with_a_block_has_no_seal_of_nothing() {
        let noise = noise(4 << 20);
        let end = Chunker::new(LARGE.0, LARGE.1, LARGE.2).feed(&noise)[0] as usize;
        // The hash depends on 64 bytes alone; zeros before them end no chunk.
        let window = &noise[end - 63..=end];
        let last = 128 << 10;
        let mut bytes = vec![0; last - 63];
        bytes.extend_from_slice(window);
        bytes.extend_from_slice(&noise[..1 << 20]);
        let whole = sealed_at_once(&bytes, LARGE);
        assert_eq!(
            whole[0].end, last as isize,
            "the bytes are cut where a block ends"
        );
        for piece in [1, 2, last - 1, last, last + 1] {
            let (first, rest) = bytes.split_at(piece);
            let mut sealer = ChunkSealer::new(Chunker::new(LARGE.0, LARGE.1, LARGE.2));
            let mut found = sealer.feed(first);
            found.extend(sealer.feed(rest));
            found.extend(sealer.finish());
            let said = |chunks: &[SealedChunk]| -> Vec<_> {
                let one = |chunk: &SealedChunk| (chunk.digest, chunk.seals.clone());
                chunks.iter().map(one).collect()
            };
            assert_eq!(said(&found), said(&whole), "{piece}");
        }
    }

    #[test]
    fn no_bytes_have_no_chunk() {
        let mut sealer = ChunkSealer::new(Chunker::new(LARGE.0, LARGE.1, LARGE.2));
        assert_eq!(sealer.feed(b""), vec![]);
        assert_eq!(sealer.finish(), None);
    }
}
