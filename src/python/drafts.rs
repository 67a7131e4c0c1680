//! `Draft`: a tree of tokens, and how they were chosen.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use std::sync::Arc;

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::error::Result;
use crate::python::gate::{enter, hold};
use crate::python::given::{GivenRows, Saved};
use crate::python::numbers::{flags, integer, integers};
use crate::python::state::Reduced;
use crate::python::tensor::Tensor;
use crate::python::types::TokenTree;
use crate::tree;
use crate::verify::law::{self, Law};
use crate::verify::lazy::DrafterRows;

/// A tree of drafted tokens, the law by which they were chosen, and the drafter's rows.
///
/// The law is a promise: a rule is lossless for tokens that were chosen in that way and no other.
/// Rows are borrowed and must stay as they are until the draft has been verified; a pickle and a copy
/// hold rows of their own. Drafts are equal if tree, tokens, law and each node's row are.
///
/// Args:
///     tree: The tree, N drafted nodes below the root.
///     tokens: int (N+1,); the root's, which was emitted before, may be -1 (unknown).
///     law: "deterministic" (a function of the past: n-grams, a greedy head, a top-k tree), "chain" (a
///         path, each token drawn from the drafter's row after its parent), "iid" (siblings drawn with
///         replacement), "swor" (drawn one after the other without), "top_plus_one" (one drawn outside
///         the likeliest tokens, then those), "mixed" (some drawn outside a deterministic set, then
///         that set), "coupled" (drawn with the verifier's own noise), "unknown" (anything else).
///     probs: float32, float16, bfloat16 or float64 (R, V), the drafter's rows that children were drawn
///         from; NumPy or DLPack on the host, borrowed.
///     rows: int (N+1,): which row of `probs` follows each node, -1 for none; default: row i follows
///         node i, as far as there are rows.
///     logits: float32, float16 or bfloat16 (R, V) in place of `probs`, shaped with `params`.
///     params: The drafter's `SamplingParams`; None means `SamplingParams()`.
///     vocab: int (V,) when the rows are over a sub-vocabulary: column j is token `vocab[j]`.
///     sampled: bool (N+1,), for laws "mixed" and "top_plus_one": which nodes were drawn.
///
/// Raises:
///     DraftError: Parts that do not fit each other, a tree that the law never makes, or a drawn token
///         that its row gives no probability; the error's `node` says where.
///
/// Example:
///     >>> Draft(TokenTree([-1, 0, 0]), [4, 7, 9])
///     Draft(2 tokens, law="deterministic")
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct Draft {
    pub(super) core: law::Draft,
    rows: Arc<GivenRows>,
    index: Vec<i64>,
}

impl Draft {
    /// A draft whose rows may be those of others, too; checked already.
    pub(super) fn of(core: law::Draft, rows: Arc<GivenRows>, index: Vec<i64>) -> Self {
        Self { core, rows, index }
    }

    /// The drafter's rows, borrowed.
    pub(super) fn drafter(&self) -> Result<DrafterRows<'_>> {
        self.rows.of(&self.index)
    }
}

#[pymethods]
impl Draft {
    #[new]
    #[pyo3(signature = (tree, tokens, law="deterministic", probs=None, rows=None, logits=None,
        params=None, vocab=None, sampled=None))]
    #[allow(clippy::too_many_arguments)] // The public signature.
    fn new(
        tree: &Bound<'_, TokenTree>,
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
            let law = Law::parse(law)?;
            let tokens = integers(tokens, "tokens")?;
            let sampled = sampled.map(|sampled| flags(sampled, "sampled")).transpose()?;
            let core = law::Draft::new(tree.get().0.clone(), tokens, law, sampled)?;
            let rows_given = GivenRows::new(
                law,
                probs.map(|probs| Tensor::borrow(probs, "probs")).transpose()?,
                logits.map(|logits| Tensor::borrow(logits, "logits")).transpose()?,
                params,
                vocab,
            )?;
            let index = rows_given.index(rows, core.num_nodes())?;
            rows_given.check(&core, &index)?;
            Ok(Self { core, rows: Arc::new(rows_given), index })
        })
    }

    /// A single path of drafted tokens.
    ///
    /// Args:
    ///     tokens: int (K,), from below the root down.
    ///     probs: float (at least K, V): row i is the one that token i was drawn from, borrowed. Law
    ///         "chain"; without it the tokens are "deterministic".
    ///     root: The token before them; -1 if it does not matter.
    ///
    /// Raises:
    ///     DraftError: As `Draft`.
    ///
    /// Example:
    ///     >>> Draft.chain([7, 9]).tokens.tolist()
    ///     [-1, 7, 9]
    #[staticmethod]
    #[pyo3(signature = (tokens, probs=None, root=None),
        text_signature = "(tokens, probs=None, root=-1)")]
    fn chain(
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        probs: Option<&Bound<'_, PyAny>>,
        root: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let mut all = vec![root.map_or(Ok(-1), |root| integer(root, "root"))?];
            all.extend(integers(tokens, "tokens")?);
            let tree = tree::TokenTree::chain(all.len() - 1)?;
            let tree = Bound::new(py, TokenTree(tree))?;
            let law = if probs.is_some() { "chain" } else { "deterministic" };
            let tokens = PyArray1::from_vec(py, all);
            Self::new(&tree, tokens.as_any(), law, probs, None, None, None, None, None)
        })
    }

    /// The tree.
    #[getter]
    fn tree(&self) -> PyResult<TokenTree> {
        hold(|| Ok(TokenTree(self.core.tree().clone())))
    }

    /// int64 (N+1,): the token of each node, the root's first (-1: unknown).
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, self.core.tokens())))
    }

    /// How the tokens were chosen, by name.
    #[getter]
    fn law(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.core.law().name()))
    }

    /// Nodes, the root included: N+1.
    #[getter]
    fn num_nodes(&self) -> PyResult<usize> {
        hold(|| Ok(self.core.num_nodes()))
    }

    /// N+1 flags: which nodes were drawn from a row of the drafter.
    #[getter]
    fn sampled(&self) -> PyResult<Vec<bool>> {
        hold(|| Ok(self.core.sampled().to_vec()))
    }

    /// Check the whole of each row of `probs`, which verification reads in part.
    ///
    /// Raises:
    ///     NumericsError: A row is no distribution; the error's `row` says which.
    fn validate(&self) -> PyResult<()> {
        hold(|| Ok(self.rows.validate()?))
    }

    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| {
            let other = other.get();
            enter(py, || {
                let is_same = || self.rows.is_same(&self.index, &other.rows, &other.index);
                Ok(self.core == other.core && is_same()?)
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
                TokenTree,
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
            let Self { core, rows, index } = slf.get();
            let Saved { probs, rows, logits, params, vocab } = rows.saved(slf.py(), index)?;
            let (tree, tokens) = (TokenTree(core.tree().clone()), core.tokens().to_vec());
            let law = core.law();
            let sampled = law.takes_sampled().then(|| core.sampled().to_vec());
            let arguments = (tree, tokens, law.name(), probs, rows, logits, params, vocab, sampled);
            Ok((slf.get_type(), arguments))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let tokens = &self.core.tokens()[1..];
            Ok(format!("Draft({} tokens, law={:?})", tokens.len(), self.core.law().name()))
        })
    }
}
