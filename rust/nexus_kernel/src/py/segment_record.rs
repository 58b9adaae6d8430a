//! Binding of [`crate::segment_record`].

use std::cell::RefCell;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyWeakrefReference};

use crate::segment_record::{HEADER_BYTES, ObjectId, fill_record, record_bytes, sealed_bytes};

thread_local! {
    /// Where a thread reads a record to: its bytes are copied once they are proved.
    static RECORD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Twin of `nexus.storage.object_store.segment_file.packed_record`.
#[pyfunction]
#[pyo3(signature = (object_id, data, stored_at_ns, /))]
pub fn packed_record<'py>(
    py: Python<'py>,
    object_id: ObjectId,
    data: &[u8],
    stored_at_ns: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let size = u32::try_from(data.len())?;
    PyBytes::new_with(py, record_bytes(data.len()), |record| {
        fill_record(record, &object_id, data, size, stored_at_ns);
        Ok(())
    })
}

/// A record that is read again and again. Shared by all threads.
#[pyclass(module = "nexus._kernel", frozen)]
pub struct SegmentExtent {
    segment: Py<PyWeakrefReference>,
    descriptor: RawFd,
    offset_bytes: u64,
    record_bytes: usize,
    object_id: ObjectId,
}

#[pymethods]
impl SegmentExtent {
    /// `segment` keeps `descriptor` open for as long as it lives.
    #[new]
    fn new(
        segment: &Bound<'_, PyAny>,
        descriptor: RawFd,
        offset_bytes: u64,
        size_bytes: usize,
        object_id: ObjectId,
    ) -> PyResult<Self> {
        Ok(Self {
            segment: PyWeakrefReference::new(segment)?.unbind(),
            descriptor,
            offset_bytes,
            record_bytes: HEADER_BYTES + size_bytes,
            object_id,
        })
    }

    fn read<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        let _open = self.segment.bind(py).upgrade()?;
        // SAFETY: the segment, which lives to the end of this call, closes its descriptor only when
        // it dies; this handle closes nothing.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(self.descriptor) });
        RECORD.with_borrow_mut(|record| {
            record.resize(self.record_bytes, 0);
            let read = || file.read_exact_at(record, self.offset_bytes);
            py.detach(read).ok()?; // whoever asks the store next is told
            sealed_bytes(record, &self.object_id).map(|data| PyBytes::new(py, data))
        })
    }
}
