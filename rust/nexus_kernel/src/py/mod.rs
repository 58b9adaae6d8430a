//! `nexus._kernel`: the binding. It converts arguments and answers and decides nothing.

mod holders;
mod ring_buffer;
mod router;
mod store;
mod vfs_lock;

use pyo3::pymodule;

#[pymodule(name = "_kernel")]
mod kernel {
    #[pymodule_export]
    use super::holders::Holders;
    #[pymodule_export]
    use super::ring_buffer::RingBuffer;
    #[pymodule_export]
    use super::router::VFSRouter;
    #[pymodule_export]
    use super::store::{OrderedStore, StoreConflict, StoreError, create_store};
    #[pymodule_export]
    use super::vfs_lock::{Hold, HoldSet, VFSLockManager};
}
