//! Many sequences at once: `VerdictBatch` and `verify_batch`.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use numpy::PyArray1;
use pyo3::PyClass;
use pyo3::prelude::*;

use crate::batch::threads;
use crate::batch::{self, Addresses, Batch, Each, Logits, Offsets};
use crate::error::Result;
use crate::verify::law;
use crate::verify::lazy::DrafterRows;

use super::draft_batch::DraftBatch;
use super::drafts::Draft;
use super::edits::RowEdits;
use super::errors::in_sequence;
use super::gate::{enter, hold};
use super::given::LOGITS;
use super::lossy::Lossy;
use super::numbers::{count, instances, integers, is_list, list, word};
use super::plans::place;
use super::state::Reduced;
use super::tensor::{Stack, Tensor};
use super::types::CoreParams;
use super::verdict::{HOST, Verdict};

/// The verdicts of a batch in packed arrays; `batch[b]` is the `Verdict` of its sequence b.
///
/// Args:
///     verdicts: B verdicts, the parts of the batch.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct VerdictBatch {
    pub(super) core: batch::VerdictBatch,
    /// Where each was decided.
    backends: Vec<&'static str>,
}

impl VerdictBatch {
    /// What the core decided.
    fn of_core(core: batch::VerdictBatch) -> Self {
        let backends = vec![HOST; core.len()];
        Self { core, backends }
    }

    fn get(&self, sequence: usize) -> Verdict {
        let (core, top) = (self.core.get(sequence), self.core.tops[sequence].clone());
        Verdict { core, top, backend: self.backends[sequence] }
    }
}

#[pymethods]
impl VerdictBatch {
    #[new]
    fn new(verdicts: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let mut core = batch::VerdictBatch::default();
            let mut backends = Vec::new();
            for verdict in instances::<Verdict>(verdicts, "verdicts", "Verdict")? {
                let Verdict { core: own, top, backend } = verdict.get();
                core.push(own, top.clone());
                backends.push(*backend);
            }
            Ok(Self { core, backends })
        })
    }

    /// int64 (sum(A_b + 1),): the emitted tokens of all sequences.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.core.tokens)))
    }

    /// int64 (B+1,): sequence b emitted `tokens[offsets[b]:offsets[b + 1]]`.
    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_iter(py, self.core.offsets.iter().map(|&offset| offset as i64))))
    }

    /// int64 (sum A_b,): the accepted nodes of each sequence's own tree; those of sequence b are
    /// `path[offsets[b] - b:offsets[b + 1] - b - 1]`.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.core.path)))
    }

    /// int64 (B,): how many drafted tokens of each sequence were accepted.
    #[getter]
    fn num_accepted<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            let accepted = |pair: &[usize]| (pair[1] - pair[0] - 1) as i64;
            Ok(PyArray1::from_iter(py, self.core.offsets.windows(2).map(accepted)))
        })
    }

    /// float32 (sum(A_b + 1),): log-probabilities of the emitted tokens under the shaped target.
    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.core.logprobs)))
    }

    /// B names: the rule that ran for each sequence, or the lossy acceptance.
    #[getter]
    fn rules(&self) -> PyResult<Vec<&'static str>> {
        hold(|| Ok(self.core.rules.clone()))
    }

    /// B names: where each was decided, "host" (the core), or "triton" or "torch" on a device.
    #[getter]
    fn backends(&self) -> PyResult<Vec<&'static str>> {
        hold(|| Ok(self.backends.clone()))
    }

    /// Whether the tokens of all sequences have the target's distribution.
    #[getter]
    fn lossless(&self) -> PyResult<bool> {
        hold(|| Ok(self.core.is_lossless()))
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
        hold(|| {
            let core = self.core.cut(&integers(counts, "counts")?)?;
            Ok(Self { core, backends: self.backends.clone() })
        })
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.core.len()))
    }

    fn __getitem__(&self, index: isize) -> PyResult<Verdict> {
        hold(|| Ok(self.get(place(index, self.core.len())?)))
    }

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self.core == other.get().core))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py, (Vec<Verdict>,)>> {
        hold(|| {
            let batch = slf.get();
            let verdicts = (0..batch.core.len()).map(|sequence| batch.get(sequence)).collect();
            Ok((slf.get_type(), (verdicts,)))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let mark = if self.core.is_lossless() { "" } else { ", lossless=False" };
            Ok(format!(
                "VerdictBatch({} verdicts, {} tokens{mark})",
                self.core.len(),
                self.core.tokens.len()
            ))
        })
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

    fn drafters(&self) -> Result<Vec<DrafterRows<'_>>> {
        match self {
            Self::Packed(batch) => batch.get().drafters(),
            Self::List(drafts) => drafts.iter().map(|draft| draft.get().drafter()).collect(),
        }
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
        let offsets = Offsets::of(verdicts.iter().map(|verdict| verdict.get().core.path.len()));
        Ok(Self::List(verdicts.iter().flat_map(|verdict| verdict.get().nodes()).collect(), offsets))
    }

    /// The number of verdicts.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Packed(batch) => batch.get().core.len(),
            Self::List(_, offsets) => offsets.len(),
        }
    }

    /// The accepted nodes of a sequence.
    pub(super) fn path(&self, sequence: usize) -> &[i64] {
        match self {
            Self::Packed(batch) => batch.get().core.path_of(sequence),
            Self::List(nodes, offsets) => &nodes[offsets.part(sequence)],
        }
    }
}

fn items<'py, T: PyClass>(list: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, T>>> {
    list.try_iter()?.map(|item| Ok(item?.cast_into::<T>()?)).collect()
}

/// One for all sequences, or one for each.
pub(super) enum OneOrEach<T> {
    One(T),
    Each(Vec<T>),
}

impl<T> OneOrEach<T> {
    /// A list is one for each; `one` takes each of them, or the one for all.
    pub(super) fn of<'py>(
        given: &Bound<'py, PyAny>,
        what: &'static str,
        one: impl Fn(&Bound<'py, PyAny>) -> PyResult<T>,
    ) -> PyResult<Self> {
        if !is_list(given) {
            return one(given).map(Self::One);
        }
        let own = |item: &Bound<'py, PyAny>, sequence| {
            one(item).map_err(|error| in_sequence(error, sequence))
        };
        list(given, what, own).map(Self::Each)
    }

    pub(super) fn map<'a, U>(&'a self, of: impl Fn(&'a T) -> U) -> OneOrEach<U> {
        match self {
            Self::One(value) => OneOrEach::One(of(value)),
            Self::Each(values) => OneOrEach::Each(values.iter().map(of).collect()),
        }
    }

    pub(super) fn get(&self, sequence: usize) -> Option<&T> {
        match self {
            Self::One(value) => Some(value),
            Self::Each(values) => values.get(sequence),
        }
    }
}

impl<T: Copy> OneOrEach<T> {
    pub(super) fn core(&self) -> Each<'_, T> {
        match self {
            Self::One(value) => Each::Same(*value),
            Self::Each(values) => Each::Own(values),
        }
    }
}

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
        if is_list(logits) {
            let own = |item: &Bound<'_, PyAny>, sequence| {
                Tensor::borrow(item, "logits").map_err(|error| in_sequence(error, sequence))
            };
            return list(logits, "logits", own).map(Self::List);
        }
        let mut tensor = Tensor::borrow(logits, "logits")?;
        if tensor.shape().len() != 3 {
            return Ok(Self::Packed(tensor));
        }
        let stack = tensor.flatten(sequences)?;
        Ok(Self::Stacked(tensor, stack))
    }

    fn core(&self) -> Result<Logits<'_>> {
        match self {
            Self::Packed(tensor) => Ok(Logits::Packed(tensor.rows(LOGITS, false)?)),
            Self::Stacked(tensor, stack) => {
                let raw = tensor.rows(LOGITS, false)?;
                let rows = stack.parts().map(|part| raw.part(part)).collect::<Result<_>>()?;
                Ok(Logits::Own { rows, padded: true })
            }
            Self::List(tensors) => {
                let own = tensors.iter().zip(0..).map(|(tensor, sequence)| {
                    tensor.rows(LOGITS, false).map_err(|error| error.in_sequence(sequence))
                });
                Ok(Logits::Own { rows: own.collect::<Result<_>>()?, padded: false })
            }
        }
    }
}

#[pyfunction]
#[pyo3(name = "verify_batch", signature = (
    drafts, logits, params, rule, *, seeds, positions, lossy, edits, top_logprobs
))]
#[allow(clippy::too_many_arguments)] // The public function's.
fn verify_drafts(
    py: Python<'_>,
    drafts: &Bound<'_, PyAny>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, PyAny>,
    rule: &Bound<'_, PyAny>,
    seeds: &Bound<'_, PyAny>,
    positions: &Bound<'_, PyAny>,
    lossy: &Bound<'_, PyAny>,
    edits: &Bound<'_, PyAny>,
    top_logprobs: &Bound<'_, PyAny>,
) -> PyResult<VerdictBatch> {
    hold(|| {
        let drafts = Drafts::of(drafts)?;
        let cores = drafts.cores();
        let target = Target::borrow(logits, cores.len())?;
        let given = list(edits, "edits", |record, sequence| {
            RowEdits::of(Some(record)).map_err(|error| in_sequence(error, sequence))
        })?;
        let params = OneOrEach::of(params, "params", |own| Ok(own.cast::<CoreParams>()?.clone()))?;
        let all = params.map(Bound::get);
        let penalties = |sequence| all.get(sequence).and_then(|params| params.penalties.as_ref());
        let params = all.map(|params| params.shaping);
        let rule = OneOrEach::of(rule, "rule", |own| own.extract::<String>())?;
        let rules = rule.map(String::as_str);
        let lossy = OneOrEach::of(lossy, "lossy", |own| {
            let own = if own.is_none() { None } else { Some(own.cast::<Lossy>()?) };
            Ok(own.map(|lossy| lossy.get().0))
        })?;
        let top_logprobs =
            OneOrEach::of(top_logprobs, "top_logprobs", |own| count(own, "top_logprobs"))?;
        let addresses = Addresses {
            seeds: list(seeds, "seeds", |seed, _| word(seed, "seeds"))?,
            positions: list(positions, "positions", |position, _| word(position, "positions"))?,
        };
        let batch = Batch {
            drafters: drafts.drafters()?,
            drafts: cores,
            logits: target.core()?,
            params: params.core(),
            rules: rules.core(),
            lossy: lossy.core(),
            addresses,
            edits: &[],
            top_logprobs: top_logprobs.core(),
        };
        let result = enter(py, || {
            let mut edits = Vec::with_capacity(given.len());
            if !given.is_empty() {
                let parts = given.iter().zip(&batch.drafts).zip(batch.rows()?);
                for (sequence, ((own, draft), rows)) in parts.enumerate() {
                    let own = own.edits(penalties(sequence), draft, &rows);
                    edits.push(own.map_err(|error| error.in_sequence(sequence as i64))?);
                }
            }
            Batch { edits: &edits, ..batch }.verify()
        });
        // What a caller's function raised comes out as it is, the first sequence's first.
        let finish = |result, (sequence, own): (usize, &RowEdits)| match own.raised() {
            Some(error) => Err(in_sequence(error, sequence)),
            None => result,
        };
        given.iter().enumerate().rev().fold(result, finish).map(VerdictBatch::of_core)
    })
}

#[pyfunction]
fn set_num_threads(n: &Bound<'_, PyAny>) -> PyResult<()> {
    hold(|| Ok(threads::set_num_threads(count(n, "n")?)?))
}

/// Adds the classes and functions to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DraftBatch>()?;
    module.add_class::<VerdictBatch>()?;
    module.add_function(wrap_pyfunction!(verify_drafts, module)?)?;
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)
}
