//! Binding of [`crate::paths`].

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::paths::is_canonical;

static SLOWLY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Twin of `nexus.lib.paths.normalize`, which has whatever is not canonical yet.
#[pyfunction]
#[pyo3(signature = (operation, path, /))]
pub fn normalize<'py>(
    operation: &Bound<'py, PyAny>,
    path: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    if let Ok(text) = path.cast::<PyString>()
        && text.to_str().is_ok_and(is_canonical)
    {
        return Ok(path);
    }
    let py = path.py();
    let slowly = SLOWLY.import(py, "nexus.lib.paths", "normalize_slowly")?;
    slowly.call1((operation, path))
}
