//! Sample from the target and keep what the draft had guessed.
//!
//! # What it does
//! Draws each token from the target's own row; while the drawn token is a child of the current node,
//! walks to that child. At temperature 0 this is greedy verification.
//!
//! # Legal laws
//! Every law: the drafter's rows are never read. A `coupled` draft needs noise of its own, which the
//! separate purposes give.
//!
//! # Decision
//! ```text
//! v = 0;  loop: y ~ p_v;  emit y;  c = child of v with token y;  none: stop;  v = c
//! ```
//!
//! # Why lossless
//! Each emitted token is a fresh draw from the target's row after the tokens before it. The draft
//! only decides how many of those rows were available at once.
//!
//! # Cost
//! One row and one draw for each emitted token. For a deterministic draft no rule accepts more:
//! `E[emitted] = 1 + sum over nodes of the target's path probability`.
//!
//! # Numerics
//! One draw from each row: the cell of a token ends where the sum of all weights up to it does. A few
//! roundings of `2^-53` move it, so a row of `V` tokens is drawn from with a distance of at most
//! `3 V 2^-53` (`DRAW_BOUND` of `proof`).
//!
//! # Proof status
//! Enumerated exactly for every law and shape of the golden models by `proof`.
//!
//! # Source
//! Sample-and-compare, as in SpecInfer's naive baseline (arXiv 2305.09781).

use crate::chance::{Choices, Purpose, Site};
use crate::error::Result;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::law::Draft;
use crate::verify::view::{Mix, Outcome, View};

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    walk(draft, view, |view, node| {
        let mix = Mix::target();
        let mut cells = view.mixture(node, &mix)?;
        let number = mutate!("to/shared_u_depths", node, 0);
        choices.draw(Site::new(number, Purpose::Sample), &mut cells)
    })
}

/// Follows the tokens that `next` gives for each node as long as the tree has them.
pub(crate) fn walk<V>(
    draft: &Draft,
    view: &mut V,
    mut next: impl FnMut(&mut V, usize) -> Result<u32>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut node = 0;
    loop {
        let token = next(view, node)?;
        outcome.tokens.push(token);
        let Some(child) = draft.child_with(node, token) else {
            return Ok(outcome);
        };
        outcome.path.push(child as u32);
        node = child;
    }
}
