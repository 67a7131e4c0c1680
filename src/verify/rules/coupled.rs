//! Seed-exact verification: the output is a function of the model, the prompt and the seed alone.
//!
//! # What it does
//! The token at absolute position `t` is the winner of an exponential race whose noise depends on
//! `(seed, t, token)` only; the walk keeps drafted tokens that win. Plain decoding with the same seed
//! gives the same tokens, whatever the drafter proposed.
//!
//! # Legal laws
//! Every law, `coupled` drafts (ranked by the same noise) included: the drafter's rows are never
//! read.
//!
//! # Decision
//! ```text
//! y_t = argmin over {x: p(x) > 0} of E_t(x) / p(x),  E_t(x) = -log(u(seed, t, x));  ties: lowest id
//! ```
//!
//! # Why lossless
//! For exponential variates `E_t(x)`, independent over tokens, the minimum of `E_t(x) / p(x)` is at
//! `x` with probability `p(x)`. Positions have independent noise, and each position is emitted once.
//!
//! # Cost
//! One row and one race (a Philox number for each token) for each emitted token.
//!
//! # Numerics
//! Times `-ln(1 - v) / weight` have a relative error of `2^-52`, so tokens whose times are nearer than that
//! may change places: with a probability of about `2^-52` for each pair that leads. The same row and seed
//! give the same winner, bit for bit, in plain decoding and under any draft.
//!
//! # Proof status
//! The walk is enumerated exactly by `proof` for drafts that did not look at the noise; that the
//! race has the row's law is the theorem above, tested statistically.
//!
//! # Source
//! Gumbel-coupled speculative decoding, Daliri et al. (arXiv 2408.07978).

use crate::chance::Choices;
use crate::error::Result;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::law::Draft;
use crate::verify::rules::target_only::walk;
use crate::verify::view::{Mix, Outcome, View};

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    walk(draft, view, |view, node| {
        let mix = Mix::target();
        let mut cells = view.mixture(node, &mix)?;
        let depth = mutate!("coupled/keyed_by_root_position", draft.tree().depth(node), 0);
        choices.race(depth, &mut cells)
    })
}
