//! The proof: what it found, one dict for each line of its tables.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::certify;
use crate::certify::float::{self, ACCEPT_BOUND, DECISION_BOUND, DRAW_BOUND, LOGITS_BOUND};

use super::gate::{enter, hold};

/// The certificate: one dict for each rule and law.
#[pyfunction]
#[pyo3(name = "certify")]
fn certify_rules(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
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
    })
}

/// The rows that ship: one dict for each format and instruction set.
#[pyfunction]
fn certify_floats(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let lines = enter(py, float::certify)?;
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
fn certify_draws(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
        let lines = enter(py, float::certify_draws)?;
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

/// Drafts whose declared law is not their own: one dict for each, with the bias that it causes.
#[pyfunction]
fn lies(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    hold(|| {
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
            let row_of = |trial: &certify::mutants::Trial| {
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
            let trials = enter(py, certify::mutants::try_all)?;
            Some(trials.iter().map(row_of).collect::<PyResult<_>>()?)
        };
        Ok(trials)
    })
}

pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(certify_rules, module)?)?;
    module.add_function(wrap_pyfunction!(certify_floats, module)?)?;
    module.add_function(wrap_pyfunction!(certify_draws, module)?)?;
    module.add_function(wrap_pyfunction!(lies, module)?)?;
    module.add_function(wrap_pyfunction!(mutants, module)?)
}
