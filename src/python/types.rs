//! Parameters and trees. Both are frozen.

#![allow(clippy::doc_markdown)] // The comments on the classes and their methods are Python docstrings.

use std::hash::{Hash, Hasher};

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Error;
use crate::python::gate::hold;
use crate::python::numbers::{
    count_or_0, integer, integers, list, or_interrupt, token_ids, type_name,
};
use crate::python::state::{Reduced, refuse_copy, shown};
use crate::rows::history::Penalties;
use crate::shaping::{Params, Preset};
use crate::tree;

/// Sampling parameters as the core takes them; made by `mtp_verify.SamplingParams`.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct CoreParams {
    /// What every row is shaped by, the drafter's too.
    pub(super) shaping: Params,
    /// What the target's rows owe to tokens; `None` if nothing.
    pub(super) penalties: Option<Penalties>,
}

#[pymethods]
impl CoreParams {
    #[new]
    #[allow(clippy::too_many_arguments)] // The fields of SamplingParams.
    #[pyo3(signature = (
        temperature, top_k, top_p, min_p, preset, *, repetition_penalty=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, no_repeat_ngram_size=None, logit_bias=None, banned=None,
        min_new_tokens=None, stop_ids=None
    ))]
    fn new(
        temperature: f64,
        top_k: &Bound<'_, PyAny>,
        top_p: f64,
        min_p: f64,
        preset: &str,
        repetition_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
        no_repeat_ngram_size: Option<&Bound<'_, PyAny>>,
        logit_bias: Option<&Bound<'_, PyAny>>,
        banned: Option<&Bound<'_, PyAny>>,
        min_new_tokens: Option<&Bound<'_, PyAny>>,
        stop_ids: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let preset = preset_of(preset)?;
            let penalties = Penalties {
                repetition: repetition_penalty,
                presence: presence_penalty,
                frequency: frequency_penalty,
                no_repeat_ngram: count_or_0(no_repeat_ngram_size, "no_repeat_ngram_size")?,
                bias: logit_bias.map_or_else(|| Ok(Vec::new()), biases)?,
                banned: ids(banned, "banned")?,
                min_new_tokens: count_or_0(min_new_tokens, "min_new_tokens")?,
                stop_ids: ids(stop_ids, "stop_ids")?,
                by_reciprocal: preset == Preset::Vllm,
            };
            let top_k = integer(top_k, "top_k")?;
            let build = || {
                let penalties = penalties.check()?;
                Ok(Self {
                    shaping: Params::new(temperature, top_k, top_p, min_p, preset)?,
                    penalties: (!penalties.is_neutral()).then_some(penalties),
                })
            };
            build().map_err(|error: Error| PyErr::from(error))
        })
    }

    #[getter]
    fn is_greedy(&self) -> PyResult<bool> {
        hold(|| Ok(self.shaping.is_greedy()))
    }

    /// Whether logits are changed before they are shaped.
    #[getter]
    fn changes_logits(&self) -> PyResult<bool> {
        hold(|| Ok(self.penalties.is_some()))
    }

    /// The parameter that cannot do without the sequence's tokens, if one cannot.
    #[getter]
    fn needs_history(&self) -> PyResult<Option<&'static str>> {
        hold(|| Ok(self.penalties.as_ref().and_then(Penalties::needs_history)))
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        hold(|| refuse_copy(slf.as_any(), "pickle the SamplingParams that it was made by"))
    }
}

/// What rows are shaped by, as a `mtp_verify.SamplingParams`.
pub(super) fn sampling_params<'py>(
    py: Python<'py>,
    params: &Params,
) -> PyResult<Bound<'py, PyAny>> {
    let (top_k, top_p, min_p) = params.cuts();
    let preset = match params.preset() {
        Preset::Transformers => "transformers",
        Preset::Vllm => "vllm",
    };
    let fields = PyDict::new(py);
    fields.set_item("temperature", params.temperature())?;
    fields.set_item("top_k", top_k)?;
    fields.set_item("top_p", top_p)?;
    fields.set_item("min_p", min_p)?;
    fields.set_item("preset", preset)?;
    py.import("mtp_verify.verifier.params")?.getattr("SamplingParams")?.call((), Some(&fields))
}

fn preset_of(name: &str) -> PyResult<Preset> {
    match name {
        "transformers" => Ok(Preset::Transformers),
        "vllm" => Ok(Preset::Vllm),
        _ => Err(PyErr::from(Error::ParamOutOfRange {
            name: "preset",
            value: name.to_owned(),
            wanted: "\"transformers\" or \"vllm\"",
        })),
    }
}

fn ids(tokens: Option<&Bound<'_, PyAny>>, name: &'static str) -> PyResult<Vec<u32>> {
    let tokens = tokens.map_or_else(|| Ok(Vec::new()), |tokens| integers(tokens, name))?;
    token_ids(&tokens, name).map_err(PyErr::from)
}

/// Pairs of a token and what is added to its logit.
fn biases(pairs: &Bound<'_, PyAny>) -> PyResult<Vec<(u32, f32)>> {
    list(pairs, "logit_bias", |pair, _| {
        let (token, bias): (Bound<'_, PyAny>, f64) = pair.extract()?;
        let token = token_ids(&[integer(&token, "logit_bias")?], "logit_bias");
        Ok((token?[0], bias as f32))
    })
}

/// What a `mtp_verify.SamplingParams` shapes any row by, from its core's form, kept as `_core`.
pub(super) fn core_params(params: &Bound<'_, PyAny>) -> PyResult<Params> {
    let core = params.getattr("_core").and_then(|core| Ok(core.cast_into::<CoreParams>()?));
    let core = core.map_err(|error| {
        or_interrupt(params, error, |_| {
            PyErr::from(Error::ParamOutOfRange {
                name: "params",
                value: type_name(params),
                wanted: "a SamplingParams",
            })
        })
    })?;
    Ok(core.get().shaping)
}

/// A draft's tokens arranged as a tree: node 0 is the root, the last token that is known already.
///
/// Nodes are numbered so that parents come before their children; siblings stand in the order in which
/// rules test them. Trees are equal, and hash alike, if their parents are.
///
/// Args:
///     parents: int (N+1,); `parents[0] = -1`, then `0 <= parents[i] < i`.
///
/// Raises:
///     DraftError: No tree in that order; the error's `node` says where.
///     ParamsError: More nodes than 2**14.
///
/// Example:
///     >>> tree = TokenTree([-1, 0, 0, 1])
///     >>> tree.children(0), tree.path(3), tree.depths.tolist()
///     ([1, 2], [1, 3], [0, 1, 1, 2])
#[pyclass(frozen, module = "mtp_verify", eq, hash)]
#[derive(Clone, PartialEq)]
pub(super) struct TokenTree(pub(super) tree::TokenTree);

impl Hash for TokenTree {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.parents().hash(state);
    }
}

impl TokenTree {
    fn node(&self, node: &Bound<'_, PyAny>) -> PyResult<usize> {
        let node = integer(node, "node")?;
        usize::try_from(node).ok().filter(|&n| n < self.0.num_nodes()).ok_or_else(|| {
            PyErr::from(Error::NotAPath { index: 0, node, reason: "no such node in the tree" })
        })
    }

    /// The parents as they are passed.
    fn numbers(&self) -> Vec<i64> {
        let parent = |node| self.0.parent(node).map_or(-1, |parent| parent as i64);
        (0..self.0.num_nodes()).map(parent).collect()
    }
}

#[pymethods]
impl TokenTree {
    #[new]
    fn new(parents: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let parents = integers(parents, "parents")?;
            tree::TokenTree::new(&parents).map(Self).map_err(PyErr::from)
        })
    }

    /// Nodes, the root included: N+1.
    #[getter]
    fn num_nodes(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.num_nodes()))
    }

    /// int64 (N+1,): the parent of each node, -1 for the root.
    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.numbers())))
    }

    /// int64 (N+1,): edges from the root to each node.
    #[getter]
    fn depths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            Ok(PyArray1::from_iter(
                py,
                (0..self.0.num_nodes()).map(|node| self.0.depth(node) as i64),
            ))
        })
    }

    /// int64 (N+1,): the first child of each node, or -1; SGLang's `retrive_next_token`.
    #[getter]
    fn next_token<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.0.next_token())))
    }

    /// int64 (N+1,): the next sibling of each node, or -1; SGLang's `retrive_next_sibling`.
    #[getter]
    fn next_sibling<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.0.next_sibling())))
    }

    /// Whether no node has more than one child.
    #[getter]
    fn is_chain(&self) -> PyResult<bool> {
        hold(|| Ok(self.0.is_chain()))
    }

    /// The children of a node, in the order in which rules test them.
    ///
    /// Raises:
    ///     CacheError: There is no such node.
    fn children(&self, node: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        hold(|| Ok(self.0.children(self.node(node)?).to_vec()))
    }

    /// The nodes from below the root down to a node; `[]` for the root.
    ///
    /// Raises:
    ///     CacheError: There is no such node.
    fn path(&self, node: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        hold(|| Ok(self.0.path(self.node(node)?)))
    }

    /// bool (N+1, N+1): whether node i attends to node j, its ancestor or itself.
    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<bool>>> {
        hold(|| {
            let count = self.0.num_nodes();
            PyArray1::from_vec(py, self.0.mask()).reshape([count, count])
        })
    }

    fn __len__(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.num_nodes()))
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| Ok(format!("TokenTree({})", shown(&self.numbers()))))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Reduced<'py, (Vec<i64>,)>> {
        hold(|| Ok((slf.get_type(), (slf.get().numbers(),))))
    }
}
