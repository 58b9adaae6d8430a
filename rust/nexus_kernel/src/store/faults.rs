//! A disk beneath the redb file whose writes and syncs fail when a test says so.
//!
//! It knows what a power cut would leave: a failed sync drops what was written before it, though a
//! reader still sees it.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::lock;

/// The plan of a test, and what has reached the disk.
#[derive(Default)]
pub struct Faults(Mutex<State>);

#[derive(Default)]
struct State {
    on_disk: Vec<u8>,
    written: Vec<(u64, Vec<u8>)>,
    calls: u64,
    failing: Option<(u64, u64)>,
    error: i32,
}

impl Faults {
    /// Have the calls fail, writes and syncs alike, from one on and as many.
    pub fn fail(&self, after: u64, count: u64, error: i32) {
        let mut state = lock(&self.0);
        state.failing = Some((state.calls + after, count));
        state.error = error;
    }

    /// Have nothing fail any more.
    pub fn heal(&self) {
        lock(&self.0).failing = None;
    }

    /// How many writes and syncs there were.
    pub fn calls(&self) -> u64 {
        lock(&self.0).calls
    }

    /// What a power cut would leave of the file.
    pub fn on_disk(&self) -> Vec<u8> {
        lock(&self.0).on_disk.clone()
    }

    /// A backend that is told of what the file holds already.
    pub fn watch(&'static self, inner: FileBackend) -> io::Result<Watched> {
        let mut bytes = vec![0; usize::try_from(inner.len()?).expect("a small file")];
        inner.read(0, &mut bytes)?;
        let mut state = lock(&self.0);
        if state.on_disk.is_empty() {
            state.on_disk = bytes;
        }
        Ok(Watched {
            inner,
            faults: self,
        })
    }

    fn enter(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = lock(&self.0);
        state.calls += 1;
        match state.failing {
            Some((first, count)) if (first..first + count).contains(&(state.calls - 1)) => {
                state.written.clear();
                Err(io::Error::from_raw_os_error(state.error))
            }
            _ => Ok(state),
        }
    }
}

impl State {
    fn sync(&mut self, size: u64) {
        self.on_disk
            .resize(usize::try_from(size).expect("a small file"), 0);
        for (offset, data) in self.written.drain(..) {
            let start = usize::try_from(offset).expect("a small file");
            if let Some(place) = self.on_disk.get_mut(start..start + data.len()) {
                place.copy_from_slice(&data);
            }
        }
    }
}

/// A file whose calls follow the plan.
pub struct Watched {
    inner: FileBackend,
    faults: &'static Faults,
}

impl Debug for Watched {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        self.inner.fmt(out)
    }
}

type Locked<T> = Result<T, BackendError>;

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, size: u64) -> io::Result<()> {
        self.inner.set_len(size)
    }

    fn sync_data(&self) -> io::Result<()> {
        let size = self.inner.len()?;
        self.faults.enter()?.sync(size);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.faults.enter()?;
        state.written.push((offset, data.to_vec()));
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<()> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked<bool> {
        self.inner.query_lock_range(start, end)
    }
}
