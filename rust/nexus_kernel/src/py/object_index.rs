//! Binding of [`crate::object_index`].

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyType};

use crate::object_index::{self as index, End, Entry, IndexError, Place};
use crate::segment_record::ObjectId;

static ENTRY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static PLACE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static END: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static LOST: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static CORRUPTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();

const ENTRY_MODULE: &str = "nexus.storage.object_store.entry";

type Row = (ObjectId, u32, u32, u32, u32, u64);
type Object = (ObjectId, PyBackedBytes);

/// An open index. Any thread may look; who changes it takes turns.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct ObjectIndex {
    path: PathBuf,
    open: Mutex<Option<index::ObjectIndex>>,
}

#[pymethods]
impl ObjectIndex {
    #[new]
    #[pyo3(signature = (path, *, boot))]
    fn new(py: Python<'_>, path: PathBuf, boot: u64) -> PyResult<Self> {
        match py.detach(|| index::ObjectIndex::open(&path, boot)) {
            Ok(opened) => Ok(Self {
                path,
                open: Mutex::new(Some(opened)),
            }),
            Err(error) => Err(raised(py, &path, error)),
        }
    }

    /// Make an index in place of any other, with what `fill` puts into it or not at all.
    #[staticmethod]
    #[pyo3(signature = (path, fill, *, boot))]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        fill: &Bound<'_, PyAny>,
        boot: u64,
    ) -> PyResult<Py<Self>> {
        let mut staging = OsString::from(&path);
        staging.push(".new");
        let staging = PathBuf::from(staging);
        py.detach(|| index::ObjectIndex::write_empty(&staging))?;
        let made = Py::new(py, Self::new(py, staging, boot)?)?;
        fill.call1((&made,))?;
        made.get().asked(py, |index| index.put_in_place(&path))?;
        Ok(made)
    }

    #[getter]
    fn end<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(end) = self.asked(py, |index| Ok(index.end()))? else {
            return Ok(None);
        };
        let class = END.import(py, ENTRY_MODULE, "End")?;
        class.call1(end).map(Some)
    }

    #[getter]
    fn covered<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let place: Place = self.asked(py, |index| Ok(index.covered()))?;
        PLACE.import(py, ENTRY_MODULE, "Place")?.call1(place)
    }

    #[getter]
    fn page_count(&self, py: Python<'_>) -> PyResult<u32> {
        self.asked(py, |index| Ok(index.page_count()))
    }

    #[pyo3(signature = (object_id, /))]
    fn peek<'py>(
        &self,
        py: Python<'py>,
        object_id: ObjectId,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self
            .lock()
            .as_ref()
            .and_then(|index| index.peek(&object_id));
        found.map(|entry| shown(py, &entry)).transpose()
    }

    #[pyo3(signature = (object_id, /))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        object_id: ObjectId,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self.asked(py, |index| index.get(&object_id))?;
        found.map(|entry| shown(py, &entry)).transpose()
    }

    #[pyo3(signature = (number, /))]
    fn entries_in<'py>(&self, py: Python<'py>, number: u32) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let found = self.asked(py, |index| index.entries_in(number))?;
        found.iter().map(|entry| shown(py, entry)).collect()
    }

    fn waiting<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found: Vec<Entry> = self.asked(py, |index| Ok(index.waiting().copied().collect()))?;
        let by_id = PyDict::new(py);
        for entry in found {
            by_id.set_item(PyBytes::new(py, &entry.object_id), shown(py, &entry)?)?;
        }
        Ok(by_id)
    }

    fn damaged_pages(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.asked(py, |index| index.damaged_pages())
    }

    #[pyo3(signature = (entries, /))]
    fn add(&self, py: Python<'_>, entries: Vec<Row>) -> PyResult<()> {
        let entries: Vec<Entry> = entries.into_iter().map(entry).collect();
        self.asked(py, |index| index.add(&entries))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.asked(py, index::ObjectIndex::flush)
    }

    #[pyo3(signature = (entries, /))]
    fn put_many(&self, py: Python<'_>, entries: &Bound<'_, PyAny>) -> PyResult<()> {
        let rows = entries.try_iter()?.map(|row| row?.extract().map(entry));
        let entries: Vec<Entry> = rows.collect::<PyResult<_>>()?;
        self.asked(py, |index| index.put_many(&entries))
    }

    #[pyo3(signature = (object_ids, /))]
    fn remove_many(&self, py: Python<'_>, object_ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let ids = object_ids.try_iter()?.map(|id| id?.extract());
        let ids: Vec<ObjectId> = ids.collect::<PyResult<_>>()?;
        self.asked(py, |index| index.remove_many(&ids))
    }

    /// Append objects to a segment and enter them; return where it ends now.
    ///
    /// None, and nothing was done, where one of them is here, comes twice, or leaves no room.
    #[pyo3(signature = (segment, end, limit, objects, at_ns, /))]
    fn append_new(
        &self,
        py: Python<'_>,
        segment: &Bound<'_, PyAny>,
        end: u64,
        limit: u64,
        objects: Vec<Object>,
        at_ns: u64,
    ) -> PyResult<Option<u64>> {
        let descriptor: RawFd = segment.getattr(intern!(py, "fd"))?.extract()?;
        let number: u32 = segment.getattr(intern!(py, "number"))?.extract()?;
        let objects: Vec<(ObjectId, &[u8])> =
            objects.iter().map(|(id, data)| (*id, &**data)).collect();
        // SAFETY: the segment, which lives to the end of this call, closes its descriptor only when
        // it dies; this handle closes nothing.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
        let appended = py.detach(|| {
            let packed =
                self.with(|index| index.append_new(&objects, number, end, limit, at_ns))?;
            let Some(packed) = packed else {
                return Ok(None);
            };
            file.write_all_at(packed.records(), end)?;
            self.with(|index| {
                index.enter(packed.entries());
                Ok(())
            })?;
            Ok(Some(end + packed.records().len() as u64))
        });
        appended.map_err(|error| raised(py, &self.path, error))
    }

    /// Close; with `end`, say durably that the index is complete.
    #[pyo3(signature = (end, /))]
    fn close(&self, py: Python<'_>, end: Option<End>) -> PyResult<()> {
        let outcome = py.detach(|| match (self.lock().take(), end) {
            (Some(mut index), Some(end)) => index.finish(end),
            _ => Ok(()),
        });
        outcome.map_err(|error| raised(py, &self.path, error))
    }
}

impl ObjectIndex {
    fn lock(&self) -> MutexGuard<'_, Option<index::ObjectIndex>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(
        &self,
        ask: impl FnOnce(&mut index::ObjectIndex) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        match self.lock().as_mut() {
            Some(index) => ask(index),
            None => Err(io::Error::from_raw_os_error(libc::EBADF).into()),
        }
    }

    fn asked<T: Send>(
        &self,
        py: Python<'_>,
        ask: impl FnOnce(&mut index::ObjectIndex) -> Result<T, IndexError> + Send,
    ) -> PyResult<T> {
        let answer = py.detach(|| self.with(ask));
        answer.map_err(|error| raised(py, &self.path, error))
    }
}

fn entry((object_id, segment, offset, size, aside, at_ns): Row) -> Entry {
    Entry {
        object_id,
        segment,
        offset,
        size,
        aside,
        at_ns,
    }
}

fn shown<'py>(py: Python<'py>, entry: &Entry) -> PyResult<Bound<'py, PyAny>> {
    let id = PyBytes::new(py, &entry.object_id);
    let class = ENTRY.import(py, ENTRY_MODULE, "Entry")?;
    let Entry {
        segment,
        offset,
        size,
        aside,
        at_ns,
        ..
    } = *entry;
    class.call1((id, segment, offset, size, aside, at_ns))
}

fn raised(py: Python<'_>, path: &Path, error: IndexError) -> PyErr {
    let made = match error {
        IndexError::Io(error) => match error.raw_os_error() {
            Some(number) => {
                let reason = io::Error::from_raw_os_error(number).to_string();
                return PyOSError::new_err((number, reason));
            }
            None => return error.into(),
        },
        IndexError::Lost(reason) => LOST
            .import(py, ENTRY_MODULE, "IndexLostError")
            .and_then(|class| class.call1((reason,))),
        IndexError::Damaged(reason) => CORRUPTION
            .import(py, "nexus.contracts.errors", "CorruptionError")
            .and_then(|class| class.call1(("index", path, reason))),
    };
    made.map_or_else(|error| error, PyErr::from_value)
}
