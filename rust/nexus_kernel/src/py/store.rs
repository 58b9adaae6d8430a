//! Binding of [`crate::store`].

use std::ops::Bound as Limit;
use std::path::PathBuf;

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::commit_log::Operation;
use crate::record_seal::unseal;
use crate::salvage;
use crate::store::{self, Options, Store};

create_exception!(
    nexus._kernel,
    StoreError,
    PyException,
    "A kind, a reason and an errno."
);
create_exception!(
    nexus._kernel,
    StoreConflict,
    PyException,
    "Which condition, and the version."
);

type Found = (Py<PyBytes>, u64);
type Row = (Py<PyBytes>, Py<PyBytes>, u64);

fn raised(error: store::StoreError) -> PyErr {
    use store::StoreError as E;
    let (kind, reason, errno) = match error {
        E::Conflict(index, found) => return StoreConflict::new_err((index, found)),
        E::Closed => ("closed", "the metastore is closed".to_owned(), None),
        E::Busy(reason) => ("busy", reason, None),
        E::Damaged(reason) => ("damaged", reason, None),
        E::Failed(reason) => ("failed", reason, None),
        E::Io(error) => ("io", error.to_string(), error.raw_os_error()),
    };
    StoreError::new_err((kind, reason, errno))
}

/// Make an empty store, synced, at a path where there is none.
#[pyfunction]
pub fn create_store(py: Python<'_>, path: PathBuf, identity: u64) -> PyResult<()> {
    py.detach(|| store::create(&path, identity)).map_err(raised)
}

/// Whether every entry of a store can be reached.
#[pyfunction]
pub fn is_store_whole(py: Python<'_>, path: PathBuf) -> PyResult<bool> {
    py.detach(|| salvage::is_whole(&path)).map_err(raised)
}

/// Make a store at another path from what a damaged one still holds; return how many entries.
#[pyfunction]
pub fn rebuild_store(
    py: Python<'_>,
    path: PathBuf,
    rebuilt: PathBuf,
    spare_identity: u64,
) -> PyResult<u64> {
    py.detach(|| {
        let mut scratch = Vec::new();
        let is_sealed = |key: &[u8], value: &[u8]| unseal(key, value, &mut scratch).is_some();
        salvage::rebuild(&path, &rebuilt, spare_identity, is_sealed)
    })
    .map_err(raised)
}

/// An open store. Shared by all threads; every call releases the interpreter.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct OrderedStore(Store);

#[pymethods]
impl OrderedStore {
    #[new]
    #[pyo3(signature = (path, *, log_limit_bytes, scarce_log_limit_bytes, cache_bytes))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        log_limit_bytes: u64,
        scarce_log_limit_bytes: u64,
        cache_bytes: usize,
    ) -> PyResult<Self> {
        let options = Options {
            log_limit_bytes,
            scarce_log_limit_bytes,
            cache_bytes,
        };
        py.detach(|| Store::open(&path, options))
            .map(Self)
            .map_err(raised)
    }

    #[getter]
    fn identity(&self) -> u64 {
        self.0.identity()
    }

    #[getter]
    fn descriptor(&self) -> i32 {
        self.0.descriptor()
    }

    fn revision(&self) -> PyResult<u64> {
        self.0.revision().map_err(raised)
    }

    fn get(&self, py: Python<'_>, key: PyBackedBytes) -> PyResult<Option<Found>> {
        let found = py.detach(|| self.0.get(&key, |value, version| (value.to_vec(), version)));
        let found = found.map_err(raised)?;
        Ok(found.map(|(value, version)| (PyBytes::new(py, &value).unbind(), version)))
    }

    fn scan(
        &self,
        py: Python<'_>,
        lower: PyBackedBytes,
        includes_lower: bool,
        upper: Option<PyBackedBytes>,
        limit: usize,
    ) -> PyResult<Vec<Row>> {
        let from: Limit<&[u8]> = match includes_lower {
            true => Limit::Included(&lower),
            false => Limit::Excluded(&lower),
        };
        let to: Limit<&[u8]> = match &upper {
            Some(upper) => Limit::Excluded(upper),
            None => Limit::Unbounded,
        };
        let entries = py.detach(|| self.0.scan(from, to, limit)).map_err(raised)?;
        let bytes = |part: &[u8]| PyBytes::new(py, part).unbind();
        let row = |(key, value, version): store::Entry| (bytes(&key), bytes(&value), version);
        Ok(entries.into_iter().map(row).collect())
    }

    fn commit(
        &self,
        py: Python<'_>,
        puts: Vec<(PyBackedBytes, PyBackedBytes)>,
        deletes: Vec<PyBackedBytes>,
        conditions: Vec<(PyBackedBytes, u64)>,
        durable: bool,
    ) -> PyResult<u64> {
        let mut operations: Vec<Operation<'_>> = Vec::with_capacity(puts.len() + deletes.len());
        operations.extend(deletes.iter().map(|key| Operation::Delete(key)));
        operations.extend(puts.iter().map(|(key, value)| Operation::Put(key, value)));
        let conditions: Vec<store::Condition<'_>> = conditions
            .iter()
            .map(|(key, version)| (&**key, *version))
            .collect();
        py.detach(|| self.0.commit(&operations, &conditions, durable))
            .map_err(raised)
    }

    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.sync()).map_err(raised)
    }

    fn load(
        &self,
        py: Python<'_>,
        entries: Vec<(PyBackedBytes, PyBackedBytes, u64)>,
        revision: u64,
    ) -> PyResult<()> {
        let entries: Vec<store::EntryRef<'_>> = entries
            .iter()
            .map(|(key, value, version)| (&**key, &**value, *version))
            .collect();
        py.detach(|| self.0.load(&entries, revision))
            .map_err(raised)
    }

    fn keep_witness(&self, path: PathBuf, boot: u64) -> PyResult<()> {
        self.0.keep_witness(&path, boot).map_err(raised)
    }

    fn skip_to(&self, py: Python<'_>, revision: u64) -> PyResult<()> {
        py.detach(|| self.0.skip_to(revision)).map_err(raised)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.close()).map_err(raised)
    }
}
