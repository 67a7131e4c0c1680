//! `Grower`: one class for every way to grow, dressed by `mtp_verify.verifier.growers`.

use std::sync::Mutex;

use numpy::PyArray1;
use pyo3::prelude::*;

use crate::chance::Choices;
use crate::chance::enumerator::enumerate;
use crate::error::{Error, Result};
use crate::growers::{
    self, Chain, Coupled, Fixed, Heap, HeapLimits, Limits, LogitRows, Stochastic, Stop, Union,
    Vocabulary,
};
use crate::growers::{Grower as _, Growth};
use crate::python::drafts::Draft;
use crate::python::gate::{enter, hold, locked};
use crate::python::given::LOGITS;
use crate::python::numbers::{self, count, integer, integers, numbers, token_ids, word};
use crate::python::state::refuse_copy;
use crate::python::tensor::Tensor;
use crate::python::types::{TokenTree, core_params};
use crate::shaping::Params;
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
        each!(self, grower => growers::Grower::<f64>::growth(grower))
    }

    fn law(&self) -> Law {
        each!(self, grower => growers::Grower::<f64>::law(grower))
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
type Start<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Option<Bound<'py, PyAny>>,
);

/// A draft in the making; see `mtp_verify.verifier.growers`. One call at a time: threads wait for each other.
#[pyclass(frozen, module = "mtp_verify._core")]
pub(super) struct Grower {
    params: Params,
    noise: Noise,
    vocab: Option<Vocabulary>,
    /// A draft of the root alone, which the views of single rows refer to.
    root: law::Draft,
    state: Mutex<State>,
}

/// How far a draft has grown.
struct State {
    kind: Kind,
    /// The rows that may be read again.
    held: Vec<Held>,
    /// Which row belongs to each node, in the order in which rows were passed.
    rows: Vec<i64>,
    passed: usize,
    columns: Option<usize>,
}

impl State {
    fn heap(&self) -> Option<&Heap> {
        match &self.kind {
            Kind::Heap(heap) => Some(heap),
            _ => None,
        }
    }
}

impl Grower {
    /// A grower that `make` builds on the root and the noise of a step.
    fn start(
        start: Start<'_>,
        make: impl FnOnce(Growth, Noise) -> PyResult<Kind>,
    ) -> PyResult<Self> {
        let (root, ends, params, seed, position, vocab) = start;
        let root = integer(&root, "root")?;
        let ends = token_ids(&integers(&ends, "eos_ids")?, "eos_ids")?;
        let params = core_params(&params)?;
        let noise = Noise { seed: word(&seed, "seed")?, position: word(&position, "position")? };
        let vocab = vocab.as_ref().map(|tokens| integers(tokens, "vocab")).transpose()?;
        let vocab =
            vocab.map(|tokens| Vocabulary::new(token_ids(&tokens, "vocab")?)).transpose()?;
        let alone = tree::TokenTree::chain(0)?;
        let alone = law::Draft::new(alone, vec![root], Law::Deterministic, None)?;
        noise.philox(0)?;
        let kind = make(Growth::new(root, ends), noise)?;
        let state = State { kind, held: Vec::new(), rows: Vec::new(), passed: 0, columns: None };
        Ok(Self { params, noise, vocab, root: alone, state: Mutex::new(state) })
    }

    /// What can be seen of the draft so far.
    fn seen<T: Send>(&self, py: Python<'_>, what: impl FnOnce(&State) -> T + Send) -> PyResult<T> {
        enter(py, || Ok(what(&locked(&self.state))))
    }

    /// The rows of the frontier as `work` may read them, once or again; it grows a copy, so that a
    /// refused row leaves the grower as it was.
    fn grow<T>(
        &self,
        state: &State,
        logits: &Tensor,
        work: impl for<'a> FnOnce(&Kind, &dyn Fn() -> Result<LogitRows<'a>>) -> Result<T>,
    ) -> Result<T> {
        let nodes = state.kind.growth().frontier();
        let raw = logits.rows(LOGITS, false)?;
        let columns = raw.num_cols();
        let wanted = self.vocab.as_ref().map(Vocabulary::num_columns).or(state.columns);
        if raw.num_rows() != nodes.len() || wanted.is_some_and(|count| count != columns) {
            let wanted = wanted.map_or("V".to_owned(), |count| count.to_string());
            return Err(Error::ShapeMismatch {
                what: "logits",
                found: format!("({}, {columns})", raw.num_rows()),
                wanted: format!("({}, {wanted}), one row for each frontier node", nodes.len()),
            });
        }
        let mut held = Vec::with_capacity(state.held.len() + 1);
        for earlier in &state.held {
            held.push((earlier.logits.rows(LOGITS, false)?, &earlier.nodes[..]));
        }
        held.push((raw, nodes));
        work(&state.kind, &|| {
            let mut rows = LogitRows::new(&self.root, self.params, self.vocab.as_ref());
            for &(matrix, nodes) in &held {
                for (row, &node) in nodes.iter().enumerate() {
                    rows.set(node as usize, matrix, row)?;
                }
            }
            Ok(rows)
        })
    }

    /// Goes on with one row for each frontier node. A refused call leaves all as it was.
    fn go_on(&self, logits: Tensor, branch: Option<usize>) -> Result<bool> {
        let mut held = locked(&self.state);
        let state = &mut *held;
        let kind = self.grow(state, &logits, |start, rows| {
            let Some(branch) = branch else {
                let mut kind = start.clone();
                kind.extend(&mut rows()?, &mut self.noise.philox(0)?)?;
                return Ok(kind);
            };
            let (kind, _) = every(start, rows)?.into_iter().nth(branch).ok_or_else(|| {
                Error::ParamOutOfRange {
                    name: "branch",
                    value: branch.to_string(),
                    wanted: "the index of one of the branches",
                }
            })?;
            Ok(kind)
        })?;
        let nodes = state.kind.growth().frontier().to_vec();
        state.kind = kind;
        state.columns = Some(logits.rows(LOGITS, false)?.num_cols());
        let keeps = state.kind.law().is_sampled();
        if keeps {
            state.rows.resize(state.kind.growth().num_nodes(), -1);
            for (row, &node) in nodes.iter().enumerate() {
                state.rows[node as usize] = (state.passed + row) as i64;
            }
            state.passed += nodes.len();
        }
        // Only this grower comes back to a row that it has drawn from.
        if matches!(state.kind, Kind::Stochastic(_)) {
            state.held.push(Held { logits, nodes });
        }
        Ok(keeps)
    }

    /// The probability of each way in which a grower can go on.
    fn weights(&self, logits: &Tensor) -> Result<Vec<f64>> {
        let all = self.grow(&locked(&self.state), logits, every)?;
        Ok(all.into_iter().map(|(_, weight)| weight).collect())
    }
}

#[pymethods]
impl Grower {
    /// A chain.
    #[staticmethod]
    fn chain(
        start: Start<'_>,
        length: &Bound<'_, PyAny>,
        sampled: bool,
        min_top: f64,
        min_path: f64,
    ) -> PyResult<Self> {
        hold(|| {
            Self::start(start, |growth, _| {
                let stop = Stop { min_top, min_path };
                let chain = Chain::new(growth, count(length, "num_tokens")?, sampled, stop)?;
                Ok(Kind::Chain(chain))
            })
        })
    }

    /// A fixed shape under a law.
    #[staticmethod]
    fn fixed(
        start: Start<'_>,
        template: &Bound<'_, TokenTree>,
        law: &str,
        samples: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            Self::start(start, |growth, _| {
                let (law, samples) = (Law::parse(law)?, count(samples, "samples")?);
                let template = template.get().0.clone();
                Ok(Kind::Fixed(Fixed::new(growth, template, law, samples)?))
            })
        })
    }

    /// The best nodes by path probability.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)] // Named one by one in growers.py.
    fn best_first(
        start: Start<'_>,
        max_nodes: &Bound<'_, PyAny>,
        max_depth: &Bound<'_, PyAny>,
        max_children: &Bound<'_, PyAny>,
        width: &Bound<'_, PyAny>,
        min_score: f64,
        times: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            Self::start(start, |growth, _| {
                let limits = HeapLimits {
                    max_nodes: count(max_nodes, "max_nodes")?,
                    max_depth: count(max_depth, "max_depth")?,
                    max_children: count(max_children, "max_children")?,
                    width: count(width, "width")?,
                    min_score,
                    times: numbers(times, "times")?,
                };
                Ok(Kind::Heap(Heap::new(growth, limits)?))
            })
        })
    }

    /// Draw by draw, where a draw is worth most.
    #[staticmethod]
    fn stochastic(
        start: Start<'_>,
        max_nodes: &Bound<'_, PyAny>,
        max_depth: &Bound<'_, PyAny>,
        min_value: f64,
        lookahead: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            Self::start(start, |growth, _| {
                let limits = Limits {
                    max_nodes: count(max_nodes, "max_nodes")?,
                    max_depth: count(max_depth, "max_depth")?,
                    min_value,
                    lookahead: count(lookahead, "lookahead")?,
                };
                Ok(Kind::Stochastic(Stochastic::new(growth, limits)?))
            })
        })
    }

    /// The nodes of a deterministic draft with drawn ones beside them.
    #[staticmethod]
    fn union(
        start: Start<'_>,
        hits: &Bound<'_, Draft>,
        counts: &Bound<'_, PyAny>,
        max_nodes: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        hold(|| {
            Self::start(start, |growth, _| {
                let hits = &hits.get().core;
                hits.check_deterministic()?;
                let counts = numbers::counts(counts, "counts")?;
                let max_nodes = count(max_nodes, "max_nodes")?;
                Ok(Kind::Union(Union::new(growth, hits.clone(), counts, max_nodes)?))
            })
        })
    }

    /// A fixed shape ranked by the verifier's own race.
    #[staticmethod]
    fn coupled(start: Start<'_>, template: &Bound<'_, TokenTree>) -> PyResult<Self> {
        hold(|| {
            Self::start(start, |growth, noise| {
                Ok(Kind::Coupled(Coupled::new(growth, template.get().0.clone(), noise)?))
            })
        })
    }

    /// The nodes whose rows are needed next.
    fn frontier(&self, py: Python<'_>) -> PyResult<Vec<u32>> {
        hold(|| self.seen(py, |state| state.kind.growth().frontier().to_vec()))
    }

    /// Goes on with one row for each frontier node; returns whether the rows belong to the draft.
    ///
    /// The tokens are drawn with the step's noise, or are those of one of the `branches`.
    #[pyo3(signature = (logits, branch=None))]
    fn extend(
        &self,
        logits: &Bound<'_, PyAny>,
        branch: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        hold(|| {
            let tensor = Tensor::borrow(logits, "logits")?;
            let branch = branch.map(|branch| count(branch, "branch")).transpose()?;
            enter(logits.py(), || self.go_on(tensor, branch))
        })
    }

    /// The probability of each way in which `extend` can go on with these rows.
    fn branches(&self, logits: &Bound<'_, PyAny>) -> PyResult<Vec<f64>> {
        hold(|| {
            let tensor = Tensor::borrow(logits, "logits")?;
            enter(logits.py(), || self.weights(&tensor))
        })
    }

    fn __reduce__(slf: &Bound<'_, Self>) -> PyResult<()> {
        hold(|| {
            refuse_copy(slf.as_any(), "it holds borrowed rows; finish the draft, and pickle that")
        })
    }

    /// The seed and the root position of the step that the draft is for.
    #[getter]
    fn address(&self) -> PyResult<(u64, u64)> {
        hold(|| Ok((self.noise.seed, self.noise.position)))
    }

    /// Parents of the nodes grown so far; those of a heap's candidates.
    #[getter]
    fn parents<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            let parents = self.seen(py, |state| state.kind.growth().parents().to_vec())?;
            Ok(PyArray1::from_vec(py, parents))
        })
    }

    /// Their tokens.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            let tokens = self.seen(py, |state| state.kind.growth().tokens().to_vec())?;
            Ok(PyArray1::from_vec(py, tokens))
        })
    }

    /// Which of them were drawn.
    #[getter]
    fn sampled(&self, py: Python<'_>) -> PyResult<Vec<bool>> {
        hold(|| self.seen(py, |state| state.kind.growth().sampled().to_vec()))
    }

    /// Which row of those passed belongs to each node, -1 for none.
    #[getter]
    fn rows<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i64>>> {
        hold(|| {
            let rows = self.seen(py, |state| {
                let mut rows = state.rows.clone();
                rows.resize(state.kind.growth().num_nodes(), -1);
                rows
            })?;
            Ok(PyArray1::from_vec(py, rows))
        })
    }

    /// The law of the draft.
    #[getter]
    fn law(&self, py: Python<'_>) -> PyResult<&'static str> {
        hold(|| self.seen(py, |state| state.kind.law().name()))
    }

    /// The scores of a heap's nodes, largest first; empty for other growers.
    #[getter]
    fn scores(&self, py: Python<'_>) -> PyResult<Vec<f64>> {
        hold(|| self.seen(py, |state| state.heap().map_or_else(Vec::new, Heap::kept_scores)))
    }

    /// The tree of the best nodes of a heap: parents, tokens, and which candidate each node was.
    fn best(&self, most: &Bound<'_, PyAny>) -> PyResult<(Vec<i64>, Vec<i64>, Vec<u32>)> {
        hold(|| {
            let nodes = count(most, "max_nodes")?;
            self.seen(most.py(), |state| {
                let Some(heap) = state.heap() else {
                    let growth = state.kind.growth();
                    let all = (0..growth.num_nodes() as u32).collect();
                    return (growth.parents().to_vec(), growth.tokens().to_vec(), all);
                };
                let (tree, origin) = heap.best(nodes);
                (tree.parents().to_vec(), tree.tokens().to_vec(), origin)
            })
        })
    }
}
