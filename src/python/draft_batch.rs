//! `DraftBatch`: the drafts of many sequences in packed arrays.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use std::sync::Arc;

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::batch::{Each, Offsets, chains, unpack};
use crate::error::Result;
use crate::verify::law::{self, Law};
use crate::verify::lazy::DrafterRows;

use super::drafts::Draft;
use super::gate::{enter, hold};
use super::given::{GivenRows, Saved};
use super::numbers::{flags, integers, table};
use super::plans::place;
use super::state::Reduced;
use super::tensor::Tensor;

/// The drafts of a batch in packed arrays; `batch[b]` is the `Draft` of its sequence b.
///
/// Each draft is what `Draft` would take: nodes are numbered from the sequence's own root, and
/// nothing is copied from the drafter's rows.
///
/// Args:
///     offsets: int (B+1,); sequence b has nodes `offsets[b]` to `offsets[b + 1]` of the arrays below.
///     parents: int (sum(N_b + 1),), -1 for each root, then the parent's number in its own tree.
///     tokens: int (sum(N_b + 1),); a root's token may be -1 (unknown).
///     law: How the tokens of all drafts were chosen, see `Draft`.
///     probs: float (R, V), the drafter's rows of all sequences; NumPy or DLPack, borrowed.
///     rows: int (sum(N_b + 1),): which row of `probs` follows each node (-1 = none); default: row i
///         follows the i-th node of the batch.
///     logits: float (R, V) in place of `probs`, shaped with `params`.
///     params: The drafter's `SamplingParams`; None means `SamplingParams()`.
///     vocab: int (V_d,) when the rows are over a sub-vocabulary: column j is token `vocab[j]`.
///     sampled: bool (sum(N_b + 1),), for law "mixed": which nodes were drawn.
///
/// Raises:
///     DraftError: Arrays that do not fit each other, or a draft that `Draft` would refuse; the error's
///         `sequence` says which.
///
/// Example:
///     >>> batch = DraftBatch([0, 3, 4], [-1, 0, 1, -1], [7, 8, 9, 5], "deterministic")
///     >>> len(batch), batch[0]
///     (2, Draft(2 tokens, law="deterministic"))
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct DraftBatch {
    law: Law,
    offsets: Offsets,
    drafts: Vec<law::Draft>,
    /// Of all drafts, one after the other, so that a commit reads three arrays and not all drafts.
    parents: Vec<u32>,
    tokens: Vec<i64>,
    rows: Arc<GivenRows>,
    index: Vec<i64>,
}

impl DraftBatch {
    /// Checks each draft against the rows.
    fn of(
        law: Law,
        offsets: Offsets,
        drafts: Vec<law::Draft>,
        rows: GivenRows,
        index: Vec<i64>,
    ) -> Result<Self> {
        for (sequence, draft) in drafts.iter().enumerate() {
            let checked = rows.check(draft, &index[offsets.part(sequence)]);
            checked.map_err(|error| error.in_sequence(sequence as i64))?;
        }
        let parents = drafts.iter().flat_map(|draft| draft.tree().parents()).copied().collect();
        let tokens = drafts.iter().flat_map(law::Draft::tokens).copied().collect();
        Ok(Self { law, offsets, drafts, parents, tokens, rows: Arc::new(rows), index })
    }

    /// The parents as they are passed.
    fn numbers(&self) -> Vec<i64> {
        let parents = |draft: &law::Draft| {
            let tree = draft.tree().clone();
            let number = move |i| tree.parent(i).map_or(-1, |parent| parent as i64);
            (0..draft.num_nodes()).map(number)
        };
        self.drafts.iter().flat_map(parents).collect()
    }

    /// The drafts as the core takes them.
    pub(super) fn cores(&self) -> impl Iterator<Item = &law::Draft> {
        self.drafts.iter()
    }

    /// The number of drafts.
    pub(super) fn len(&self) -> usize {
        self.drafts.len()
    }

    /// The parent and the token of each node of a draft.
    pub(super) fn nodes(&self, sequence: usize) -> (&[u32], &[i64]) {
        let part = self.offsets.part(sequence);
        (&self.parents[part.clone()], &self.tokens[part])
    }

    /// The drafter's rows of each draft, borrowed.
    pub(super) fn drafters(&self) -> Result<Vec<DrafterRows<'_>>> {
        (0..self.drafts.len())
            .map(|sequence| self.rows.of(&self.index[self.offsets.part(sequence)]))
            .collect()
    }
}

#[pymethods]
impl DraftBatch {
    #[new]
    #[pyo3(signature = (offsets, parents, tokens, law, probs=None, rows=None, logits=None,
        params=None, vocab=None, sampled=None))]
    #[allow(clippy::too_many_arguments)] // The public signature.
    fn new(
        offsets: &Bound<'_, PyAny>,
        parents: &Bound<'_, PyAny>,
        tokens: &Bound<'_, PyAny>,
        law: &str,
        probs: Option<&Bound<'_, PyAny>>,
        rows: Option<&Bound<'_, PyAny>>,
        logits: Option<&Bound<'_, PyAny>>,
        params: Option<&Bound<'_, PyAny>>,
        vocab: Option<&Bound<'_, PyAny>>,
        sampled: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let (parents, tokens) = (integers(parents, "parents")?, integers(tokens, "tokens")?);
            let sampled = sampled.map(|sampled| flags(sampled, "sampled")).transpose()?;
            let offsets = Offsets::new(&integers(offsets, "offsets")?);
            let offsets = offsets?;
            let law = Law::parse(law)?;
            let drafts = unpack(&offsets, &parents, &tokens, Each::Same(law), sampled.as_deref());
            let drafts = drafts?;
            let given = GivenRows::new(
                law,
                probs.map(|probs| Tensor::borrow(probs, "probs")).transpose()?,
                logits.map(|logits| Tensor::borrow(logits, "logits")).transpose()?,
                params,
                vocab,
            )?;
            let index = given.index(rows, offsets.total())?;
            Ok(Self::of(law, offsets, drafts, given, index)?)
        })
    }

    /// Chains of up to K tokens each.
    ///
    /// Args:
    ///     tokens: int (B, K); what lies behind a sequence's length is not read.
    ///     lengths: int (B,), 0 to K.
    ///     probs: float (B, M, V) with M >= each length: row i of a sequence is the one that its token
    ///         i was drawn from. Without it the drafts are deterministic.
    ///     roots: int (B,), the token of each root; default -1 (unknown).
    ///
    /// Raises:
    ///     DraftError: As above.
    ///     ParamsError: A length is out of range; the error's `sequence` says which.
    ///
    /// Example:
    ///     >>> DraftBatch.chains([[5, 6], [7, -1]], lengths=[2, 1]).tokens.tolist()
    ///     [-1, 5, 6, -1, 7]
    #[staticmethod]
    #[pyo3(signature = (tokens, lengths, probs=None, roots=None),
        text_signature = "(tokens, lengths, probs=None, roots=None)")]
    fn chains(
        tokens: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyAny>,
        probs: Option<&Bound<'_, PyAny>>,
        roots: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let table = table(tokens, "tokens")?;
            let lengths = integers(lengths, "lengths")?;
            let roots = match roots {
                Some(roots) => integers(roots, "roots")?,
                None => vec![-1; table.len()],
            };
            let law = if probs.is_some() { Law::Chain } else { Law::Deterministic };
            let drafts = chains(&table, &lengths, &roots, law)?;
            let offsets = Offsets::of(drafts.iter().map(law::Draft::num_nodes));
            let mut probs = probs.map(|probs| Tensor::borrow(probs, "probs")).transpose()?;
            let stack = probs.as_mut().map(|probs| probs.flatten(drafts.len())).transpose()?;
            let row = |sequence: usize, node: usize| {
                stack.and_then(|stack| stack.row(sequence, node)).map_or(-1, |row| row as i64)
            };
            let index = (drafts.iter().enumerate())
                .flat_map(|(sequence, draft)| (0..draft.num_nodes()).map(move |i| row(sequence, i)))
                .collect();
            let given = GivenRows::new(law, probs, None, None, None)?;
            Ok(Self::of(law, offsets, drafts, given, index)?)
        })
    }

    /// int64 (B+1,): sequence b has nodes `offsets[b]` to `offsets[b + 1]` of the arrays.
    #[getter]
    fn offsets<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            Ok(PyArray1::from_iter(py, self.offsets.values().iter().map(|&offset| offset as i64)))
        })
    }

    /// int64 (sum(N_b + 1),): the parent of each node in its own tree, -1 for each root.
    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.numbers())))
    }

    /// int64 (sum(N_b + 1),): the token of each node.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.tokens)))
    }

    /// How the tokens of all drafts were chosen, by name.
    #[getter]
    fn law(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.law.name()))
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.drafts.len()))
    }

    fn __getitem__(&self, index: isize) -> PyResult<Draft> {
        hold(|| {
            let sequence = place(index, self.drafts.len())?;
            let index = self.index[self.offsets.part(sequence)].to_vec();
            Ok(Draft::of(self.drafts[sequence].clone(), Arc::clone(&self.rows), index))
        })
    }

    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| {
            let other = other.get();
            enter(py, || {
                let is_same = || self.rows.is_same(&self.index, &other.rows, &other.index);
                Ok(self.law == other.law && self.drafts == other.drafts && is_same()?)
            })
        })
    }

    #[allow(clippy::type_complexity)] // The constructor's arguments.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<
        Reduced<
            'py,
            (
                Vec<usize>,
                Vec<i64>,
                Vec<i64>,
                &'static str,
                Option<Bound<'py, PyAny>>,
                Option<Vec<i64>>,
                Option<Bound<'py, PyAny>>,
                Option<Bound<'py, PyAny>>,
                Option<Vec<u32>>,
                Option<Vec<bool>>,
            ),
        >,
    > {
        hold(|| {
            let Self { law, offsets, drafts, tokens, rows, index, .. } = slf.get();
            let Saved { probs, rows, logits, params, vocab } = rows.saved(slf.py(), index)?;
            let flags = drafts.iter().flat_map(|draft| draft.sampled().iter().copied());
            let sampled = law.takes_sampled().then(|| flags.collect());
            let (offsets, parents) = (offsets.values().to_vec(), slf.get().numbers());
            let arguments = (
                offsets,
                parents,
                tokens.clone(),
                law.name(),
                probs,
                rows,
                logits,
                params,
                vocab,
                sampled,
            );
            Ok((slf.get_type(), arguments))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            Ok(format!("DraftBatch({} drafts, {} nodes)", self.drafts.len(), self.offsets.total()))
        })
    }
}
