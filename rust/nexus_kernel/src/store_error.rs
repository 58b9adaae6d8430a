//! Why a call of a store has no answer, and the guard around the engine's panics.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

/// Why a call of the store has no answer.
#[derive(Debug)]
pub enum StoreError {
    /// A condition does not hold: which one, and the version that was found.
    Conflict(usize, u64),
    /// The store is closed.
    Closed,
    /// Somebody else has the file open.
    Busy(String),
    /// The file holds something else, or is damaged.
    Damaged(String),
    /// A write or sync failed; whether it is stored is not known.
    Failed(String),
    /// The operating system refused, with nothing changed.
    Io(io::Error),
}

impl StoreError {
    /// Whether the disk had no room.
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::Io(error) if full.contains(&error.kind()))
    }

    /// What went wrong, as text.
    pub fn reason(&self) -> String {
        match self {
            Self::Conflict(..) => "a condition does not hold".to_owned(),
            Self::Closed => "the store is closed".to_owned(),
            Self::Busy(reason) | Self::Damaged(reason) | Self::Failed(reason) => reason.clone(),
            Self::Io(error) => error.to_string(),
        }
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Io(error),
        }
    }
}

/// The store's word for an error of the engine.
pub fn engine(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) => error.into(),
        redb::Error::DatabaseAlreadyOpen => StoreError::Busy("it is open already".to_owned()),
        redb::Error::DatabaseClosed => StoreError::Closed,
        redb::Error::PreviousIo => StoreError::Failed("an earlier write failed".to_owned()),
        other => StoreError::Damaged(other.to_string()),
    }
}

thread_local! {
    static GUARDED: Cell<u32> = const { Cell::new(0) };
}
static QUIET: Once = Once::new();

/// Run what reads stored bytes: the engine answers some damage by a panic.
///
/// Such a panic is an answer and prints nothing; one anywhere else is reported as ever.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    QUIET.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |cause| {
            if GUARDED.get() == 0 {
                others(cause);
            }
        }));
    });
    GUARDED.set(GUARDED.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(GUARDED.get() - 1);
    outcome.unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
        let reason = format!("the engine gave up: {}", text.unwrap_or("no reason"));
        Err(StoreError::Damaged(reason))
    })
}
