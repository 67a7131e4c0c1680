//! The Python module `mtp_verify._core`: the only place that knows Python.

mod batch;
mod buffer;
mod draft_batch;
mod drafts;
mod edits;
mod errors;
mod kv;
mod lossy;
mod ngram;
mod plans;
mod shape;
mod tensor;
mod types;

use std::panic::{AssertUnwindSafe, catch_unwind};

use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dist::{Scratch, ShapedRows, Side};
use crate::error::Error;
use crate::kv::commit_plan as plan;
use crate::rows::RawRows;
use crate::simd::Kernels;
use crate::tree::MAX_NODES;
use crate::verify::law::{self, Law};
use crate::verify::lazy::{DrafterRows, check_distribution};
use crate::verify::top::TopLogprobs;
use crate::verify::{self, Core, Noise, RULES, optimum};
use crate::{certify, fpmode, rng};

use drafts::{Draft, FLOATS};
use edits::Context;
use errors::to_py;
use lossy::Lossy;
use tensor::{Tensor, integers, size};
use types::{CommitPlan, CoreParams, TokenTree, Verdict, core_params};

/// The one gate: runs pure Rust detached from the interpreter; errors and panics become exceptions.
///
/// A panic never crosses: pyo3's own exception for it is no `Exception` and would slip past users'
/// handlers.
fn enter<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Error> + Send) -> PyResult<T> {
    let work = || {
        let _standard = fpmode::Standard::enter();
        work()
    };
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(result) => result.map_err(|error| to_py(&error)),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a message");
            Err(errors::internal(text))
        }
    }
}

const LOGITS: &str = "float32, float16 or bfloat16";

#[pyfunction]
#[pyo3(name = "verify", signature = (
    draft, logits, params, rule, seed, position, lossy=None, history=None, prompt_len=0, bitmask=None,
    process=None, top_logprobs=0
))]
#[allow(clippy::too_many_arguments)] // The public function's.
fn verify_draft(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    rule: &str,
    seed: u64,
    position: u64,
    lossy: Option<&Bound<'_, Lossy>>,
    history: Option<&Bound<'_, PyAny>>,
    prompt_len: i64,
    bitmask: Option<&Bound<'_, PyAny>>,
    process: Option<Py<PyAny>>,
    top_logprobs: i64,
) -> PyResult<Verdict> {
    let draft = draft.get();
    let lossy = lossy.map(|lossy| lossy.get().0);
    let params = params.get();
    let logits = Tensor::borrow(logits, "logits")?;
    let raw = logits.rows(LOGITS, false)?;
    let drafter = draft.drafter()?;
    let context = Context::new(history, prompt_len, bitmask, process)?;
    let n = size("top_logprobs", top_logprobs).map_err(|error| to_py(&error))?;
    let result = enter(py, || {
        draft.check_columns(raw.num_cols())?;
        let noise = Noise { seed, position };
        let edits = context.edits(params.penalties.as_ref(), &draft.core, raw.num_cols())?;
        let target = ShapedRows::new(raw, params.shaping, Side::Target).edited(&edits);
        let verdict = verify::verify_shaped(&draft.core, drafter, target, rule, lossy, noise)?;
        let top = (n > 0).then(|| TopLogprobs::new(&target, &verdict, n)).transpose()?;
        Ok(Verdict { verdict, top })
    });
    context.finish(result)
}

#[pyfunction]
#[pyo3(signature = (
    draft, logits, params, rule, history=None, prompt_len=0, bitmask=None, process=None
))]
#[allow(clippy::too_many_arguments)] // The public function's.
fn expected_accepted(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    rule: &str,
    history: Option<&Bound<'_, PyAny>>,
    prompt_len: i64,
    bitmask: Option<&Bound<'_, PyAny>>,
    process: Option<Py<PyAny>>,
) -> PyResult<f64> {
    let context = Context::new(history, prompt_len, bitmask, process)?;
    over_rows(py, draft, logits, params, &context, |draft, drafter, target| {
        verify::expected_accepted(draft, drafter, target, rule)
    })
}

/// Every verdict of one draft, or the exception in its place, with its probability over the
/// verifier's noise.
#[pyfunction]
#[pyo3(signature = (
    draft, logits, params, rule, history=None, prompt_len=0, bitmask=None, process=None
))]
#[allow(clippy::too_many_arguments)] // As `expected_accepted`.
fn verdicts(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    rule: &str,
    history: Option<&Bound<'_, PyAny>>,
    prompt_len: i64,
    bitmask: Option<&Bound<'_, PyAny>>,
    process: Option<Py<PyAny>>,
) -> PyResult<Vec<(Py<PyAny>, f64)>> {
    let context = Context::new(history, prompt_len, bitmask, process)?;
    let found = over_rows(py, draft, logits, params, &context, |draft, drafter, target| {
        verify::verdicts(draft, drafter, target, rule)
    })?;
    let branch = |(result, weight): (Result<verify::Verdict, Error>, f64)| {
        let object = match result {
            Ok(verdict) => Py::new(py, Verdict { verdict, top: None })?.into_any(),
            Err(error) => to_py(&error).into_value(py).into_any(),
        };
        Ok((object, weight))
    };
    found.into_iter().map(branch).collect()
}

/// Runs what enumerates a rule over a draft's rows.
fn over_rows<T: Send>(
    py: Python<'_>,
    draft: &Bound<'_, Draft>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, CoreParams>,
    context: &Context,
    work: impl FnOnce(&law::Draft, DrafterRows<'_>, ShapedRows<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let draft = draft.get();
    let params = params.get();
    let logits = Tensor::borrow(logits, "logits")?;
    let raw = logits.rows(LOGITS, false)?;
    let drafter = draft.drafter()?;
    let result = enter(py, || {
        draft.check_columns(raw.num_cols())?;
        let edits = context.edits(params.penalties.as_ref(), &draft.core, raw.num_cols())?;
        let target = ShapedRows::new(raw, params.shaping, Side::Target).edited(&edits);
        work(&draft.core, drafter, target)
    });
    context.finish(result)
}

#[pyfunction]
fn alpha_star(
    py: Python<'_>,
    p: &Bound<'_, PyAny>,
    q: &Bound<'_, PyAny>,
    n: usize,
    law: &str,
) -> PyResult<f64> {
    let (p, q) = (Tensor::borrow(p, "p")?, Tensor::borrow(q, "q")?);
    let (p, q) = (p.rows(FLOATS, true)?, q.rows(FLOATS, true)?);
    enter(py, || alpha_star_of(&p, &q, n, Law::parse(law)?))
}

fn alpha_star_of(p: &RawRows<'_>, q: &RawRows<'_>, n: usize, law: Law) -> Result<f64, Error> {
    let row = |name, raw: &RawRows<'_>| {
        if raw.num_rows() != 1 {
            return Err(Error::ShapeMismatch {
                what: name,
                found: format!("{} rows", raw.num_rows()),
                wanted: "one row, (V,)".into(),
            });
        }
        check_distribution(raw, 0)?;
        Ok((0..raw.num_cols()).map(|token| raw.value(0, token)).collect::<Vec<f64>>())
    };
    optimum::alpha_star(&row("p", p)?, &row("q", q)?, n, law)
}

/// One token from a shaped row, with the drafter's noise of a node.
#[pyfunction]
fn draw(
    py: Python<'_>,
    logits: &Bound<'_, PyAny>,
    params: &Bound<'_, PyAny>,
    seed: u64,
    position: u64,
    node: u32,
) -> PyResult<u32> {
    let params = core_params(params)?;
    let tensor = Tensor::borrow(logits, "logits")?;
    let raw = tensor.rows(LOGITS, false)?;
    enter(py, || verify::draw(raw, params, Noise { seed, position }, node))
}

/// The dense probabilities of a shaped row, float64 (V,).
#[pyfunction]
fn shaped_row<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    params: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyArray1<f64>>> {
    let params = core_params(params)?;
    let tensor = Tensor::borrow(logits, "logits")?;
    let raw = tensor.rows(LOGITS, false)?;
    let row = enter(py, || {
        let rows = ShapedRows::new(raw, params, Side::Target);
        let shaped = rows.shape(0, &mut Scratch::default())?;
        let tokens = 0..raw.num_cols() as u32;
        Ok(tokens.map(|token| rows.probability(0, &shaped, token)).collect::<Vec<f64>>())
    })?;
    Ok(PyArray1::from_vec(py, row))
}

#[pyfunction]
fn commit_plan(
    tree: &Bound<'_, TokenTree>,
    path: &Bound<'_, PyAny>,
    start: i64,
) -> PyResult<CommitPlan> {
    let path = integers(path, "path")?;
    plan(&tree.get().0, &path, start).map(CommitPlan).map_err(|error| to_py(&error))
}

#[pyfunction]
fn derive_seed(seed: u64, row: u64) -> u64 {
    rng::derive_seed(seed, row)
}

#[pyfunction]
fn rules(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    RULES
        .iter()
        .map(|rule| {
            let row = PyDict::new(py);
            row.set_item("name", rule.name)?;
            row.set_item(
                "core",
                match rule.core {
                    Core::Greedy => "greedy",
                    Core::TargetOnly => "target_only",
                    Core::Coupled => "coupled",
                    Core::TopDown => "topdown",
                    Core::Lifted => "lifted",
                    Core::KSeq => "kseq",
                    Core::Gbv => "gbv",
                },
            )?;
            row.set_item("laws", rule.laws.iter().map(|law| law.name()).collect::<Vec<_>>())?;
            row.set_item("shapes", rule.shapes)?;
            row.set_item("lossless", true)?;
            row.set_item("source", rule.source)?;
            row.set_item("proof", rule.proof())?;
            Ok(row)
        })
        .collect()
}

#[pyfunction]
fn best_rule(law: &str) -> PyResult<&'static str> {
    let law = Law::parse(law).map_err(|error| to_py(&error))?;
    Ok(verify::best_rule(law).name)
}

/// The certificate: one dict for each rule and law.
#[pyfunction]
#[pyo3(name = "certify")]
fn certify_rules(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let lines = enter(py, certify::certify)?;
    lines
        .iter()
        .map(|line| {
            let row = PyDict::new(py);
            row.set_item("rule", line.rule)?;
            row.set_item("law", line.law)?;
            row.set_item("cases", line.cases)?;
            row.set_item("rounds", line.rounds)?;
            row.set_item("generated", line.generated)?;
            row.set_item("branches", line.branches)?;
            row.set_item("distance", &line.distance)?;
            row.set_item("f64_difference", line.f64_difference)?;
            row.set_item("expected", line.expected.clone())?;
            row.set_item("holds", line.holds())?;
            Ok(row)
        })
        .collect()
}

/// Panics, to show in a test that the gate holds.
#[pyfunction]
#[pyo3(name = "_panic")]
#[allow(clippy::panic)]
fn panic_at_the_gate(py: Python<'_>) -> PyResult<()> {
    enter(py, || panic!("on request"))
}

/// Drafts whose declared law is not their own: one dict for each, with the bias that it causes.
#[pyfunction]
fn lies(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let trials = enter(py, certify::try_lies)?;
    trials
        .iter()
        .map(|(lie, distance)| {
            let row = PyDict::new(py);
            row.set_item("name", lie.name)?;
            row.set_item("change", lie.what)?;
            row.set_item("case", lie.describe())?;
            row.set_item("stated", lie.stated())?;
            row.set_item("distance", distance.to_string())?;
            row.set_item("killed", lie.is_biased_as_written(distance))?;
            Ok(row)
        })
        .collect()
}

/// The mutants: one dict for each, or None in a build without them.
#[pyfunction]
#[cfg_attr(not(feature = "mutants"), allow(clippy::unnecessary_wraps))]
fn mutants(py: Python<'_>) -> PyResult<Option<Vec<Bound<'_, PyDict>>>> {
    #[cfg(not(feature = "mutants"))]
    let (trials, _) = (None, py);
    #[cfg(feature = "mutants")]
    let trials = {
        let row_of = |trial: &certify::mutants::Trial| {
            let row = PyDict::new(py);
            row.set_item("name", trial.mutant.name)?;
            row.set_item("change", trial.mutant.change)?;
            row.set_item("case", &trial.case)?;
            row.set_item("stated", trial.stated())?;
            row.set_item("distance", trial.distance.to_string())?;
            row.set_item("killed", trial.is_killed() && trial.is_as_written())?;
            Ok(row)
        };
        let trials = enter(py, certify::mutants::try_all)?;
        Some(trials.iter().map(row_of).collect::<PyResult<_>>()?)
    };
    Ok(trials)
}

#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    info.set_item("simd", Kernels::best().name)?;
    let levels: Vec<&str> = Kernels::available().iter().map(|level| level.name).collect();
    info.set_item("simd_available", levels)?;
    info.set_item("profile", if cfg!(debug_assertions) { "debug" } else { "release" })?;
    info.set_item("arch", std::env::consts::ARCH)?;
    info.set_item("os", std::env::consts::OS)?;
    Ok(info)
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
    module.add_function(wrap_pyfunction!(certify_rules, module)?)?;
    module.add_function(wrap_pyfunction!(lies, module)?)?;
    module.add_function(wrap_pyfunction!(mutants, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)?;
    module.add_function(wrap_pyfunction!(panic_at_the_gate, module)?)?;
    batch::register(module)?;
    kv::register(module)?;
    ngram::register(module)?;
    shape::register(module)
}
