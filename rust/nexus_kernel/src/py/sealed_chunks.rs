//! Binding of [`crate::sealed_chunks`].

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::chunker::Chunker;
use crate::sealed_chunks::{ChunkSealer as Sealer, SealedChunk};

/// Where a chunk ends, its object id, the seals of its blocks.
type Found<'py> = (isize, Bound<'py, PyString>, Bound<'py, PyBytes>);

/// Cuts, hashes and seals one content. Belongs to one thread.
#[pyclass(module = "nexus._kernel")]
pub struct ChunkSealer(Sealer);

#[pymethods]
impl ChunkSealer {
    #[new]
    fn new(min_bytes: usize, average_bytes: usize, max_bytes: usize) -> Self {
        Self(Sealer::new(Chunker::new(
            min_bytes,
            average_bytes,
            max_bytes,
        )))
    }

    #[pyo3(signature = (piece, start, stop, /))]
    fn feed<'py>(
        &mut self,
        piece: &Bound<'py, PyBytes>,
        start: usize,
        stop: usize,
    ) -> Vec<Found<'py>> {
        let py = piece.py();
        let bytes = piece.as_bytes();
        let stop = stop.min(bytes.len());
        let bytes = &bytes[start.min(stop)..stop];
        let chunks = py.detach(|| self.0.feed(bytes));
        chunks.iter().map(|chunk| found(py, chunk)).collect()
    }

    fn finish<'py>(&mut self, py: Python<'py>) -> Option<Found<'py>> {
        self.0.finish().map(|chunk| found(py, &chunk))
    }
}

fn found<'py>(py: Python<'py>, chunk: &SealedChunk) -> Found<'py> {
    let object_id = blake3::Hash::from_bytes(chunk.digest).to_hex();
    (
        chunk.end,
        PyString::new(py, &object_id),
        PyBytes::new(py, &chunk.seals),
    )
}
