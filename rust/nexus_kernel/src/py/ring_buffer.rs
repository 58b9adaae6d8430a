//! Binding of [`crate::ring_buffer`].

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::ring_buffer::RingBuffer as Ring;

/// Messages of a pipe; the owner holds a mutex.
#[pyclass(module = "nexus._kernel")]
pub struct RingBuffer(Ring<Py<PyBytes>>);

#[pymethods]
impl RingBuffer {
    #[new]
    fn new(capacity_bytes: usize) -> Self {
        Self(Ring::new(capacity_bytes))
    }

    #[getter]
    fn capacity_bytes(&self) -> usize {
        self.0.capacity_bytes()
    }

    #[getter]
    fn used_bytes(&self) -> usize {
        self.0.used_bytes()
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn put_nowait(&mut self, message: Bound<'_, PyBytes>) -> bool {
        let size_bytes = message.as_bytes().len();
        self.0.put_nowait(message.unbind(), size_bytes)
    }

    fn put_back(&mut self, message: Bound<'_, PyBytes>) {
        let size_bytes = message.as_bytes().len();
        self.0.put_back(message.unbind(), size_bytes);
    }

    fn get_nowait(&mut self) -> Option<Py<PyBytes>> {
        self.0.get_nowait()
    }

    fn clear(&mut self) {
        drop(self.0.drain());
    }
}
