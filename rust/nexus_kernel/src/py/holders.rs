//! Binding of [`crate::holders`].

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

use crate::holders::{self, Holder};

/// The holders of all names; the mutex is held for the length of a call, in which no Python runs.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct Holders(Mutex<holders::Holders>);

type Row = (String, i64, i64);

#[pymethods]
impl Holders {
    #[new]
    fn new() -> Self {
        Self(Mutex::new(holders::Holders::default()))
    }

    fn admits(&self, name: &str, max_holders: i64, now_ns: i64) -> bool {
        self.table().admits(name, max_holders, now_ns)
    }

    fn try_put(
        &self,
        name: &str,
        holder_id: String,
        max_holders: i64,
        expires_at_ns: i64,
        now_ns: i64,
    ) -> bool {
        let holder = granted(holder_id, max_holders, expires_at_ns);
        self.table().try_put(name, holder, now_ns)
    }

    fn put(&self, name: &str, holder_id: String, max_holders: i64, expires_at_ns: i64) {
        let holder = granted(holder_id, max_holders, expires_at_ns);
        self.table().put(name, holder);
    }

    fn remove(&self, name: &str, holder_id: &str, now_ns: i64) -> bool {
        self.table().remove(name, holder_id, now_ns)
    }

    fn extend(&self, name: &str, holder_id: &str, expires_at_ns: i64, now_ns: i64) -> bool {
        self.table().extend(name, holder_id, expires_at_ns, now_ns)
    }

    fn clear(&self, name: &str, now_ns: i64) -> usize {
        self.table().clear(name, now_ns)
    }

    fn of(&self, name: &str, now_ns: i64) -> Vec<Row> {
        let row = |held: &Holder| (held.id.clone(), held.max_holders, held.expires_at_ns);
        self.table().of(name, now_ns).iter().map(row).collect()
    }
}

impl Holders {
    fn table(&self) -> MutexGuard<'_, holders::Holders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn granted(id: String, max_holders: i64, expires_at_ns: i64) -> Holder {
    Holder {
        id,
        max_holders,
        expires_at_ns,
    }
}
