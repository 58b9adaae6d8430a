//! Binding of [`crate::vfs_lock`].
//!
//! No deadlock between its mutexes and the interpreter: they are taken for a few steps in which
//! nothing of Python's runs, is made or dropped, so who has one never waits for the interpreter; who
//! sleeps does so at its gate, having let go of the interpreter. A signal handler, a finalizer or
//! another thread so never finds a mutex taken by a thread that waits for it. The mutex of the state
//! is besides taken only by threads that have the interpreter, so fork(2) finds it free.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyFloat, PyType};

use crate::vfs_lock::{self, Entered, Mode, VfsLocks, Waiting};

/// How long the thread that handles signals sleeps before it looks for one.
const SIGNALS_AFTER: Duration = Duration::from_millis(50);
const FOREVER: Duration = Duration::from_secs(1 << 33);

static TIMED_OUT: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// Whom to tell. It is the manager's: a hold that owned it too could be in a cycle that nobody sees.
type Callback = Mutex<Option<Py<PyAny>>>;

/// Grants holds on canonical paths. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen, subclass)]
pub struct VFSLockManager {
    locks: VfsLocks,
    timeout_s: f64,
    after_release: Arc<Callback>,
}

/// A granted lock, released by leaving its block, by `release`, or when dropped.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct Hold {
    hold: vfs_lock::Hold,
    /// None for a shared hold, which has changed nothing to tell of.
    told: Option<Weak<Callback>>,
}

/// Several holds, released together in reverse order.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct HoldSet {
    holds: Vec<vfs_lock::Hold>,
    told: Weak<Callback>,
}

#[pymethods]
impl VFSLockManager {
    #[new]
    #[pyo3(signature = (timeout_s = 30.0))]
    fn new(timeout_s: f64) -> Self {
        Self {
            locks: VfsLocks::new(),
            timeout_s,
            after_release: Arc::default(),
        }
    }

    #[getter]
    fn get_after_release(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        callback_of(&self.after_release, py)
    }

    #[setter]
    fn set_after_release(&self, callback: Option<Py<PyAny>>) {
        let old = std::mem::replace(&mut *locked(&self.after_release), callback);
        drop(old); // not under the mutex
    }

    #[pyo3(signature = (path, timeout_s = None))]
    fn read(&self, py: Python<'_>, path: &str, timeout_s: Option<f64>) -> PyResult<Hold> {
        let hold = self.acquire(py, path, Mode::Shared, false, timeout_s)?;
        Ok(Hold { hold, told: None })
    }

    #[pyo3(signature = (path, timeout_s = None))]
    fn write(&self, py: Python<'_>, path: &str, timeout_s: Option<f64>) -> PyResult<Hold> {
        let hold = self.acquire(py, path, Mode::Exclusive, false, timeout_s)?;
        let told = Some(Arc::downgrade(&self.after_release));
        Ok(Hold { hold, told })
    }

    #[pyo3(signature = (paths, timeout_s = None))]
    fn write_many(
        &self,
        py: Python<'_>,
        paths: &Bound<'_, PyAny>,
        timeout_s: Option<f64>,
    ) -> PyResult<HoldSet> {
        let paths = paths
            .try_iter()?
            .map(|path| path?.extract())
            .collect::<PyResult<Vec<PyBackedStr>>>()?;
        let texts = paths.iter().map(|path| &**path).collect();
        let holds = vfs_lock::take_set(texts, |path, mode, holding| {
            self.acquire(py, path, mode, holding, timeout_s)
        })?;
        let told = Arc::downgrade(&self.after_release);
        Ok(HoldSet { holds, told })
    }

    #[pyo3(signature = (source, target, timeout_s = None))]
    fn copy_pair(
        &self,
        py: Python<'_>,
        source: &str,
        target: &str,
        timeout_s: Option<f64>,
    ) -> PyResult<HoldSet> {
        let holds = vfs_lock::take_pair(source, target, |path, mode, holding| {
            self.acquire(py, path, mode, holding, timeout_s)
        })?;
        let told = Arc::downgrade(&self.after_release);
        Ok(HoldSet { holds, told })
    }

    fn held<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let held = PyDict::new(py);
        for (path, mode) in self.locks.held() {
            let how = match mode {
                Mode::Shared => "read",
                Mode::Exclusive => "write",
            };
            held.set_item(path, how)?;
        }
        Ok(held)
    }

    fn waiting(&self) -> usize {
        self.locks.waiting()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.after_release.try_lock() {
            Ok(callback) => visit.call(&*callback),
            Err(_) => Ok(()),
        }
    }

    fn __clear__(&self) {
        self.set_after_release(None);
    }
}

impl VFSLockManager {
    fn acquire(
        &self,
        py: Python<'_>,
        path: &str,
        mode: Mode,
        holding: bool,
        timeout_s: Option<f64>,
    ) -> PyResult<vfs_lock::Hold> {
        match self.locks.enter(path, mode, holding) {
            Entered::Held(hold) => Ok(hold),
            Entered::Queued(waiting) => {
                let timeout_s = timeout_s.unwrap_or(self.timeout_s).max(0.0);
                sleep(py, &waiting, patience(timeout_s))?;
                match waiting.finish() {
                    Some(hold) => Ok(hold),
                    None => Err(timed_out(py, path, mode, timeout_s)),
                }
            }
        }
    }
}

#[pymethods]
impl Hold {
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.hold.release();
        match &self.told {
            Some(told) => tell(told, py),
            None => Ok(()),
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (_class, _error, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _class: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.release(py)
    }
}

#[pymethods]
impl HoldSet {
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.holds.iter().rev().for_each(vfs_lock::Hold::release);
        tell(&self.told, py)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (_class, _error, _traceback, /))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _class: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.release(py)
    }
}

fn locked(callback: &Callback) -> MutexGuard<'_, Option<Py<PyAny>>> {
    callback.lock().unwrap_or_else(PoisonError::into_inner)
}

fn callback_of(callback: &Callback, py: Python<'_>) -> Option<Py<PyAny>> {
    let found = locked(callback);
    found.as_ref().map(|callback| callback.clone_ref(py))
}

fn tell(told: &Weak<Callback>, py: Python<'_>) -> PyResult<()> {
    let callback = told.upgrade();
    if let Some(callback) = callback.and_then(|callback| callback_of(&callback, py)) {
        callback.call0(py)?;
    }
    Ok(())
}

fn patience(timeout_s: f64) -> Duration {
    Duration::try_from_secs_f64(timeout_s).map_or(FOREVER, |wanted| wanted.min(FOREVER))
}

/// Sleep until granted or out of patience, without the interpreter. Whom a signal may concern wakes
/// up now and then to handle it.
fn sleep(py: Python<'_>, waiting: &Waiting, patience: Duration) -> PyResult<()> {
    if patience.is_zero() {
        return Ok(());
    }
    let slice = match handles_signals(py)? {
        true => SIGNALS_AFTER,
        false => patience,
    };
    let start = Instant::now();
    loop {
        let left = patience.saturating_sub(start.elapsed());
        if py.detach(|| waiting.wait(left.min(slice))) {
            return Ok(());
        }
        py.check_signals()?;
        if start.elapsed() >= patience {
            return Ok(());
        }
    }
}

/// Whether this is the one thread of the process in which Python handles signals.
fn handles_signals(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    main.eq(threading.call_method0("get_ident")?)
}

fn timed_out(py: Python<'_>, path: &str, mode: Mode, timeout_s: f64) -> PyErr {
    let kind = match mode {
        Mode::Shared => "shared",
        Mode::Exclusive => "exclusive",
    };
    let raised = TIMED_OUT
        .import(py, "nexus.contracts.errors", "LockTimeoutError")
        .and_then(|class| {
            let waited = PyFloat::new(py, timeout_s).call_method1("__format__", ("g",))?;
            class.call1(("lock", path, format!("no {kind} lock within {waited} s")))
        });
    raised.map_or_else(|error| error, PyErr::from_value)
}
