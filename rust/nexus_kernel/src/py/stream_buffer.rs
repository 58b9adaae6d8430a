//! Binding of [`crate::stream_buffer`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::stream_buffer::StreamBuffer as Buffer;

/// The latest messages of a stream. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct StreamBuffer(Mutex<Buffer<Py<PyBytes>>>);

#[pymethods]
impl StreamBuffer {
    #[new]
    #[pyo3(signature = (capacity_bytes, /))]
    fn new(capacity_bytes: usize) -> Self {
        Self(Mutex::new(Buffer::new(capacity_bytes)))
    }

    #[getter]
    fn capacity_bytes(&self) -> usize {
        self.buffer().capacity_bytes()
    }

    #[getter]
    fn used_bytes(&self) -> usize {
        self.buffer().used_bytes()
    }

    #[getter]
    fn begin(&self) -> u64 {
        self.buffer().begin()
    }

    #[getter]
    fn end(&self) -> u64 {
        self.buffer().end()
    }

    #[pyo3(signature = (message, /))]
    fn append(&self, message: Bound<'_, PyBytes>) -> Option<u64> {
        let size_bytes = message.as_bytes().len();
        let appended = self.buffer().append(message.unbind(), size_bytes);
        // Those that it took the place of are dropped here, where the lock is free again.
        appended.map(|(offset, _)| offset)
    }

    #[pyo3(signature = (offset, /))]
    fn read(&self, py: Python<'_>, offset: &Bound<'_, PyAny>) -> Option<Py<PyBytes>> {
        // No message is at a number that an offset cannot be.
        let offset = offset.extract().ok()?;
        let buffer = self.buffer();
        buffer.read(offset).map(|message| message.clone_ref(py))
    }

    fn clear(&self) {
        let gone = self.buffer().drain();
        drop(gone);
    }
}

impl StreamBuffer {
    fn buffer(&self) -> MutexGuard<'_, Buffer<Py<PyBytes>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
