//! Many sequences at once: `VerdictBatch` and `verify_batch`.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use numpy::PyArray1;
use pyo3::PyClass;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::batch::{self, Addresses, Batch, Each, Logits, Offsets};
use crate::error::Result;
use crate::pool;
use crate::rows::RawRows;
use crate::verify::law;
use crate::verify::lazy::DrafterRows;

use super::draft_batch::DraftBatch;
use super::drafts::Draft;
use super::edits::Context;
use super::errors::{in_sequence, to_py};
use super::lossy::Lossy;
use super::plans::place;
use super::tensor::{Stack, Tensor, integer, integers, size};
use super::types::{CoreParams, Verdict};
use super::{LOGITS, enter};

/// The verdicts of a batch in packed arrays; `batch[b]` is the `Verdict` of its sequence b.
///
/// Attributes:
///     tokens: int64 (sum(A_b + 1),), the emitted tokens.
///     offsets: int64 (B+1,); sequence b emitted `tokens[offsets[b]:offsets[b + 1]]`.
///     path: int64 (sum A_b,), the accepted nodes of each sequence's own tree;
///         those of sequence b are `path[offsets[b] - b:offsets[b + 1] - b - 1]`.
///     num_accepted: int64 (B,).
///     logprobs: float32 (sum(A_b + 1),), of the emitted tokens under the shaped target.
///     rules: B names, the rule that ran for each sequence.
///     lossless: Whether all of them were.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct VerdictBatch(pub(super) batch::VerdictBatch);

#[pymethods]
impl VerdictBatch {
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_slice(py, &self.0.tokens)
    }

    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.0.offsets.iter().map(|&offset| offset as i64))
    }

    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_slice(py, &self.0.path)
    }

    #[getter]
    fn num_accepted<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let accepted = |pair: &[usize]| (pair[1] - pair[0] - 1) as i64;
        PyArray1::from_iter(py, self.0.offsets.windows(2).map(accepted))
    }

    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, &self.0.logprobs)
    }

    #[getter]
    fn rules(&self) -> Vec<&'static str> {
        self.0.rules.clone()
    }

    #[getter]
    fn lossless(&self) -> bool {
        self.0.is_lossless()
    }

    /// The batch with the first `counts[b]` tokens of each sequence, as `Verdict.cut` does it.
    ///
    /// Args:
    ///     counts: int (B,), 1 to the number of the sequence's tokens.
    ///
    /// Raises:
    ///     DraftError: There are more or fewer counts than sequences.
    ///     ParamsError: A count is out of range; the error's `sequence` says which.
    fn cut(&self, counts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let cut = self.0.cut(&integers(counts, "counts")?);
        cut.map(Self).map_err(|error| to_py(&error))
    }

    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __getitem__(&self, index: isize) -> PyResult<Verdict> {
        let sequence = place(index, self.0.len())?;
        Ok(Verdict { verdict: self.0.get(sequence), top: self.0.tops[sequence].clone() })
    }

    fn __repr__(&self) -> String {
        let mark = if self.0.is_lossless() { "" } else { ", lossless=False" };
        format!("VerdictBatch({} verdicts, {} tokens{mark})", self.0.len(), self.0.tokens.len())
    }
}

/// Drafts in either form.
pub(super) enum Drafts<'py> {
    /// In packed arrays.
    Packed(Bound<'py, DraftBatch>),
    /// One by one.
    List(Vec<Bound<'py, Draft>>),
}

impl<'py> Drafts<'py> {
    /// A batch, or any iterable of drafts.
    pub(super) fn of(given: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(batch) = given.cast::<DraftBatch>() {
            return Ok(Self::Packed(batch.clone()));
        }
        Ok(Self::List(items(given)?))
    }

    /// The drafts as the core takes them.
    pub(super) fn cores(&self) -> Vec<&law::Draft> {
        match self {
            Self::Packed(batch) => batch.get().cores().collect(),
            Self::List(drafts) => drafts.iter().map(|draft| &draft.get().core).collect(),
        }
    }

    /// The number of drafts.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Packed(batch) => batch.get().len(),
            Self::List(drafts) => drafts.len(),
        }
    }

    /// The parent and the token of each node of a sequence's draft.
    pub(super) fn nodes(&self, sequence: usize) -> (&[u32], &[i64]) {
        match self {
            Self::Packed(batch) => batch.get().nodes(sequence),
            Self::List(drafts) => {
                let draft = &drafts[sequence].get().core;
                (draft.tree().parents(), draft.tokens())
            }
        }
    }

    fn drafters(&self) -> PyResult<Vec<DrafterRows<'_>>> {
        match self {
            Self::Packed(batch) => batch.get().drafters(),
            Self::List(drafts) => drafts.iter().map(|draft| draft.get().drafter()).collect(),
        }
    }

    /// Checks the columns of a sequence's drafter rows.
    fn check_columns(&self, sequence: usize, vocab: usize) -> Result<()> {
        match self {
            Self::Packed(batch) => batch.get().check_columns(vocab),
            Self::List(drafts) => drafts[sequence].get().check_columns(vocab),
        }
        .map_err(|error| error.in_sequence(sequence as i64))
    }
}

/// Verdicts in either form.
pub(super) enum Verdicts<'py> {
    /// In packed arrays.
    Packed(Bound<'py, VerdictBatch>),
    /// One by one: their paths in one array, and where each begins.
    List(Vec<i64>, Offsets),
}

impl<'py> Verdicts<'py> {
    /// A batch, or any iterable of verdicts.
    pub(super) fn of(given: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(batch) = given.cast::<VerdictBatch>() {
            return Ok(Self::Packed(batch.clone()));
        }
        let verdicts = items::<Verdict>(given)?;
        let offsets = Offsets::of(verdicts.iter().map(|verdict| verdict.get().num_accepted()));
        Ok(Self::List(verdicts.iter().flat_map(|verdict| verdict.get().nodes()).collect(), offsets))
    }

    /// The number of verdicts.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Packed(batch) => batch.get().0.len(),
            Self::List(_, offsets) => offsets.len(),
        }
    }

    /// The accepted nodes of a sequence.
    pub(super) fn path(&self, sequence: usize) -> &[i64] {
        match self {
            Self::Packed(batch) => batch.get().0.path_of(sequence),
            Self::List(nodes, offsets) => &nodes[offsets.part(sequence)],
        }
    }
}

fn items<'py, T: PyClass>(list: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, T>>> {
    list.try_iter()?.map(|item| Ok(item?.cast_into::<T>()?)).collect()
}

/// One for all sequences, or one for each.
#[derive(FromPyObject)]
enum OneOrEach<T> {
    One(T),
    Each(Vec<T>),
}

impl<T> OneOrEach<T> {
    fn map<'a, U>(&'a self, of: impl Fn(&'a T) -> U) -> OneOrEach<U> {
        match self {
            Self::One(value) => OneOrEach::One(of(value)),
            Self::Each(values) => OneOrEach::Each(values.iter().map(of).collect()),
        }
    }
}

impl<T: Copy> OneOrEach<T> {
    fn core(&self) -> Each<'_, T> {
        match self {
            Self::One(value) => Each::Same(*value),
            Self::Each(values) => Each::Own(values),
        }
    }
}

impl OneOrEach<i64> {
    fn sizes(&self, name: &'static str) -> PyResult<OneOrEach<usize>> {
        let of = |value: &i64| size(name, *value);
        let sizes = match self {
            Self::One(value) => of(value).map(OneOrEach::One),
            Self::Each(values) => {
                let each = values.iter().zip(0..).map(|(value, sequence)| {
                    of(value).map_err(|error| error.in_sequence(sequence))
                });
                each.collect::<Result<_>>().map(OneOrEach::Each)
            }
        };
        sizes.map_err(|error| to_py(&error))
    }
}

impl<T> OneOrEach<T> {
    fn get(&self, sequence: usize) -> Option<&T> {
        match self {
            Self::One(value) => Some(value),
            Self::Each(values) => values.get(sequence),
        }
    }
}

/// A sequence's history, how much of it is prompt, its mask, and the function over its rows.
type Given<'py> =
    (Option<Bound<'py, PyAny>>, i64, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

/// The target's logits in one of their three forms.
enum Target {
    /// (sum(N_b + 1), V).
    Packed(Tensor),
    /// (B, M, V), seen as one matrix.
    Stacked(Tensor, Stack),
    /// B of (N_b + 1, V).
    List(Vec<Tensor>),
}

impl Target {
    fn borrow(logits: &Bound<'_, PyAny>, sequences: usize) -> PyResult<Self> {
        if let Ok(list) = logits.extract::<Vec<Bound<'_, PyAny>>>()
            && (logits.is_instance_of::<PyList>() || logits.is_instance_of::<PyTuple>())
        {
            let own = |(sequence, item): (usize, &Bound<'_, PyAny>)| {
                Tensor::borrow(item, "logits").map_err(|error| in_sequence(error, sequence))
            };
            return Ok(Self::List(list.iter().enumerate().map(own).collect::<PyResult<_>>()?));
        }
        let mut tensor = Tensor::borrow(logits, "logits")?;
        if tensor.shape().len() != 3 {
            return Ok(Self::Packed(tensor));
        }
        let stack = tensor.flatten(sequences)?;
        Ok(Self::Stacked(tensor, stack))
    }

    fn core(&self) -> PyResult<Logits<'_>> {
        match self {
            Self::Packed(tensor) => Ok(Logits::Packed(tensor.rows(LOGITS, false)?)),
            Self::Stacked(tensor, stack) => {
                let raw = tensor.rows(LOGITS, false)?;
                let rows = stack.parts().map(|part| raw.part(part)).collect::<Result<_>>();
                let rows = rows.map_err(|error| to_py(&error))?;
                Ok(Logits::Own { rows, padded: true })
            }
            Self::List(tensors) => {
                let own = tensors.iter().enumerate().map(|(sequence, tensor)| {
                    tensor.rows(LOGITS, false).map_err(|error| in_sequence(error, sequence))
                });
                let rows = own.collect::<PyResult<_>>()?;
                Ok(Logits::Own { rows, padded: false })
            }
        }
    }
}

/// The columns of a sequence's rows.
fn vocabulary(logits: &Logits<'_>, sequence: usize) -> Option<usize> {
    match logits {
        Logits::Packed(raw) => Some(raw.num_cols()),
        Logits::Own { rows, .. } => rows.get(sequence).map(RawRows::num_cols),
    }
}

#[pyfunction]
#[pyo3(name = "verify_batch")]
#[allow(clippy::needless_pass_by_value, clippy::too_many_arguments)] // Python's lists; the public function's.
fn verify_drafts(
    py: Python<'_>,
    drafts: &Bound<'_, PyAny>,
    logits: &Bound<'_, PyAny>,
    params: OneOrEach<Bound<'_, CoreParams>>,
    rule: OneOrEach<String>,
    seeds: Vec<u64>,
    positions: Vec<u64>,
    lossy: OneOrEach<Option<Bound<'_, Lossy>>>,
    contexts: Vec<Given<'_>>,
    top_logprobs: OneOrEach<i64>,
) -> PyResult<VerdictBatch> {
    let drafts = Drafts::of(drafts)?;
    let cores = drafts.cores();
    let target = Target::borrow(logits, cores.len())?;
    let logits = target.core()?;
    let context = |(sequence, given): (usize, &Given<'_>)| {
        let (history, prompt_len, bitmask, process) = given;
        let process = process.as_ref().map(|process| process.clone().unbind());
        Context::new(history.as_ref(), *prompt_len, bitmask.as_ref(), process)
            .map_err(|error| in_sequence(error, sequence))
    };
    let contexts = contexts.iter().enumerate().map(context).collect::<PyResult<Vec<_>>>()?;
    let all = params.map(Bound::get);
    let penalties = |sequence| all.get(sequence).and_then(|params| params.penalties.as_ref());
    let params = params.map(|params| params.get().shaping);
    let rules = rule.map(String::as_str);
    let lossy = lossy.map(|lossy| lossy.as_ref().map(|lossy| lossy.get().0));
    let top_logprobs = top_logprobs.sizes("top_logprobs")?;
    let batch = Batch {
        drafters: drafts.drafters()?,
        drafts: cores,
        logits,
        params: params.core(),
        rules: rules.core(),
        lossy: lossy.core(),
        addresses: Addresses { seeds, positions },
        edits: &[],
        top_logprobs: top_logprobs.core(),
    };
    let fits = (0..batch.drafts.len()).try_for_each(|sequence| {
        match vocabulary(&batch.logits, sequence) {
            Some(vocab) => drafts.check_columns(sequence, vocab),
            None => Ok(()),
        }
    });
    let result = enter(py, || {
        fits?;
        let mut edits = Vec::with_capacity(contexts.len());
        for (sequence, (context, draft)) in contexts.iter().zip(&batch.drafts).enumerate() {
            let vocab = vocabulary(&batch.logits, sequence).unwrap_or(0);
            let own = context.edits(penalties(sequence), draft, vocab);
            edits.push(own.map_err(|error| error.in_sequence(sequence as i64))?);
        }
        Batch { edits: &edits, ..batch }.verify()
    });
    // What a caller's function raised comes out as it is, the first sequence's first.
    let finish = |result, (sequence, context): (usize, &Context)| match context.raised() {
        Some(error) => Err(in_sequence(error, sequence)),
        None => result,
    };
    contexts.iter().enumerate().rev().fold(result, finish).map(VerdictBatch)
}

#[pyfunction]
fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
    let n = integer(n, "n").and_then(|n| size("n", n).map_err(|error| to_py(&error)))?;
    pool::set_num_threads(n).map_err(|error| to_py(&error))
}

/// Adds the classes and functions to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DraftBatch>()?;
    module.add_class::<VerdictBatch>()?;
    module.add_function(wrap_pyfunction!(verify_drafts, module)?)?;
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)
}
