//! Binding of [`crate::path_trie`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::path_trie::PathTrie as Trie;

/// Items by path. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen, generic)]
pub struct PathTrie(Mutex<Trie<Py<PyAny>>>);

#[pymethods]
impl PathTrie {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Trie::new()))
    }

    fn __bool__(&self) -> bool {
        !self.trie().is_empty()
    }

    #[pyo3(signature = (path, item, /))]
    fn insert(&self, path: &str, item: Py<PyAny>) {
        self.trie().insert(path, item);
    }

    #[pyo3(signature = (path, item, /))]
    fn remove(&self, path: &str, item: &Bound<'_, PyAny>) -> bool {
        let taken = self.trie().remove(path, |other| other.is(item));
        taken.is_some()
    }

    #[pyo3(signature = (path, /))]
    fn at(&self, py: Python<'_>, path: &str) -> Vec<Py<PyAny>> {
        let trie = self.trie();
        trie.at(path)
            .iter()
            .map(|item| item.clone_ref(py))
            .collect()
    }

    #[pyo3(signature = (path, /))]
    fn covering(&self, py: Python<'_>, path: &str) -> Vec<Py<PyAny>> {
        let trie = self.trie();
        trie.covering(path).map(|item| item.clone_ref(py)).collect()
    }

    #[pyo3(signature = (path, /))]
    fn below(&self, py: Python<'_>, path: &str) -> Vec<Py<PyAny>> {
        let trie = self.trie();
        trie.below(path).map(|item| item.clone_ref(py)).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.0.try_lock() {
            Ok(trie) => trie.iter().try_for_each(|item| visit.call(item)),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        let dropped = std::mem::take(&mut *self.trie());
        drop(dropped); // dropping an item may call into its owner
    }
}

impl PathTrie {
    fn trie(&self) -> MutexGuard<'_, Trie<Py<PyAny>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
