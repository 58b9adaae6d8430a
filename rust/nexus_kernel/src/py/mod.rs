//! `nexus._kernel`: the binding. It converts arguments and answers and decides nothing.

mod chunker;
mod ring_buffer;
mod router;
mod store;

use pyo3::pymodule;

#[pymodule(name = "_kernel")]
mod kernel {
    #[pymodule_export]
    use super::chunker::Chunker;
    #[pymodule_export]
    use super::ring_buffer::RingBuffer;
    #[pymodule_export]
    use super::router::VFSRouter;
    #[pymodule_export]
    use super::store::{OrderedStore, StoreConflict, StoreError, create_store};
}
