//! Test the children of the current node one after the other, walk down, draw from the residual.
//!
//! # What it does
//! Token-level rejection on a chain, SpecInfer on independent siblings, recursive rejection without
//! replacement, and Hu's scheme where a deterministic set follows the sampled children.
//!
//! # Legal laws
//! `chain`, `iid`, `swor`, `top_plus_one`, `mixed`.
//!
//! # Decision
//! ```text
//! v = 0;  r = p_v
//! for each sampled child c of v in node order:
//!     accept c with probability min(1, r(x_c) / q_c(x_c)):  v = c, start again
//!     otherwise r = norm (r - q_c)+
//! y ~ r;  emit y;  if a deterministic child of v carries y: v = that child, start again;  else stop
//! ```
//!
//! # Why lossless
//! A sampled child `x ~ q_c` is accepted with mass `min(q_c(x), r(x))`; what is missing from `r` is
//! `(r - q_c)+`, exactly the residual that goes on. By induction over the siblings the token emitted
//! at `v` has law `p_v`, and below an accepted child the same holds with fresh noise. A
//! deterministic child is kept when the residual's own draw hits it.
//!
//! # Cost
//! `p` and `q` of each tested child, one sum over the rows for each rejection, one draw at the stop.
//!
//! # Numerics
//! A ratio is two products of numbers as they are read: relative error `1e-15`, beside that of the sums
//! `total` and `z` (`1e-13`, see [`crate::verify::view`]). A child of acceptance `a` is thus accepted with
//! probability `a (1 +- 2e-13) +- 2^-53`. What its rejection leaves is drawn from the same rows by which it
//! was tested, so errors of the rows themselves cancel: given the rows as they are read, the law of a
//! step is off by at most `1e-12`, by the draw at its end (see [`crate::verify::rules::target_only`]), and by the
//! sum of the rows' own distances from the exact ones.
//!
//! # Proof status
//! Enumerated exactly on the golden models by `proof`.
//!
//! # Source
//! Leviathan et al. (arXiv 2211.17192), Chen et al. (2302.01318); SpecInfer (2305.09781); recursive
//! rejection without replacement (2402.14160); Hu et al. (2502.18779).

use crate::chance::{Choices, Purpose, Site};
use crate::error::Result;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::law::Draft;
use crate::verify::residual::Residual;
use crate::verify::view::{Outcome, View};

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    let mut node = 0;
    let mut fallbacks = 0;
    loop {
        let row = mutate!("td/bonus_parent_row", node, draft.parent_of_leaf(node));
        let mut residual = Residual::start(draft, row);
        let mut accepted = None;
        for &child in draft.tree().children(node) {
            let child = child as usize;
            if !draft.is_sampled(child) {
                break;
            }
            let (num, den) = residual.ratio(draft, view, child, &W::one())?;
            let number = mutate!("td/shared_u_depths", child, 1);
            let number = mutate!("td/shared_u_siblings", number, node);
            if choices.accept(Site::new(number, Purpose::Accept), &num, &den) {
                accepted = Some(child);
                break;
            }
            let mass = residual.reject(draft, view, child, &W::one())?;
            if !mass.is_positive() {
                break; // Only by rounding: exactly, a rejection leaves mass.
            }
        }
        if let Some(child) = accepted {
            node = child;
            continue;
        }
        let (token, fell_back) = residual.draw(view, choices)?;
        fallbacks += fell_back;
        let forced = draft.child_with(node, token).filter(|&child| !draft.is_sampled(child));
        match forced {
            Some(child) => node = child,
            None => return Ok(Outcome::stop_at(draft, node, token, fallbacks)),
        }
    }
}
