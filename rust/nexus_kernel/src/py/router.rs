//! Binding of [`crate::router`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyAssertionError, PyKeyError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyType};

use crate::router::Router;

struct MountAt {
    mount: Py<PyAny>,
    point: Py<PyString>,
}

type Mount = Arc<MountAt>;
type RouteResult<'py> = (Py<PyAny>, Py<PyString>, Bound<'py, PyString>);

/// Routes paths to mounts. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen, generic)]
pub struct VFSRouter {
    router: Router<Mount>,
    /// What stands for a zone's table; made anew after the table is, so that nobody takes an old
    /// table for the new one.
    tokens: Mutex<HashMap<String, Py<PyAny>>>,
}

static NOT_FOUND: PyOnceLock<Py<PyType>> = PyOnceLock::new();

#[pymethods]
impl VFSRouter {
    #[new]
    fn new() -> Self {
        Self {
            router: Router::new(),
            tokens: Mutex::new(HashMap::new()),
        }
    }

    fn add(&self, py: Python<'_>, zone_id: &str, point: &str, mount: Py<PyAny>) -> PyResult<()> {
        let entry = MountAt {
            mount,
            point: PyString::new(py, point).unbind(),
        };
        if !self.router.add(zone_id, point, Arc::new(entry)) {
            return Err(PyAssertionError::new_err(format!(
                "{point} is mounted already"
            )));
        }
        self.renew_token(py, zone_id)
    }

    fn remove(&self, py: Python<'_>, zone_id: &str, point: &str) -> PyResult<Py<PyAny>> {
        let mount = self.router.remove(zone_id, point);
        let mount = mount.ok_or_else(|| PyKeyError::new_err(point.to_owned()))?;
        self.renew_token(py, zone_id)?;
        Ok(mount.mount.clone_ref(py))
    }

    fn route<'py>(&self, path: &Bound<'py, PyString>, zone_id: &str) -> PyResult<RouteResult<'py>> {
        let py = path.py();
        let text = path.to_str()?;
        let table = self.router.table(zone_id);
        let Some((mount, point_bytes)) = table.as_ref().and_then(|table| table.route(text)) else {
            return Err(not_found(text, zone_id, py));
        };
        let relative = match (point_bytes, &text[point_bytes..]) {
            (1, _) => path.clone(),
            (_, "") => intern!(py, "/").clone(),
            (_, rest) => PyString::new(py, rest),
        };
        Ok((
            mount.mount.clone_ref(py),
            mount.point.clone_ref(py),
            relative,
        ))
    }

    fn table(&self, py: Python<'_>, zone_id: &str) -> Option<Py<PyAny>> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(zone_id).map(|token| token.clone_ref(py))
    }

    fn at(&self, py: Python<'_>, path: &str, zone_id: &str) -> Option<Py<PyAny>> {
        let table = self.router.table(zone_id)?;
        table.at(path).map(|found| found.mount.clone_ref(py))
    }

    fn points_below(&self, path: &str, zone_id: &str) -> Vec<String> {
        let Some(table) = self.router.table(zone_id) else {
            return Vec::new();
        };
        table
            .points_below(path)
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    fn mounts(&self, py: Python<'_>, zone_id: &str) -> Vec<(String, Py<PyAny>)> {
        let Some(table) = self.router.table(zone_id) else {
            return Vec::new();
        };
        let owned = |(point, mount): (&str, &Mount)| (point.to_owned(), mount.mount.clone_ref(py));
        table.sorted().into_iter().map(owned).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.router.for_each(|mount| visit.call(&mount.mount))
    }

    fn __clear__(&self) {
        self.router.clear();
    }
}

impl VFSRouter {
    fn renew_token(&self, py: Python<'_>, zone_id: &str) -> PyResult<()> {
        let token = py.import("builtins")?.getattr("object")?.call0()?.unbind();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(zone_id.to_owned(), token);
        Ok(())
    }
}

fn not_found(path: &str, zone_id: &str, py: Python<'_>) -> PyErr {
    let raised = NOT_FOUND
        .import(py, "nexus.contracts.errors", "PathNotFoundError")
        .and_then(|class| {
            let zone = PyString::new(py, zone_id).repr()?;
            let reason = format!("zone {zone} has nothing mounted here");
            class.call1(("route", path, reason))
        });
    raised.map_or_else(|error| error, PyErr::from_value)
}
