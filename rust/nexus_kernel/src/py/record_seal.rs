//! Binding of [`crate::record_seal`].

use std::cell::RefCell;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::record_seal::{self, PREFIX_BYTES};

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Twin of `nexus.core.record_seal.seal_record`.
#[pyfunction]
#[pyo3(signature = (key, payload, at, /))]
pub fn seal_record<'py>(
    py: Python<'py>,
    key: &[u8],
    payload: &[u8],
    at: [u8; 8],
) -> PyResult<(Bound<'py, PyBytes>, u64)> {
    let mut seal = 0;
    let value = PyBytes::new_with(py, PREFIX_BYTES + payload.len(), |value| {
        seal =
            SCRATCH.with_borrow_mut(|scratch| record_seal::seal(key, payload, at, value, scratch));
        Ok(())
    })?;
    Ok((value, seal))
}

/// Twin of `nexus.core.record_seal.unseal_record`.
#[pyfunction]
#[pyo3(signature = (key, value, /))]
pub fn unseal_record<'py>(
    py: Python<'py>,
    key: &[u8],
    value: &[u8],
) -> Option<(Bound<'py, PyBytes>, u64, u64)> {
    SCRATCH.with_borrow_mut(|scratch| {
        let found = record_seal::unseal(key, value, scratch)?;
        Some((PyBytes::new(py, found.payload), found.revision, found.seal))
    })
}
