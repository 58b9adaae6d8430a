//! Binding of [`crate::record_seal`].

use std::cell::RefCell;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyTuple, PyType};

use crate::record_seal::{self, PREFIX_BYTES};

static SEALED: PyOnceLock<Py<PyType>> = PyOnceLock::new();

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Revision, records, sum of their seals, start of the journal, end of the chain.
type Head = (u64, u64, u64, u64, u64);

/// Rows to store, the records of the puts, and the new head.
type Sealing<'py> = (Bound<'py, PyList>, Bound<'py, PyList>, Head);

/// Twin of `nexus.core.record_seal.seal_record`.
#[pyfunction]
#[pyo3(signature = (key, payload, at, /))]
pub fn seal_record<'py>(
    py: Python<'py>,
    key: &[u8],
    payload: &[u8],
    at: [u8; 8],
) -> PyResult<(Bound<'py, PyBytes>, u64)> {
    SCRATCH.with_borrow_mut(|scratch| sealed(py, key, payload, at, scratch))
}

fn sealed<'py>(
    py: Python<'py>,
    key: &[u8],
    payload: &[u8],
    at: [u8; 8],
    scratch: &mut Vec<u8>,
) -> PyResult<(Bound<'py, PyBytes>, u64)> {
    let mut seal = 0;
    let value = PyBytes::new_with(py, PREFIX_BYTES + payload.len(), |value| {
        seal = record_seal::seal(key, payload, at, value, scratch);
        Ok(())
    })?;
    Ok((value, seal))
}

/// Twin of `nexus.core.record_seal.seal_commit`.
#[pyfunction]
#[pyo3(signature = (head_key, head, puts, deletes, at_revision, /))]
pub fn seal_commit<'py>(
    py: Python<'py>,
    head_key: Bound<'py, PyBytes>,
    head: Head,
    puts: &Bound<'py, PyList>,
    deletes: &Bound<'py, PyList>,
    at_revision: &Bound<'py, PyList>,
) -> PyResult<Sealing<'py>> {
    let class = SEALED.import(py, "nexus.core.record_seal", "Sealed")?;
    let (before, mut records, mut seal_sum, journal_start, chain_end) = head;
    let revision = before + 1;
    let at = revision.to_be_bytes();
    let (rows, written) = (PyList::empty(py), PyList::empty(py));
    for record in deletes {
        records = records.wrapping_sub(1);
        seal_sum = seal_sum.wrapping_sub(seal_of(&record)?);
    }
    let mut scratch = SCRATCH.take();
    for put in puts {
        let (key, payload, replaced): (Bound<'_, PyBytes>, Bound<'_, PyBytes>, Bound<'_, PyAny>) =
            put.extract()?;
        let (value, seal) = sealed(py, key.as_bytes(), payload.as_bytes(), at, &mut scratch)?;
        seal_sum = seal_sum.wrapping_add(seal);
        if replaced.is_none() {
            records = records.wrapping_add(1);
        } else {
            seal_sum = seal_sum.wrapping_sub(seal_of(&replaced)?);
        }
        rows.append(PyTuple::new(py, [&key, &value])?)?;
        written.append(class.call1((key, payload, revision, seal))?)?;
    }
    let mut key = Vec::new();
    for put in at_revision {
        let (prefix, payload, suffix): (
            Bound<'_, PyBytes>,
            Bound<'_, PyBytes>,
            Bound<'_, PyBytes>,
        ) = put.extract()?;
        key.clear();
        key.extend(prefix.as_bytes());
        key.extend(at);
        key.extend(suffix.as_bytes());
        records = records.wrapping_add(1);
        let (value, seal) = sealed(py, &key, payload.as_bytes(), at, &mut scratch)?;
        seal_sum = seal_sum.wrapping_add(seal);
        rows.append(PyTuple::new(py, [PyBytes::new(py, &key), value])?)?;
    }
    let head = (revision, records, seal_sum, journal_start, chain_end);
    let fields = [head.0, head.1, head.2, head.3, head.4].map(u64::to_le_bytes);
    let (value, _) = sealed(
        py,
        head_key.as_bytes(),
        fields.as_flattened(),
        at,
        &mut scratch,
    )?;
    rows.append(PyTuple::new(py, [head_key, value])?)?;
    SCRATCH.set(scratch);
    Ok((rows, written, head))
}

fn seal_of(record: &Bound<'_, PyAny>) -> PyResult<u64> {
    record.getattr(intern!(record.py(), "seal"))?.extract()
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
