//! The tables of many trees, for verifiers on other devices.

use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::batch::{Changes, Each, Layout, Offsets, unpack};
use crate::shaping::{Params, Preset};
use crate::verify::law::{self, Law};

use super::batch::{Drafts, OneOrEach};
use super::edits::RowEdits;
use super::errors::in_sequence;
use super::gate::{enter, hold};
use super::numbers::{count, flags, integers, list};
use super::types::CoreParams;

/// (9, R) int32, (5, B) int32, (6, B) float64, the names of the rules, and the sizes depth, children,
/// rounds: see `crate::batch::Layout` for the first two, [`shaping`] for the third.
type Tables<'py> = (
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<i32>>,
    Bound<'py, PyArray2<f64>>,
    Vec<&'static str>,
    (usize, usize, usize),
);

/// The tables of drafts.
#[pyfunction]
fn tables_of_drafts<'py>(
    drafts: &Bound<'py, PyAny>,
    params: &Bound<'py, PyAny>,
    rule: &Bound<'py, PyAny>,
) -> PyResult<Tables<'py>> {
    hold(|| {
        let drafts = Drafts::of(drafts)?;
        tables(&drafts.cores(), params, rule)
    })
}

/// The tables of trees whose rows, and maybe tokens, are elsewhere.
#[pyfunction]
#[pyo3(signature = (offsets, parents, tokens, law, sampled, params, rule))]
fn tables_of_trees<'py>(
    offsets: &Bound<'py, PyAny>,
    parents: &Bound<'py, PyAny>,
    tokens: Option<&Bound<'py, PyAny>>,
    law: &Bound<'py, PyAny>,
    sampled: Option<&Bound<'py, PyAny>>,
    params: &Bound<'py, PyAny>,
    rule: &Bound<'py, PyAny>,
) -> PyResult<Tables<'py>> {
    hold(|| {
        let offsets = Offsets::new(&integers(offsets, "offsets")?)?;
        let parents = integers(parents, "parents")?;
        let tokens = match tokens {
            Some(tokens) => integers(tokens, "tokens")?,
            // Nobody here knows them: siblings differ, as far as can be said.
            None => (0..offsets.total() as i64).collect(),
        };
        let sampled = sampled.map(|sampled| flags(sampled, "sampled")).transpose()?;
        let laws = OneOrEach::of(law, "law", |own| Ok(Law::parse(&own.extract::<String>()?)?))?;
        let drafts = unpack(&offsets, &parents, &tokens, laws.core(), sampled.as_deref())?;
        tables(&drafts.iter().collect::<Vec<_>>(), params, rule)
    })
}

/// (S,) int32, (E,) int64, (E,) bool, (6, E) float32: see [`Changes`].
type Edited<'py> = (
    Bound<'py, PyArray1<i32>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<bool>>,
    Bound<'py, PyArray2<f32>>,
);

/// What penalties change in the rows of trees, given their table of nodes and each sequence's record of
/// edits (or none at all), of which the history is used.
#[pyfunction]
fn changes_of_rows<'py>(
    nodes: &Bound<'py, PyAny>,
    params: &Bound<'py, PyAny>,
    edits: &Bound<'py, PyAny>,
    vocab: &Bound<'py, PyAny>,
) -> PyResult<Edited<'py>> {
    hold(|| {
        let py = nodes.py();
        let nodes = nodes.cast::<PyArray2<i32>>()?.try_readonly()?;
        let column = |at| nodes.as_array().row(at).to_vec();
        let (sequences, parents, tokens): (Vec<i32>, _, _) = (column(0), column(2), column(7));
        let params = OneOrEach::of(params, "params", |own| Ok(own.cast::<CoreParams>()?.clone()))?;
        let params = params.map(Bound::get);
        let given = list(edits, "edits", |record, sequence| {
            RowEdits::of(Some(record)).map_err(|error| in_sequence(error, sequence))
        })?;
        let vocab = count(vocab, "vocab")?;
        let none = RowEdits::default();
        let changes = enter(py, || {
            let mut changes = Changes::default();
            let mut start = 0;
            for rows in sequences.chunk_by(PartialEq::eq) {
                let (sequence, end) = (rows[0] as usize, start + rows.len());
                let penalties = params.get(sequence).and_then(|own| own.penalties.as_ref());
                if let Some(penalties) = penalties {
                    let table = given.get(sequence).unwrap_or(&none).table(penalties, vocab);
                    let table = table.map_err(|error| error.in_sequence(sequence as i64))?;
                    changes.push(&table, start..end, (&parents, &tokens), vocab);
                }
                start = end;
            }
            Ok(changes)
        })?;
        let Changes { rows, cells, banned, numbers } = changes;
        Ok((
            PyArray1::from_vec(py, rows),
            PyArray1::from_vec(py, cells),
            PyArray1::from_vec(py, banned),
            table(py, &numbers)?,
        ))
    })
}

fn tables<'py>(
    drafts: &[&law::Draft],
    params: &Bound<'py, PyAny>,
    rule: &Bound<'py, PyAny>,
) -> PyResult<Tables<'py>> {
    let py = params.py();
    let params =
        OneOrEach::of(params, "params", |own| Ok(own.cast::<CoreParams>()?.get().shaping))?;
    let rule = OneOrEach::of(rule, "rule", |own| own.extract::<String>())?;
    let params = params.core().listed("params", drafts.len())?;
    let rules = rule.map(String::as_str);
    let layout = Layout::of(drafts, rules.core(), Each::Own(&params))?;
    let shaped: Vec<[f64; 6]> = params.iter().map(shaping).collect();
    let columns = (0..6).map(|at| shaped.iter().map(|own| own[at]).collect()).collect::<Vec<_>>();
    let sizes = (layout.depth, layout.children, layout.rounds);
    Ok((
        table(py, &layout.nodes)?,
        table(py, &layout.sequences)?,
        table(py, &columns)?,
        layout.rules,
        sizes,
    ))
}

fn table<'py, T: numpy::Element + Copy>(
    py: Python<'py>,
    columns: &[Vec<T>],
) -> PyResult<Bound<'py, PyArray2<T>>> {
    let length = columns.first().map_or(0, Vec::len);
    PyArray1::from_vec(py, columns.concat()).reshape([columns.len(), length])
}

/// Temperature (a float32; 0: greedy), top-k, top-p, min-p, its logarithm, and 1 where min-p comes first.
fn shaping(params: &Params) -> [f64; 6] {
    let temperature = if params.is_greedy() { 0.0 } else { f64::from(params.temperature() as f32) };
    let (top_k, top_p, min_p) = params.cuts();
    let is_first = params.preset() == Preset::Vllm;
    let top_k = top_k.min(i32::MAX as usize) as f64;
    [temperature, top_k, top_p, min_p, min_p.ln(), f64::from(u8::from(is_first))]
}

/// Adds the functions to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(tables_of_drafts, module)?)?;
    module.add_function(wrap_pyfunction!(tables_of_trees, module)?)?;
    module.add_function(wrap_pyfunction!(changes_of_rows, module)?)
}
