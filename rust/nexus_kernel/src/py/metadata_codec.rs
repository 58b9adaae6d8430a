//! Binding of [`crate::metadata_codec`].

use std::fmt::Display;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyUnicodeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyString, PyTuple, PyType};

use crate::metadata_codec::{Attributes, DecodeError, Event, Metadata};
use crate::msgpack::{Integer, OutOfRange, Scalar};

static METADATA: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static EVENT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static CORRUPTION: PyOnceLock<Py<PyType>> = PyOnceLock::new();
static INVALID: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// The stored form of a record.
#[pyfunction]
#[pyo3(signature = (meta, /))]
pub fn encode_metadata<'py>(meta: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = meta.py();
    stored_metadata(meta)
        .map(|bytes| PyBytes::new(py, &bytes))
        .map_err(|error| cannot_be_stored(py, error))
}

/// The metadata of a record.
#[pyfunction]
#[pyo3(signature = (record, /))]
pub fn decode_metadata<'py>(record: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = record.py();
    let payload = record.getattr(intern!(py, "payload"))?;
    match Metadata::decode(payload.cast::<PyBytes>()?.as_bytes()) {
        Ok(meta) => metadata_object(py, &meta),
        Err(error) => {
            let key = record.getattr(intern!(py, "key"))?.repr()?;
            Err(damaged(py, &format!("record {key}"), error))
        }
    }
}

/// The stored form of a journal entry.
#[pyfunction]
#[pyo3(signature = (event, /))]
pub fn encode_event<'py>(event: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = event.py();
    stored_event(event)
        .map(|bytes| PyBytes::new(py, &bytes))
        .map_err(|error| cannot_be_stored(py, error))
}

/// The event of a journal entry, with its position.
#[pyfunction]
#[pyo3(signature = (record, /))]
pub fn decode_event<'py>(record: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = record.py();
    let revision = record.getattr(intern!(py, "revision"))?;
    let payload = record.getattr(intern!(py, "payload"))?;
    match Event::decode(payload.cast::<PyBytes>()?.as_bytes()) {
        Ok(event) => {
            let key = record.getattr(intern!(py, "key"))?;
            let key = key.cast::<PyBytes>()?.as_bytes();
            let last = &key[key.len().saturating_sub(4)..];
            let sequence = last
                .iter()
                .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
            event_object(py, &event, revision, sequence)
        }
        Err(error) => {
            let what = format!("the journal entry of revision {revision}");
            Err(damaged(py, &what, error))
        }
    }
}

/// Attributes of an object, kept while a record borrows from them.
struct Held<'py>(Bound<'py, PyAny>);

impl<'py> Held<'py> {
    fn of(object: &Bound<'py, PyAny>, name: &Bound<'py, PyString>) -> PyResult<Self> {
        object.getattr(name).map(Self)
    }

    fn text(&self) -> PyResult<&str> {
        self.0.cast::<PyString>()?.to_str()
    }

    fn text_or_none(&self) -> PyResult<Option<&str>> {
        (!self.0.is_none()).then(|| self.text()).transpose()
    }

    fn integer(&self) -> PyResult<Integer> {
        integer(&self.0)
    }

    fn items(&self) -> PyResult<Vec<(Held<'py>, Held<'py>)>> {
        let items = self.0.cast::<PyDict>()?.iter();
        Ok(items
            .map(|(name, value)| (Held(name), Held(value)))
            .collect())
    }

    fn scalar(&self) -> PyResult<Scalar<'_>> {
        if let Ok(value) = self.0.cast::<PyBool>() {
            Ok(Scalar::Boolean(value.is_true()))
        } else if let Ok(value) = self.0.cast::<PyFloat>() {
            Ok(Scalar::Float(value.value()))
        } else if self.0.is_instance_of::<PyString>() {
            self.text().map(Scalar::Text)
        } else {
            self.integer().map(Scalar::Integer)
        }
    }
}

fn integer(object: &Bound<'_, PyAny>) -> PyResult<Integer> {
    match object.extract::<i64>() {
        Ok(value) => Ok(value.into()),
        Err(_) => object.extract::<u64>().map(Integer::from),
    }
}

fn borrowed<'a>(items: &'a [(Held<'_>, Held<'_>)]) -> PyResult<Attributes<'a>> {
    let mut found = Attributes::with_capacity(items.len());
    for (name, value) in items {
        found.push((name.text()?, value.scalar()?));
    }
    Ok(found)
}

fn stored_metadata(meta: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let py = meta.py();
    macro_rules! field {
        ($name:literal) => {
            Held::of(meta, intern!(py, $name))?
        };
    }
    let (etag, owner_id, mime_type) = (field!("etag"), field!("owner_id"), field!("mime_type"));
    let (zone_id, backend_name) = (field!("zone_id"), field!("backend_name"));
    let (modified_by, run_id) = (field!("modified_by"), field!("run_id"));
    let channel_id = field!("channel_id");
    let attributes = field!("attributes").items()?;
    let mount = field!("mount");
    let mount = (!mount.0.is_none()).then(|| mount.items()).transpose()?;
    let record = Metadata {
        entry_type: field!("entry_type").integer()?,
        size: field!("size").integer()?,
        etag: etag.text()?,
        version: field!("version").integer()?,
        created_at_ns: field!("created_at_ns").integer()?,
        modified_at_ns: field!("modified_at_ns").integer()?,
        owner_id: owner_id.text()?,
        mode: field!("mode").integer()?,
        mime_type: mime_type.text()?,
        zone_id: zone_id.text()?,
        backend_name: backend_name.text()?,
        modified_by: modified_by.text()?,
        run_id: run_id.text_or_none()?,
        attributes: borrowed(&attributes)?,
        mount: mount.as_deref().map(borrowed).transpose()?,
        first_version: field!("first_version").integer()?,
        channel_id: channel_id.text_or_none()?,
    };
    let mut bytes = Vec::with_capacity(256);
    record.encode(&mut bytes).map_err(out_of_range)?;
    Ok(bytes)
}

fn stored_event(event: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let py = event.py();
    macro_rules! field {
        ($name:literal) => {
            Held::of(event, intern!(py, $name))?
        };
    }
    let (kind, path, user_id) = (field!("kind"), field!("path"), field!("user_id"));
    let (zone_id, new_path, etag) = (field!("zone_id"), field!("new_path"), field!("etag"));
    let (agent_id, run_id) = (field!("agent_id"), field!("run_id"));
    let record = Event {
        kind: kind.text()?,
        path: path.text()?,
        user_id: user_id.text()?,
        timestamp_ns: field!("timestamp_ns").integer()?,
        zone_id: zone_id.text()?,
        revision: field!("revision").integer()?,
        new_path: new_path.text_or_none()?,
        etag: etag.text()?,
        size: field!("size").integer()?,
        version: field!("version").integer()?,
        agent_id: agent_id.text_or_none()?,
        run_id: run_id.text_or_none()?,
        sequence: field!("sequence").integer()?,
    };
    let mut bytes = Vec::with_capacity(256);
    record.encode(&mut bytes).map_err(out_of_range)?;
    Ok(bytes)
}

fn metadata_object<'py>(py: Python<'py>, meta: &Metadata<'_>) -> PyResult<Bound<'py, PyAny>> {
    let mount = meta.mount.as_ref().map(|mount| dictionary(py, mount));
    let fields = [
        number(py, meta.entry_type)?,
        number(py, meta.size)?,
        any(py, meta.etag)?,
        number(py, meta.version)?,
        number(py, meta.created_at_ns)?,
        number(py, meta.modified_at_ns)?,
        any(py, meta.owner_id)?,
        number(py, meta.mode)?,
        any(py, meta.mime_type)?,
        any(py, meta.zone_id)?,
        any(py, meta.backend_name)?,
        any(py, meta.modified_by)?,
        any(py, meta.run_id)?,
        dictionary(py, &meta.attributes)?.into_any(),
        any(py, mount.transpose()?)?,
        number(py, meta.first_version)?,
        any(py, meta.channel_id)?,
    ];
    let class = METADATA.import(py, "nexus.contracts.metadata", "FileMetadata")?;
    class.call1(PyTuple::new(py, fields)?)
}

fn event_object<'py>(
    py: Python<'py>,
    event: &Event<'_>,
    revision: Bound<'py, PyAny>,
    sequence: u32,
) -> PyResult<Bound<'py, PyAny>> {
    let fields = [
        any(py, event.kind)?,
        any(py, event.path)?,
        any(py, event.user_id)?,
        number(py, event.timestamp_ns)?,
        any(py, event.zone_id)?,
        revision,
        any(py, event.new_path)?,
        any(py, event.etag)?,
        number(py, event.size)?,
        number(py, event.version)?,
        any(py, event.agent_id)?,
        any(py, event.run_id)?,
        any(py, sequence)?,
    ];
    let class = EVENT.import(py, "nexus.contracts.file_events", "FileEvent")?;
    class.call1(PyTuple::new(py, fields)?)
}

fn any<'py>(py: Python<'py>, value: impl IntoPyObject<'py>) -> PyResult<Bound<'py, PyAny>> {
    value.into_bound_py_any(py)
}

/// The interpreter's own way from 128 bits is slow, and hardly any number needs more than 63.
fn number(py: Python<'_>, value: Integer) -> PyResult<Bound<'_, PyAny>> {
    match i64::try_from(value) {
        Ok(value) => any(py, value),
        Err(_) => any(py, value),
    }
}

fn dictionary<'py>(py: Python<'py>, attributes: &Attributes<'_>) -> PyResult<Bound<'py, PyDict>> {
    let found = PyDict::new(py);
    for (name, value) in attributes {
        match *value {
            Scalar::Boolean(value) => found.set_item(name, value)?,
            Scalar::Integer(value) => found.set_item(name, number(py, value)?)?,
            Scalar::Float(value) => found.set_item(name, value)?,
            Scalar::Text(value) => found.set_item(name, value)?,
        }
    }
    Ok(found)
}

fn out_of_range(error: OutOfRange) -> PyErr {
    PyOverflowError::new_err(error.to_string())
}

/// What callers handed in has no stored form: the same errors as those that the twin names.
fn cannot_be_stored(py: Python<'_>, error: PyErr) -> PyErr {
    let of_the_record = error.is_instance_of::<PyUnicodeError>(py)
        || error.is_instance_of::<PyOverflowError>(py)
        || error.is_instance_of::<PyTypeError>(py);
    if !of_the_record {
        return error;
    }
    let reason = format!("cannot be stored: {}", error.value(py));
    let raised = INVALID
        .import(py, "nexus.contracts.errors", "InvalidArgumentError")
        .and_then(|class| class.call1(("commit", py.None(), reason)));
    let raised = raised.map_or_else(|error| error, PyErr::from_value);
    raised.set_cause(py, Some(error));
    raised
}

fn damaged(py: Python<'_>, what: &impl Display, error: DecodeError) -> PyErr {
    let (reason, hint) = match error {
        DecodeError::Version(_) => (
            format!("{what} {error}"),
            "it was written by a newer release",
        ),
        _ => (format!("{what}: {error}"), "run `nexus fsck`"),
    };
    let raised = || -> PyResult<Bound<'_, PyAny>> {
        let class = CORRUPTION.import(py, "nexus.contracts.errors", "CorruptionError")?;
        let keywords = PyDict::new(py);
        keywords.set_item("hint", hint)?;
        class.call(("metastore", py.None(), reason), Some(&keywords))
    };
    raised().map_or_else(|error| error, PyErr::from_value)
}
