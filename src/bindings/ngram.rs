//! `NGramIndex` and `SuffixIndex`: the history of one sequence each, ready to draft from.

use pyo3::prelude::*;

use crate::ngram::{Limits, NGram, Proposal, Suffix, SuffixConfig};

use super::enter;
use super::tensor::{size, token_ids};

/// Parents and tokens of a drafted tree, the root (the last token, or -1) included.
type Tree = (Vec<i64>, Vec<i64>);

fn tree(proposal: Proposal) -> Tree {
    (proposal.parents, proposal.tokens)
}

/// Prompt lookup over one sequence; see `mtp_verify.drafters.NGram`.
#[pyclass(module = "mtp_verify._core")]
pub(super) struct NGramIndex(NGram);

#[pymethods]
impl NGramIndex {
    #[new]
    fn new(py: Python<'_>, max_ngram: i64, min_ngram: i64, max_history: i64) -> PyResult<Self> {
        enter(py, || {
            NGram::new(
                size("max_ngram", max_ngram)?,
                size("min_ngram", min_ngram)?,
                size("max_history", max_history)?,
            )
        })
        .map(Self)
    }

    /// Appends emitted tokens: any sequence of ints.
    #[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
    fn extend(&mut self, py: Python<'_>, tokens: Vec<i64>) -> PyResult<()> {
        enter(py, || token_ids(&tokens).map(|tokens| self.0.extend(&tokens)))
    }

    /// A chain of at most `num` tokens below the root, ended by a token of `stop`.
    #[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
    fn propose(&self, py: Python<'_>, num: i64, stop: Vec<i64>) -> PyResult<Tree> {
        enter(py, || Ok(tree(self.0.propose(size("num", num)?, &token_ids(&stop)?))))
    }

    /// Tokens held now.
    fn __len__(&self) -> usize {
        self.0.tokens().len()
    }
}

/// A suffix automaton over one sequence; see `mtp_verify.drafters.Suffix`.
#[pyclass(module = "mtp_verify._core")]
pub(super) struct SuffixIndex(Suffix);

#[pymethods]
impl SuffixIndex {
    #[new]
    fn new(
        py: Python<'_>,
        min_match: i64,
        max_context: i64,
        depth_factor: f64,
        min_score: f64,
        max_children: i64,
        max_history: i64,
    ) -> PyResult<Self> {
        enter(py, || {
            Suffix::new(SuffixConfig {
                min_match: size("min_match", min_match)?,
                max_context: size("max_context", max_context)?,
                depth_factor,
                min_score,
                max_children: size("max_children", max_children)?,
                max_history: size("max_history", max_history)?,
            })
        })
        .map(Self)
    }

    /// Appends emitted tokens: any sequence of ints.
    #[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
    fn extend(&mut self, py: Python<'_>, tokens: Vec<i64>) -> PyResult<()> {
        enter(py, || token_ids(&tokens).map(|tokens| self.0.extend(&tokens)))
    }

    /// A tree of at most `max_nodes` nodes and `max_depth` levels below the root, with nothing below
    /// a token of `stop`.
    #[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
    fn propose(
        &self,
        py: Python<'_>,
        max_nodes: i64,
        max_depth: i64,
        stop: Vec<i64>,
    ) -> PyResult<Tree> {
        enter(py, || {
            let limits = Limits {
                max_nodes: size("max_nodes", max_nodes)?,
                max_depth: size("max_depth", max_depth)?,
                stop: &token_ids(&stop)?,
            };
            Ok(tree(self.0.propose(limits)))
        })
    }

    /// Length of the longest suffix that occurred before.
    #[getter]
    fn match_len(&self) -> usize {
        self.0.match_len()
    }

    /// Tokens held now.
    fn __len__(&self) -> usize {
        self.0.tokens().len()
    }
}

/// Adds the two classes to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<NGramIndex>()?;
    m.add_class::<SuffixIndex>()
}
