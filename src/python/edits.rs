//! What changes a step's rows before they are shaped: history, mask, the caller's own function.

use std::sync::{Mutex, PoisonError};

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::python::numbers::{count_or_0, integers, token_ids};
use crate::python::tensor::Tensor;
use crate::rows::RawRows;
use crate::rows::history::{Penalties, Table};
use crate::shaping::{Edits, Mask, Processor};
use crate::verify::check_rows;
use crate::verify::law::Draft;

/// History, mask and function of one sequence, borrowed or converted.
#[derive(Default)]
pub(super) struct RowEdits {
    history: Option<Vec<u32>>,
    prompt_len: usize,
    bitmask: Option<Tensor>,
    callback: Option<Callback>,
}

/// The record `Edits` of `mtp_verify.verifier.kernels`: history, length of the prompt, mask, function.
type Given<'py> = (
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
);

impl RowEdits {
    /// Takes a record of Python, or None.
    pub(super) fn of(record: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(record) = record.filter(|record| !record.is_none()) else {
            return Ok(Self::default());
        };
        let (history, prompt_len, bitmask, process): Given<'_> = record.extract()?;
        let history = history.map(|history| {
            token_ids(&integers(&history, "history")?, "history").map_err(PyErr::from)
        });
        let history = history.transpose()?;
        let bitmask = bitmask.map(|mask| Tensor::borrow(&mask, "bitmask")).transpose()?;
        let prompt_len = count_or_0(prompt_len.as_ref(), "prompt_len")?;
        let callback = process
            .map(|function| Callback { function: function.unbind(), raised: Mutex::default() });
        Ok(Self { history, prompt_len, bitmask, callback })
    }

    /// The edits of a draft's rows.
    pub(super) fn edits<'a>(
        &'a self,
        penalties: Option<&'a Penalties>,
        draft: &'a Draft,
        rows: &RawRows<'_>,
    ) -> Result<Edits<'a>> {
        // Counts are kept for every token of a row: the row had better be there.
        check_rows(draft, rows.num_rows())?;
        let vocab = rows.num_cols();
        let table = penalties.map(|penalties| self.table(penalties, vocab)).transpose()?;
        let shape = (draft.num_nodes(), vocab);
        let mask = self.bitmask.as_ref().map(|mask| {
            let (words, form) = mask.words()?;
            Mask::new(words, form, shape)
        });
        let tokens = (0..draft.num_nodes()).map(|node| draft.token(node)).collect();
        let processor = self.callback.as_ref().map(|callback| callback as &dyn Processor);
        Ok(Edits::new(draft.tree(), tokens, table, mask.transpose()?, processor))
    }

    /// The tokens that penalties concern after the history.
    pub(super) fn table<'a>(&'a self, penalties: &'a Penalties, vocab: usize) -> Result<Table<'a>> {
        if let (None, Some(name)) = (&self.history, penalties.needs_history()) {
            return Err(Error::ParamOutOfRange {
                name: "history",
                value: format!("None with {name}"),
                wanted: "the tokens up to and including the root",
            });
        }
        let history = self.history.as_deref().unwrap_or_default();
        Table::new(penalties, history, self.prompt_len, vocab)
    }

    /// The result of a step; what the caller's function raised goes before what came of it.
    pub(super) fn finish<T>(&self, result: PyResult<T>) -> PyResult<T> {
        self.raised().map_or(result, Err)
    }

    /// What the caller's function raised.
    pub(super) fn raised(&self) -> Option<PyErr> {
        let callback = self.callback.as_ref()?;
        callback.raised.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A Python function of nodes and their rows, float32 (n, V), that returns such rows.
struct Callback {
    function: Py<PyAny>,
    /// What it raised: the exception is the caller's own, and goes back to them as it is.
    raised: Mutex<Option<PyErr>>,
}

impl Callback {
    fn call(&self, py: Python<'_>, nodes: &[usize], rows: &mut [f32]) -> PyResult<()> {
        let array =
            PyArray1::from_slice(py, rows).reshape([nodes.len(), rows.len() / nodes.len()])?;
        let result = self.function.call1(py, (nodes.to_vec(), &array))?;
        let result: PyReadonlyArray2<'_, f32> =
            result.bind(py).cast::<PyArray2<f32>>()?.try_readonly()?;
        let changed = result.as_slice()?;
        if changed.len() != rows.len() {
            return Err(PyErr::from(Error::ShapeMismatch {
                what: "rows of a processor",
                found: format!("{} values", changed.len()),
                wanted: format!("{}, as many as it was given", rows.len()),
            }));
        }
        rows.copy_from_slice(changed);
        Ok(())
    }
}

impl Processor for Callback {
    fn process(&self, nodes: &[usize], rows: &mut [f32]) -> Result<()> {
        Python::attach(|py| self.call(py, nodes, rows)).map_err(|error| {
            *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            let row = nodes.first().copied().unwrap_or(0);
            // Only says that there is no row; the exception itself follows from `finish`.
            Error::RowEmpty { side: "target", row, reason: "a processor raised" }
        })
    }
}
