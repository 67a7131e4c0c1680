//! What a rule sees of the rows, and what it gives back.

use crate::chance::Cells;
use crate::error::Result;
use crate::number::Weight;
use crate::verify::law::Draft;

/// A mixture of a node's rows: `scale * max(p - b q [not in set], floor p) [not in removed]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix<W> {
    /// How much of the drafter's row is taken off the target's.
    pub b: W,
    /// Share of the target's row that is kept whatever is taken, at most 1.
    pub floor: W,
    /// Factor of all weights.
    pub scale: W,
    /// Tokens from which nothing is taken.
    pub set: Vec<u32>,
    /// Tokens whose weight is 0.
    pub removed: Vec<u32>,
}

impl<W: Weight> Mix<W> {
    /// The target's row itself.
    pub fn target() -> Self {
        Self {
            b: W::zero(),
            floor: W::zero(),
            scale: W::one(),
            set: Vec::new(),
            removed: Vec::new(),
        }
    }
}

/// A rule's eyes: rows by node, lazily in production, dense rationals in the proof.
///
/// The same question has the same answer, whatever was asked before.
pub trait View<W: Weight> {
    /// The lazily read form of a mixture.
    type Mixture<'s>: Cells<W>
    where
        Self: 's,
        W: 's;

    /// The number of tokens in a row.
    fn vocab(&self) -> usize;

    /// Whether the target's row after `node` is a distribution.
    ///
    /// # Errors
    /// If it is not.
    fn check_target(&mut self, node: usize) -> Result<()>;

    /// `p(token)` after `node`, shaped.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn target(&mut self, node: usize, token: u32) -> Result<W>;

    /// `q(token)` after `node`: the row that the node's sampled children were drawn from.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn drafter(&mut self, node: usize, token: u32) -> Result<W>;

    /// The mass of `q` after `node` outside distinct tokens `without`; 1 if there are none.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn drafter_rest(&mut self, node: usize, without: &[u32]) -> Result<W>;

    /// The whole row that the node's sampled children were drawn from, one weight for each token.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn drafter_row(&mut self, node: usize) -> Result<Vec<W>>;

    /// The weights of a mixture of the rows of a node.
    ///
    /// # Errors
    /// If a row is not a distribution.
    fn mixture<'s>(&'s mut self, node: usize, mix: &'s Mix<W>) -> Result<Self::Mixture<'s>>;
}

/// What a rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Accepted nodes from below the root down.
    pub path: Vec<u32>,
    /// Their tokens and the bonus.
    pub tokens: Vec<u32>,
    /// Residuals that rounding had emptied, so that the draw fell back to the target's row.
    pub fallbacks: usize,
}

impl Outcome {
    /// The outcome that accepts the path down to `node` and then emits `bonus`.
    pub fn stop_at(draft: &Draft, node: usize, bonus: u32, fallbacks: usize) -> Self {
        let path = draft.tree().path(node);
        let mut tokens: Vec<u32> = path.iter().map(|&n| draft.token(n as usize)).collect();
        tokens.push(bonus);
        Self { path, tokens, fallbacks }
    }
}
