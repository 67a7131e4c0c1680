//! Shapes and merged drafts: functions of `mtp_verify.verifier.tree_shape` and `mtp_verify.verifier.growers`.

use pyo3::prelude::*;

use crate::growers::{self, Optimal};
use crate::python::drafts::Draft;
use crate::python::gate::{enter, hold};
use crate::python::given::LOGITS;
use crate::python::numbers::{self, count, list, numbers};
use crate::python::tensor::Tensor;
use crate::python::types::TokenTree;
use crate::shaping::{Params, Scratch, ShapedRows, Side};
use crate::verify::law;

/// A chain of `length` nodes and the levels of `counts` below it.
#[pyfunction]
fn stem_shape(length: &Bound<'_, PyAny>, counts: &Bound<'_, PyAny>) -> PyResult<TokenTree> {
    hold(|| {
        let (length, counts) = (count(length, "length")?, numbers::counts(counts, "counts")?);
        Ok(TokenTree(growers::stem(length, &counts)?))
    })
}

/// Paths that share the root alone.
#[pyfunction]
#[pyo3(signature = (count, length))]
fn path_shape(count: &Bound<'_, PyAny>, length: &Bound<'_, PyAny>) -> PyResult<TokenTree> {
    hold(|| {
        let (paths, length) = (numbers::count(count, "count")?, numbers::count(length, "length")?);
        Ok(TokenTree(growers::paths(paths, length)?))
    })
}

/// The best shape for rates of acceptance by rank, and its mean number of accepted tokens; with
/// times, of the fastest size.
#[pyfunction]
fn optimal_shape(
    acceptance: &Bound<'_, PyAny>,
    max_nodes: &Bound<'_, PyAny>,
    max_depth: &Bound<'_, PyAny>,
    times: Option<(Bound<'_, PyAny>, Bound<'_, PyAny>)>,
) -> PyResult<(TokenTree, f64)> {
    hold(|| {
        let rates = numbers(acceptance, "acceptance")?;
        let (mut nodes, mut depth) =
            (count(max_nodes, "max_nodes")?, count(max_depth, "max_depth")?);
        let times = times.map(|(draft, verify)| {
            Ok::<_, PyErr>((numbers(&draft, "draft_times")?, numbers(&verify, "verify_times")?))
        });
        let times = times.transpose()?;
        enter(acceptance.py(), || {
            let table = Optimal::new(&rates, nodes, depth)?;
            if let Some((draft, verify)) = &times {
                (nodes, depth) = table.fastest(draft, verify)?;
            }
            Ok((TokenTree(table.shape(nodes, depth)?), *table.accepted(nodes, depth)))
        })
    })
}

/// How many nodes of a common budget each request gets.
#[pyfunction]
fn allocate(
    scores: &Bound<'_, PyAny>,
    budget: &Bound<'_, PyAny>,
    minimum: &Bound<'_, PyAny>,
) -> PyResult<Vec<usize>> {
    hold(|| {
        let lists = list(scores, "scores", |request, _| numbers(request, "scores"))?;
        let (nodes, least) = (count(budget, "budget")?, count(minimum, "minimum")?);
        enter(scores.py(), || growers::allocate(&lists, nodes, least))
    })
}

/// The `k` largest logits of each row as tokens, largest first; fewer where fewer are above -inf.
#[pyfunction]
fn top_tokens(logits: &Bound<'_, PyAny>, k: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u32>>> {
    hold(|| {
        let tensor = Tensor::borrow(logits, "logits")?;
        let (raw, most) = (tensor.rows(LOGITS, false)?, count(k, "k")?);
        enter(logits.py(), || {
            let rows = ShapedRows::new(raw, Params::default(), Side::Target);
            let mut scratch = Scratch::default();
            let best = |row| {
                let shaped = rows.shape(row, &mut scratch)?;
                let best = rows.best(row, &shaped, most, |token| token, &mut scratch);
                Ok(best.into_iter().map(|(token, _)| token).collect())
            };
            (0..raw.num_rows()).map(best).collect()
        })
    })
}

/// Deterministic drafts as one: parents and tokens.
#[pyfunction]
fn merge(
    drafts: &Bound<'_, PyAny>,
    max_nodes: &Bound<'_, PyAny>,
) -> PyResult<(Vec<i64>, Vec<i64>)> {
    hold(|| {
        let held = list(drafts, "drafts", |draft, _| Ok(draft.cast::<Draft>()?.clone()))?;
        let all: Vec<&law::Draft> = held.iter().map(|draft| &draft.get().core).collect();
        let merged = growers::merge(&all, count(max_nodes, "max_nodes")?)?;
        Ok((merged.parents().to_vec(), merged.tokens().to_vec()))
    })
}

/// Adds the functions to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(stem_shape, m)?)?;
    m.add_function(wrap_pyfunction!(path_shape, m)?)?;
    m.add_function(wrap_pyfunction!(optimal_shape, m)?)?;
    m.add_function(wrap_pyfunction!(allocate, m)?)?;
    m.add_function(wrap_pyfunction!(top_tokens, m)?)?;
    m.add_function(wrap_pyfunction!(merge, m)?)
}
