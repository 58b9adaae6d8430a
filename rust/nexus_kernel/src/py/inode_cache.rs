//! Binding of [`crate::inode_cache`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyList;

use crate::inode_cache::{self, Known, Limits, Moves};

type Cache = inode_cache::InodeCache<Py<PyAny>, Py<PyList>>;

/// The cache of one volume. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen, generic)]
pub struct InodeCache(Mutex<Cache>);

#[pymethods]
impl InodeCache {
    #[new]
    #[pyo3(signature = (max_records, max_names, largest_listing, /))]
    fn new(max_records: usize, max_names: usize, largest_listing: usize) -> Self {
        let limits = Limits {
            records: max_records,
            names: max_names,
            largest_listing,
        };
        Self(Mutex::new(Cache::new(limits)))
    }

    #[getter]
    fn epoch(&self) -> u64 {
        self.cache().epoch()
    }

    #[pyo3(signature = (path, unknown, /))]
    fn look<'py>(&self, path: &str, unknown: &Bound<'py, PyAny>) -> Bound<'py, PyAny> {
        let py = unknown.py();
        match self.cache().look(path) {
            Known::Unknown => unknown.clone(),
            Known::Absent => py.None().into_bound(py),
            Known::Present(record) => record.bind(py).clone(),
        }
    }

    #[pyo3(signature = (directory, /))]
    fn names<'py>(&self, py: Python<'py>, directory: &str) -> Option<Bound<'py, PyList>> {
        Some(self.cache().names(directory)?.bind(py).clone())
    }

    #[pyo3(signature = (directory, /))]
    fn directories<'py>(&self, py: Python<'py>, directory: &str) -> Option<Bound<'py, PyList>> {
        Some(self.cache().directories(directory)?.bind(py).clone())
    }

    #[pyo3(signature = (path, record, epoch, /))]
    fn keep(&self, path: &str, record: Option<Py<PyAny>>, epoch: u64) {
        self.changing(|cache| cache.keep(path, record, epoch));
    }

    #[pyo3(signature = (directory, names, directories, epoch, /))]
    fn keep_listing(
        &self,
        directory: &str,
        names: Bound<'_, PyList>,
        directories: Option<Py<PyList>>,
        epoch: u64,
    ) {
        let count = names.len();
        self.changing(|cache| {
            cache.keep_listing(directory, names.unbind(), count, directories, epoch);
        });
    }

    #[pyo3(signature = (commit, changed, appearing, vanishing, empty, /))]
    fn begin(
        &self,
        commit: &Bound<'_, PyAny>,
        changed: &Bound<'_, PyAny>,
        appearing: Vec<PyBackedStr>,
        vanishing: Vec<PyBackedStr>,
        empty: Vec<PyBackedStr>,
    ) -> PyResult<()> {
        let paths = changed.try_iter()?.map(|path| path?.extract());
        let changed: Vec<PyBackedStr> = paths.collect::<PyResult<_>>()?;
        let moves = Moves {
            appearing: &borrowed(&appearing),
            vanishing: &borrowed(&vanishing),
            empty: &borrowed(&empty),
        };
        let commit = commit.as_ptr() as usize;
        self.changing(|cache| cache.begin(commit, changed.iter().map(|path| &**path), moves));
        Ok(())
    }

    #[pyo3(signature = (commit, written, /))]
    fn end(&self, commit: &Bound<'_, PyAny>, written: Vec<(PyBackedStr, Py<PyAny>)>) {
        let (paths, records): (Vec<_>, Vec<_>) = written.into_iter().unzip();
        let paths = paths.iter().map(|path| &**path);
        let commit = commit.as_ptr() as usize;
        self.changing(|cache| cache.end(commit, paths.zip(records)));
    }

    fn clear(&self) {
        self.changing(Cache::clear);
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.0.try_lock() {
            Ok(cache) => cache.records().try_for_each(|record| visit.call(record)),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        self.clear();
    }
}

impl InodeCache {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Change the cache, then let go of what fell out: that may call into its owner.
    fn changing(&self, change: impl FnOnce(&mut Cache)) {
        let dropped = {
            let mut cache = self.cache();
            change(&mut cache);
            cache.take_dropped()
        };
        drop(dropped);
    }
}

fn borrowed(paths: &[PyBackedStr]) -> Vec<&str> {
    paths.iter().map(|path| &**path).collect()
}
