//! The Python module `mtp_verify._core`: the only place that knows Python.

mod attention;
mod batch;
mod buffer;
mod draft_batch;
mod drafts;
mod edits;
mod errors;
mod gate;
mod given;
mod grow;
mod head;
mod kv;
mod layout;
mod lossy;
mod ngram;
mod numbers;
mod plans;
mod prompt;
#[cfg(feature = "proof")]
mod proof;
mod shape;
mod state;
mod store;
mod tensor;
mod types;
mod verdict;

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::chance::rng;
use crate::error::Error;
use crate::kv::commit_plan as plan;
use crate::rows::RawRows;
use crate::rows::simd::Kernels;
use crate::shaping::{Scratch, ShapedRows, Side};
use crate::tree::MAX_NODES;
use crate::verify::law::{self, Law};
use crate::verify::lazy::{DrafterRows, check_distribution};
use crate::verify::top::TopLogprobs;
use crate::verify::{self, Noise, RULES, optimum};

use drafts::Draft;
use edits::RowEdits;
use gate::{enter, hold};
use given::{FLOATS, LOGITS};
use lossy::Lossy;
use numbers::{count, count_or_0, integer, integers, list, word};
use plans::CommitPlan;
use tensor::Tensor;
use types::{CoreParams, TokenTree, core_params};
use verdict::Verdict;

#[pyfunction]
#[pyo3(name = "verify", signature = (
    draft, logits, params, rule, *, seed, position, lossy=None, edits=None, top_logprobs=None
))]
#[allow(clippy::too_many_arguments)] // The public function's.
fn verify_draft(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    rule: &str,
    seed: &Bound<'_, PyAny>,
    position: &Bound<'_, PyAny>,
    lossy: Option<&Bound<'_, Lossy>>,
    edits: Option<&Bound<'_, PyAny>>,
    top_logprobs: Option<&Bound<'_, PyAny>>,
) -> PyResult<Verdict> {
    hold(|| {
        let draft = draft.get();
        let lossy = lossy.map(|lossy| lossy.get().0);
        let params = params.get();
        let noise = Noise { seed: word(seed, "seed")?, position: word(position, "position")? };
        let logits = Tensor::borrow(logits, "logits")?;
        let raw = logits.rows(LOGITS, false)?;
        let drafter = draft.drafter()?;
        let given = RowEdits::of(edits)?;
        let n = count_or_0(top_logprobs, "top_logprobs")?;
        let result = enter(py, || {
            let edits = given.edits(params.penalties.as_ref(), &draft.core, &raw)?;
            let target = ShapedRows::new(raw, params.shaping, Side::Target).edited(&edits);
            let verdict = verify::verify_shaped(&draft.core, drafter, target, rule, lossy, noise)?;
            let top = (n > 0).then(|| TopLogprobs::new(&target, &verdict, n)).transpose()?;
            Ok(Verdict::of_core(verdict, top))
        });
        given.finish(result)
    })
}

#[pyfunction]
#[pyo3(signature = (draft, logits, params, rule, *, edits=None))]
fn expected_accepted(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    rule: &str,
    edits: Option<&Bound<'_, PyAny>>,
) -> PyResult<f64> {
    hold(|| {
        let given = RowEdits::of(edits)?;
        over_rows(py, draft, logits, params, &given, |draft, drafter, target| {
            verify::expected_accepted(draft, drafter, target, rule)
        })
    })
}

/// Every verdict of one draft, or the exception in its place, with its probability over the
/// verifier's noise.
#[pyfunction]
#[pyo3(signature = (draft, logits, params, rule, *, edits=None))]
fn verdicts(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    rule: &str,
    edits: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<(Py<PyAny>, f64)>> {
    hold(|| {
        let given = RowEdits::of(edits)?;
        let found = over_rows(py, draft, logits, params, &given, |draft, drafter, target| {
            verify::verdicts(draft, drafter, target, rule)
        })?;
        let branch = |(result, weight): (Result<verify::Verdict, Error>, f64)| {
            let object = match result {
                Ok(verdict) => Py::new(py, Verdict::of_core(verdict, None))?.into_any(),
                Err(error) => PyErr::from(error).into_value(py).into_any(),
            };
            Ok((object, weight))
        };
        found.into_iter().map(branch).collect()
    })
}

/// Runs what enumerates a rule over a draft's rows.
fn over_rows<T: Send>(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    given: &RowEdits,
    work: impl FnOnce(&law::Draft, DrafterRows<'_>, ShapedRows<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let draft = draft.get();
    let params = params.get();
    let logits = Tensor::borrow(logits, "logits")?;
    let raw = logits.rows(LOGITS, false)?;
    let drafter = draft.drafter()?;
    let result = enter(py, || {
        let edits = given.edits(params.penalties.as_ref(), &draft.core, &raw)?;
        let target = ShapedRows::new(raw, params.shaping, Side::Target).edited(&edits);
        work(&draft.core, drafter, target)
    });
    given.finish(result)
}

#[pyfunction]
fn alpha_star(
    p: &Bound<'_, PyAny>,
    q: &Bound<'_, PyAny>,
    n: &Bound<'_, PyAny>,
    law: &str,
) -> PyResult<f64> {
    hold(|| {
        let children = count(n, "n")?;
        let (target, drafter) = (Tensor::borrow(p, "p")?, Tensor::borrow(q, "q")?);
        let (p, q) = (target.rows(FLOATS, true)?, drafter.rows(FLOATS, true)?);
        enter(n.py(), || alpha_star_of(&p, &q, children, Law::parse(law)?))
    })
}

fn alpha_star_of(p: &RawRows<'_>, q: &RawRows<'_>, n: usize, law: Law) -> Result<f64, Error> {
    let row = |name, raw: &RawRows<'_>| {
        raw.check_single(name)?;
        check_distribution(raw, 0)?;
        Ok((0..raw.num_cols()).map(|token| raw.value(0, token)).collect::<Vec<f64>>())
    };
    optimum::alpha_star(&row("p", p)?, &row("q", q)?, n, law)
}

/// One token from a shaped row, with the drafter's noise of a node.
#[pyfunction]
fn draw(
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, PyAny>,
    seed: &Bound<'_, PyAny>,
    position: &Bound<'_, PyAny>,
    node: &Bound<'_, PyAny>,
) -> PyResult<u32> {
    hold(|| {
        let params = core_params(params)?;
        let noise = Noise { seed: word(seed, "seed")?, position: word(position, "position")? };
        let number = tree_node(node)?;
        let tensor = Tensor::borrow(logits, "logits")?;
        let raw = tensor.rows(LOGITS, false)?;
        enter(logits.py(), || verify::draw(raw, params, noise, number))
    })
}

/// The number of a node, as large as noise addresses allow.
fn tree_node(node: &Bound<'_, PyAny>) -> PyResult<u32> {
    let number = count(node, "node")?;
    let limit = u64::from(u32::MAX);
    let overflow = Error::Overflow { what: "node", found: number as u64, limit };
    Ok(u32::try_from(number).map_err(|_| overflow)?)
}

/// The dense probabilities of a shaped row, float64 (V,).
#[pyfunction]
fn shaped_row<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    params: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    hold(|| {
        let params = core_params(params)?;
        let tensor = Tensor::borrow(logits, "logits")?;
        let raw = tensor.rows(LOGITS, false)?;
        let row = enter(py, || {
            raw.check_single("logits")?;
            let rows = ShapedRows::new(raw, params, Side::Target);
            let shaped = rows.shape(0, &mut Scratch::default())?;
            let tokens = 0..raw.num_cols() as u32;
            Ok(tokens.map(|token| rows.probability(0, &shaped, token)).collect::<Vec<f64>>())
        })?;
        Ok(PyArray1::from_vec(py, row))
    })
}

#[pyfunction]
fn commit_plan(
    tree: &Bound<'_, TokenTree>,
    path: &Bound<'_, PyAny>,
    start: &Bound<'_, PyAny>,
) -> PyResult<CommitPlan> {
    hold(|| {
        let (path, start) = (integers(path, "path")?, integer(start, "start")?);
        Ok(CommitPlan(plan(&tree.get().0, &path, start)?))
    })
}

#[pyfunction]
fn derive_seed(seed: &Bound<'_, PyAny>, row: &Bound<'_, PyAny>) -> PyResult<u64> {
    hold(|| Ok(rng::derive_seed(word(seed, "seed")?, word(row, "row")?)))
}

#[pyfunction]
fn rules(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        RULES
            .iter()
            .map(|rule| {
                let row = PyDict::new(py);
                row.set_item("name", rule.name)?;
                row.set_item("core", rule.core.name())?;
                row.set_item("laws", rule.laws.iter().map(|law| law.name()).collect::<Vec<_>>())?;
                row.set_item("shapes", rule.shapes)?;
                row.set_item("lossless", true)?;
                row.set_item("source", rule.source)?;
                row.set_item("proof", rule.proof())?;
                Ok(row)
            })
            .collect()
    })
}

#[pyfunction]
fn check_rule(
    rule: &str,
    laws: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    lossy: Option<&Bound<'_, Lossy>>,
) -> PyResult<()> {
    hold(|| {
        let laws = list(laws, "laws", |law, _| Ok(Law::parse(&law.extract::<String>()?)?))?;
        let lossy = lossy.map(|lossy| lossy.get().0);
        Ok(verify::check_rule(rule, &laws, params.get().shaping, lossy)?)
    })
}

#[pyfunction]
fn best_rule(law: &str) -> PyResult<&'static str> {
    hold(|| Ok(verify::best_rule(Law::parse(law)?).name))
}

/// Panics, to show in a test that the gate holds.
#[pyfunction]
#[pyo3(name = "_panic")]
#[allow(clippy::panic)]
fn panic_at_the_gate(py: Python<'_>) -> PyResult<()> {
    enter(py, || panic!("on request"))
}

#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    hold(|| {
        let info = PyDict::new(py);
        info.set_item("version", env!("CARGO_PKG_VERSION"))?;
        info.set_item("simd", Kernels::best().name)?;
        let levels: Vec<&str> = Kernels::available().iter().map(|level| level.name).collect();
        info.set_item("simd_available", levels)?;
        info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        info.set_item("arch", std::env::consts::ARCH)?;
        info.set_item("os", std::env::consts::OS)?;
        Ok(info)
    })
}

/// The compiled core.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MAX_NODES", MAX_NODES)?;
    module.add_class::<CoreParams>()?;
    module.add_class::<TokenTree>()?;
    module.add_class::<Draft>()?;
    module.add_class::<Verdict>()?;
    module.add_class::<Lossy>()?;
    module.add_class::<CommitPlan>()?;
    module.add_function(wrap_pyfunction!(verify_draft, module)?)?;
    module.add_function(wrap_pyfunction!(expected_accepted, module)?)?;
    module.add_function(wrap_pyfunction!(verdicts, module)?)?;
    module.add_function(wrap_pyfunction!(alpha_star, module)?)?;
    module.add_function(wrap_pyfunction!(draw, module)?)?;
    module.add_function(wrap_pyfunction!(shaped_row, module)?)?;
    module.add_function(wrap_pyfunction!(commit_plan, module)?)?;
    module.add_function(wrap_pyfunction!(derive_seed, module)?)?;
    module.add_function(wrap_pyfunction!(rules, module)?)?;
    module.add_function(wrap_pyfunction!(best_rule, module)?)?;
    module.add_function(wrap_pyfunction!(check_rule, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(panic_at_the_gate, module)?)?;
    batch::register(module)?;
    module.add_class::<attention::Attention>()?;
    module.add_class::<attention::Entries>()?;
    module.add_class::<head::Product>()?;
    module.add_class::<head::HeadBlock>()?;
    module.add_class::<head::HeadModule>()?;
    module.add_class::<grow::Grower>()?;
    kv::register(module)?;
    layout::register(module)?;
    ngram::register(module)?;
    #[cfg(feature = "proof")]
    proof::register(module)?;
    shape::register(module)?;
    store::register(module)
}
