//! What a block table gives back: reservations and plans, of one sequence or of a batch.

#![allow(clippy::doc_markdown)] // The comments on the classes are Python docstrings.

use numpy::ndarray::ArrayView2;
use numpy::{PyArray1, PyArray2};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;

use crate::error::Error;
use crate::kv;

use super::gate::hold;
use super::numbers::{instances, integers, table, whole};
use super::state::{Reduced, shown};

/// Slots from -> to as an array (M, 2).
fn pairs<'py>(py: Python<'py>, slots: &[(i64, i64)]) -> Bound<'py, PyArray2<i64>> {
    let rows: Vec<[i64; 2]> = slots.iter().map(|&(from, to)| [from, to]).collect();
    PyArray2::from_array(py, &ArrayView2::from(&rows[..]))
}

/// Slots from -> to, of the form that `pairs` gives.
fn pairs_of(given: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<(i64, i64)>> {
    let pair = |line: Vec<i64>| match line[..] {
        [from, to] if from >= 0 && to >= 0 => Ok((from, to)),
        _ => Err(PyErr::from(Error::ShapeMismatch {
            what,
            found: format!("{line:?}"),
            wanted: "(M, 2) slots >= 0".into(),
        })),
    };
    table(given, what)?.into_iter().map(pair).collect()
}

/// Slots, each 0 or more.
fn slots_of(given: &Bound<'_, PyAny>, what: &'static str) -> PyResult<Vec<i64>> {
    let slots = integers(given, what)?;
    let Some(place) = slots.iter().position(|&slot| slot < 0) else { return Ok(slots) };
    let value = format!("{} at index {place}", slots[place]);
    Err(PyErr::from(Error::ParamOutOfRange { name: what, value, wanted: "slots >= 0" }))
}

/// What a commit does to a cache: a plan, which the caller carries out.
///
/// Plans come from `commit_plan` and from `BlockTable.commit`; the constructor brings back one from
/// elsewhere, such as a pickle.
///
/// Args:
///     moves: int (M, 2), slots from -> to; in this order they are safe in place.
///     freed: int (F,), blocks that no sequence needs any more; none of a contiguous cache.
///     length: Entries of the sequence after the commit.
///     state_select: The node whose recurrent and hidden state is kept.
///
/// Raises:
///     DraftError, ParamsError: Another shape, or a number out of its range.
#[pyclass(frozen, module = "mtp_verify.verifier.kv")]
#[derive(PartialEq)]
pub(super) struct CommitPlan(pub(super) kv::CommitPlan);

#[pymethods]
impl CommitPlan {
    #[new]
    fn new(
        moves: &Bound<'_, PyAny>,
        freed: &Bound<'_, PyAny>,
        length: &Bound<'_, PyAny>,
        state_select: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            let block = |slot| {
                i32::try_from(slot).map_err(|_| Error::Overflow {
                    what: "freed",
                    found: slot as u64,
                    limit: i32::MAX as u64,
                })
            };
            Ok(Self(kv::CommitPlan {
                moves: pairs_of(moves, "moves")?,
                freed: slots_of(freed, "freed")?
                    .into_iter()
                    .map(block)
                    .collect::<Result<_, _>>()?,
                length: whole(length, "length")?,
                state_select: whole(state_select, "state_select")?,
            }))
        })
    }

    /// int64 (M, 2): slots from -> to; in this order they are safe in place.
    #[getter]
    fn moves<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.moves)))
    }

    /// int32 (F,): blocks that no sequence needs any more; none of a contiguous cache.
    #[getter]
    fn freed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.freed)))
    }

    /// Entries of the sequence after the commit.
    #[getter]
    fn length(&self) -> PyResult<i64> {
        hold(|| Ok(self.0.length))
    }

    /// The node whose recurrent and hidden state is kept: the path's last, or 0, the root.
    #[getter]
    fn state_select(&self) -> PyResult<i64> {
        hold(|| Ok(self.0.state_select))
    }

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self == other.get()))
    }

    #[allow(clippy::type_complexity)] // The constructor's arguments.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<Reduced<'py, (Vec<(i64, i64)>, Vec<i32>, i64, i64)>> {
        hold(|| {
            let kv::CommitPlan { moves, freed, length, state_select } = slf.get().0.clone();
            Ok((slf.get_type(), (moves, freed, length, state_select)))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let kv::CommitPlan { moves, freed, length, .. } = &self.0;
            let freed =
                if freed.is_empty() { String::new() } else { format!(", freed={}", shown(freed)) };
            Ok(format!("CommitPlan(moves={}{freed}, length={length})", shown(moves)))
        })
    }
}

/// Slots for the next nodes of one sequence, from `BlockTable.reserve`.
///
/// Args:
///     slots: int (n,), the slot of each node.
///     copies: int (M, 2), slots from -> to, to be copied before anything is written.
///
/// Raises:
///     DraftError, ParamsError: Another shape, or a slot below 0.
#[pyclass(frozen, module = "mtp_verify.verifier.kv")]
#[derive(PartialEq)]
pub(super) struct Reservation(pub(super) kv::Reservation);

#[pymethods]
impl Reservation {
    #[new]
    fn new(slots: &Bound<'_, PyAny>, copies: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let slots = slots_of(slots, "slots")?;
            Ok(Self(kv::Reservation { slots, copies: pairs_of(copies, "copies")? }))
        })
    }

    /// int64 (n,): the slot of each node.
    #[getter]
    fn slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.slots)))
    }

    /// int64 (M, 2): slots from -> to, to be copied before anything is written.
    #[getter]
    fn copies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.copies)))
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.slots.len()))
    }

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self == other.get()))
    }

    #[allow(clippy::type_complexity)] // The constructor's arguments.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<Reduced<'py, (Vec<i64>, Vec<(i64, i64)>)>> {
        hold(|| {
            let kv::Reservation { slots, copies } = slf.get().0.clone();
            Ok((slf.get_type(), (slots, copies)))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let (slots, copies) = (shown(&self.0.slots), shown(&self.0.copies));
            Ok(format!("Reservation(slots={slots}, copies={copies})"))
        })
    }
}

/// Slots for the next nodes of a batch; `batch[b]` is the reservation of its sequence b.
///
/// Args:
///     reservations: B reservations, the parts of the batch.
#[pyclass(frozen, module = "mtp_verify.verifier.kv")]
#[derive(PartialEq)]
pub(super) struct ReservationBatch(pub(super) kv::ReservationBatch);

#[pymethods]
impl ReservationBatch {
    #[new]
    fn new(reservations: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let parts = instances::<Reservation>(reservations, "reservations", "Reservation")?;
            Ok(Self(parts.iter().map(|part| part.get().0.clone()).collect()))
        })
    }

    /// int64 (sum n,): the slots of all nodes.
    #[getter]
    fn slots<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.slots)))
    }

    /// int64 (B+1,): sequence b has `slots[offsets[b]:offsets[b + 1]]`.
    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.offsets)))
    }

    /// int64 (M, 2): slots from -> to of the whole batch, to be copied before anything is written.
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

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self == other.get()))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py, (Vec<Reservation>,)>> {
        hold(|| {
            let batch = &slf.get().0;
            let parts = (0..).map_while(|at| batch.get(at)).map(Reservation).collect();
            Ok((slf.get_type(), (parts,)))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let (slots, offsets) = (shown(&self.0.slots), shown(&self.0.offsets));
            Ok(format!("ReservationBatch(slots={slots}, offsets={offsets})"))
        })
    }
}

/// The plans of a batch; `batch[b]` is the `CommitPlan` of its sequence b.
///
/// Args:
///     plans: B plans, the parts of the batch.
#[pyclass(frozen, module = "mtp_verify.verifier.kv")]
#[derive(PartialEq)]
pub(super) struct CommitPlanBatch(pub(super) kv::CommitPlanBatch);

#[pymethods]
impl CommitPlanBatch {
    #[new]
    fn new(plans: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let parts = instances::<CommitPlan>(plans, "plans", "CommitPlan")?;
            Ok(Self(parts.iter().map(|part| part.get().0.clone()).collect()))
        })
    }

    /// int64 (M, 2): slots from -> to of the whole batch; in this order they are safe in place.
    #[getter]
    fn moves<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.moves)))
    }

    /// int32 (F,): blocks that no sequence needs any more.
    #[getter]
    fn freed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.freed)))
    }

    /// int64 (B,): entries of each sequence after the commit.
    #[getter]
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.lengths)))
    }

    /// int64 (B,): the node of each tree whose recurrent and hidden state is kept.
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

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self == other.get()))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py, (Vec<CommitPlan>,)>> {
        hold(|| {
            let batch = &slf.get().0;
            let parts = (0..).map_while(|at| batch.get(at)).map(CommitPlan).collect();
            Ok((slf.get_type(), (parts,)))
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
