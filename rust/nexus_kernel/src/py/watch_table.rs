//! Binding of [`crate::watch_table`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::watch_table::{Concern, WatchTable as Table};

/// The watches of every zone. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen, generic)]
pub struct WatchTable(Mutex<Table<Py<PyAny>>>);

#[pymethods]
impl WatchTable {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(Table::new()))
    }

    fn __bool__(&self) -> bool {
        !self.table().is_empty()
    }

    #[pyo3(signature = (zone_id, path, recursive, watch, /))]
    fn insert(&self, zone_id: &str, path: &str, recursive: bool, watch: Py<PyAny>) {
        self.table().insert(zone_id, path, recursive, watch);
    }

    #[pyo3(signature = (zone_id, path, recursive, watch, /))]
    fn remove(&self, zone_id: &str, path: &str, recursive: bool, watch: &Bound<'_, PyAny>) -> bool {
        let is_wanted = |other: &Py<PyAny>| other.is(watch);
        let taken = self.table().remove(zone_id, path, recursive, is_wanted);
        taken.is_some()
    }

    #[pyo3(signature = (zone_id, path, new_path, of_subtree, /))]
    fn concerned(
        &self,
        py: Python<'_>,
        zone_id: &str,
        path: &str,
        new_path: Option<&str>,
        of_subtree: bool,
    ) -> Vec<Py<PyAny>> {
        let event = Concern {
            path,
            new_path,
            of_subtree,
        };
        let table = self.table();
        let found = table.concerned(zone_id, &event);
        found.into_iter().map(|watch| watch.clone_ref(py)).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.0.try_lock() {
            Ok(table) => table.iter().try_for_each(|watch| visit.call(watch)),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        let dropped = std::mem::take(&mut *self.table());
        drop(dropped); // dropping a watch may call into its owner
    }
}

impl WatchTable {
    fn table(&self) -> MutexGuard<'_, Table<Py<PyAny>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
