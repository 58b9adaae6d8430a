//! Binding of [`crate::sealed_read`].

use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::sealed_read::{self, Part};

/// A descriptor, where the object starts in its file, its size; the first byte that is wanted and
/// how many are; the seals of its blocks.
type Wanted<'py> = (RawFd, u64, usize, usize, usize, Bound<'py, PyBytes>);

/// Twin of `nexus.storage.object_store.segment_file.read_sealed`.
#[pyfunction]
#[pyo3(signature = (count, wanted, /))]
pub fn read_sealed<'py>(
    py: Python<'py>,
    count: usize,
    wanted: Vec<Wanted<'py>>,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let parts: Vec<Part> = wanted.iter().map(part).collect();
    let length = isize::try_from(count)?;
    // SAFETY: without a source it makes bytes of that length, owned by nobody else, or sets an
    // error. Their content is written below, before anyone sees them; `PyBytes::new_with` would
    // write zeros first, which takes a fifth of the time of a read.
    let found = unsafe {
        let made = ffi::PyBytes_FromStringAndSize(ptr::null(), length);
        Bound::from_owned_ptr_or_err(py, made)?
    };
    // SAFETY: as above; the bytes stay where they are for as long as `found` lives.
    let target = unsafe {
        let first = ffi::PyBytes_AsString(found.as_ptr()).cast::<MaybeUninit<u8>>();
        std::slice::from_raw_parts_mut(first, count)
    };
    let read = py.detach(|| sealed_read::read_sealed(target, &parts));
    Ok(read.then_some(found))
}

fn part<'a>(wanted: &'a Wanted<'_>) -> Part<'a> {
    let (descriptor, offset_bytes, size_bytes, start, count, seals) = wanted;
    Part {
        descriptor: *descriptor,
        offset_bytes: *offset_bytes,
        size_bytes: *size_bytes,
        start: *start,
        count: *count,
        seals: seals.as_bytes(),
    }
}
