//! `nexus._kernel`: the binding. It converts arguments and answers and decides nothing.

mod chunker;
mod holders;
mod inode_cache;
mod metadata_codec;
mod object_index;
mod path_trie;
mod paths;
mod record_seal;
mod ring_buffer;
mod router;
mod segment_record;
mod store;
mod stream_buffer;
mod vfs_lock;
mod watch_table;

use pyo3::pymodule;

#[pymodule(name = "_kernel")]
mod kernel {
    #[pymodule_export]
    use super::chunker::Chunker;
    #[pymodule_export]
    use super::holders::Holders;
    #[pymodule_export]
    use super::inode_cache::InodeCache;
    #[pymodule_export]
    use super::metadata_codec::{decode_event, decode_metadata, encode_event, encode_metadata};
    #[pymodule_export]
    use super::object_index::ObjectIndex;
    #[pymodule_export]
    use super::path_trie::PathTrie;
    #[pymodule_export]
    use super::paths::normalize;
    #[pymodule_export]
    use super::record_seal::{seal_commit, seal_record, unseal_record};
    #[pymodule_export]
    use super::ring_buffer::RingBuffer;
    #[pymodule_export]
    use super::router::VFSRouter;
    #[pymodule_export]
    use super::segment_record::{SegmentExtent, packed_record};
    #[pymodule_export]
    use super::store::{
        OrderedStore, StoreConflict, StoreError, create_store, is_store_whole, rebuild_store,
    };
    #[pymodule_export]
    use super::stream_buffer::StreamBuffer;
    #[pymodule_export]
    use super::vfs_lock::{Hold, HoldSet, VFSLockManager};
    #[pymodule_export]
    use super::watch_table::WatchTable;
}
