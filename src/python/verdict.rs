//! `Verdict`: what was decided for one sequence.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::error::Error;
use crate::verify;
use crate::verify::top::TopLogprobs;

use super::gate::hold;
use super::given::FLOATS;
use super::numbers::{integer, integers, numbers, table, token_ids, type_name};
use super::state::{Reduced, shown};
use super::tensor::Tensor;

/// What `verify` decided: the tokens that the step emits, and where they stand in the draft's tree.
///
/// Verdicts come from `verify`; the constructor brings back one from elsewhere, such as a pickle, and
/// checks it. Verdicts are equal if all that they hold is.
///
/// Args:
///     tokens: int (A+1,), the accepted tokens and the one that follows.
///     path: int (A,), the accepted nodes from below the root down.
///     logprobs: float (A+1,), of each token under the shaped target.
///     rule: A name from `rules()`, or that of a lossy acceptance.
///     top_logprobs: A `TopLogprobs` of A+1 tokens, or None.
///     backend: Where it was decided, "host", "triton" or "torch"; no part of what is compared.
///
/// Raises:
///     DraftError: Lengths that do not fit each other.
///     CacheError: A path that no tree has.
///     RuleError: An unknown rule.
///     ParamsError: What is no token, or no log-probability.
#[pyclass(frozen, module = "mtp_verify")]
#[derive(Clone)]
pub(super) struct Verdict {
    pub(super) core: verify::Verdict,
    pub(super) top: Option<TopLogprobs>,
    pub(super) backend: &'static str,
}

/// The names of what can decide: the core on the host, kernels on a device, operators of torch.
const BACKENDS: [&str; 3] = [HOST, "triton", "torch"];

/// The core.
pub(super) const HOST: &str = "host";

/// The name as it is kept.
fn backend_of(name: &str) -> PyResult<&'static str> {
    BACKENDS.into_iter().find(|&known| known == name).ok_or_else(|| {
        PyErr::from(Error::ParamOutOfRange {
            name: "backend",
            value: name.to_owned(),
            wanted: "host, triton or torch",
        })
    })
}

impl PartialEq for Verdict {
    fn eq(&self, other: &Self) -> bool {
        self.core == other.core && self.top == other.top
    }
}

impl Verdict {
    /// What the core decided.
    pub(super) fn of_core(core: verify::Verdict, top: Option<TopLogprobs>) -> Self {
        Self { core, top, backend: HOST }
    }

    /// The path as plans take it.
    pub(super) fn nodes(&self) -> impl Iterator<Item = i64> {
        self.core.path.iter().map(|&node| i64::from(node))
    }
}

/// The class of the lists of likely tokens; defined in Python, as a named tuple of arrays.
fn top_class(py: Python<'_>) -> PyResult<Bound<'_, PyType>> {
    Ok(py.import("mtp_verify.verifier.logprobs")?.getattr("TopLogprobs")?.cast_into::<PyType>()?)
}

/// A `TopLogprobs` of `count` emitted tokens in the core's form.
fn top_of(given: &Bound<'_, PyAny>, count: usize) -> PyResult<TopLogprobs> {
    if !given.is_instance(top_class(given.py())?.as_any())? {
        let found = type_name(given);
        let text = format!("top_logprobs: found {found}, wanted a TopLogprobs, or None");
        return Err(PyTypeError::new_err(text));
    }
    let matrix = |name: &str, what| -> PyResult<(usize, Vec<f32>)> {
        let tensor = Tensor::borrow(&given.getattr(name)?, what)?;
        let rows = tensor.rows(FLOATS, true)?;
        let row = |row| (0..rows.num_cols()).map(move |column| (row, column));
        let cells = (0..rows.num_rows()).flat_map(row);
        Ok((rows.num_cols(), cells.map(|(r, column)| rows.value(r, column) as f32).collect()))
    };
    let tokens = table(&given.getattr("tokens")?, "top_logprobs.tokens")?.concat();
    let (n, raw) = matrix("raw", "top_logprobs.raw")?;
    let (_, shaped) = matrix("shaped", "top_logprobs.shaped")?;
    let (_, emitted) = matrix("emitted", "top_logprobs.emitted")?;
    Ok(TopLogprobs::of(n, tokens, [raw, shaped, emitted], count)?)
}

#[pymethods]
impl Verdict {
    #[new]
    #[pyo3(signature = (tokens, path, logprobs, rule, top_logprobs=None, backend="host"))]
    fn new(
        tokens: &Bound<'_, PyAny>,
        path: &Bound<'_, PyAny>,
        logprobs: &Bound<'_, PyAny>,
        rule: &str,
        top_logprobs: Option<&Bound<'_, PyAny>>,
        backend: &str,
    ) -> PyResult<Self> {
        hold(|| {
            let tokens = token_ids(&integers(tokens, "tokens")?, "tokens")?;
            let path = integers(path, "path")?;
            let logprobs = numbers(logprobs, "logprobs")?.into_iter().map(|x| x as f32).collect();
            let verdict = verify::Verdict::new(tokens, &path, logprobs, rule)?;
            let count = verdict.tokens.len();
            let top = top_logprobs.map(|given| top_of(given, count)).transpose()?;
            Ok(Self { core: verdict, top, backend: backend_of(backend)? })
        })
    }

    /// int64 (A+1,): the emitted tokens, the accepted ones and the one that follows them.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_iter(py, self.core.tokens.iter().map(|&token| i64::from(token)))))
    }

    /// int64 (A,): the accepted nodes from below the root down.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_iter(py, self.nodes())))
    }

    /// How many drafted tokens were accepted: A.
    #[getter]
    fn num_accepted(&self) -> PyResult<usize> {
        hold(|| Ok(self.core.path.len()))
    }

    /// float32 (A+1,): the log-probability of each emitted token under the shaped target.
    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.core.logprobs)))
    }

    /// The rule that ran, or the name of the lossy acceptance.
    #[getter]
    fn rule(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.core.rule))
    }

    /// Whether the tokens have the target's distribution: False under a lossy acceptance alone.
    #[getter]
    fn lossless(&self) -> PyResult<bool> {
        hold(|| Ok(self.core.is_lossless()))
    }

    /// Where it was decided: "host" (the core), or "triton" or "torch" on a device.
    #[getter]
    fn backend(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.backend))
    }

    /// The most likely tokens behind each emitted one: a `TopLogprobs`, or None if not asked for.
    #[getter]
    fn top_logprobs<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        hold(|| {
            let Some(top) = &self.top else {
                return Ok(None);
            };
            let shape = [top.emitted.len(), top.n];
            top_class(py)?
                .call1((
                    PyArray1::from_slice(py, &top.tokens).reshape(shape)?,
                    PyArray1::from_slice(py, &top.raw).reshape(shape)?,
                    PyArray1::from_slice(py, &top.shaped).reshape(shape)?,
                    PyArray1::from_slice(py, &top.emitted),
                ))
                .map(Some)
        })
    }

    /// The verdict with the first `n` tokens alone: for a decoder that ends inside of it.
    ///
    /// The last of them has no entry in a cache yet, so the path keeps n - 1 nodes.
    ///
    /// Args:
    ///     n: 1 to the number of emitted tokens.
    ///
    /// Raises:
    ///     ParamsError: `n` is out of range.
    fn cut(&self, n: &Bound<'_, PyAny>) -> PyResult<Self> {
        hold(|| {
            let (n, length) = (integer(n, "n")?, self.core.tokens.len());
            let Some(n) = usize::try_from(n).ok().filter(|&n| n >= 1 && n <= length) else {
                return Err(PyErr::from(Error::ParamOutOfRange {
                    name: "n",
                    value: n.to_string(),
                    wanted: "1 <= n <= number of emitted tokens",
                }));
            };
            let (mut core, mut top) = (self.core.clone(), self.top.clone());
            core.cut(n);
            if let Some(top) = &mut top {
                top.cut(n);
            }
            Ok(Self { core, top, backend: self.backend })
        })
    }

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self == other.get()))
    }

    #[allow(clippy::type_complexity)] // The constructor's arguments.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<
        Reduced<
            'py,
            (Vec<u32>, Vec<u32>, Vec<f32>, &'static str, Option<Bound<'py, PyAny>>, &'static str),
        >,
    > {
        hold(|| {
            let verify::Verdict { tokens, path, logprobs, rule } = slf.get().core.clone();
            let top = slf.get().top_logprobs(slf.py())?;
            Ok((slf.get_type(), (tokens, path, logprobs, rule, top, slf.get().backend)))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let verify::Verdict { tokens, path, rule, .. } = &self.core;
            let mark = if self.core.is_lossless() { "" } else { ", lossless=False" };
            let (tokens, path) = (shown(tokens), shown(path));
            Ok(format!("Verdict(tokens={tokens}, path={path}, rule={rule:?}{mark})"))
        })
    }
}
