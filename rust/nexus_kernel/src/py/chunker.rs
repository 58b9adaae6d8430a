//! Binding of [`crate::chunker`].

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::chunker::Chunker as Cutter;

/// Finds where chunks end. Belongs to one thread.
#[pyclass(module = "nexus._kernel")]
pub struct Chunker(Cutter);

#[pymethods]
impl Chunker {
    #[new]
    fn new(min_bytes: usize, average_bytes: usize, max_bytes: usize) -> Self {
        Self(Cutter::new(min_bytes, average_bytes, max_bytes))
    }

    #[pyo3(signature = (piece, start, stop, /))]
    fn feed(&mut self, piece: &Bound<'_, PyBytes>, start: usize, stop: usize) -> Vec<isize> {
        let bytes = piece.as_bytes();
        let stop = stop.min(bytes.len());
        let bytes = &bytes[start.min(stop)..stop];
        piece.py().detach(|| self.0.feed(bytes))
    }
}
