//! The proof: what it found, one dict for each line of its tables. In builds with the feature `proof` alone.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::proof;
use crate::proof::field::{self, Counterexample};
use crate::proof::float::{self, ACCEPT_BOUND, DECISION_BOUND, DRAW_BOUND, LOGITS_BOUND};

use super::gate::{enter, hold};

/// The rules: one dict for each rule and law.
#[pyfunction]
fn prove_rules(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let lines = enter(py, proof::prove)?;
        lines
            .iter()
            .map(|line| {
                let row = PyDict::new(py);
                row.set_item("rule", line.rule)?;
                row.set_item("law", line.law)?;
                row.set_item("cases", line.cases)?;
                row.set_item("steps", line.steps)?;
                row.set_item("generated", line.generated)?;
                row.set_item("branches", line.branches)?;
                row.set_item("distance", &line.distance)?;
                row.set_item("f64_difference", line.f64_difference)?;
                row.set_item("expected", line.expected.clone())?;
                row.set_item("holds", line.holds())?;
                Ok(row)
            })
            .collect()
    })
}

/// The rows that ship: one dict for each format and instruction set.
#[pyfunction]
fn prove_floats(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let lines = enter(py, float::prove)?;
        lines
            .iter()
            .map(|line| {
                let row = PyDict::new(py);
                row.set_item("format", &line.format)?;
                row.set_item("level", line.level)?;
                row.set_item("cases", line.cases)?;
                row.set_item("branches", line.branches)?;
                row.set_item("decisions", line.decisions)?;
                row.set_item("decisions_bound", DECISION_BOUND)?;
                row.set_item("worst", &line.worst)?;
                row.set_item("target_rows", line.target_rows)?;
                row.set_item("target_bound", LOGITS_BOUND)?;
                row.set_item("drafter_rows", line.drafter_rows)?;
                row.set_item("drafter_bound", line.drafter_bound)?;
                row.set_item("whole", line.whole)?;
                row.set_item("whole_bound", line.whole_bound)?;
                row.set_item("holds", line.holds())?;
                Ok(row)
            })
            .collect()
    })
}

/// Draws and acceptances over all numbers: one dict for each format and instruction set.
#[pyfunction]
fn prove_draws(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let lines = enter(py, float::prove_draws)?;
        lines
            .iter()
            .map(|line| {
                let row = PyDict::new(py);
                row.set_item("format", &line.format)?;
                row.set_item("level", line.level)?;
                row.set_item("draws", line.draws)?;
                row.set_item("distance", line.distance)?;
                row.set_item("draw_bound", DRAW_BOUND)?;
                row.set_item("exact", line.exact)?;
                row.set_item("acceptances", line.acceptances)?;
                row.set_item("difference", line.difference)?;
                row.set_item("accept_bound", ACCEPT_BOUND)?;
                row.set_item("holds", line.holds())?;
                Ok(row)
            })
            .collect()
    })
}

/// Misdeclared drafts, whose law is not the one that they claim: one dict for each, with the bias that it causes.
#[pyfunction]
fn misdeclared(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let trials = enter(py, proof::try_misdeclared)?;
        trials
            .iter()
            .map(|(draft, distance)| {
                let row = PyDict::new(py);
                row.set_item("name", draft.name)?;
                row.set_item("change", draft.what)?;
                row.set_item("case", draft.describe())?;
                row.set_item("stated", draft.stated())?;
                row.set_item("distance", distance.to_string())?;
                row.set_item("killed", draft.is_biased_as_written(distance))?;
                Ok(row)
            })
            .collect()
    })
}

fn example_of<'py>(py: Python<'py>, example: &Counterexample) -> PyResult<Bound<'py, PyDict>> {
    let row = PyDict::new(py);
    row.set_item("target", &example.target)?;
    row.set_item("drafter", &example.drafter)?;
    row.set_item("shape", example.shape)?;
    row.set_item("tokens", &example.tokens)?;
    row.set_item("emitted", &example.emitted)?;
    row.set_item("wanted", &example.wanted)?;
    row.set_item("distance", &example.distance)?;
    Ok(row)
}

/// The field's rules: one dict for each, with its cases and the smallest counterexample found, if any.
#[pyfunction]
fn prove_field(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let lines = enter(py, field::prove_field)?;
        lines
            .iter()
            .map(|line| {
                let cases = line.cases.iter().map(|case| {
                    let row = PyDict::new(py);
                    row.set_item("case", &case.case)?;
                    row.set_item("distance", &case.distance)?;
                    row.set_item("expected", &case.expected)?;
                    row.set_item("shipped", case.shipped.clone())?;
                    PyResult::Ok(row)
                });
                let row = PyDict::new(py);
                row.set_item("rule", line.rule)?;
                row.set_item("source", line.source)?;
                row.set_item("claimed_lossless", line.is_claimed_lossless)?;
                row.set_item("lossless", line.is_lossless())?;
                row.set_item("law", line.law)?;
                row.set_item("cases", cases.collect::<PyResult<Vec<_>>>()?)?;
                row.set_item("distance", &line.distance)?;
                row.set_item("generated", line.generated.0)?;
                row.set_item("generated_biased", line.generated.1)?;
                row.set_item("branches", line.branches)?;
                row.set_item("tried", line.tried)?;
                row.set_item(
                    "counterexample",
                    line.counterexample.as_ref().map(|found| example_of(py, found)).transpose()?,
                )?;
                row.set_item("holds", line.holds())?;
                Ok(row)
            })
            .collect()
    })
}

/// The mutants: one dict for each, or None in a build without them.
#[pyfunction]
#[cfg_attr(not(feature = "mutants"), allow(clippy::unnecessary_wraps))]
fn mutants(py: Python<'_>) -> PyResult<Option<Vec<Bound<'_, PyDict>>>> {
    hold(|| {
        #[cfg(not(feature = "mutants"))]
        let (trials, _) = (None, py);
        #[cfg(feature = "mutants")]
        let trials = {
            let row_of = |trial: &proof::mutants::Trial| {
                let row = PyDict::new(py);
                row.set_item("name", trial.mutant.name)?;
                row.set_item("group", trial.mutant.group())?;
                row.set_item("change", trial.mutant.change)?;
                row.set_item("case", &trial.case)?;
                row.set_item("stated", trial.stated())?;
                row.set_item("distance", trial.distance.to_string())?;
                row.set_item("killed", trial.is_killed() && trial.is_as_written())?;
                Ok(row)
            };
            let trials = enter(py, proof::mutants::try_all)?;
            Some(trials.iter().map(row_of).collect::<PyResult<_>>()?)
        };
        Ok(trials)
    })
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(prove_rules, module)?)?;
    module.add_function(wrap_pyfunction!(prove_floats, module)?)?;
    module.add_function(wrap_pyfunction!(prove_draws, module)?)?;
    module.add_function(wrap_pyfunction!(misdeclared, module)?)?;
    module.add_function(wrap_pyfunction!(prove_field, module)?)?;
    module.add_function(wrap_pyfunction!(mutants, module)?)
}
