//! `Draft`, and the drafter's rows as they came with it.

use std::sync::Arc;

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::bindings::gate::hold;
use crate::bindings::numbers::{flags, integer, integers};
use crate::bindings::tensor::Tensor;
use crate::bindings::types::{TokenTree, core_params};
use crate::dist::{Params, ShapedRows, Side};
use crate::error::{Error, Result};
use crate::rows::RawRows;
use crate::tree;
use crate::verify::declared::check_drawn;
use crate::verify::law::{self, Law};
use crate::verify::lazy::{DrafterRows, Source, check_distribution};

pub(super) const FLOATS: &str = "float32, float16, bfloat16 or float64";
const LOGITS: &str = "float32, float16 or bfloat16";

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

    fn validate(&self) -> Result<()> {
        if let (Given::Probabilities(_), Some(raw)) = (&self.given, self.raw()?) {
            for row in 0..raw.num_rows() {
                check_distribution(&raw, row)?;
            }
        }
        Ok(())
    }
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

/// A tree of drafted tokens, the law they were made by, and the drafter's rows.
#[pyclass(frozen, module = "mtp_verify")]
pub(super) struct Draft {
    pub(super) core: law::Draft,
    rows: Arc<GivenRows>,
    index: Vec<i64>,
}

impl Draft {
    /// A draft whose rows may be those of others, too; checked already.
    pub(super) fn of(core: law::Draft, rows: Arc<GivenRows>, index: Vec<i64>) -> Self {
        Self { core, rows, index }
    }

    /// The drafter's rows, borrowed.
    pub(super) fn drafter(&self) -> Result<DrafterRows<'_>> {
        self.rows.of(&self.index)
    }
}

#[pymethods]
impl Draft {
    #[new]
    #[pyo3(signature = (tree, tokens, law="deterministic", probs=None, rows=None, logits=None,
        params=None, vocab=None, sampled=None))]
    #[allow(clippy::too_many_arguments)] // The public signature.
    fn new(
        tree: &Bound<'_, TokenTree>,
        tokens: &Bound<'_, PyAny>,
        law: &str,
        probs: Option<&Bound<'_, PyAny>>,
        rows: Option<&Bound<'_, PyAny>>,
        logits: Option<&Bound<'_, PyAny>>,
        params: Option<&Bound<'_, PyAny>>,
        vocab: Option<&Bound<'_, PyAny>>,
        sampled: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let law = Law::parse(law)?;
            let tokens = integers(tokens, "tokens")?;
            let sampled = sampled.map(|sampled| flags(sampled, "sampled")).transpose()?;
            let core = law::Draft::new(tree.get().0.clone(), tokens, law, sampled)?;
            let rows_given = GivenRows::new(
                law,
                probs.map(|probs| Tensor::borrow(probs, "probs")).transpose()?,
                logits.map(|logits| Tensor::borrow(logits, "logits")).transpose()?,
                params,
                vocab,
            )?;
            let index = rows_given.index(rows, core.num_nodes())?;
            rows_given.check(&core, &index)?;
            Ok(Self { core, rows: Arc::new(rows_given), index })
        })
    }

    #[staticmethod]
    #[pyo3(signature = (tokens, probs=None, root=None),
        text_signature = "(tokens, probs=None, root=-1)")]
    fn chain(
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        probs: Option<&Bound<'_, PyAny>>,
        root: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let mut all = vec![root.map_or(Ok(-1), |root| integer(root, "root"))?];
            all.extend(integers(tokens, "tokens")?);
            let tree = tree::TokenTree::chain(all.len() - 1)?;
            let tree = Bound::new(py, TokenTree(tree))?;
            let law = if probs.is_some() { "chain" } else { "deterministic" };
            let tokens = PyArray1::from_vec(py, all);
            Self::new(&tree, tokens.as_any(), law, probs, None, None, None, None, None)
        })
    }

    #[getter]
    fn tree(&self) -> PyResult<TokenTree> {
        hold(|| Ok(TokenTree(self.core.tree().clone())))
    }

    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| Ok(PyArray1::from_slice(py, self.core.tokens())))
    }

    #[getter]
    fn law(&self) -> PyResult<&'static str> {
        hold(|| Ok(self.core.law().name()))
    }

    #[getter]
    fn num_nodes(&self) -> PyResult<usize> {
        hold(|| Ok(self.core.num_nodes()))
    }

    #[getter]
    fn sampled(&self) -> PyResult<Vec<bool>> {
        hold(|| Ok((0..self.core.num_nodes()).map(|node| self.core.is_sampled(node)).collect()))
    }

    fn validate(&self) -> PyResult<()> {
        hold(|| Ok(self.rows.validate()?))
    }

    fn __repr__(&self) -> PyResult<String> {
        hold(|| {
            let tokens = &self.core.tokens()[1..];
            Ok(format!("Draft({} tokens, law={:?})", tokens.len(), self.core.law().name()))
        })
    }
}
