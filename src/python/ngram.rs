//! `NGramIndex` and `SuffixIndex`: the history of one sequence each, ready to draft from.

use std::sync::Mutex;

use pyo3::prelude::*;

use crate::ngram::{Limits, NGram, Proposal, Suffix, SuffixConfig};

use super::gate::{enter, hold, locked};
use super::numbers::{count, integers, token_ids};
use super::state::refuse_copy;

/// Why neither index is pickled.
const IN_FLIGHT: &str =
    "it follows one request in flight; pickle its drafter before the first request";

/// Parents and tokens of a drafted tree, the root (the last token, or -1) included.
pub(super) type Tree = (Vec<i64>, Vec<i64>);

pub(super) fn tree(proposal: Proposal) -> Tree {
    (proposal.parents, proposal.tokens)
}

/// Prompt lookup over one sequence; see `mtp_verify.drafters.NGram`.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct NGramIndex(Mutex<NGram>);

#[pymethods]
impl NGramIndex {
    #[new]
    fn new(
        max_ngram: &Bound<'_, PyAny>,
        min_ngram: &Bound<'_, PyAny>,
        max_history: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            let (longest, shortest) =
                (count(max_ngram, "max_ngram")?, count(min_ngram, "min_ngram")?);
            let max_history = count(max_history, "max_history")?;
            let index = enter(max_ngram.py(), || NGram::new(longest, shortest, max_history));
            index.map(|index| Self(Mutex::new(index)))
        })
    }

    /// Appends emitted tokens: any sequence of ints.
    fn extend(&self, tokens: &Bound<'_, PyAny>) -> PyResult<()> {
        hold(|| {
            let given = integers(tokens, "tokens")?;
            enter(tokens.py(), || {
                token_ids(&given, "tokens").map(|tokens| locked(&self.0).extend(&tokens))
            })
        })
    }

    /// A chain of at most `num` tokens below the root, ended by a token of `stop`.
    fn propose(&self, num: &Bound<'_, PyAny>, stop: &Bound<'_, PyAny>) -> PyResult<Tree> {
        hold(|| {
            let (most, stop) = (count(num, "num")?, integers(stop, "stop")?);
            enter(num.py(), || {
                let stop = token_ids(&stop, "stop")?;
                Ok(tree(locked(&self.0).propose(most, &stop)))
            })
        })
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        hold(|| refuse_copy(slf.as_any(), IN_FLIGHT))
    }

    /// Tokens held now.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(locked(&self.0).tokens().len()))
    }
}

/// A suffix automaton over one sequence; see `mtp_verify.drafters.Suffix`.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct SuffixIndex(pub(super) Mutex<Suffix>);

#[pymethods]
impl SuffixIndex {
    #[new]
    fn new(
        py: Python<'_>,
        min_match: &Bound<'_, PyAny>,
        max_context: &Bound<'_, PyAny>,
        depth_factor: f64,
        min_score: f64,
        max_children: &Bound<'_, PyAny>,
        max_history: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            let config = SuffixConfig {
                min_match: count(min_match, "min_match")?,
                max_context: count(max_context, "max_context")?,
                depth_factor,
                min_score,
                max_children: count(max_children, "max_children")?,
                max_history: count(max_history, "max_history")?,
            };
            enter(py, || Suffix::new(config)).map(|index| Self(Mutex::new(index)))
        })
    }

    /// Appends emitted tokens: any sequence of ints.
    fn extend(&self, tokens: &Bound<'_, PyAny>) -> PyResult<()> {
        hold(|| {
            let given = integers(tokens, "tokens")?;
            enter(tokens.py(), || {
                token_ids(&given, "tokens").map(|tokens| locked(&self.0).extend(&tokens))
            })
        })
    }

    /// A tree of at most `max_nodes` nodes and `max_depth` levels below the root, with nothing below
    /// a token of `stop`.
    fn propose(
        &self,
        py: Python<'_>,
        max_nodes: &Bound<'_, PyAny>,
        max_depth: &Bound<'_, PyAny>,
        stop: &Bound<'_, PyAny>,
    ) -> PyResult<Tree> {
        hold(|| {
            let (max_nodes, max_depth) =
                (count(max_nodes, "max_nodes")?, count(max_depth, "max_depth")?);
            let stop = integers(stop, "stop")?;
            enter(py, || {
                let stop = &token_ids(&stop, "stop")?;
                Ok(tree(locked(&self.0).propose(Limits { max_nodes, max_depth, stop })))
            })
        })
    }

    /// Length of the longest suffix that occurred before.
    #[getter]
    fn match_len(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(locked(&self.0).match_len()))
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        hold(|| refuse_copy(slf.as_any(), IN_FLIGHT))
    }

    /// Tokens held now.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(locked(&self.0).tokens().len()))
    }
}

/// Adds the two classes to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<NGramIndex>()?;
    m.add_class::<SuffixIndex>()
}
