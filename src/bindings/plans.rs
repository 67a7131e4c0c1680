//! What a block table gives back: reservations, and the plans of a batch.

#![allow(clippy::doc_markdown)] // The comments on the classes are Python docstrings.

use numpy::{PyArray1, PyArray2};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use crate::kv;

use super::gate::hold;
use super::types::{CommitPlan, pairs};

/// Slots for the next nodes of one sequence.
///
/// Attributes:
///     slots: int64 (n,), the slot of each node.
///     copies: int64 (M, 2), slots from -> to, to be copied before anything is written.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct Reservation(pub(super) kv::Reservation);

#[pymethods]
impl Reservation {
    #[getter]
    fn slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.slots)))
    }

    #[getter]
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.copies)))
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.slots.len()))
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| Ok(format!("Reservation(slots={:?}, copies={:?})", self.0.slots, self.0.copies)))
    }
}

/// Slots for the next nodes of a batch; `batch[b]` is the reservation of its sequence b.
///
/// Attributes:
///     slots: int64 (sum n,), the slots of all nodes.
///     offsets: int64 (B+1,); sequence b has `slots[offsets[b]:offsets[b + 1]]`.
///     copies: int64 (M, 2), slots from -> to of the whole batch, to be copied before anything is
///         written.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct ReservationBatch(pub(super) kv::ReservationBatch);

#[pymethods]
impl ReservationBatch {
    #[getter]
    fn slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.slots)))
    }

    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.offsets)))
    }

    #[getter]
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.copies)))
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.offsets.len() - 1))
    }

    fn __getitem__(&self, index: isize) -> PyResult<Reservation> {
        hold(|| {
            let part = self.0.get(place(index, self.0.offsets.len() - 1)?);
            part.map(Reservation).ok_or_else(|| PyIndexError::new_err("index out of range"))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            Ok(format!("ReservationBatch(slots={:?}, offsets={:?})", self.0.slots, self.0.offsets))
        })
    }
}

/// The plans of a batch; `batch[b]` is the `CommitPlan` of its sequence b.
///
/// Attributes:
///     moves: int64 (M, 2), slots from -> to of the whole batch; in this order they are safe in place.
///     freed: int32 block ids that no sequence needs any more.
///     lengths: int64 (B,), entries of each sequence after the commit.
///     state_select: int64 (B,), the node of each tree whose recurrent and hidden state is kept.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct CommitPlanBatch(pub(super) kv::CommitPlanBatch);

#[pymethods]
impl CommitPlanBatch {
    #[getter]
    fn moves<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.moves)))
    }

    #[getter]
    fn freed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.freed)))
    }

    #[getter]
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.lengths)))
    }

    #[getter]
    fn state_select<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.state_select)))
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.len()))
    }

    fn __getitem__(&self, index: isize) -> PyResult<CommitPlan> {
        hold(|| {
            let part = self.0.get(place(index, self.0.len())?);
            part.map(CommitPlan).ok_or_else(|| PyIndexError::new_err("index out of range"))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| Ok(format!("CommitPlanBatch({} plans)", self.0.len())))
    }
}

/// An index as Python has them, negative ones from the end.
pub(super) fn place(index: isize, len: usize) -> PyResult<usize> {
    let from_start = if index < 0 { index + len as isize } else { index };
    let inside = usize::try_from(from_start).ok().filter(|&at| at < len);
    inside.ok_or_else(|| PyIndexError::new_err("index out of range"))
}
