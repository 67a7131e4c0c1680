//! The drafter's rows as they came with a draft, or with a batch of drafts.

use std::collections::BTreeMap;

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::python::numbers::integers;
use crate::python::tensor::Tensor;
use crate::python::types::{core_params, sampling_params};
use crate::rows::RawRows;
use crate::shaping::{Params, ShapedRows, Side};
use crate::verify::declared::check_drawn;
use crate::verify::law::{self, Law};
use crate::verify::lazy::{DrafterRows, Source, check_distribution};

pub(super) const FLOATS: &str = "float32, float16, bfloat16 or float64";
pub(super) const LOGITS: &str = "float32, float16 or bfloat16";

enum Given {
    None,
    Probabilities(Tensor),
    Logits(Tensor, Params),
}

/// The drafter's rows of one draft, or of all drafts of a batch.
pub(super) struct GivenRows {
    given: Given,
    vocab: Option<Vec<(u32, u32)>>,
}

impl GivenRows {
    /// Takes what the constructors of drafts take.
    pub(super) fn new(
        law: Law,
        probs: Option<Tensor>,
        logits: Option<Tensor>,
        params: Option<&Bound<'_, PyAny>>,
        vocab: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let refuse = |reason| Err(PyErr::from(Error::LawData { law: law.name(), reason }));
        let given = match (probs, logits) {
            (Some(_), Some(_)) => return refuse("takes probs or logits, not both"),
            (None, None) => Given::None,
            _ if !law.is_sampled() => {
                return refuse(
                    "never reads drafter rows; leave probs and logits out, or name the law by which \
                     the tokens were sampled",
                );
            }
            (Some(probs), None) => Given::Probabilities(probs),
            (None, Some(logits)) => {
                Given::Logits(logits, params.map_or_else(|| Ok(Params::default()), core_params)?)
            }
        };
        let mut rows = Self { given, vocab: None };
        let columns = rows.raw()?.map_or(0, |raw| raw.num_cols());
        let vocab = vocab.map(|map| integers(map, "vocab")).transpose()?;
        let vocab = vocab.map(|map| vocabulary(map, columns)).transpose();
        rows.vocab = vocab?;
        Ok(rows)
    }

    fn raw(&self) -> Result<Option<RawRows<'_>>> {
        match &self.given {
            Given::None => Ok(None),
            Given::Probabilities(tensor) => tensor.rows(FLOATS, true).map(Some),
            Given::Logits(tensor, _) => tensor.rows(LOGITS, false).map(Some),
        }
    }

    /// The row of each of `count` nodes: as given, or row i for node i as far as there are rows.
    pub(super) fn index(
        &self,
        rows: Option<&Bound<'_, PyAny>>,
        count: usize,
    ) -> PyResult<Vec<i64>> {
        let Some(rows) = rows else {
            let num_rows = self.raw()?.map_or(0, |raw| raw.num_rows());
            return Ok((0..count).map(|i| if i < num_rows { i as i64 } else { -1 }).collect());
        };
        let index = integers(rows, "rows")?;
        if index.len() != count {
            return Err(PyErr::from(Error::ShapeMismatch {
                what: "rows",
                found: format!("({},)", index.len()),
                wanted: format!("({count},), one for each node"),
            }));
        }
        Ok(index)
    }

    /// The rows of one draft, borrowed; `index` says which row belongs to each of its nodes.
    pub(super) fn of<'a>(&'a self, index: &'a [i64]) -> Result<DrafterRows<'a>> {
        let source = match &self.given {
            Given::None => Source::None,
            Given::Probabilities(tensor) => Source::Probabilities(tensor.rows(FLOATS, true)?),
            Given::Logits(tensor, params) => {
                Source::Logits(ShapedRows::new(tensor.rows(LOGITS, false)?, *params, Side::Drafter))
            }
        };
        Ok(DrafterRows { source, index, vocab: self.vocab.as_deref() })
    }

    /// Checks that each sampled node of a draft has its row, and q > 0 there.
    pub(super) fn check(&self, draft: &law::Draft, index: &[i64]) -> Result<()> {
        check_drawn(draft, &self.of(index)?)
    }

    /// Checks that the rows of probabilities are distributions.
    pub(super) fn validate(&self) -> Result<()> {
        if let (Given::Probabilities(_), Some(raw)) = (&self.given, self.raw()?) {
            for row in 0..raw.num_rows() {
                check_distribution(&raw, row)?;
            }
        }
        Ok(())
    }

    /// Whether each node has an equal row here and there, read in the same way.
    pub(super) fn is_same(&self, index: &[i64], other: &Self, its_index: &[i64]) -> Result<bool> {
        let is_alike = match (&self.given, &other.given) {
            (Given::None, Given::None) => return Ok(true),
            (Given::Probabilities(_), Given::Probabilities(_)) => true,
            (Given::Logits(_, one), Given::Logits(_, two)) => one == two,
            _ => false,
        };
        let (Some(mine), Some(theirs)) = (self.raw()?, other.raw()?) else { return Ok(false) };
        if !is_alike || self.vocab != other.vocab || mine.num_cols() != theirs.num_cols() {
            return Ok(false);
        }
        let is_equal = |(&one, &two): (&i64, &i64)| match (at(&mine, one), at(&theirs, two)) {
            (None, None) => true,
            (Some(one), Some(two)) => (0..mine.num_cols()).all(|column| {
                mine.value(one, column).to_bits() == theirs.value(two, column).to_bits()
            }),
            _ => false,
        };
        Ok(index.len() == its_index.len() && index.iter().zip(its_index).all(is_equal))
    }

    /// A copy of the rows of the given nodes, as the constructors of drafts take them.
    ///
    /// Half precision is widened, which is what every reader does with it.
    pub(super) fn saved<'py>(&self, py: Python<'py>, index: &[i64]) -> PyResult<Saved<'py>> {
        let Some(raw) = self.raw()? else { return Ok(Saved::default()) };
        // A draft of a batch leaves the rows of the others behind.
        let mut kept = Vec::new();
        let mut numbers = BTreeMap::new();
        let mut place = |row: usize| {
            *numbers.entry(row).or_insert_with(|| {
                kept.push(row);
                kept.len() as i64 - 1
            })
        };
        let rows = index.iter().map(|&row| at(&raw, row).map_or(-1, &mut place)).collect();
        let shape = [kept.len(), raw.num_cols()];
        let cells =
            kept.iter().flat_map(|&row| (0..raw.num_cols()).map(move |column| (row, column)));
        let values = cells.map(|(row, column)| raw.value(row, column));
        let matrix = if raw.is_narrow() {
            PyArray1::from_iter(py, values.map(|value| value as f32)).reshape(shape)?.into_any()
        } else {
            PyArray1::from_iter(py, values).reshape(shape)?.into_any()
        };
        let vocab = self.vocab.as_ref().map(|pairs| {
            let mut by_column = pairs.clone();
            by_column.sort_unstable_by_key(|&(_, column)| column);
            by_column.into_iter().map(|(token, _)| token).collect()
        });
        let saved = Saved { rows: Some(rows), vocab, ..Saved::default() };
        Ok(match &self.given {
            Given::Logits(_, params) => {
                let params = Some(sampling_params(py, params)?);
                Saved { logits: Some(matrix), params, ..saved }
            }
            _ => Saved { probs: Some(matrix), ..saved },
        })
    }
}

/// Arguments of the constructors of drafts.
#[derive(Default)]
pub(super) struct Saved<'py> {
    pub(super) probs: Option<Bound<'py, PyAny>>,
    pub(super) rows: Option<Vec<i64>>,
    pub(super) logits: Option<Bound<'py, PyAny>>,
    pub(super) params: Option<Bound<'py, PyAny>>,
    pub(super) vocab: Option<Vec<u32>>,
}

/// The row of an index, if there is one.
fn at(raw: &RawRows<'_>, row: i64) -> Option<usize> {
    usize::try_from(row).ok().filter(|&row| row < raw.num_rows())
}

/// `(token, column)` by ascending token.
fn vocabulary(map: Vec<i64>, columns: usize) -> Result<Vec<(u32, u32)>> {
    if map.len() != columns {
        return Err(Error::ShapeMismatch {
            what: "vocab",
            found: format!("({},)", map.len()),
            wanted: format!("({columns},), one token for each column of the drafter's rows"),
        });
    }
    let mut pairs = Vec::with_capacity(map.len());
    for (column, token) in (0_u32..).zip(map) {
        let token = u32::try_from(token).map_err(|_| Error::ShapeMismatch {
            what: "vocab",
            found: format!("token {token} at column {column}"),
            wanted: "token ids".into(),
        })?;
        pairs.push((token, column));
    }
    pairs.sort_unstable();
    if let Some(pair) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::ShapeMismatch {
            what: "vocab",
            found: format!("token {} at columns {} and {}", pair[0].0, pair[0].1, pair[1].1),
            wanted: "distinct tokens".into(),
        });
    }
    Ok(pairs)
}
