//! The hot primitives of the kernel as plain Rust: each has a readable Python twin, and one suite
//! of tests runs on both.
//!
//! Only `py`, the thin binding behind the feature `python`, knows Python; it is `nexus._kernel`.

pub mod chunker;
pub mod commit_log;
pub mod holders;
pub mod inode_cache;
pub mod memtable;
pub mod metadata_codec;
pub mod msgpack;
pub mod object_index;
pub mod path_trie;
pub mod paths;
pub mod record_seal;
pub mod ring_buffer;
pub mod router;
pub mod salvage;
pub mod segment_record;
pub mod store;
pub mod store_error;
pub mod stream_buffer;
pub mod tree_file;
pub mod vfs_lock;
pub mod waiting_entries;
pub mod watch_table;
pub mod witness;

#[cfg(feature = "python")]
mod py;
