//! Growers: how a draft's tree comes about, and therefore which law it has.
//!
//! A grower asks for the drafter's rows and gives a draft with its true law:
//!
//! 1. [`Grower::frontier`]: the nodes whose rows it needs next;
//! 2. [`Grower::extend`]: those rows are there; it draws, and its frontier moves;
//! 3. when the frontier is empty, [`Grower::growth`] holds the tree.
//!
//! All sampled growth is append-only: a step may choose its place by anything that is known (tokens
//! drawn, rows, scores, the clock), draws one token with the noise `(seed, root position, node,
//! DRAFT)`, and no token is ever taken back. Such drafts are verified without loss by `topdown` and
//! `lifted` (enumerated in `proof`). Deterministic growers may cut freely.
//!
//! Growers are generic over the number type and the source of choices, like the rules: production
//! grows from logits, the proof from dense rationals.

mod budget;
mod chain;
mod coupled;
mod dense;
mod fixed;
mod growth;
mod heap;
mod logits;
mod merge;
mod optimal;
mod stochastic;
mod template;
mod union;

pub use budget::allocate;
pub use chain::{Chain, Stop};
pub use coupled::Coupled;
pub use dense::DenseRows;
pub use fixed::{Fixed, Set};
pub use growth::Growth;
pub use heap::{Heap, HeapLimits};
pub use logits::{LogitRows, Vocabulary};
pub use merge::merge;
pub use optimal::Optimal;
pub use stochastic::{Limits, Stochastic};
pub use template::{by_depth, paths, stem};
pub use union::Union;

use crate::chance::{Choices, RaceNoise, Site};
use crate::error::{Error, Result};
use crate::number::Weight;
use crate::tree::MAX_NODES;
use crate::verify::law::Law;

/// The drafter's rows of the nodes grown so far, as a grower sees them.
pub trait DraftRows<W: Weight> {
    /// `q(token)` after `node`.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn probability(&mut self, node: usize, token: u32) -> Result<W>;

    /// The `n` most probable tokens after `node` with their probabilities, fewer where fewer are
    /// positive; the most probable first, equal ones by ascending id.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn best(&mut self, node: usize, n: usize) -> Result<Vec<(u32, W)>>;

    /// Draws from the row after `node`, restricted to tokens outside `without`; `None` if nothing is
    /// left there.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn draw<C: Choices<W>>(
        &mut self,
        node: usize,
        without: &[u32],
        site: Site,
        choices: &mut C,
    ) -> Result<Option<u32>>;

    /// The `n` earliest tokens of the race `E(token) / q(token)` after `node`, the earliest first,
    /// equal ones by ascending id; fewer where fewer have positive probability.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn race(&mut self, node: usize, n: usize, noise: &RaceNoise) -> Result<Vec<u32>>;
}

/// A way to grow drafts.
pub trait Grower<W: Weight> {
    /// The tree so far.
    fn growth(&self) -> &Growth;

    /// The law of the draft.
    fn law(&self) -> Law;

    /// The nodes whose rows are needed next, ascending; none: the draft is grown.
    fn frontier(&self) -> &[u32] {
        self.growth().frontier()
    }

    /// Goes on: the rows of all frontier nodes can be read from `rows` now.
    ///
    /// # Errors
    /// If a row is not a distribution; the grower is then of no more use.
    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<()>;
}

/// Checks a number of drafted nodes (the root not counted).
fn check_nodes(what: &'static str, nodes: usize) -> Result<()> {
    if nodes < MAX_NODES {
        return Ok(());
    }
    Err(Error::Overflow { what, found: nodes as u64, limit: MAX_NODES as u64 - 1 })
}

/// Checks a parameter.
fn check(
    legal: bool,
    name: &'static str,
    value: &impl ToString,
    wanted: &'static str,
) -> Result<()> {
    if legal {
        return Ok(());
    }
    Err(Error::ParamOutOfRange { name, value: value.to_string(), wanted })
}

#[cfg(test)]
mod tests;
