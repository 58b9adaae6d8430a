//! The witness of a store's newest revision: a page shared with the kernel, so that recording is a
//! store to memory which survives the death of the process. Twin, and the reading half:
//! `nexus.storage.metastore.head_file`, which has the format.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{NonNull, null_mut};

use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE_BYTES: usize = 4096;
const SLOT_BYTES: usize = 24;
const RECENT_AT: [usize; 2] = [0, 512];
const SYNCED_AT: [usize; 2] = [1024, 1536];

/// An open witness. One thread at a time writes to it.
pub struct Witness {
    page: NonNull<u8>,
    identity: u64,
    boot: u64,
    recent: Slots,
    synced: Slots,
}

struct Slots {
    at: [usize; 2],
    next: usize,
    newest: u64,
}

// SAFETY: the mapping belongs to this value alone and is not bound to a thread.
unsafe impl Send for Witness {}

impl Witness {
    /// Share the page of a file that has one, as of the boot of a number.
    pub fn open(path: &Path, identity: u64, boot: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != PAGE_BYTES as u64 {
            let reason = "the witness is not a page long";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let descriptor = file.as_raw_fd();
        // SAFETY: a new mapping, where the system wants it, of a page that the file has.
        let page = unsafe {
            libc::mmap(
                null_mut(),
                PAGE_BYTES,
                protection,
                libc::MAP_SHARED,
                descriptor,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let slots = |at| Slots {
            at,
            next: 0,
            newest: 0,
        };
        Ok(Self {
            page: NonNull::new(page.cast()).ok_or_else(io::Error::last_os_error)?,
            identity,
            boot,
            recent: slots(RECENT_AT),
            synced: slots(SYNCED_AT),
        })
    }

    /// Remember a revision that is in the log, unless a later one is remembered.
    pub fn record(&mut self, revision: u64) {
        if let Some(at) = self.recent.turn(revision) {
            self.write(at, revision);
        }
    }

    /// Remember a revision that survives a power cut, likewise.
    pub fn record_synced(&mut self, revision: u64) {
        if let Some(at) = self.synced.turn(revision) {
            self.write(at, revision);
        }
    }

    fn write(&mut self, at: usize, revision: u64) {
        let mut slot = [0; SLOT_BYTES];
        slot[..8].copy_from_slice(&revision.to_le_bytes());
        slot[8..16].copy_from_slice(&self.boot.to_le_bytes());
        let checksum = xxh3_64_with_seed(&slot[..16], self.identity);
        slot[16..].copy_from_slice(&checksum.to_le_bytes());
        // SAFETY: every slot ends within the page, which is mapped for as long as this value lives.
        unsafe {
            self.page
                .add(at)
                .copy_from_nonoverlapping(NonNull::from(&slot).cast(), SLOT_BYTES)
        };
    }
}

impl Slots {
    /// Where a revision goes: the older of both slots. None where it is not newer.
    fn turn(&mut self, revision: u64) -> Option<usize> {
        if revision <= self.newest {
            return None;
        }
        self.newest = revision;
        let at = self.at[self.next];
        self.next ^= 1;
        Some(at)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing uses it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn slot(page: &[u8], at: usize) -> (u64, u64) {
        let field = |start: usize| {
            let bytes = page[start..start + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        assert!(field(at) == 0 || field(at + 16) == xxh3_64_with_seed(&page[at..at + 16], 7));
        (field(at), field(at + 8))
    }

    #[test]
    fn two_slots_are_written_in_turn_and_only_with_what_is_newer() {
        let path = std::env::temp_dir().join(format!("nexus_witness-{}", std::process::id()));
        fs::write(&path, [0; PAGE_BYTES]).expect("a page");
        let mut witness = Witness::open(&path, 7, 3).expect("a witness");
        for revision in [5, 4, 6, 6] {
            witness.record(revision);
        }
        witness.record_synced(5);
        let page = fs::read(&path).expect("the page");
        assert_eq!([slot(&page, 0), slot(&page, 512)], [(5, 3), (6, 3)]);
        assert_eq!([slot(&page, 1024), slot(&page, 1536)], [(5, 3), (0, 0)]);
        drop(witness);
        fs::write(&path, [0; 10]).expect("no page");
        assert!(Witness::open(&path, 7, 3).is_err());
        fs::remove_file(&path).expect("the file");
    }
}
