//! An ordered key-value store: one redb file, and a log of the commits since its last checkpoint.
//!
//! redb alone either syncs at every commit or loses what a kill interrupts. Here a commit changes
//! redb in memory and appends one record to the log ([`crate::commit_log`]), which survives a kill
//! at once and a power cut after one sync of the log. A checkpoint commits redb durably, with its
//! own syncs in their order, and starts the log anew.
//!
//! Invariants:
//!
//! 1. A commit is visible and answered only when its record is in the log.
//! 2. The file on the disk is the state of the last checkpoint, whole; redb overwrites nothing of it
//!    before the next one is synced. So a power cut leaves it, and what is whole of the log.
//! 3. After a failed write or sync nothing is acknowledged until the files have been opened anew
//!    and a checkpoint of everything in them has been synced. A checkpoint commits in two phases:
//!    where a sync of it fails, either the last one is still in force, and the log is applied to
//!    it once more, or its pages were synced already and only its header is written again.
//!
//! Locks, in this order: `writer`, `syncing`, `snapshot`. Durable commits share syncs: who waits
//! for `syncing` mostly finds its record synced by the one before.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable,
    TableDefinition, WriteTransaction,
};

use crate::commit_log::{CommitLog, Operation, records};

const ENTRIES: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("entries");
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
const VERSION_BYTES: usize = 8;

/// A condition of a commit: the version of a key, 0 for absence.
pub type Condition<'a> = (&'a [u8], u64);

/// A key with its value and version.
pub type Entry = (Vec<u8>, Vec<u8>, u64);

/// The same, borrowed.
pub type EntryRef<'a> = (&'a [u8], &'a [u8], u64);

/// Why a call of the store has no answer.
#[derive(Debug)]
pub enum StoreError {
    /// A condition does not hold: which one, and the version that was found.
    Conflict(usize, u64),
    /// The store is closed.
    Closed,
    /// Somebody else has the file open.
    Busy(String),
    /// The file holds something else, or is damaged.
    Damaged(String),
    /// A write or sync failed; whether it is stored is not known.
    Failed(String),
    /// The operating system refused, with nothing changed.
    Io(io::Error),
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

fn engine(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => error.into(),
        redb::Error::DatabaseAlreadyOpen => StoreError::Busy("it is open already".to_owned()),
        redb::Error::DatabaseClosed => StoreError::Closed,
        redb::Error::PreviousIo => StoreError::Failed("an earlier write failed".to_owned()),
        other => StoreError::Damaged(other.to_string()),
    }
}

/// Run what reads stored bytes: redb answers some damage by a panic.
fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
        let reason = format!("the engine gave up: {}", text.unwrap_or("no reason"));
        Err(StoreError::Damaged(reason))
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Snapshot = Arc<ReadOnlyTable<&'static [u8], &'static [u8]>>;

/// How a store uses memory and disk.
#[derive(Clone, Copy)]
pub struct Options {
    /// How long the log grows before a checkpoint.
    pub log_limit_bytes: u64,
    /// How much of the file is kept in memory.
    pub cache_bytes: usize,
}

struct Files {
    database: Database,
    log: CommitLog,
    descriptor: RawFd,
}

struct Writer {
    files: Option<Files>,
    failure: Option<String>,
    revision: u64,
}

struct Syncing {
    file: Option<File>,
    synced: u64,
}

/// An open store. Shared by all threads.
pub struct Store {
    path: PathBuf,
    options: Options,
    identity: u64,
    writer: Mutex<Writer>,
    syncing: Mutex<Syncing>,
    snapshot: RwLock<Option<Snapshot>>,
    appended: AtomicU64,
    descriptor: AtomicI32,   // set under `writer`
    closed: AtomicBool,      // set under `writer`
    sync_failed: AtomicBool, // of the log; set under `syncing`
}

/// Make an empty store, synced, at a path where there is none.
pub fn create(path: &Path, identity: u64) -> Result<(), StoreError> {
    guarded(|| {
        let database = Database::create(path).map_err(engine)?;
        let transaction = database.begin_write().map_err(engine)?;
        transaction.open_table(ENTRIES).map_err(engine)?;
        {
            let mut meta = transaction.open_table(META).map_err(engine)?;
            for (name, value) in [("format", FORMAT), ("identity", identity), ("revision", 0)] {
                meta.insert(name, value).map_err(engine)?;
            }
        }
        transaction.commit().map_err(engine)?;
        database.close().map_err(engine)
    })
}

impl Store {
    /// Open the store at a path; commits since its last checkpoint come back from the log.
    pub fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let (files, identity, revision) = guarded(|| open_files(path, options))?;
        let store = Self {
            path: path.to_owned(),
            options,
            identity,
            writer: Mutex::new(Writer {
                files: None,
                failure: None,
                revision,
            }),
            syncing: Mutex::new(Syncing {
                file: None,
                synced: 0,
            }),
            snapshot: RwLock::new(None),
            appended: AtomicU64::new(revision),
            descriptor: AtomicI32::new(-1),
            closed: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        };
        store.install(&mut lock(&store.writer), files, revision)?;
        Ok(store)
    }

    /// The number that tells this store from any other.
    pub fn identity(&self) -> u64 {
        self.identity
    }

    /// The descriptor of the file, whose lock a child of fork(2) shares; -1 where there is none.
    pub fn descriptor(&self) -> RawFd {
        self.descriptor.load(Ordering::Acquire)
    }

    /// The revision of the last commit.
    pub fn revision(&self) -> Result<u64, StoreError> {
        self.reader()?;
        Ok(self.appended.load(Ordering::Acquire))
    }

    /// The value and version of a key, handed to `take` in place.
    pub fn get<R>(
        &self,
        key: &[u8],
        take: impl FnOnce(&[u8], u64) -> R,
    ) -> Result<Option<R>, StoreError> {
        let table = self.reader()?;
        guarded(|| {
            let Some(found) = table.get(key).map_err(engine)? else {
                return Ok(None);
            };
            let (version, value) = split(found.value())?;
            Ok(Some(take(value, version)))
        })
    }

    /// Up to `limit` entries in key order, of one moment.
    pub fn scan(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let table = self.reader()?;
        if limit == 0 || is_empty(lower, upper) {
            return Ok(Vec::new());
        }
        guarded(|| {
            let mut found: Vec<Entry> = Vec::new();
            for entry in table
                .range::<&[u8]>((lower, upper))
                .map_err(engine)?
                .take(limit)
            {
                let (key, stored) = entry.map_err(engine)?;
                let (version, value) = split(stored.value())?;
                // Who resumes by the last key would never come to an end of a damaged tree.
                if found
                    .last()
                    .is_some_and(|last| last.0.as_slice() >= key.value())
                {
                    return Err(StoreError::Damaged("keys are out of order".to_owned()));
                }
                found.push((key.value().to_vec(), value.to_vec(), version));
            }
            Ok(found)
        })
    }

    /// Apply the operations if every condition holds; return the new revision.
    pub fn commit(
        &self,
        operations: &[Operation<'_>],
        conditions: &[Condition<'_>],
        durable: bool,
    ) -> Result<u64, StoreError> {
        let revision = {
            let mut writer = lock(&self.writer);
            self.become_ready(&mut writer)?;
            let revision = writer.revision + 1;
            self.transact(&mut writer, revision, operations, conditions, durable)?;
            writer.revision = revision;
            self.appended.store(revision, Ordering::Release);
            let files = writer.files.as_ref().ok_or(StoreError::Closed)?;
            if files.log.size_bytes() > self.options.log_limit_bytes {
                // This commit is in the log, so that a failure here is kept for the next one.
                let _ = self.checkpoint(&mut writer);
            }
            revision
        };
        if durable {
            self.sync_to(revision)?;
        }
        Ok(revision)
    }

    /// Make every acknowledged commit survive a power cut.
    pub fn sync(&self) -> Result<(), StoreError> {
        let revision = {
            let mut writer = lock(&self.writer);
            self.become_ready(&mut writer)?;
            writer.revision
        };
        self.sync_to(revision)
    }

    /// Store entries with the versions that they have, durably, and take up at a revision.
    ///
    /// For a store that is being filled: what a kill leaves of a call is not defined.
    pub fn load(&self, entries: &[EntryRef<'_>], revision: u64) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        self.become_ready(&mut writer)?;
        let files = writer.files.as_ref().ok_or(StoreError::Closed)?;
        if let Err(error) = guarded(|| insert_all(&files.database, entries)) {
            return Err(fail_unapplied(&mut writer, error));
        }
        let before = std::mem::replace(&mut writer.revision, revision);
        if let Err(error) = self.checkpoint(&mut writer) {
            writer.revision = before;
            return Err(error);
        }
        self.appended.store(revision, Ordering::Release);
        Ok(())
    }

    /// Take up at a later revision: those between were given out and must not come back.
    pub fn skip_to(&self, revision: u64) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        self.become_ready(&mut writer)?;
        writer.revision = writer.revision.max(revision);
        self.appended.store(writer.revision, Ordering::Release);
        self.checkpoint(&mut writer)
    }

    /// Write everything into the file, synced, empty the log and release both. Idempotent.
    pub fn close(&self) -> Result<(), StoreError> {
        let mut writer = lock(&self.writer);
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut outcome = self.become_ready(&mut writer);
        if outcome.is_ok() {
            outcome = self.checkpoint(&mut writer);
        }
        self.closed.store(true, Ordering::Release);
        self.descriptor.store(-1, Ordering::Release);
        self.set_snapshot(None);
        lock(&self.syncing).file = None;
        let Some(mut files) = writer.files.take() else {
            return outcome;
        };
        if outcome.is_ok() {
            outcome = files.log.truncate().map_err(StoreError::from);
        }
        outcome.and(guarded(|| files.database.close().map_err(engine)))
    }

    fn reader(&self) -> Result<Snapshot, StoreError> {
        let snapshot = self.snapshot.read().unwrap_or_else(PoisonError::into_inner);
        snapshot
            .clone()
            .ok_or_else(|| match self.closed.load(Ordering::Acquire) {
                true => StoreError::Closed,
                false => StoreError::Failed("a write or a sync failed".to_owned()),
            })
    }

    fn set_snapshot(&self, next: Option<Snapshot>) {
        let mut snapshot = self
            .snapshot
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let last = std::mem::replace(&mut *snapshot, next);
        drop(snapshot);
        drop(last); // the end of a read transaction takes a lock of the engine
    }

    fn transact(
        &self,
        writer: &mut Writer,
        revision: u64,
        operations: &[Operation<'_>],
        conditions: &[Condition<'_>],
        durable: bool,
    ) -> Result<(), StoreError> {
        let files = writer.files.as_mut().ok_or(StoreError::Closed)?;
        let prepared = guarded(|| prepare(&files.database, revision, operations, conditions));
        let transaction = match prepared {
            Ok(transaction) => transaction,
            Err(StoreError::Conflict(index, found)) => {
                return Err(StoreError::Conflict(index, found));
            }
            Err(error) => {
                // The engine refuses everything after an error; the next commit opens it anew.
                writer.failure = Some(reason(&error));
                return Err(error);
            }
        };
        if durable {
            files.log.fill_ahead()?;
        }
        files.log.append(revision, operations)?;
        let finished = guarded(|| {
            transaction.commit().map_err(engine)?;
            self.set_snapshot(Some(open_snapshot(&files.database)?));
            Ok(())
        });
        finished.map_err(|error| fail(writer, &error))
    }

    /// Commit the file durably and start the log anew; a failure is kept for the next call.
    fn checkpoint(&self, writer: &mut Writer) -> Result<(), StoreError> {
        let revision = writer.revision;
        let files = writer.files.as_mut().ok_or(StoreError::Closed)?;
        let done = guarded(|| {
            write_revision(&files.database, revision)?;
            files.log.restart();
            open_snapshot(&files.database)
        });
        match done {
            Ok(snapshot) => {
                self.set_snapshot(Some(snapshot));
                let mut syncing = lock(&self.syncing);
                syncing.synced = syncing.synced.max(revision);
                Ok(())
            }
            Err(error) => Err(fail_unapplied(writer, error)),
        }
    }

    fn sync_to(&self, revision: u64) -> Result<(), StoreError> {
        let mut syncing = lock(&self.syncing);
        if syncing.synced >= revision {
            return Ok(());
        }
        let target = self.appended.load(Ordering::Acquire);
        let Some(file) = &syncing.file else {
            return Err(StoreError::Failed("a sync failed".to_owned()));
        };
        match file.sync_data() {
            Ok(()) => {
                syncing.synced = target;
                Ok(())
            }
            Err(error) => {
                // Trying again could succeed without the pages that the failure dropped.
                self.sync_failed.store(true, Ordering::Release);
                syncing.file = None;
                Err(StoreError::Failed(error.to_string()))
            }
        }
    }

    fn become_ready(&self, writer: &mut Writer) -> Result<(), StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        if writer.failure.is_none() && !self.sync_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.set_snapshot(None);
        self.descriptor.store(-1, Ordering::Release);
        writer.files = None; // closes the file, which nobody can open twice
        let opened = guarded(|| open_files(&self.path, self.options));
        let (files, _, revision) = opened.map_err(|error| fail_unapplied(writer, error))?;
        if revision < writer.revision {
            let lost = writer.revision - revision;
            return Err(StoreError::Damaged(format!(
                "the last {lost} commits are missing"
            )));
        }
        self.install(writer, files, revision)?;
        writer.failure = None;
        Ok(())
    }

    /// Take up files just opened, once a sync of everything in them has succeeded.
    fn install(&self, writer: &mut Writer, files: Files, revision: u64) -> Result<(), StoreError> {
        let handle = files.log.handle()?;
        self.descriptor.store(files.descriptor, Ordering::Release);
        writer.files = Some(files);
        writer.revision = revision;
        self.appended.store(revision, Ordering::Release);
        self.checkpoint(writer)?;
        lock(&self.syncing).file = Some(handle);
        self.sync_failed.store(false, Ordering::Release);
        Ok(())
    }
}

fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Conflict(..) => "a condition does not hold".to_owned(),
        StoreError::Closed => "the store is closed".to_owned(),
        StoreError::Busy(reason) | StoreError::Damaged(reason) | StoreError::Failed(reason) => {
            reason.clone()
        }
        StoreError::Io(error) => error.to_string(),
    }
}

/// Keep a failure for the next call, which opens the files anew; the answer to this one.
fn fail(writer: &mut Writer, error: &StoreError) -> StoreError {
    let reason = reason(error);
    writer.failure = Some(reason.clone());
    StoreError::Failed(reason)
}

/// The same, where nothing was applied: on a full disk the answer says so.
fn fail_unapplied(writer: &mut Writer, error: StoreError) -> StoreError {
    let failed = fail(writer, &error);
    match &error {
        StoreError::Io(cause) if cause.kind() == io::ErrorKind::StorageFull => error,
        _ => failed,
    }
}

/// Open both files and bring the commits of the log back; nothing is synced yet.
fn open_files(path: &Path, options: Options) -> Result<(Files, u64, u64), StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let descriptor = file.as_raw_fd();
    let backend = FileBackend::new(file).map_err(engine)?;
    let database = Builder::new()
        .set_cache_size(options.cache_bytes)
        .create_with_backend(backend)
        .map_err(|error| match error {
            DatabaseError::UpgradeRequired(format) => {
                StoreError::Damaged(format!("it is a redb file of the old format {format}"))
            }
            other => engine(other),
        })?;
    let (identity, mut revision) = read_meta(&database)?;
    let mut log_path = path.as_os_str().to_owned();
    log_path.push(".log");
    let (log, bytes) = CommitLog::open(Path::new(&log_path), identity)?;
    for record in records(&bytes, identity) {
        if record.revision == revision + 1 {
            let transaction = prepare(&database, record.revision, &record.operations, &[])?;
            transaction.commit().map_err(engine)?;
            revision = record.revision;
        }
    }
    let files = Files {
        database,
        log,
        descriptor,
    };
    Ok((files, identity, revision))
}

fn read_meta(database: &Database) -> Result<(u64, u64), StoreError> {
    let foreign = |_| StoreError::Damaged("the tables are not a metastore's".to_owned());
    let transaction = database.begin_read().map_err(engine)?;
    let meta = transaction.open_table(META).map_err(foreign)?;
    transaction.open_table(ENTRIES).map_err(foreign)?;
    let number = |name: &str| -> Result<u64, StoreError> {
        let found = meta.get(name).map_err(engine)?;
        let missing = || StoreError::Damaged(format!("the {name} is missing"));
        Ok(found.ok_or_else(missing)?.value())
    };
    match number("format")? {
        FORMAT => Ok((number("identity")?, number("revision")?)),
        other => Err(StoreError::Damaged(format!(
            "its format is {other}, not {FORMAT}"
        ))),
    }
}

fn open_snapshot(database: &Database) -> Result<Snapshot, StoreError> {
    let transaction = database.begin_read().map_err(engine)?;
    Ok(Arc::new(transaction.open_table(ENTRIES).map_err(engine)?))
}

/// A transaction with the operations applied, to be committed in memory.
fn prepare(
    database: &Database,
    revision: u64,
    operations: &[Operation<'_>],
    conditions: &[Condition<'_>],
) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write().map_err(engine)?;
    transaction
        .set_durability(Durability::None)
        .map_err(|error| StoreError::Failed(error.to_string()))?;
    {
        let mut table = transaction.open_table(ENTRIES).map_err(engine)?;
        for (index, (key, wanted)) in conditions.iter().enumerate() {
            let found = match table.get(*key).map_err(engine)? {
                Some(stored) => split(stored.value())?.0,
                None => 0,
            };
            if found != *wanted {
                return Err(StoreError::Conflict(index, found));
            }
        }
        let mut stored = Vec::new();
        for operation in operations {
            match operation {
                Operation::Delete(key) => drop(table.remove(*key).map_err(engine)?),
                Operation::Put(key, value) => {
                    stored.clear();
                    stored.extend(revision.to_le_bytes());
                    stored.extend(*value);
                    table.insert(*key, stored.as_slice()).map_err(engine)?;
                }
            }
        }
    }
    Ok(transaction)
}

/// Put entries as they are, in memory until the next checkpoint.
fn insert_all(database: &Database, entries: &[EntryRef<'_>]) -> Result<(), StoreError> {
    let mut transaction = database.begin_write().map_err(engine)?;
    transaction
        .set_durability(Durability::None)
        .map_err(|error| StoreError::Failed(error.to_string()))?;
    {
        let mut table = transaction.open_table(ENTRIES).map_err(engine)?;
        let mut stored = Vec::new();
        for (key, value, version) in entries {
            stored.clear();
            stored.extend(version.to_le_bytes());
            stored.extend(*value);
            table.insert(*key, stored.as_slice()).map_err(engine)?;
        }
    }
    transaction.commit().map_err(engine)
}

fn write_revision(database: &Database, revision: u64) -> Result<(), StoreError> {
    let mut transaction = database.begin_write().map_err(engine)?;
    transaction.set_quick_repair(true); // a kill must not cost a walk through the file
    {
        let mut meta = transaction.open_table(META).map_err(engine)?;
        meta.insert("revision", revision).map_err(engine)?;
    }
    transaction.commit().map_err(engine)
}

fn split(stored: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    match stored.split_first_chunk::<VERSION_BYTES>() {
        Some((version, value)) => Ok((u64::from_le_bytes(*version), value)),
        None => Err(StoreError::Damaged("a record is cut short".to_owned())),
    }
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
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::OwnedFd;

    const OPTIONS: Options = Options {
        log_limit_bytes: 4096,
        cache_bytes: 1 << 20,
    };

    /// A folder that is gone with the test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("nexus_kernel-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).expect("a new folder");
            Self(path)
        }

        fn store(&self) -> Store {
            let path = self.0.join("store");
            if !path.exists() {
                create(&path, 7).expect("a new store");
            }
            Store::open(&path, OPTIONS).expect("a store")
        }

        /// What a kill would leave now.
        fn killed(&self, name: &str) -> Self {
            let other = Self::new(name);
            for file in ["store", "store.log"] {
                fs::copy(self.0.join(file), other.0.join(file)).expect("a copy");
            }
            other
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("the folder");
        }
    }

    fn all(store: &Store) -> Vec<Entry> {
        store
            .scan(Bound::Unbounded, Bound::Unbounded, usize::MAX)
            .expect("entries")
    }

    #[test]
    fn invariant_1_a_kill_at_any_commit_loses_none() {
        let folder = Folder::new("kill");
        let store = folder.store();
        for number in 1..=200_u64 {
            let (key, value) = (number.to_be_bytes(), [number as u8; 100]);
            let gone = (number / 2).to_be_bytes();
            let operations = [Operation::Delete(&gone), Operation::Put(&key, &value)];
            let revision = store
                .commit(&operations, &[], number % 3 == 0)
                .expect("a commit");
            if number % 7 == 0 {
                let copy = folder.killed(&format!("kill-{number}"));
                let again = copy.store();
                assert_eq!(again.revision().expect("a revision"), revision);
                assert_eq!(all(&again), all(&store));
                again.close().expect("closed");
            }
        }
        store.close().expect("closed");
    }

    #[test]
    fn invariant_2_a_log_that_is_cut_leaves_a_commit_before() {
        let folder = Folder::new("cut");
        let store = folder.store();
        for number in 1..=5_u8 {
            store
                .commit(&[Operation::Put(b"n", &[number])], &[], false)
                .expect("a commit");
        }
        let log = fs::read(folder.0.join("store.log")).expect("a log");
        for end in (0..log.len()).step_by(5) {
            let copy = folder.killed(&format!("cut-{end}"));
            fs::write(copy.0.join("store.log"), &log[..end]).expect("a shorter log");
            let again = copy.store();
            let revision = again.revision().expect("a revision");
            let value = again.get(b"n", |value, _| value[0]).expect("an answer");
            assert_eq!(u64::from(value.unwrap_or(0)), revision);
            assert!(revision < 5);
            again.close().expect("closed");
        }
        store.close().expect("closed");
    }

    #[test]
    fn invariant_3_after_a_failed_sync_the_next_commit_opens_the_files_anew() {
        let folder = Folder::new("fail");
        let store = folder.store();
        store
            .commit(&[Operation::Put(b"a", b"1")], &[], false)
            .expect("a commit");
        // The end of a pipe cannot be synced.
        let (pipe, _other) = io::pipe().expect("a pipe");
        lock(&store.syncing).file = Some(File::from(OwnedFd::from(pipe)));
        let outcome = store.commit(&[Operation::Put(b"a", b"2")], &[], true);
        assert!(matches!(outcome, Err(StoreError::Failed(_))));
        assert!(store.sync_failed.load(Ordering::Acquire));
        assert_eq!(
            store
                .commit(&[Operation::Put(b"b", b"2")], &[], true)
                .expect("a commit"),
            3 // the commit that was not synced is stored, and was never acknowledged
        );
        assert!(!store.sync_failed.load(Ordering::Acquire));
        assert_eq!(all(&store).len(), 2);
        store.close().expect("closed");
        assert!(matches!(
            store.get(b"a", |_, _| ()),
            Err(StoreError::Closed)
        ));
    }

    #[test]
    fn a_failed_condition_changes_nothing() {
        let folder = Folder::new("condition");
        let store = folder.store();
        store
            .commit(&[Operation::Put(b"a", b"1")], &[(b"a", 0)], false)
            .expect("a commit");
        let outcome = store.commit(&[Operation::Delete(b"a")], &[(b"a", 1), (b"b", 3)], false);
        assert!(matches!(outcome, Err(StoreError::Conflict(1, 0))));
        assert_eq!(all(&store), [(b"a".to_vec(), b"1".to_vec(), 1)]);
        store.close().expect("closed");
    }

    #[test]
    fn loaded_entries_keep_their_versions_and_survive_a_kill() {
        let folder = Folder::new("load");
        let store = folder.store();
        store
            .load(&[(b"a", b"1", 5), (b"b", b"2", 3)], 9)
            .expect("a load");
        let copy = folder.killed("load-killed");
        let again = copy.store();
        assert_eq!(again.revision().expect("a revision"), 9);
        let wanted = [
            (b"a".to_vec(), b"1".to_vec(), 5),
            (b"b".to_vec(), b"2".to_vec(), 3),
        ];
        assert_eq!(all(&again), wanted);
        let put = [Operation::Put(b"a", b"3")];
        assert_eq!(
            again.commit(&put, &[(b"a", 5)], false).expect("a commit"),
            10
        );
        again.close().expect("closed");
        store.close().expect("closed");
    }

    #[test]
    fn a_second_opening_is_busy() {
        let folder = Folder::new("busy");
        let store = folder.store();
        let second = Store::open(&folder.0.join("store"), OPTIONS);
        assert!(matches!(second, Err(StoreError::Busy(_))));
        store.close().expect("closed");
    }

    #[test]
    fn durable_commits_of_many_threads_are_all_synced() {
        let folder = Folder::new("group");
        let store = folder.store();
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let store = &store;
                scope.spawn(move || {
                    for number in 0..20_u8 {
                        let key = [thread, number];
                        let put = [Operation::Put(&key, b"")];
                        let revision = store.commit(&put, &[], true).expect("a commit");
                        assert!(lock(&store.syncing).synced >= revision);
                    }
                });
            }
        });
        assert_eq!(store.revision().expect("a revision"), 80);
        store.close().expect("closed");
    }
}
