//! The redb file of a store: everything up to its last checkpoint.
//!
//! It knows tables, transactions and their syncs; it does not know the log, nor what is newer than
//! the last checkpoint. The table `entries` maps a key to the version (8 bytes, little-endian) and
//! the value; `meta` holds `format`, `identity` and `revision`.
//!
//! Invariants:
//!
//! 1. A transaction is synced in two phases: the file on the disk is always the state after one of
//!    them, whole, and redb overwrites nothing of that state before the next is synced.
//! 2. A kill costs no walk through the file: every transaction stores what is free, too.

use std::fs::{File, OpenOptions};
use std::ops::Bound;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    AccessGuard, Builder, Database, DatabaseError, ReadOnlyTable, ReadableDatabase,
    ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use crate::memtable::{Memtable, Row};
use crate::store::Options;
use crate::store_error::{StoreError, engine, guarded};

const ENTRIES: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("entries");
const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 2;
const VERSION_BYTES: usize = 8;

/// How many entries and bytes one of many small transactions takes. It rewrites a page or two for
/// each, and its space is free again two transactions later.
const SLICE_ENTRIES: usize = 128;
const SLICE_BYTES: usize = 128 << 10;

/// The entries of one moment; dropped, its pages may be used again.
pub type Snapshot = Arc<ReadOnlyTable<&'static [u8], &'static [u8]>>;

/// A key with its value and version.
pub type Entry = (Vec<u8>, Vec<u8>, u64);

/// An open file. Shared by all threads; one writes.
pub struct TreeFile {
    database: Database,
    /// The descriptor, whose lock a child of fork(2) shares.
    pub descriptor: RawFd,
    /// The number that tells this store from any other.
    pub identity: u64,
    /// The revision of the last checkpoint before the opening.
    pub revision: u64,
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

impl TreeFile {
    /// Open the file, repairing what a kill has left.
    pub fn open(path: &Path, options: &Options) -> Result<Self, StoreError> {
        Self::build(path, |file| build(file, options))
    }

    /// The same, keeping so much of it in memory.
    pub fn open_with_cache(path: &Path, cache_bytes: usize) -> Result<Self, StoreError> {
        Self::build(path, |file| {
            let mut builder = Builder::new();
            builder.set_cache_size(cache_bytes);
            builder.create_with_backend(FileBackend::new(file)?)
        })
    }

    fn build(
        path: &Path,
        build: impl FnOnce(File) -> Result<Database, DatabaseError>,
    ) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let descriptor = file.as_raw_fd();
        guarded(|| {
            let database = build(file).map_err(|error| match error {
                DatabaseError::UpgradeRequired(format) => {
                    StoreError::Damaged(format!("it is a redb file of the old format {format}"))
                }
                other => engine(other),
            })?;
            let (identity, revision) = read_meta(&database)?;
            Ok(Self {
                database,
                descriptor,
                identity,
                revision,
            })
        })
    }

    /// The entries as they are now.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        entries(&self.database)
    }

    /// Write the entries and the revision in one transaction, synced.
    pub fn write(&self, entries: &Memtable, revision: u64) -> Result<(), StoreError> {
        let rows = entries.range(Bound::Unbounded, Bound::Unbounded);
        guarded(|| self.transact(rows, Some(revision)))
    }

    /// The same in many small transactions, which get along with little free space.
    ///
    /// Between them the file is of no one moment: whoever calls has all of it in a synced log.
    /// Deleted keys come first, for the space they free. `next` is told of every transaction, so
    /// that no snapshot keeps pages from being used again.
    pub fn write_in_slices(
        &self,
        entries: &Memtable,
        revision: u64,
        mut next: impl FnMut(Snapshot),
    ) -> Result<(), StoreError> {
        let all = || entries.range(Bound::Unbounded, Bound::Unbounded);
        let deletes = all().filter(|(_, slot)| slot.value.is_none());
        let puts = all().filter(|(_, slot)| slot.value.is_some());
        let mut slice: Vec<Row<'_>> = Vec::new();
        let mut slice_bytes = 0;
        for row in deletes.chain(puts) {
            slice_bytes += row.1.value.as_ref().map_or(0, |value| value.len());
            slice.push(row);
            if slice.len() >= SLICE_ENTRIES || slice_bytes >= SLICE_BYTES {
                guarded(|| self.transact(slice.drain(..), None))?;
                slice_bytes = 0;
                next(self.snapshot()?);
            }
        }
        guarded(|| self.transact(slice.into_iter(), Some(revision)))
    }

    /// How many entries there are.
    pub fn count(&self) -> Result<u64, StoreError> {
        let table = self.snapshot()?;
        guarded(|| table.len().map_err(engine))
    }

    /// Release the file, noting that nothing needs repair.
    pub fn close(self) -> Result<(), StoreError> {
        guarded(|| self.database.close().map_err(engine))
    }

    fn transact<'a>(
        &self,
        rows: impl Iterator<Item = Row<'a>>,
        revision: Option<u64>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.database.begin_write().map_err(engine)?;
        transaction.set_quick_repair(true);
        fill(&transaction, rows, revision)?;
        transaction.commit().map_err(engine)
    }
}

fn build(file: File, options: &Options) -> Result<Database, DatabaseError> {
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes);
    let backend = FileBackend::new(file)?;
    #[cfg(test)]
    if let Some(faults) = options.faults {
        return builder.create_with_backend(faults.watch(backend)?);
    }
    builder.create_with_backend(backend)
}

fn fill<'a>(
    transaction: &WriteTransaction,
    rows: impl Iterator<Item = Row<'a>>,
    revision: Option<u64>,
) -> Result<(), StoreError> {
    let mut table: Table<'_, &[u8], &[u8]> = transaction.open_table(ENTRIES).map_err(engine)?;
    let mut stored = Vec::new();
    for (key, slot) in rows {
        match &slot.value {
            None => drop(table.remove(key).map_err(engine)?),
            Some(value) => {
                stored.clear();
                stored.extend(slot.version.to_le_bytes());
                stored.extend(&**value);
                table.insert(key, stored.as_slice()).map_err(engine)?;
            }
        }
    }
    let mut meta = transaction.open_table(META).map_err(engine)?;
    if let Some(revision) = revision {
        meta.insert("revision", revision).map_err(engine)?;
    }
    Ok(())
}

/// The entries of a database as they are now.
pub fn entries(database: &Database) -> Result<Snapshot, StoreError> {
    guarded(|| {
        let transaction = database.begin_read().map_err(engine)?;
        Ok(Arc::new(transaction.open_table(ENTRIES).map_err(engine)?))
    })
}

/// The identity and the revision of a database. Errors: Damaged where it is not a metastore's.
pub fn read_meta(database: &Database) -> Result<(u64, u64), StoreError> {
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

/// The value and version of a key, handed to `take` in place.
pub fn get<R>(
    table: &Snapshot,
    key: &[u8],
    take: impl FnOnce(&[u8], u64) -> R,
) -> Result<Option<R>, StoreError> {
    guarded(|| {
        let Some(found) = table.get(key).map_err(engine)? else {
            return Ok(None);
        };
        let (version, value) = split(found.value())?;
        Ok(Some(take(value, version)))
    })
}

/// Up to `limit` entries in key order: those of a snapshot beneath newer rows, which hide them.
pub fn merge<'a>(
    table: &Snapshot,
    newer: impl Iterator<Item = Row<'a>>,
    lower: Bound<&[u8]>,
    upper: Bound<&[u8]>,
    limit: usize,
) -> Result<Vec<Entry>, StoreError> {
    guarded(|| {
        let mut stored = Stored::new(table, lower, upper)?;
        let mut newer = newer.peekable();
        let mut found = Vec::new();
        while found.len() < limit {
            let hides = match (newer.peek(), &stored.row) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some((key, _)), Some((below, _))) => (*key).cmp(below.value()),
            };
            if hides.is_le() {
                if let Some((key, slot)) = newer.next()
                    && let Some(value) = &slot.value
                {
                    found.push((key.to_vec(), value.to_vec(), slot.version));
                }
            } else if let Some((key, bytes)) = &stored.row {
                let (version, value) = split(bytes.value())?;
                found.push((key.value().to_vec(), value.to_vec(), version));
            }
            if hides.is_ge() {
                stored.advance()?;
            }
        }
        Ok(found)
    })
}

type Guards<'a> = (
    AccessGuard<'a, &'static [u8]>,
    AccessGuard<'a, &'static [u8]>,
);

/// The rows of a snapshot, one at a time.
struct Stored<'a> {
    rows: redb::Range<'a, &'static [u8], &'static [u8]>,
    row: Option<Guards<'a>>,
    last: Option<Vec<u8>>,
}

impl<'a> Stored<'a> {
    fn new(
        table: &'a Snapshot,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<Self, StoreError> {
        let rows = table.range::<&[u8]>((lower, upper)).map_err(engine)?;
        let last = match lower {
            Bound::Excluded(lower) => Some(lower.to_vec()),
            Bound::Included(_) | Bound::Unbounded => None,
        };
        let mut stored = Self {
            rows,
            row: None,
            last,
        };
        stored.advance()?;
        Ok(stored)
    }

    fn advance(&mut self) -> Result<(), StoreError> {
        self.row = self.rows.next().transpose().map_err(engine)?;
        let Some((key, _)) = &self.row else {
            return Ok(());
        };
        // Who resumes by the last key would never come to an end of a damaged tree.
        if self
            .last
            .as_ref()
            .is_some_and(|last| last.as_slice() >= key.value())
        {
            return Err(StoreError::Damaged("keys are out of order".to_owned()));
        }
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend(key.value());
        Ok(())
    }
}

/// The version and the value of a stored entry.
pub fn split(stored: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    match stored.split_first_chunk::<VERSION_BYTES>() {
        Some((version, value)) => Ok((u64::from_le_bytes(*version), value)),
        None => Err(StoreError::Damaged("a record is cut short".to_owned())),
    }
}
