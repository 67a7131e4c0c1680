//! Test independent siblings against one raised copy of the drafter's row.
//!
//! # What it does
//! Accepts each of a node's children with one and the same probability function, whatever became of
//! its siblings; if all are rejected, draws from what they were bound to miss.
//!
//! # Legal laws
//! `iid`. How many siblings there are is decided before the first of them is drawn.
//!
//! # Decision
//! ```text
//! at node v with k children, rho in [1, k]:
//!     accept child x with probability min(1, p(x) / (rho q(x)));  the first accepted: v = it, start again
//!     beta = sum min(q, p / rho);  gamma = (1 - (1 - beta)^k) / beta
//!     all rejected: y ~ p - gamma min(q, p / rho) = max(p - gamma q, (1 - gamma / rho) p);  emit y, stop
//! ```
//! `rho` is the least value with `gamma <= rho`, from above: the upper end of 40 bisections of
//! `[1, k]`. On a chain `rho = gamma = 1`, which is token-level rejection.
//!
//! # Why lossless
//! A child is accepted with probability `beta`, and then has law `min(q, p / rho) / beta`. The first
//! accepted of `k` delivers the mass `gamma min(q, p / rho)`, at most `p` since `gamma <= rho`; the
//! residual draw delivers the rest of `p`. This holds for every `rho` with `gamma <= rho`, so the end
//! of a bisection is as exact as the root itself. `gamma = sum_j (1 - beta)^j` needs no division,
//! also where `beta = 0` and the residual is `p`.
//!
//! # Cost
//! `p` and `q` of each tested child, one number each; at a node with several children 41 sums over
//! its rows for `rho`; one draw at the stop.
//!
//! # Numerics
//! `1 - beta` is computed as `((rho - 1) + sum (p - rho q)+) / rho`, a sum of what is missed: it keeps its
//! relative error of `1e-13` where `p` and `q` are nearly equal, and `gamma` is a sum of its powers. The
//! share `1 - gamma / rho` that is kept of `p` is 0 up to `1e-12` at the end of the bisection, and enters
//! as an absolute error.
//!
//! # Proof status
//! Enumerated exactly on the golden models by `proof`, the bisected `rho` included.
//!
//! # Source
//! K-SEQ of SpecTr, Sun et al. (arXiv 2310.15141).

use crate::chance::{Cells, Choices, Purpose, Site};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::law::Draft;
use crate::verify::residual::draw_from;
use crate::verify::view::{Mix, Outcome, View};

/// Halvings of `[1, k]`; the root is missed by `(k - 1) / 2^40` at most, always from above.
const STEPS: usize = 40;

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    decide_at(draft, view, choices, least_rho)
}

/// The decision with `rho` chosen by `raise(view, node, k)`.
pub(crate) fn decide_at<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
    raise: impl Fn(&mut V, usize, usize) -> Result<W>,
) -> Result<Outcome> {
    let mut node = 0;
    loop {
        let children = draft.tree().children(node);
        let rho = mutate!("kseq/rho_1", raise(view, node, children.len())?, W::one());
        let mut accepted = None;
        for &child in children {
            let child = child as usize;
            let token = draft.token(child);
            let q = view.drafter(node, token)?;
            if !q.is_positive() {
                let found = q.to_f64().to_string();
                return Err(Error::ZeroDraftProbability { node: child, token, found });
            }
            let p = view.target(node, token)?;
            if choices.accept(Site::new(child, Purpose::Accept), &p, &rho.mul(&q)) {
                accepted = Some(child);
                break;
            }
        }
        if let Some(child) = accepted {
            node = child;
            continue;
        }
        let residual = residual(view, node, children.len(), &rho)?;
        let (token, fallbacks) = draw_from(view, choices, node, &residual)?;
        return Ok(Outcome::stop_at(draft, node, token, fallbacks));
    }
}

/// The least `rho` with `gamma <= rho`, up to 40 bits, from above; `rho = k` always serves.
fn least_rho<W: Weight, V: View<W>>(view: &mut V, node: usize, k: usize) -> Result<W> {
    let (mut low, mut high) = (W::one(), W::ratio(k.max(1) as i64, 1));
    if low >= high {
        return Ok(high);
    }
    for _ in 0..STEPS {
        let middle = low.add(&high).div(&W::ratio(2, 1));
        if gamma(view, node, k, &middle)? <= middle {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(high)
}

/// `(1 - (1 - beta)^k) / beta = sum_j (1 - beta)^j`, where `rho (1 - beta) = (rho - 1) + sum (p - rho q)+`
/// is a sum of what is missed.
fn gamma<W: Weight, V: View<W>>(view: &mut V, node: usize, k: usize, rho: &W) -> Result<W> {
    let mix = Mix { b: rho.clone(), ..Mix::target() };
    let missed = rho.sub(&W::one()).add(&view.mixture(node, &mix)?.total()).div(rho);
    let mut gamma = W::zero();
    for _ in 0..k {
        gamma = gamma.mul(&missed).add(&W::one());
    }
    Ok(gamma)
}

/// What the children of a node leave of the target's row; the row itself at a leaf.
fn residual<W: Weight, V: View<W>>(view: &mut V, node: usize, k: usize, rho: &W) -> Result<Mix<W>> {
    if k == 0 {
        return Ok(Mix::target());
    }
    let gamma = mutate!("kseq/no_gamma", gamma(view, node, k, rho)?, W::one());
    // gamma <= rho at the end of the bisection; only rounding can make the difference negative.
    let floor = W::one().sub(&gamma.div(rho)).positive_part();
    let mix = Mix { b: gamma, floor, ..Mix::target() };
    Ok(mutate!("kseq/leviathan", mix, Mix { b: W::one(), ..Mix::target() }))
}
