//! The classes: parameters, trees, verdicts and commit plans. All of them are frozen.

use numpy::ndarray::ArrayView2;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::bindings::errors::to_py;
use crate::bindings::tensor::{integers, size};
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
        frequency_penalty=0.0, no_repeat_ngram_size=0, logit_bias=Vec::new(), banned=Vec::new(),
        min_new_tokens=0, stop_ids=Vec::new()
    ))]
    fn new(
        temperature: f64,
        top_k: i64,
        top_p: f64,
        min_p: f64,
        preset: &str,
        repetition_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
        no_repeat_ngram_size: i64,
        logit_bias: Vec<(i64, f64)>,
        banned: Vec<i64>,
        min_new_tokens: i64,
        stop_ids: Vec<i64>,
    ) -> PyResult<Self> {
        let preset = match preset {
            "transformers" => Preset::Transformers,
            "vllm" => Preset::Vllm,
            _ => {
                return Err(to_py(&Error::ParamOutOfRange {
                    name: "preset",
                    value: preset.to_owned(),
                    wanted: "\"transformers\" or \"vllm\"",
                }));
            }
        };
        let build = || {
            let bias_of = |(token, bias)| Ok((id("logit_bias", token)?, bias as f32));
            let ids = |name, tokens: Vec<i64>| {
                tokens.into_iter().map(|token| id(name, token)).collect::<Result<Vec<u32>, Error>>()
            };
            let penalties = Penalties {
                repetition: repetition_penalty,
                presence: presence_penalty,
                frequency: frequency_penalty,
                no_repeat_ngram: size("no_repeat_ngram_size", no_repeat_ngram_size)?,
                bias: logit_bias.into_iter().map(bias_of).collect::<Result<_, Error>>()?,
                banned: ids("banned", banned)?,
                min_new_tokens: size("min_new_tokens", min_new_tokens)?,
                stop_ids: ids("stop_ids", stop_ids)?,
                by_reciprocal: preset == Preset::Vllm,
            };
            let penalties = penalties.check()?;
            Ok(Self {
                shaping: Params::new(temperature, top_k, top_p, min_p, preset)?,
                penalties: (!penalties.is_neutral()).then_some(penalties),
            })
        };
        build().map_err(|error| to_py(&error))
    }

    #[getter]
    fn is_greedy(&self) -> bool {
        self.shaping.is_greedy()
    }

    /// Whether logits are changed before they are shaped.
    #[getter]
    fn changes_logits(&self) -> bool {
        self.penalties.is_some()
    }

    /// The parameter that cannot do without the sequence's tokens, if one cannot.
    #[getter]
    fn needs_history(&self) -> Option<&'static str> {
        self.penalties.as_ref().and_then(Penalties::needs_history)
    }
}

fn id(name: &'static str, token: i64) -> Result<u32, Error> {
    u32::try_from(token).map_err(|_| Error::ParamOutOfRange {
        name,
        value: format!("token {token}"),
        wanted: "token ids from 0 to 2**32 - 1",
    })
}

/// What a `mtp_verify.SamplingParams` shapes any row by, from its core's form, kept as `_core`.
pub(super) fn core_params(params: &Bound<'_, PyAny>) -> PyResult<Params> {
    Ok(params.getattr("_core")?.cast::<CoreParams>()?.get().shaping)
}

/// A draft's tokens arranged as a tree.
#[pyclass(frozen, module = "mtp_verify", eq, from_py_object)]
#[derive(Clone, PartialEq)]
pub(super) struct TokenTree(pub(super) tree::TokenTree);

impl TokenTree {
    fn check(&self, node: i64) -> PyResult<usize> {
        usize::try_from(node).ok().filter(|&n| n < self.0.num_nodes()).ok_or_else(|| {
            to_py(&Error::NotAPath { index: 0, node, reason: "no such node in the tree" })
        })
    }
}

#[pymethods]
impl TokenTree {
    #[new]
    fn new(parents: &Bound<'_, PyAny>) -> PyResult<Self> {
        let parents = integers(parents, "parents")?;
        tree::TokenTree::new(&parents).map(Self).map_err(|error| to_py(&error))
    }

    #[getter]
    fn num_nodes(&self) -> usize {
        self.0.num_nodes()
    }

    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let parent = |node| self.0.parent(node).map_or(-1, |parent| parent as i64);
        PyArray1::from_iter(py, (0..self.0.num_nodes()).map(parent))
    }

    #[getter]
    fn depths<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, (0..self.0.num_nodes()).map(|node| self.0.depth(node) as i64))
    }

    #[getter]
    fn next_token<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_vec(py, self.0.next_token())
    }

    #[getter]
    fn next_sibling<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_vec(py, self.0.next_sibling())
    }

    #[getter]
    fn is_chain(&self) -> bool {
        self.0.is_chain()
    }

    fn children(&self, node: i64) -> PyResult<Vec<u32>> {
        Ok(self.0.children(self.check(node)?).to_vec())
    }

    fn path(&self, node: i64) -> PyResult<Vec<u32>> {
        Ok(self.0.path(self.check(node)?))
    }

    fn mask<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<bool>>> {
        let count = self.0.num_nodes();
        PyArray1::from_vec(py, self.0.mask()).reshape([count, count])
    }

    fn __len__(&self) -> usize {
        self.0.num_nodes()
    }

    fn __repr__(&self) -> String {
        let parents: Vec<i64> = (0..self.0.num_nodes())
            .map(|node| self.0.parent(node).map_or(-1, |parent| parent as i64))
            .collect();
        format!("TokenTree({parents:?})")
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
    fn tokens<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.verdict.tokens.iter().map(|&token| i64::from(token)))
    }

    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_iter(py, self.nodes())
    }

    #[getter]
    pub(super) fn num_accepted(&self) -> usize {
        self.verdict.path.len()
    }

    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, &self.verdict.logprobs)
    }

    #[getter]
    fn rule(&self) -> &'static str {
        self.verdict.rule
    }

    #[getter]
    fn lossless(&self) -> bool {
        self.verdict.is_lossless()
    }

    /// The most likely tokens behind each emitted one: `mtp_verify.api.TopLogprobs`, or None.
    #[getter]
    fn top_logprobs<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
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
    }

    fn cut(&self, n: i64) -> PyResult<Self> {
        let length = self.verdict.tokens.len();
        let Some(n) = usize::try_from(n).ok().filter(|&n| n >= 1 && n <= length) else {
            return Err(to_py(&Error::ParamOutOfRange {
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
    }

    fn __repr__(&self) -> String {
        let verify::Verdict { tokens, path, rule, .. } = &self.verdict;
        let mark = if self.verdict.is_lossless() { "" } else { ", lossless=False" };
        format!("Verdict(tokens={tokens:?}, path={path:?}, rule={rule:?}{mark})")
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
    fn moves<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray2<i64>> {
        pairs(py, &self.0.moves)
    }

    #[getter]
    fn freed<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i32>> {
        PyArray1::from_slice(py, &self.0.freed)
    }

    #[getter]
    fn length(&self) -> i64 {
        self.0.length
    }

    #[getter]
    fn state_select(&self) -> i64 {
        self.0.state_select
    }

    fn __repr__(&self) -> String {
        format!("CommitPlan(moves={:?}, length={})", self.0.moves, self.0.length)
    }
}
