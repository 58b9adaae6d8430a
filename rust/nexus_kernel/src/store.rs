//! An ordered key-value store: a log of the newest commits, a map of them in memory, and one redb
//! file with everything up to the last checkpoint.
//!
//! A commit appends one record to the log ([`crate::commit_log`]), which survives a kill at once
//! and a power cut after one sync, and enters its keys into the active map ([`crate::memtable`]).
//! At the limit of the log the active map is frozen, the other of two logs takes the commits, and
//! a thread writes the frozen map into the redb file ([`crate::tree_file`]): a checkpoint, which
//! makes the log before stale.
//!
//! ```text
//! records 1..9 in log A, their keys active --limit--> frozen --checkpoint--> in the redb file
//!              10.. in log B, their keys active --limit, once A is stale--> frozen ...
//! ```
//!
//! Invariants:
//!
//! 1. A commit is visible and answered only when its record is in the log.
//! 2. Every commit is in the redb file, synced, or whole in a log; a log begins anew only when all
//!    of it is in the file. Opening applies both logs in the order of revisions, and ends with
//!    both empty, durably: what was not applied must not follow a later commit.
//! 3. After a failed write or sync nothing is acknowledged until a checkpoint of everything in
//!    memory has been synced. After a failed checkpoint the file is opened anew first; either its
//!    last transaction is in force and the map is written once more, or the new one is.
//! 4. A reader sees one moment: active over frozen over a snapshot of the file.
//! 5. Memory is bounded: where the active map reaches the limit while another is still being
//!    written, commits wait.
//!
//! Locks, in this order: `writer`, `syncing`, `view`, `witness`. Durable commits share syncs: who waits for
//! `syncing` mostly finds its record synced by the one before. A checkpoint holds none while it
//! writes.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit, take};
use std::ops::Bound;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use crate::commit_log::{CommitLog, Operation, records};
use crate::memtable::{Memtable, Overlay};
pub use crate::store_error::StoreError;
pub use crate::tree_file::{Entry, create};
use crate::tree_file::{Snapshot, TreeFile, get, merge};
use crate::witness::Witness;

/// A condition of a commit: the version of a key, 0 for absence.
pub type Condition<'a> = (&'a [u8], u64);

/// A key with its value and version, borrowed.
pub type EntryRef<'a> = (&'a [u8], &'a [u8], u64);

const LOG_SUFFIXES: [&str; 2] = [".log", ".log2"];

/// How a store uses memory and disk.
#[derive(Clone, Copy)]
pub struct Options {
    /// How long the log grows before a checkpoint.
    pub log_limit_bytes: u64,
    /// The same while the disk has little room: a checkpoint must fit into what is kept in reserve.
    pub scarce_log_limit_bytes: u64,
    /// How much of the file is kept in memory.
    pub cache_bytes: usize,
    /// A disk that fails beneath the file.
    #[cfg(test)]
    pub faults: Option<&'static faults::Faults>,
}

/// A map that takes no more commits, with the revision of the last in it.
struct Frozen {
    entries: Memtable,
    revision: u64,
}

/// What readers see.
struct View {
    active: Memtable,
    frozen: Option<Arc<Frozen>>,
    snapshot: Option<Snapshot>, // None: the file is not open
    revision: u64,
    log: usize,     // which of both takes the records
    frozen_at: u64, // the last revision in the other one
}

struct Writer {
    tree: Option<Arc<TreeFile>>,
    tree_revision: u64,
    logs: Vec<CommitLog>, // both; none once the store is closed
    revision: u64,
    log_limit_bytes: u64, // one of both that the options have
    look_at: u64,         // the size of the log at which to choose again
    is_checkpointing: bool,
    failure: Option<StoreError>, // of a checkpoint
}

impl Writer {
    fn is_long(&self, log: usize) -> bool {
        self.logs[log].size_bytes() > self.log_limit_bytes
    }
}

struct Syncing {
    logs: Vec<File>, // as those of the writer
    synced: u64,
}

struct Shared {
    path: PathBuf,
    options: Options,
    identity: u64,
    writer: Mutex<Writer>,
    checkpointed: Condvar, // with `writer`
    syncing: Mutex<Syncing>,
    view: RwLock<View>,
    witness: Mutex<Option<Witness>>, // a leaf
    descriptor: AtomicI32,           // set under `writer`
    closed: AtomicBool,              // set under `writer`
    sync_failed: AtomicBool,         // of a log; set under `syncing`
}

/// An open store. Shared by all threads.
pub struct Store {
    shared: ManuallyDrop<Arc<Shared>>,
    owner: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Open the store at a path; commits since its last checkpoint come back from the logs.
    pub fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let tree = TreeFile::open(path, &options)?;
        let (first, first_bytes) = CommitLog::open(&log_path(path, 0), tree.identity)?;
        let (second, second_bytes) = CommitLog::open(&log_path(path, 1), tree.identity)?;
        let mut active = Memtable::default();
        let logs = [&*first_bytes, &*second_bytes];
        let revision = replay(logs, tree.identity, tree.revision, &mut active);
        let is_clean = logs.iter().all(|bytes| bytes.is_empty());
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            options,
            identity: tree.identity,
            syncing: Mutex::new(Syncing {
                logs: vec![first.handle()?, second.handle()?],
                synced: tree.revision,
            }),
            checkpointed: Condvar::new(),
            view: RwLock::new(View {
                active,
                frozen: None,
                snapshot: Some(tree.snapshot()?),
                revision,
                log: 0,
                frozen_at: tree.revision,
            }),
            witness: Mutex::new(None),
            descriptor: AtomicI32::new(tree.descriptor),
            writer: Mutex::new(Writer {
                tree_revision: tree.revision,
                tree: Some(Arc::new(tree)),
                logs: vec![first, second],
                revision,
                log_limit_bytes: options.log_limit_bytes,
                look_at: options.scarce_log_limit_bytes,
                is_checkpointing: false,
                failure: None,
            }),
            closed: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        });
        let store = Self {
            shared: ManuallyDrop::new(shared),
            owner: std::process::id(),
        };
        if !is_clean {
            drop((first_bytes, second_bytes));
            store.shared.finish_recovery()?;
        }
        Ok(store)
    }

    /// The number that tells this store from any other.
    pub fn identity(&self) -> u64 {
        self.shared.identity
    }

    /// The descriptor of the file, whose lock a child of fork(2) shares; -1 where there is none.
    pub fn descriptor(&self) -> RawFd {
        self.shared.descriptor.load(Ordering::Acquire)
    }

    /// The revision of the last commit.
    pub fn revision(&self) -> Result<u64, StoreError> {
        match self.shared.closed.load(Ordering::Acquire) {
            true => Err(StoreError::Closed),
            false => Ok(self.shared.view().revision),
        }
    }

    /// The value and version of a key, handed to `take` in place.
    pub fn get<R>(
        &self,
        key: &[u8],
        take: impl Fn(&[u8], u64) -> R,
    ) -> Result<Option<R>, StoreError> {
        self.shared.answered(|| {
            let view = self.shared.reader()?;
            if let Some(slot) = view.newer(key) {
                return Ok(slot.value.as_ref().map(|value| take(value, slot.version)));
            }
            let snapshot = view.snapshot()?;
            drop(view);
            get(&snapshot, key, &take)
        })
    }

    /// Up to `limit` entries in key order, of one moment.
    pub fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        self.shared.answered(|| {
            let view = self.shared.reader()?;
            if limit == 0 || is_empty(lower, upper) {
                return Ok(Vec::new());
            }
            let active = view.active.copy(lower, upper, limit);
            let (frozen, snapshot) = (view.frozen.clone(), view.snapshot()?);
            drop(view);
            let active = active.iter().map(|(key, slot)| (&**key, slot));
            let frozen = frozen
                .iter()
                .flat_map(|map| map.entries.range(lower, upper));
            merge(&snapshot, Overlay::new(active, frozen), lower, upper, limit)
        })
    }

    /// Apply the operations if every condition holds; return the new revision.
    pub fn commit(
        &self,
        operations: &[Operation<'_>],
        conditions: &[Condition<'_>],
        durable: bool,
    ) -> Result<u64, StoreError> {
        let shared = &self.shared;
        let mut writer = shared.ready()?;
        shared.check(conditions)?;
        let revision = writer.revision + 1;
        let log = shared.view().log;
        if durable {
            writer.logs[log].fill_ahead()?;
        }
        writer.logs[log].append(revision, operations)?;
        writer.revision = revision;
        shared.witnessed(|witness| witness.record(revision));
        {
            let mut view = shared.view.write().unwrap_or_else(PoisonError::into_inner);
            view.active.apply(revision, operations);
            view.revision = revision;
        }
        shared.look_for_room(&mut writer, log);
        if !writer.is_checkpointing && writer.is_long(log) {
            shared.start_checkpoint(&mut writer);
        }
        drop(writer);
        if durable {
            shared.sync_to(revision)?;
        }
        Ok(revision)
    }

    /// Make every acknowledged commit survive a power cut.
    pub fn sync(&self) -> Result<(), StoreError> {
        let revision = self.shared.ready()?.revision;
        self.shared.sync_to(revision)
    }

    /// Store entries with the versions that they have, durably, and take up at a revision.
    ///
    /// For a store that is being filled: what a kill leaves of a call is not defined.
    pub fn load(&self, entries: &[EntryRef<'_>], revision: u64) -> Result<(), StoreError> {
        let mut writer = self.shared.idle()?;
        self.shared.checkpoint(&mut writer)?;
        self.shared.change_view(|view| {
            for &(key, value, version) in entries {
                view.active.apply(version, &[Operation::Put(key, value)]);
            }
        });
        writer.revision = revision;
        let loaded = self.shared.freeze(&mut writer);
        self.shared.write_now(&mut writer, &loaded)?;
        self.shared.witnessed(|witness| {
            witness.record(revision);
            witness.record_synced(revision);
        });
        Ok(())
    }

    /// Take up at a later revision: those between were given out and must not come back.
    pub fn skip_to(&self, revision: u64) -> Result<(), StoreError> {
        let mut writer = self.shared.idle()?;
        writer.revision = writer.revision.max(revision);
        self.shared.checkpoint(&mut writer)
    }

    /// Tell a witness of every commit, and of every sync, from now on.
    pub fn keep_witness(&self, path: &Path, boot: u64) -> Result<(), StoreError> {
        let witness = Witness::open(path, self.shared.identity, boot)?;
        *lock(&self.shared.witness) = Some(witness);
        Ok(())
    }

    /// Write everything into the file, synced, empty the logs and release all. Idempotent.
    pub fn close(&self) -> Result<(), StoreError> {
        self.shared.close()
    }
}

impl Drop for Store {
    /// Leave the logs as they are, as a kill would.
    fn drop(&mut self) {
        if std::process::id() != self.owner {
            return; // in a child of fork(2) a lock may be held by a thread that is not there
        }
        // The thread of the last checkpoint may not have let go of the rest yet.
        let tree = self.shared.take_tree(&mut self.shared.at_rest());
        drop(tree);
        // SAFETY: nothing uses the field after this, the only place that drops it.
        unsafe { ManuallyDrop::drop(&mut self.shared) }
    }
}

impl View {
    fn newer(&self, key: &[u8]) -> Option<&crate::memtable::Slot> {
        let below = || self.frozen.as_ref()?.entries.get(key);
        self.active.get(key).or_else(below)
    }

    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let failed = || StoreError::Failed("a write or a sync failed".to_owned());
        self.snapshot.clone().ok_or_else(failed)
    }
}

impl Shared {
    fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> Result<RwLockReadGuard<'_, View>, StoreError> {
        let view = self.view();
        match view.snapshot.is_some() {
            true => Ok(view),
            false if self.closed.load(Ordering::Acquire) => Err(StoreError::Closed),
            false => Err(StoreError::Failed("the file is not open".to_owned())),
        }
    }

    /// The answer of a read; it is tried again where the file was just being opened anew.
    fn answered<T>(&self, read: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        match read() {
            Err(StoreError::Failed(_) | StoreError::Closed)
                if !self.closed.load(Ordering::Acquire) =>
            {
                drop(self.at_rest());
                read()
            }
            answer => answer,
        }
    }

    /// The writer's lock, with no checkpoint running.
    fn at_rest(&self) -> MutexGuard<'_, Writer> {
        let mut writer = lock(&self.writer);
        while writer.is_checkpointing {
            let waited = self.checkpointed.wait(writer);
            writer = waited.unwrap_or_else(PoisonError::into_inner);
        }
        writer
    }

    fn witnessed(&self, tell: impl FnOnce(&mut Witness)) {
        if let Some(witness) = lock(&self.witness).as_mut() {
            tell(witness);
        }
    }

    fn change_view<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        change(&mut self.view.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_troubled(&self, writer: &Writer) -> bool {
        writer.failure.is_some() || self.sync_failed.load(Ordering::Acquire)
    }

    /// The writer's lock, once a commit may be taken.
    fn ready(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let writer = lock(&self.writer);
        let log = self.view().log;
        let must_wait = writer.is_checkpointing && writer.is_long(log);
        if !(must_wait || self.is_troubled(&writer)) {
            return match self.closed.load(Ordering::Acquire) {
                true => Err(StoreError::Closed),
                false => Ok(writer),
            };
        }
        drop(writer);
        self.idle()
    }

    /// The same, with no checkpoint running.
    fn idle(&self) -> Result<MutexGuard<'_, Writer>, StoreError> {
        let mut writer = self.at_rest();
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        if self.is_troubled(&writer) {
            self.recover(&mut writer)?;
        }
        Ok(writer)
    }

    fn check(&self, conditions: &[Condition<'_>]) -> Result<(), StoreError> {
        if conditions.is_empty() {
            return Ok(());
        }
        let view = self.view();
        for (index, (key, wanted)) in conditions.iter().enumerate() {
            let found = match view.newer(key) {
                Some(slot) => slot.found_version(),
                None => get(&view.snapshot()?, key, |_, version| version)?.unwrap_or(0),
            };
            if found != *wanted {
                return Err(StoreError::Conflict(index, found));
            }
        }
        Ok(())
    }

    fn sync_to(&self, revision: u64) -> Result<(), StoreError> {
        let mut syncing = lock(&self.syncing);
        if syncing.synced >= revision {
            return Ok(());
        }
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(StoreError::Failed("a sync failed".to_owned()));
        }
        if syncing.logs.is_empty() {
            return Err(StoreError::Closed);
        }
        let (target, log, frozen_at) = {
            let view = self.view();
            (view.revision, view.log, view.frozen_at)
        };
        let mut outcome = syncing.logs[log].sync_data();
        if syncing.synced < frozen_at {
            outcome = outcome.and_then(|()| syncing.logs[log ^ 1].sync_data());
        }
        match outcome {
            Ok(()) => {
                syncing.synced = target;
                self.witnessed(|witness| witness.record_synced(target));
                Ok(())
            }
            Err(error) => {
                // Trying again could succeed without the pages that the failure dropped.
                self.sync_failed.store(true, Ordering::Release);
                Err(StoreError::Failed(error.to_string()))
            }
        }
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut writer = self.at_rest();
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut outcome = match self.is_troubled(&writer) {
            true => self.recover(&mut writer),
            false => self.checkpoint(&mut writer),
        };
        self.closed.store(true, Ordering::Release);
        let tree = self.take_tree(&mut writer);
        for log in &mut writer.logs {
            outcome = outcome.and_then(|()| log.truncate().map_err(StoreError::from));
        }
        writer.logs.clear();
        lock(&self.syncing).logs.clear();
        let maps = self.change_view(|view| (take(&mut view.active), view.frozen.take()));
        if let (Some(mut witness), Ok(())) = (lock(&self.witness).take(), &outcome) {
            witness.record_synced(writer.revision);
        }
        drop(writer);
        drop(maps);
        outcome.and(tree.map_or(Ok(()), TreeFile::close))
    }

    /// Take the file away from readers and writers.
    fn take_tree(&self, writer: &mut Writer) -> Option<TreeFile> {
        self.descriptor.store(-1, Ordering::Release);
        let snapshot = self.change_view(|view| view.snapshot.take());
        drop(snapshot); // the end of a read transaction takes a lock of the engine
        writer.tree.take().and_then(Arc::into_inner)
    }

    // Checkpoints

    /// Look now and then how much room the disk has: the limit depends on it.
    fn look_for_room(&self, writer: &mut Writer, log: usize) {
        let size = writer.logs[log].size_bytes();
        if size >= writer.look_at {
            writer.look_at = size + self.options.scarce_log_limit_bytes;
            writer.log_limit_bytes = self.log_limit_bytes();
        }
    }

    fn log_limit_bytes(&self) -> u64 {
        match self.is_scarce() {
            true => self.options.scarce_log_limit_bytes,
            false => self.options.log_limit_bytes,
        }
    }

    fn is_scarce(&self) -> bool {
        let wanted = self.options.log_limit_bytes.saturating_mul(4);
        self.options.scarce_log_limit_bytes < self.options.log_limit_bytes
            && free_bytes(&self.path).is_some_and(|free| free < wanted)
    }

    fn is_short_of_room(&self, writer: &Writer) -> bool {
        writer.log_limit_bytes < self.options.log_limit_bytes
            || writer.failure.as_ref().is_some_and(StoreError::is_full)
    }

    /// Have the active map take no more commits; return it.
    fn freeze(&self, writer: &mut Writer) -> Arc<Frozen> {
        let revision = writer.revision;
        let (frozen, log) = self.change_view(|view| {
            let entries = take(&mut view.active);
            let frozen = Arc::new(Frozen { entries, revision });
            view.frozen = Some(frozen.clone());
            view.log ^= 1;
            view.frozen_at = revision;
            view.revision = revision;
            (frozen, view.log)
        });
        writer.logs[log].restart(); // all of it is in the file
        writer.look_at = self.options.scarce_log_limit_bytes;
        frozen
    }

    /// Freeze the active map and have a thread write it.
    fn start_checkpoint(self: &Arc<Self>, writer: &mut Writer) {
        let Some(tree) = writer.tree.clone() else {
            return;
        };
        let frozen = self.freeze(writer);
        let in_slices = self.is_short_of_room(writer);
        let shared = self.clone();
        writer.is_checkpointing = true;
        let work = move || {
            let outcome = shared.write_frozen(&tree, &frozen, in_slices);
            drop((tree, frozen));
            let mut writer = lock(&shared.writer);
            writer.is_checkpointing = false;
            // A failure is kept for the next commit: those in the map are in the log.
            let stale = shared.finish(&mut writer, outcome);
            shared.checkpointed.notify_all();
            drop(writer);
            drop(stale);
        };
        let thread = std::thread::Builder::new().name("nexus-checkpoint".to_owned());
        if thread.spawn(work).is_err() {
            writer.is_checkpointing = false;
            let _ = self.checkpoint(writer); // kept for the next commit as well
        }
    }

    /// Write all that is in memory into the file, synced. No checkpoint must be running.
    fn checkpoint(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let frozen = self.view().frozen.clone();
        if let Some(frozen) = frozen {
            self.write_now(writer, &frozen)?;
        }
        if writer.tree_revision < writer.revision {
            let frozen = self.freeze(writer);
            self.write_now(writer, &frozen)?;
        }
        Ok(())
    }

    fn write_now(&self, writer: &mut Writer, frozen: &Frozen) -> Result<(), StoreError> {
        let tree = writer.tree.clone().ok_or(StoreError::Closed)?;
        let in_slices = self.is_short_of_room(writer);
        let outcome = self.write_frozen(&tree, frozen, in_slices);
        drop(tree);
        drop(self.finish(writer, outcome)?);
        Ok(())
    }

    fn write_frozen(
        &self,
        tree: &TreeFile,
        frozen: &Frozen,
        in_slices: bool,
    ) -> Result<(Snapshot, u64), StoreError> {
        if in_slices && !self.sync_failed.load(Ordering::Acquire) {
            for log in &self.log_handles()? {
                log.sync_data().map_err(|error| {
                    self.sync_failed.store(true, Ordering::Release);
                    StoreError::Failed(error.to_string())
                })?;
            }
            tree.write_in_slices(&frozen.entries, frozen.revision, |snapshot| {
                drop(self.change_view(|view| view.snapshot.replace(snapshot)));
            })?;
        } else {
            tree.write(&frozen.entries, frozen.revision)?;
        }
        let mut syncing = lock(&self.syncing);
        syncing.synced = syncing.synced.max(frozen.revision);
        Ok((tree.snapshot()?, frozen.revision))
    }

    fn log_handles(&self) -> Result<Vec<File>, StoreError> {
        let syncing = lock(&self.syncing);
        let handles: io::Result<Vec<File>> = syncing.logs.iter().map(File::try_clone).collect();
        Ok(handles?)
    }

    /// Take up what a checkpoint has written, or keep its failure; return what is stale.
    fn finish(
        &self,
        writer: &mut Writer,
        outcome: Result<(Snapshot, u64), StoreError>,
    ) -> Result<(Option<Snapshot>, Option<Arc<Frozen>>), StoreError> {
        match outcome {
            Ok((snapshot, revision)) => {
                writer.tree_revision = revision;
                Ok(self.change_view(|view| (view.snapshot.replace(snapshot), view.frozen.take())))
            }
            Err(error) => {
                let answer = unapplied(&error);
                writer.failure = Some(error);
                // The engine refuses even reads now. Where this fails too, the next commit tries.
                let _ = self.reopen(writer);
                Err(answer)
            }
        }
    }

    // Recovery

    /// Write all that is in memory once more, into the file opened anew if need be.
    fn recover(&self, writer: &mut Writer) -> Result<(), StoreError> {
        if writer.tree.is_none() {
            self.reopen(writer).map_err(|error| unapplied(&error))?;
        }
        self.checkpoint(writer)?;
        writer.failure = None;
        let _syncing = lock(&self.syncing);
        self.sync_failed.store(false, Ordering::Release);
        Ok(())
    }

    fn reopen(&self, writer: &mut Writer) -> Result<(), StoreError> {
        drop(self.take_tree(writer)); // nobody can open the file twice
        let tree = TreeFile::open(&self.path, &self.options)?;
        if tree.identity != self.identity || tree.revision < writer.tree_revision {
            let reason = "the file is not the one that was open";
            return Err(StoreError::Damaged(reason.to_owned()));
        }
        let snapshot = tree.snapshot()?;
        self.descriptor.store(tree.descriptor, Ordering::Release);
        self.change_view(|view| view.snapshot = Some(snapshot));
        writer.tree = Some(Arc::new(tree));
        Ok(())
    }

    /// Bring what the logs had into the file, and empty them.
    fn finish_recovery(&self) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        writer.log_limit_bytes = self.log_limit_bytes();
        let written = self.checkpoint(&mut writer);
        if written.as_ref().is_err_and(StoreError::is_full) {
            self.recover(&mut writer)?;
        } else {
            written?;
        }
        for log in &mut writer.logs {
            log.truncate_durably()?;
        }
        Ok(())
    }
}

/// The answer to a commit that had to wait for a checkpoint or a reopening which has failed.
fn unapplied(error: &StoreError) -> StoreError {
    match error {
        StoreError::Io(cause) if error.is_full() => {
            let number = cause.raw_os_error().unwrap_or(libc::ENOSPC);
            StoreError::Io(io::Error::from_raw_os_error(number))
        }
        other => StoreError::Failed(other.reason()),
    }
}

fn log_path(path: &Path, index: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(LOG_SUFFIXES[index]);
    name.into()
}

/// Apply the records that go on from a revision; return the last one.
fn replay(logs: [&[u8]; 2], identity: u64, mut revision: u64, entries: &mut Memtable) -> u64 {
    let mut found = logs.map(|bytes| records(bytes, identity));
    found.sort_by_key(|records| records.first().map(|record| record.revision));
    for record in found.iter().flatten() {
        if record.revision == revision + 1 {
            entries.apply(record.revision, &record.operations);
            revision = record.revision;
        }
    }
    revision
}

/// What an ordinary user may still write to the disk of a file; None where nobody can tell.
fn free_bytes(path: &Path) -> Option<u64> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut status = MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the name ends with a zero byte, and the structure is as large as the call writes.
    if unsafe { libc::statvfs(name.as_ptr(), status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: it was all zeros, which is a value of it, and the call has filled it.
    let status = unsafe { status.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the fields differ between systems")]
    Some(status.f_bavail as u64 * status.f_frsize as u64)
}

fn is_empty(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> bool {
    let Bound::Excluded(upper) = upper else {
        return false;
    };
    match lower {
        Bound::Included(lower) | Bound::Excluded(lower) => lower >= upper,
        Bound::Unbounded => false,
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
