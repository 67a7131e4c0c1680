//! The classes: parameters, trees, verdicts and commit plans. All of them are frozen.

use numpy::ndarray::ArrayView2;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::bindings::gate::hold;
use crate::bindings::numbers::{count_or_0, integer, integers, list, token_ids, type_name};
use crate::dist::{Params, Preset};
use crate::error::Error;
use crate::history::Penalties;
use crate::kv;
use crate::tree;
use crate::verify;
use crate::verify::top::TopLogprobs;

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
    let core = core.map_err(|_| {
        PyErr::from(Error::ParamOutOfRange {
            name: "params",
            value: type_name(params),
            wanted: "a SamplingParams",
        })
    })?;
    Ok(core.get().shaping)
}

/// A draft's tokens arranged as a tree.
#[pyclass(frozen, module = "mtp_verify", eq)]
#[derive(Clone, PartialEq)]
pub(super) struct TokenTree(pub(super) tree::TokenTree);

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

    #[getter]
    fn num_nodes(&self) -> PyResult<usize> {
        hold(|| Ok(self.0.num_nodes()))
    }

    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.numbers())))
    }

    #[getter]
    fn depths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            Ok(PyArray1::from_iter(
                py,
                (0..self.0.num_nodes()).map(|node| self.0.depth(node) as i64),
            ))
        })
    }

    #[getter]
    fn next_token<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.0.next_token())))
    }

    #[getter]
    fn next_sibling<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_vec(py, self.0.next_sibling())))
    }

    #[getter]
    fn is_chain(&self) -> PyResult<bool> {
        hold(|| Ok(self.0.is_chain()))
    }

    fn children(&self, node: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        hold(|| Ok(self.0.children(self.node(node)?).to_vec()))
    }

    fn path(&self, node: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        hold(|| Ok(self.0.path(self.node(node)?)))
    }

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
        hold(|| Ok(format!("TokenTree({:?})", self.numbers())))
    }
}

/// A rule's result.
#[pyclass(frozen, module = "mtp_verify")]
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) verdict: verify::Verdict,
    pub(super) top: Option<TopLogprobs>,
}

impl Verdict {
    /// The path as plans take it.
    pub(super) fn nodes(&self) -> impl Iterator<Item = i64> {
        self.verdict.path.iter().map(|&node| i64::from(node))
    }
}

#[pymethods]
impl Verdict {
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            Ok(PyArray1::from_iter(py, self.verdict.tokens.iter().map(|&token| i64::from(token))))
        })
    }

    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_iter(py, self.nodes())))
    }

    #[getter]
    fn num_accepted(&self) -> PyResult<usize> {
        hold(|| Ok(self.verdict.path.len()))
    }

    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.verdict.logprobs)))
    }

    #[getter]
    fn rule(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.verdict.rule))
    }

    #[getter]
    fn lossless(&self) -> PyResult<bool> {
        hold(|| Ok(self.verdict.is_lossless()))
    }

    /// The most likely tokens behind each emitted one: `mtp_verify.api.TopLogprobs`, or None.
    #[getter]
    fn top_logprobs<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        hold(|| {
            let Some(top) = &self.top else {
                return Ok(None);
            };
            let shape = [top.emitted.len(), top.n];
            let class = py.import("mtp_verify.logprobs")?.getattr("TopLogprobs")?;
            class
                .call1((
                    PyArray1::from_slice(py, &top.tokens).reshape(shape)?,
                    PyArray1::from_slice(py, &top.raw).reshape(shape)?,
                    PyArray1::from_slice(py, &top.shaped).reshape(shape)?,
                    PyArray1::from_slice(py, &top.emitted),
                ))
                .map(Some)
        })
    }

    fn cut(&self, n: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let (n, length) = (integer(n, "n")?, self.verdict.tokens.len());
            let Some(n) = usize::try_from(n).ok().filter(|&n| n >= 1 && n <= length) else {
                return Err(PyErr::from(Error::ParamOutOfRange {
                    name: "n",
                    value: n.to_string(),
                    wanted: "1 <= n <= number of emitted tokens",
                }));
            };
            let (mut verdict, mut top) = (self.verdict.clone(), self.top.clone());
            verdict.cut(n);
            if let Some(top) = &mut top {
                top.cut(n);
            }
            Ok(Self { verdict, top })
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let verify::Verdict { tokens, path, rule, .. } = &self.verdict;
            let mark = if self.verdict.is_lossless() { "" } else { ", lossless=False" };
            Ok(format!("Verdict(tokens={tokens:?}, path={path:?}, rule={rule:?}{mark})"))
        })
    }
}

/// Slots from -> to as an array (M, 2).
pub(super) fn pairs<'py>(py: Python<'py>, slots: &[(i64, i64)]) -> Bound<'py, PyArray2<i64>> {
    let rows: Vec<[i64; 2]> = slots.iter().map(|&(from, to)| [from, to]).collect();
    PyArray2::from_array(py, &ArrayView2::from(&rows[..]))
}

/// What a commit does to a cache.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct CommitPlan(pub(super) kv::CommitPlan);

#[pymethods]
impl CommitPlan {
    #[getter]
    fn moves<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        hold(|| Ok(pairs(py, &self.0.moves)))
    }

    #[getter]
    fn freed<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.0.freed)))
    }

    #[getter]
    fn length(&self) -> PyResult<i64> {
        hold(|| Ok(self.0.length))
    }

    #[getter]
    fn state_select(&self) -> PyResult<i64> {
        hold(|| Ok(self.0.state_select))
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| Ok(format!("CommitPlan(moves={:?}, length={})", self.0.moves, self.0.length)))
    }
}
