//! A log of the commits since a checkpoint of a store.
//!
//! A commit is one record, appended by one write: in the page cache it survives the death of the
//! process, synced it survives a power cut. A checkpoint makes the records stale; the next are
//! written from the start again, over them, so that the file stays allocated and a sync costs no
//! change of its size.
//!
//! The file, little-endian:
//!
//! ```text
//! "nexuslog" | nonce u64, random, another whenever the log begins anew | records
//! record: checksum u64 (xxh3_64 of the rest, seed = identity of the store ^ nonce)
//!         | revision u64 | body bytes u32 | body
//! body: operations, each: kind u8 (0 delete, 1 put) | key bytes u32 | value bytes u32 | key | value
//! ```
//!
//! Invariants:
//!
//! 1. A record written before the log began anew is never read: its seed is another.
//! 2. Nothing after the first record that is not whole is read; revisions go up by one.

use std::collections::hash_map::RandomState;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::xxh3::xxh3_64_with_seed;

const MAGIC: &[u8; 8] = b"nexuslog";
const FILE_HEADER_BYTES: usize = 16;
const HEADER_BYTES: usize = 20;
const OPERATION_BYTES: usize = 9;
const FILL_BYTES: u64 = 1 << 20;
const KEPT_BUFFER_BYTES: usize = 1 << 20;

/// What a commit does to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Remove the key, if it is there.
    Delete(&'a [u8]),
    /// Store the value under the key.
    Put(&'a [u8], &'a [u8]),
}

/// A record as it is read back. There is one encoding of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The revision that the commit made.
    pub revision: u64,
    /// What it did, in order.
    pub operations: Vec<Operation<'a>>,
}

/// An open log. One writer; a sync may run beside it.
pub struct CommitLog {
    file: File,
    identity: u64,
    seed: u64,
    end: u64,
    filled: u64,
    buffer: Vec<u8>,
}

impl CommitLog {
    /// Open the log, making it where it is missing; return it with all its bytes.
    ///
    /// What is appended next begins it anew.
    pub fn open(path: &Path, identity: u64) -> io::Result<(Self, Vec<u8>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        let log = Self {
            file,
            identity,
            seed: 0,
            end: 0,
            filled: bytes.len() as u64,
            buffer: Vec::new(),
        };
        Ok((log, bytes))
    }

    /// How many bytes the records since the last checkpoint take.
    pub fn size_bytes(&self) -> u64 {
        self.end
    }

    /// Another handle of the file, to sync it while records are appended.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Append a record. After an error it is as if nothing had been appended.
    pub fn append(&mut self, revision: u64, operations: &[Operation<'_>]) -> io::Result<()> {
        self.buffer.clear();
        if self.end == 0 {
            let nonce = RandomState::new().build_hasher().finish();
            self.seed = self.identity ^ nonce;
            self.buffer.extend(MAGIC);
            self.buffer.extend(nonce.to_le_bytes());
        }
        encode(&mut self.buffer, self.seed, revision, operations)?;
        self.file.write_all_at(&self.buffer, self.end)?;
        self.end += self.buffer.len() as u64;
        self.filled = self.filled.max(self.end);
        self.buffer.shrink_to(KEPT_BUFFER_BYTES);
        Ok(())
    }

    /// Write zeros ahead of the records, so that a sync need not note a new size.
    ///
    /// Where the disk has no room for that, records are appended as they come.
    pub fn fill_ahead(&mut self) -> io::Result<()> {
        if self.end + FILL_BYTES / 4 <= self.filled {
            return Ok(());
        }
        let start = self.filled;
        let length = usize::try_from(self.end + FILL_BYTES - start).map_err(io::Error::other)?;
        match self.file.write_all_at(&vec![0; length], start) {
            Ok(()) => self.filled = start + length as u64,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Begin anew: every record is in the store, durably.
    pub fn restart(&mut self) {
        self.end = 0;
    }

    /// Begin anew and give the space back.
    pub fn truncate(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.end, self.filled) = (0, 0);
        Ok(())
    }

    /// The same, so that not even a power cut brings the records back.
    pub fn truncate_durably(&mut self) -> io::Result<()> {
        self.truncate()?;
        self.file.sync_data()
    }
}

/// Append a record to a buffer. Errors where it would have 4 GiB or more.
pub fn encode(
    buffer: &mut Vec<u8>,
    seed: u64,
    revision: u64,
    operations: &[Operation<'_>],
) -> io::Result<()> {
    let start = buffer.len();
    buffer.extend([0; HEADER_BYTES]);
    for operation in operations {
        let (kind, key, value): (u8, &[u8], &[u8]) = match operation {
            Operation::Delete(key) => (0, key, &[]),
            Operation::Put(key, value) => (1, key, value),
        };
        buffer.push(kind);
        buffer.extend(length(key.len())?);
        buffer.extend(length(value.len())?);
        buffer.extend(key);
        buffer.extend(value);
    }
    let record = &mut buffer[start..];
    let body = length(record.len() - HEADER_BYTES)?;
    record[8..16].copy_from_slice(&revision.to_le_bytes());
    record[16..20].copy_from_slice(&body);
    let checksum = xxh3_64_with_seed(&record[8..], seed);
    record[..8].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

fn length(bytes: usize) -> io::Result<[u8; 4]> {
    let error = |_| io::Error::new(io::ErrorKind::InvalidInput, "a commit has at most 4 GiB");
    Ok(u32::try_from(bytes).map_err(error)?.to_le_bytes())
}

/// The records of a log, up to the first that is not whole or does not follow the one before.
pub fn records(bytes: &[u8], identity: u64) -> Vec<Record<'_>> {
    let mut found: Vec<Record<'_>> = Vec::new();
    let Some((header, mut rest)) = bytes.split_first_chunk::<FILE_HEADER_BYTES>() else {
        return found;
    };
    let (Some(nonce), true) = (u64_at(header, 8), header.starts_with(MAGIC)) else {
        return found;
    };
    while let Some((record, after)) = decode(rest, identity ^ nonce) {
        if found
            .last()
            .is_some_and(|last| last.revision.checked_add(1) != Some(record.revision))
        {
            break;
        }
        found.push(record);
        rest = after;
    }
    found
}

fn decode(bytes: &[u8], seed: u64) -> Option<(Record<'_>, &[u8])> {
    let body_bytes = u32_at(bytes, 16)?;
    let record = bytes.get(..HEADER_BYTES.checked_add(body_bytes)?)?;
    let checksum = u64_at(record, 0)?;
    if xxh3_64_with_seed(&record[8..], seed) != checksum {
        return None;
    }
    let operations = decode_operations(&record[HEADER_BYTES..])?;
    let revision = u64_at(record, 8)?;
    let record_bytes = record.len();
    Some((
        Record {
            revision,
            operations,
        },
        &bytes[record_bytes..],
    ))
}

fn decode_operations(mut body: &[u8]) -> Option<Vec<Operation<'_>>> {
    let mut operations = Vec::new();
    while !body.is_empty() {
        let (key_bytes, value_bytes) = (u32_at(body, 1)?, u32_at(body, 5)?);
        let key_end = OPERATION_BYTES.checked_add(key_bytes)?;
        let value_end = key_end.checked_add(value_bytes)?;
        let key = body.get(OPERATION_BYTES..key_end)?;
        let value = body.get(key_end..value_end)?;
        operations.push(match body[0] {
            0 if value.is_empty() => Operation::Delete(key),
            1 => Operation::Put(key, value),
            _ => return None,
        });
        body = &body[value_end..];
    }
    Some(operations)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(field)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATIONS: [Operation<'static>; 3] = [
        Operation::Put(b"key", b"value"),
        Operation::Delete(b"gone"),
        Operation::Put(b"", b""),
    ];

    fn log_of(revisions: &[u64]) -> Vec<u8> {
        let mut bytes = [*MAGIC, [0; 8]].concat();
        for revision in revisions {
            encode(&mut bytes, 7, *revision, &OPERATIONS).expect("a small record");
        }
        bytes
    }

    fn revisions(bytes: &[u8], identity: u64) -> Vec<u64> {
        records(bytes, identity)
            .iter()
            .map(|record| record.revision)
            .collect()
    }

    #[test]
    fn a_record_comes_back() {
        let bytes = log_of(&[5]);
        let expected = Record {
            revision: 5,
            operations: OPERATIONS.to_vec(),
        };
        assert_eq!(records(&bytes, 7), [expected]);
    }

    #[test]
    fn invariant_1_records_from_before_the_log_began_anew_are_not_read() {
        let path = std::env::temp_dir().join(format!("commit_log-{}", std::process::id()));
        let (mut log, _) = CommitLog::open(&path, 7).expect("a log");
        for revision in 1..=9 {
            log.append(revision, &OPERATIONS).expect("a record");
        }
        log.restart();
        log.append(1, &OPERATIONS).expect("a record");
        let bytes = std::fs::read(&path).expect("a log");
        assert_eq!(revisions(&bytes, 7), [1]);
        std::fs::remove_file(&path).expect("the log");
    }

    #[test]
    fn invariant_2_revisions_that_do_not_follow_are_not_read() {
        assert_eq!(revisions(&log_of(&[5, 6, 3, 4]), 7), [5, 6]);
        assert_eq!(revisions(&log_of(&[5, 6, 8]), 7), [5, 6]);
        assert_eq!(revisions(&log_of(&[5, 6]), 8), [0; 0], "another store's");
    }

    #[test]
    fn a_deletion_with_a_value_is_no_record() {
        let mut bytes = [*MAGIC, [0; 8]].concat();
        encode(&mut bytes, 7, 5, &[Operation::Put(b"key", b"value")]).expect("a small record");
        assert_eq!(records(&bytes, 7).len(), 1);
        let record = &mut bytes[FILE_HEADER_BYTES..];
        record[HEADER_BYTES] = 0;
        let checksum = xxh3_64_with_seed(&record[8..], 7);
        record[..8].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(records(&bytes, 7), []);
    }

    #[test]
    fn invariant_2_a_record_cut_anywhere_is_not_read() {
        let (first, both) = (log_of(&[5]), log_of(&[5, 6]));
        for end in first.len()..both.len() {
            assert_eq!(revisions(&both[..end], 7), [5]);
        }
        assert_eq!(revisions(&both, 7), [5, 6]);
    }

    #[test]
    fn invariant_2_a_flipped_bit_anywhere_ends_the_log() {
        let both = log_of(&[5, 6]);
        let start = log_of(&[5]).len();
        for bit in start * 8..both.len() * 8 {
            let mut damaged = both.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(revisions(&damaged, 7), [5]);
        }
    }
}
