//! Binding of [`crate::object_index`].
//!
//! Its mutex is waited for without the interpreter only, since whoever has it may be in a file.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple, PyType};

use crate::index_page;
use crate::object_index::{self, End, IndexError, Known, LARGEST_APPENDED, NewObject, Reader};
use crate::segment_record::ObjectId;

const ENTRY_MODULE: &str = "nexus.storage.object_store.entry";

static ENTRY: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static PLACE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static END: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static INDEX_LOST: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static CORRUPTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();

type Index = object_index::ObjectIndex<File>;

/// Where an error came from, which its text names.
type Failure = (IndexError, PathBuf);

/// An open index file. Belongs to one store, which takes turns on it; all threads may peek.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct ObjectIndex {
    index: Mutex<Option<Index>>, // None once closed
    memory: Reader,
}

#[pymethods]
impl ObjectIndex {
    #[new]
    fn new(py: Python<'_>, path: PathBuf, boot: u64) -> PyResult<Self> {
        let open = || {
            let file = object_index::open_file(&path)?;
            Index::open(file, path.clone(), boot)
        };
        let index = py.detach(open);
        index
            .map(Self::of)
            .map_err(|error| raised(py, (error, path)))
    }

    #[staticmethod]
    fn create<'py>(
        py: Python<'py>,
        path: PathBuf,
        fill: &Bound<'py, PyAny>,
        boot: u64,
    ) -> PyResult<Bound<'py, Self>> {
        let mut staging = path.clone().into_os_string();
        staging.push(".new");
        let staging = PathBuf::from(staging);
        let create = || {
            let file = object_index::create_file(&staging)?;
            Index::open(file, staging.clone(), boot)
        };
        let index = py.detach(create).map(Self::of);
        let index = index.map_err(|error| raised(py, (error, staging.clone())))?;
        let index = Bound::new(py, index)?;
        let filled = fill
            .call1((&index,))
            .and_then(|_| index.get().call(py, |index| index.take_place(path)));
        if let Err(error) = filled {
            index.get().close(py, None)?;
            return Err(error);
        }
        Ok(index)
    }

    #[pyo3(signature = (object_id, /))]
    fn peek<'py>(&self, py: Python<'py>, object_id: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = self.memory.peek(&id_of(object_id)?);
        found.map(|entry| entry_object(py, &entry)).transpose()
    }

    #[pyo3(signature = (object_id, /))]
    fn get<'py>(&self, py: Python<'py>, object_id: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        let id = id_of(object_id)?;
        let found = match self.memory.known(&id) {
            Known::Here(entry) => Some(entry),
            Known::Nowhere => None,
            Known::InPage(_) => self.call(py, |index| index.get(&id))?,
        };
        found.map(|entry| entry_object(py, &entry)).transpose()
    }

    #[getter]
    fn page_count(&self) -> u32 {
        self.memory.page_count()
    }

    #[getter]
    fn end<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(End { segment, offset }) = self.call(py, |index| Ok(index.end()))? else {
            return Ok(None);
        };
        let class = END.import(py, ENTRY_MODULE, "End")?;
        class.call1((segment, offset)).map(Some)
    }

    #[getter]
    fn covered<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let place = self.call(py, |index| Ok(index.covered()))?;
        let class = PLACE.import(py, ENTRY_MODULE, "Place")?;
        class.call1((place.segment, place.offset))
    }

    #[pyo3(signature = (number, /))]
    fn entries_in<'py>(&self, py: Python<'py>, number: u32) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let found = self.call(py, |index| index.entries_in(number))?;
        found.iter().map(|entry| entry_object(py, entry)).collect()
    }

    fn waiting<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        for entry in self.memory.waiting() {
            let id = PyBytes::new(py, &entry.object_id);
            found.set_item(id, entry_object(py, &entry)?)?;
        }
        Ok(found)
    }

    fn damaged_pages(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        self.call(py, |index| Ok(index.damaged_pages()?))
    }

    #[pyo3(signature = (entries, /))]
    fn add(&self, py: Python<'_>, entries: &Bound<'_, PyAny>) -> PyResult<()> {
        let entries = entries_of(entries)?;
        self.call(py, |index| index.add(&entries))
    }

    #[pyo3(signature = (log, segment, start, objects, at_ns, /))]
    fn append_new(
        &self,
        py: Python<'_>,
        log: RawFd,
        segment: u32,
        start: u64,
        objects: &Bound<'_, PyAny>,
        at_ns: u64,
    ) -> PyResult<bool> {
        let Some(objects) = small_objects(objects)? else {
            return Ok(false);
        };
        let objects: Vec<_> = objects
            .iter()
            .map(|(object_id, data)| NewObject {
                object_id: *object_id,
                data,
            })
            .collect();
        // SAFETY: the caller keeps the descriptor open for this call; this handle closes nothing.
        let log = ManuallyDrop::new(unsafe { File::from_raw_fd(log) });
        self.call(py, |index| {
            index.append_new(&*log, segment, start, &objects, at_ns)
        })
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.call(py, |index| index.flush())
    }

    #[pyo3(signature = (entries, /))]
    fn put_many(&self, py: Python<'_>, entries: &Bound<'_, PyAny>) -> PyResult<()> {
        let entries = entries_of(entries)?;
        self.call(py, |index| index.put_many(&entries))
    }

    #[pyo3(signature = (object_ids, /))]
    fn remove_many(&self, py: Python<'_>, object_ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let ids = object_ids.try_iter()?;
        let ids = ids.map(|id| id_of(id?.extract()?));
        let ids = ids.collect::<PyResult<Vec<_>>>()?;
        self.call(py, |index| index.remove_many(&ids))
    }

    #[pyo3(signature = (end, /))]
    fn close(&self, py: Python<'_>, end: Option<(u32, u64)>) -> PyResult<()> {
        let end = end.map(|(segment, offset)| End { segment, offset });
        py.detach(|| {
            let index = self
                .index
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let index = index.ok_or_else(|| (closed(), PathBuf::new()))?;
            let path = index.path().to_owned();
            index.close(end).map_err(|error| (error, path))
        })
        .map_err(|failure| raised(py, failure))
    }
}

impl ObjectIndex {
    fn of(index: Index) -> Self {
        Self {
            memory: index.reader(),
            index: Mutex::new(Some(index)),
        }
    }

    /// Have the index to oneself, without the interpreter.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Index) -> object_index::Result<T> + Send,
    ) -> PyResult<T> {
        py.detach(|| {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            match index.as_mut() {
                Some(index) => work(index).map_err(|error| (error, index.path().to_owned())),
                None => Err((closed(), PathBuf::new())),
            }
        })
        .map_err(|failure| raised(py, failure))
    }
}

fn closed() -> IndexError {
    IndexError::Io(io::Error::from_raw_os_error(libc::EBADF))
}

fn raised(py: Python<'_>, (error, path): Failure) -> PyErr {
    let error = match error {
        IndexError::Damaged(reason) => CORRUPTION
            .import(py, "nexus.contracts.errors", "CorruptionError")
            .and_then(|class| class.call1(("index", path.into_os_string(), reason))),
        IndexError::Lost(reason) => INDEX_LOST
            .import(py, ENTRY_MODULE, "IndexLostError")
            .and_then(|class| class.call1((reason,))),
        IndexError::Io(error) => return os_error(py, &error),
    };
    error.map_or_else(|error| error, PyErr::from_value)
}

/// The error as Python's own calls raise it: with its number, and of the class of that.
fn os_error(py: Python<'_>, error: &io::Error) -> PyErr {
    let Some(number) = error.raw_os_error() else {
        return PyOSError::new_err(error.to_string());
    };
    let reason = py
        .import("os")
        .and_then(|os| os.call_method1("strerror", (number,)));
    match reason {
        Ok(reason) => PyOSError::new_err((number, reason.unbind())),
        Err(error) => error,
    }
}

fn id_of(bytes: &[u8]) -> PyResult<ObjectId> {
    let id = ObjectId::try_from(bytes);
    id.map_err(|_| PyValueError::new_err("an object id has 32 bytes"))
}

fn entry_object<'py>(py: Python<'py>, entry: &index_page::Entry) -> PyResult<Bound<'py, PyAny>> {
    let index_page::Entry {
        object_id,
        place,
        size,
        aside,
        at_ns,
    } = entry;
    let id = PyBytes::new(py, object_id);
    let class = ENTRY.import(py, ENTRY_MODULE, "Entry")?;
    class.call1((id, place.segment, place.offset, size, aside, at_ns))
}

fn entries_of(entries: &Bound<'_, PyAny>) -> PyResult<Vec<index_page::Entry>> {
    let entry_of = |entry: PyResult<Bound<'_, PyAny>>| {
        let (id, segment, offset, size, aside, at_ns): (PyBackedBytes, _, _, _, _, _) =
            entry?.extract()?;
        Ok(index_page::Entry {
            object_id: id_of(&id)?,
            place: index_page::Place { segment, offset },
            size,
            aside,
            at_ns,
        })
    };
    entries.try_iter()?.map(entry_of).collect()
}

/// Objects by their ids in digits, held while the interpreter is let go; none if one is large.
fn small_objects(objects: &Bound<'_, PyAny>) -> PyResult<Option<Vec<(ObjectId, PyBackedBytes)>>> {
    let mut found = Vec::new();
    for object in objects.try_iter()? {
        let object = object?;
        let object = object.cast::<PyTuple>()?;
        let data = object.get_item(1)?;
        if data.len()? > LARGEST_APPENDED {
            return Ok(None);
        }
        let id = object.get_item(0)?;
        found.push((id_of_digits(id.cast()?)?, bytes_of(data)?));
    }
    Ok(Some(found))
}

fn bytes_of(data: Bound<'_, PyAny>) -> PyResult<PyBackedBytes> {
    match data.extract() {
        Ok(bytes) => Ok(bytes),
        Err(_) => Ok(data.py().get_type::<PyBytes>().call1((data,))?.extract()?),
    }
}

fn id_of_digits(digits: &Bound<'_, PyString>) -> PyResult<ObjectId> {
    let digits = digits.to_str()?.as_bytes();
    let mut id = [0; 32];
    let (pairs, rest) = digits.as_chunks::<2>();
    let value = |digit: u8| char::from(digit).to_digit(16);
    let is_id = pairs.len() == id.len() && rest.is_empty();
    for (byte, [high, low]) in id.iter_mut().zip(pairs) {
        let (Some(high), Some(low)) = (value(*high), value(*low)) else {
            return Err(PyValueError::new_err("an object id has hexadecimal digits"));
        };
        *byte = (high << 4 | low) as u8;
    }
    match is_id {
        true => Ok(id),
        false => Err(PyValueError::new_err("an object id has 64 digits")),
    }
}
