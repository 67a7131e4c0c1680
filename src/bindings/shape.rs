//! `Grower`: one class for every way to grow, dressed by `mtp_verify.growers`.

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::bindings::drafts::Draft;
use crate::bindings::errors::to_py;
use crate::bindings::tensor::size;
use crate::bindings::tensor::{Tensor, integers};
use crate::bindings::types::{TokenTree, core_params};
use crate::bindings::{LOGITS, enter};
use crate::choice::Choices;
use crate::dist::{Params, Scratch, ShapedRows, Side};
use crate::error::{Error, Result};
use crate::exact::enumerate;
use crate::shape::{
    self, Chain, Coupled, Fixed, Heap, HeapLimits, Limits, LogitRows, Optimal, Stochastic, Stop,
    Union, Vocabulary,
};
use crate::shape::{Grower as _, Growth};
use crate::tree;
use crate::verify::Noise;
use crate::verify::law::{self, Law};

#[derive(Clone)]
enum Kind {
    Chain(Chain<f64>),
    Fixed(Fixed),
    Heap(Heap),
    Stochastic(Stochastic<f64>),
    Union(Union),
    Coupled(Coupled),
}

/// The same expression for each kind of grower.
macro_rules! each {
    ($kind:expr, $grower:ident => $then:expr) => {
        match $kind {
            Kind::Chain($grower) => $then,
            Kind::Fixed($grower) => $then,
            Kind::Heap($grower) => $then,
            Kind::Stochastic($grower) => $then,
            Kind::Union($grower) => $then,
            Kind::Coupled($grower) => $then,
        }
    };
}

impl Kind {
    fn growth(&self) -> &Growth {
        each!(self, grower => shape::Grower::<f64>::growth(grower))
    }

    fn law(&self) -> Law {
        each!(self, grower => shape::Grower::<f64>::law(grower))
    }

    fn extend<C: Choices<f64>>(&mut self, rows: &mut LogitRows<'_>, choices: &mut C) -> Result<()> {
        each!(self, grower => grower.extend(rows, choices))
    }
}

/// Every way in which a grower can go on, with its probability over the drafter's noise.
fn every<'a>(start: &Kind, rows: &dyn Fn() -> Result<LogitRows<'a>>) -> Result<Vec<(Kind, f64)>> {
    enumerate(|choices| {
        let mut kind = start.clone();
        kind.extend(&mut rows()?, choices)?;
        Ok(kind)
    })
}

/// Rows as they were passed, and the nodes that they belong to.
struct Held {
    logits: Tensor,
    nodes: Vec<u32>,
}

/// The root's token, tokens that end the sequence, the drafter's parameters, seed, position, and the
/// tokens of a sub-vocabulary's columns.
type Start<'py> = (i64, Vec<i64>, Bound<'py, PyAny>, u64, u64, Option<Bound<'py, PyAny>>);

/// A draft in the making; see `mtp_verify.growers`.
#[pyclass(module = "mtp_verify._core")]
pub(super) struct Grower {
    kind: Kind,
    params: Params,
    noise: Noise,
    vocab: Option<Vocabulary>,
    /// A draft of the root alone, which the views of single rows refer to.
    root: law::Draft,
    /// The rows that may be read again.
    held: Vec<Held>,
    /// Which row belongs to each node, in the order in which rows were passed.
    rows: Vec<i64>,
    passed: usize,
    columns: Option<usize>,
}

/// Token ids of the core.
fn ids(tokens: &[i64], name: &'static str) -> Result<Vec<u32>> {
    let id = |&token: &i64| {
        u32::try_from(token).map_err(|_| Error::ParamOutOfRange {
            name,
            value: token.to_string(),
            wanted: "token ids from 0 to 2**32 - 1",
        })
    };
    tokens.iter().map(id).collect()
}

fn sizes(name: &'static str, values: &[i64]) -> Result<Vec<usize>> {
    values.iter().map(|&value| size(name, value)).collect()
}

impl Grower {
    /// A grower that `make` builds on the root and the noise of a step.
    fn start(start: Start<'_>, make: impl FnOnce(Growth, Noise) -> Result<Kind>) -> PyResult<Self> {
        let (root, ends, params, seed, position, vocab) = start;
        let params = core_params(&params)?;
        let noise = Noise { seed, position };
        let vocab = vocab.as_ref().map(|tokens| integers(tokens, "vocab")).transpose()?;
        let build = || {
            let vocab = vocab.map(|tokens| Vocabulary::new(ids(&tokens, "vocab")?)).transpose()?;
            let alone = tree::TokenTree::chain(0)?;
            let alone = law::Draft::new(alone, vec![root], Law::Deterministic, None)?;
            noise.philox(0)?;
            Ok(Self {
                kind: make(Growth::new(root, ids(&ends, "eos_ids")?), noise)?,
                params,
                noise,
                vocab,
                root: alone,
                held: Vec::new(),
                rows: Vec::new(),
                passed: 0,
                columns: None,
            })
        };
        build().map_err(|error: Error| to_py(&error))
    }

    /// The rows of the frontier, and its nodes.
    fn borrow(&self, logits: &Bound<'_, PyAny>) -> PyResult<(Vec<u32>, Tensor)> {
        let nodes = self.kind.growth().frontier().to_vec();
        let logits = Tensor::borrow(logits, "logits")?;
        let raw = logits.rows(LOGITS, false)?;
        let wanted = self.vocab.as_ref().map(Vocabulary::num_columns).or(self.columns);
        if raw.num_rows() != nodes.len() || wanted.is_some_and(|count| count != raw.num_cols()) {
            let columns = wanted.map_or("V".to_owned(), |count| count.to_string());
            return Err(to_py(&Error::ShapeMismatch {
                what: "logits",
                found: format!("({}, {})", raw.num_rows(), raw.num_cols()),
                wanted: format!("({}, {columns}), one row for each frontier node", nodes.len()),
            }));
        }
        Ok((nodes, logits))
    }

    /// Grows on a copy, so that a refused row leaves the grower as it was.
    fn grow<T: Send>(
        &self,
        py: Python<'_>,
        logits: &Tensor,
        work: impl for<'a> FnOnce(&Kind, &dyn Fn() -> Result<LogitRows<'a>>) -> Result<T> + Send,
    ) -> PyResult<T> {
        let mut held = Vec::with_capacity(self.held.len() + 1);
        for earlier in &self.held {
            held.push((earlier.logits.rows(LOGITS, false)?, &earlier.nodes[..]));
        }
        held.push((logits.rows(LOGITS, false)?, self.kind.growth().frontier()));
        let (root, params, vocab) = (&self.root, self.params, self.vocab.as_ref());
        let kind = &self.kind;
        enter(py, || {
            work(kind, &|| {
                let mut rows = LogitRows::new(root, params, vocab);
                for &(matrix, nodes) in &held {
                    for (row, &node) in nodes.iter().enumerate() {
                        rows.set(node as usize, matrix, row)?;
                    }
                }
                Ok(rows)
            })
        })
    }

    fn heap(&self) -> Option<&Heap> {
        match &self.kind {
            Kind::Heap(heap) => Some(heap),
            _ => None,
        }
    }
}

#[pymethods]
impl Grower {
    /// A chain.
    #[staticmethod]
    fn chain(
        start: Start<'_>,
        length: i64,
        sampled: bool,
        min_top: f64,
        min_path: f64,
    ) -> PyResult<Self> {
        Self::start(start, |growth, _| {
            let stop = Stop { min_top, min_path };
            Chain::new(growth, size("num_tokens", length)?, sampled, stop).map(Kind::Chain)
        })
    }

    /// A fixed shape under a law.
    #[staticmethod]
    fn fixed(
        start: Start<'_>,
        template: &Bound<'_, TokenTree>,
        law: &str,
        samples: i64,
    ) -> PyResult<Self> {
        Self::start(start, |growth, _| {
            let (law, samples) = (Law::parse(law)?, size("samples", samples)?);
            Fixed::new(growth, template.get().0.clone(), law, samples).map(Kind::Fixed)
        })
    }

    /// The best nodes by path probability.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)] // Named one by one in growers.py.
    fn best_first(
        start: Start<'_>,
        max_nodes: i64,
        max_depth: i64,
        max_children: i64,
        width: i64,
        min_score: f64,
        times: Vec<f64>,
    ) -> PyResult<Self> {
        Self::start(start, |growth, _| {
            let limits = HeapLimits {
                max_nodes: size("max_nodes", max_nodes)?,
                max_depth: size("max_depth", max_depth)?,
                max_children: size("max_children", max_children)?,
                width: size("width", width)?,
                min_score,
                times,
            };
            Heap::new(growth, limits).map(Kind::Heap)
        })
    }

    /// Draw by draw, where a draw is worth most.
    #[staticmethod]
    fn stochastic(
        start: Start<'_>,
        max_nodes: i64,
        max_depth: i64,
        min_value: f64,
        lookahead: i64,
    ) -> PyResult<Self> {
        Self::start(start, |growth, _| {
            let limits = Limits {
                max_nodes: size("max_nodes", max_nodes)?,
                max_depth: size("max_depth", max_depth)?,
                min_value,
                lookahead: size("lookahead", lookahead)?,
            };
            Stochastic::new(growth, limits).map(Kind::Stochastic)
        })
    }

    /// The nodes of a deterministic draft with drawn ones beside them.
    #[staticmethod]
    #[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
    fn union(
        start: Start<'_>,
        hits: &Bound<'_, Draft>,
        counts: Vec<i64>,
        max_nodes: i64,
    ) -> PyResult<Self> {
        Self::start(start, |growth, _| {
            let hits = &hits.get().core;
            hits.check_deterministic()?;
            let counts = sizes("counts", &counts)?;
            Union::new(growth, hits.clone(), counts, size("max_nodes", max_nodes)?).map(Kind::Union)
        })
    }

    /// A fixed shape ranked by the verifier's own race.
    #[staticmethod]
    fn coupled(start: Start<'_>, template: &Bound<'_, TokenTree>) -> PyResult<Self> {
        Self::start(start, |growth, noise| {
            Coupled::new(growth, template.get().0.clone(), noise).map(Kind::Coupled)
        })
    }

    /// The nodes whose rows are needed next.
    fn frontier(&self) -> Vec<u32> {
        self.kind.growth().frontier().to_vec()
    }

    /// Goes on with one row for each frontier node; returns whether the rows belong to the draft.
    ///
    /// The tokens are drawn with the step's noise, or are those of one of the `branches`.
    #[pyo3(signature = (logits, branch=None))]
    fn extend(
        &mut self,
        py: Python<'_>,
        logits: &Bound<'_, PyAny>,
        branch: Option<usize>,
    ) -> PyResult<bool> {
        let (nodes, logits) = self.borrow(logits)?;
        let kind = match branch {
            None => {
                let noise = self.noise;
                self.grow(py, &logits, |start, rows| {
                    let mut kind = start.clone();
                    kind.extend(&mut rows()?, &mut noise.philox(0)?)?;
                    Ok(kind)
                })?
            }
            Some(branch) => {
                let (kind, _) = self.grow(py, &logits, |start, rows| {
                    every(start, rows)?.into_iter().nth(branch).ok_or_else(|| {
                        Error::ParamOutOfRange {
                            name: "branch",
                            value: branch.to_string(),
                            wanted: "the index of one of the branches",
                        }
                    })
                })?;
                kind
            }
        };
        self.kind = kind;
        self.columns = Some(logits.rows(LOGITS, false)?.num_cols());
        let keeps = self.kind.law().is_sampled();
        if keeps {
            self.rows.resize(self.kind.growth().num_nodes(), -1);
            for (row, &node) in nodes.iter().enumerate() {
                self.rows[node as usize] = (self.passed + row) as i64;
            }
            self.passed += nodes.len();
        }
        // Only this grower comes back to a row that it has drawn from.
        if matches!(self.kind, Kind::Stochastic(_)) {
            self.held.push(Held { logits, nodes });
        }
        Ok(keeps)
    }

    /// The probability of each way in which `extend` can go on with these rows.
    fn branches(&self, py: Python<'_>, logits: &Bound<'_, PyAny>) -> PyResult<Vec<f64>> {
        let (_, logits) = self.borrow(logits)?;
        let all = self.grow(py, &logits, every)?;
        Ok(all.into_iter().map(|(_, weight)| weight).collect())
    }

    /// The seed and the root position of the step that the draft is for.
    #[getter]
    fn address(&self) -> (u64, u64) {
        (self.noise.seed, self.noise.position)
    }

    /// Parents of the nodes grown so far; those of a heap's candidates.
    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_slice(py, self.kind.growth().parents())
    }

    /// Their tokens.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        PyArray1::from_slice(py, self.kind.growth().tokens())
    }

    /// Which of them were drawn.
    #[getter]
    fn sampled(&self) -> Vec<bool> {
        self.kind.growth().sampled().to_vec()
    }

    /// Which row of those passed belongs to each node, -1 for none.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let mut rows = self.rows.clone();
        rows.resize(self.kind.growth().num_nodes(), -1);
        PyArray1::from_vec(py, rows)
    }

    /// The law of the draft.
    #[getter]
    fn law(&self) -> &'static str {
        self.kind.law().name()
    }

    /// The scores of a heap's nodes, largest first; empty for other growers.
    #[getter]
    fn scores(&self) -> Vec<f64> {
        self.heap().map_or_else(Vec::new, Heap::kept_scores)
    }

    /// The tree of the best nodes of a heap: parents, tokens, and which candidate each node was.
    fn best(&self, most: i64) -> PyResult<(Vec<i64>, Vec<i64>, Vec<u32>)> {
        let most = size("max_nodes", most).map_err(|error| to_py(&error))?;
        let Some(heap) = self.heap() else {
            let growth = self.kind.growth();
            let all = (0..growth.num_nodes() as u32).collect();
            return Ok((growth.parents().to_vec(), growth.tokens().to_vec(), all));
        };
        let (tree, origin) = heap.best(most);
        Ok((tree.parents().to_vec(), tree.tokens().to_vec(), origin))
    }
}

/// A chain of `length` nodes and the levels of `counts` below it.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
fn stem_shape(length: i64, counts: Vec<i64>) -> PyResult<TokenTree> {
    let make = || shape::stem(size("length", length)?, &sizes("counts", &counts)?);
    make().map(TokenTree).map_err(|error| to_py(&error))
}

/// Paths that share the root alone.
#[pyfunction]
fn path_shape(count: i64, length: i64) -> PyResult<TokenTree> {
    let make = || shape::paths(size("count", count)?, size("length", length)?);
    make().map(TokenTree).map_err(|error| to_py(&error))
}

/// The best shape for rates of acceptance by rank, and its mean number of accepted tokens; with
/// times, of the fastest size.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
fn optimal_shape(
    py: Python<'_>,
    acceptance: Vec<f64>,
    max_nodes: i64,
    max_depth: i64,
    times: Option<(Vec<f64>, Vec<f64>)>,
) -> PyResult<(TokenTree, f64)> {
    enter(py, || {
        let (mut nodes, mut depth) = (size("max_nodes", max_nodes)?, size("max_depth", max_depth)?);
        let table = Optimal::new(&acceptance, nodes, depth)?;
        if let Some((draft, verify)) = &times {
            (nodes, depth) = table.fastest(draft, verify)?;
        }
        Ok((TokenTree(table.shape(nodes, depth)?), *table.accepted(nodes, depth)))
    })
}

/// How many nodes of a common budget each request gets.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
fn allocate(
    py: Python<'_>,
    scores: Vec<Vec<f64>>,
    budget: i64,
    minimum: i64,
) -> PyResult<Vec<usize>> {
    enter(py, || shape::allocate(&scores, size("budget", budget)?, size("minimum", minimum)?))
}

/// The `k` largest logits of each row as tokens, largest first; fewer where fewer are above -inf.
#[pyfunction]
fn top_tokens(py: Python<'_>, logits: &Bound<'_, PyAny>, k: i64) -> PyResult<Vec<Vec<u32>>> {
    let logits = Tensor::borrow(logits, "logits")?;
    let raw = logits.rows(LOGITS, false)?;
    enter(py, || {
        let k = size("k", k)?;
        let rows = ShapedRows::new(raw, Params::default(), Side::Target);
        let mut scratch = Scratch::default();
        let best = |row| {
            let shaped = rows.shape(row, &mut scratch)?;
            let best = rows.best(row, &shaped, k, |token| token, &mut scratch);
            Ok(best.into_iter().map(|(token, _)| token).collect())
        };
        (0..raw.num_rows()).map(best).collect()
    })
}

/// Deterministic drafts as one: parents and tokens.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "how PyO3 hands over a converted argument")]
fn merge(drafts: Vec<Bound<'_, Draft>>, max_nodes: i64) -> PyResult<(Vec<i64>, Vec<i64>)> {
    let all: Vec<&law::Draft> = drafts.iter().map(|draft| &draft.get().core).collect();
    let make = || shape::merge(&all, size("max_nodes", max_nodes)?);
    let merged = make().map_err(|error| to_py(&error))?;
    Ok((merged.parents().to_vec(), merged.tokens().to_vec()))
}

/// Adds the class and the functions to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Grower>()?;
    m.add_function(wrap_pyfunction!(stem_shape, m)?)?;
    m.add_function(wrap_pyfunction!(path_shape, m)?)?;
    m.add_function(wrap_pyfunction!(optimal_shape, m)?)?;
    m.add_function(wrap_pyfunction!(allocate, m)?)?;
    m.add_function(wrap_pyfunction!(top_tokens, m)?)?;
    m.add_function(wrap_pyfunction!(merge, m)?)
}
