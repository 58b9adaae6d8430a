//! The hot primitives of the kernel as plain Rust: each has a readable Python twin, and one suite
//! of tests runs on both.
//!
//! Only `py`, the thin binding behind the feature `python`, knows Python; it is `nexus._kernel`.

pub mod commit_log;
pub mod holders;
pub mod ring_buffer;
pub mod router;
pub mod store;
pub mod vfs_lock;

#[cfg(feature = "python")]
mod py;
