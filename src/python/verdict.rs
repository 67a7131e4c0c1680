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
///
/// Raises:
///     DraftError: Lengths that do not fit each other.
///     CacheError: A path that no tree has.
///     RuleError: An unknown rule.
///     ParamsError: What is no token, or no log-probability.
#[pyclass(frozen, module = "mtp_verify")]
#[derive(Clone, PartialEq)]
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
    #[pyo3(signature = (tokens, path, logprobs, rule, top_logprobs=None))]
    fn new(
        tokens: &Bound<'_, PyAny>,
        path: &Bound<'_, PyAny>,
        logprobs: &Bound<'_, PyAny>,
        rule: &str,
        top_logprobs: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let tokens = token_ids(&integers(tokens, "tokens")?, "tokens")?;
            let path = integers(path, "path")?;
            let logprobs = numbers(logprobs, "logprobs")?.into_iter().map(|x| x as f32).collect();
            let verdict = verify::Verdict::new(tokens, &path, logprobs, rule)?;
            let count = verdict.tokens.len();
            let top = top_logprobs.map(|given| top_of(given, count)).transpose()?;
            Ok(Self { verdict, top })
        })
    }

    /// int64 (A+1,): the emitted tokens, the accepted ones and the one that follows them.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            Ok(PyArray1::from_iter(py, self.verdict.tokens.iter().map(|&token| i64::from(token))))
        })
    }

    /// int64 (A,): the accepted nodes from below the root down.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_iter(py, self.nodes())))
    }

    /// How many drafted tokens were accepted: A.
    #[getter]
    fn num_accepted(&self) -> PyResult<usize> {
        hold(|| Ok(self.verdict.path.len()))
    }

    /// float32 (A+1,): the log-probability of each emitted token under the shaped target.
    #[getter]
    fn logprobs<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        hold(|| Ok(PyArray1::from_slice(py, &self.verdict.logprobs)))
    }

    /// The rule that ran, or the name of the lossy acceptance.
    #[getter]
    fn rule(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.verdict.rule))
    }

    /// Whether the tokens have the target's distribution: False under a lossy acceptance alone.
    #[getter]
    fn lossless(&self) -> PyResult<bool> {
        hold(|| Ok(self.verdict.is_lossless()))
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

    fn __eq__(&self, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| Ok(self == other.get()))
    }

    #[allow(clippy::type_complexity)] // The constructor's arguments.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<
        Reduced<'py, (Vec<u32>, Vec<u32>, Vec<f32>, &'static str, Option<Bound<'py, PyAny>>)>,
    > {
        hold(|| {
            let verify::Verdict { tokens, path, logprobs, rule } = slf.get().verdict.clone();
            let top = slf.get().top_logprobs(slf.py())?;
            Ok((slf.get_type(), (tokens, path, logprobs, rule, top)))
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let verify::Verdict { tokens, path, rule, .. } = &self.verdict;
            let mark = if self.verdict.is_lossless() { "" } else { ", lossless=False" };
            let (tokens, path) = (shown(tokens), shown(path));
            Ok(format!("Verdict(tokens={tokens}, path={path}, rule={rule:?}{mark})"))
        })
    }
}
