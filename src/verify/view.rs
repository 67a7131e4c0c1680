//! What a rule sees of the rows, and the running residual that the rules share.
//!
//! At a node `v` the tests of its children leave a residual law that two scalars, a removed set and
//! the deterministic set `S` describe completely:
//!
//! ```text
//! r(x) = (a p_v(x) - b q_v(x) [x not in S])+ [x not in R] / total
//! ```
//!
//! It starts as `p_v`. Each rejection of a sampled child subtracts a further multiple of the same
//! `q_v`, so the composition of clamps collapses to one clamp. Source: the recursions of Leviathan et
//! al. (arXiv 2211.17192), SpecInfer (2305.09781) and Hu et al. (2502.18779), in one form.

use crate::choice::{Cells, Choices, Purpose, Site};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::num::Weight;
use crate::verify::law::{Draft, Law};

/// An unnormalised mixture of a node's rows: `max(a p - b q [not in set], floor p) [not in removed]`.
#[derive(Debug, Clone)]
pub struct Mix<W> {
    /// Factor of the target's row.
    pub a: W,
    /// Factor of the drafter's row.
    pub b: W,
    /// Share of the target's row that is kept whatever is taken, at most `a`.
    pub floor: W,
    /// Tokens whose weight is 0.
    pub removed: Vec<u32>,
}

impl<W: Weight> Mix<W> {
    /// The target's row itself.
    pub fn target() -> Self {
        Self { a: W::one(), b: W::zero(), floor: W::zero(), removed: Vec::new() }
    }
}

/// A rule's eyes: rows by node, lazily in production, dense rationals in the proof.
pub trait View<W: Weight> {
    /// The lazily read form of a mixture.
    type Mixture<'s>: Cells<W>
    where
        Self: 's,
        W: 's;

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

    /// The whole row that the node's sampled children were drawn from, one weight for each token.
    ///
    /// # Errors
    /// If the row is not a distribution.
    fn drafter_row(&mut self, node: usize) -> Result<Vec<W>>;

    /// The weights `max(a p - b q [x not in set], floor p) [x not in removed]` of a node.
    ///
    /// # Errors
    /// If a row is not a distribution.
    fn mixture<'s>(
        &'s mut self,
        node: usize,
        mix: &'s Mix<W>,
        set: &'s [u32],
    ) -> Result<Self::Mixture<'s>>;
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

/// The running residual of one node while its children are tested.
#[derive(Debug, Clone)]
pub struct Residual<W> {
    node: usize,
    mix: Mix<W>,
    total: W,
    set: Vec<u32>,
    /// `1 - q(S) - q(earlier sampled siblings)`; 1 for chains and independent siblings.
    remaining: W,
}

impl<W: Weight> Residual<W> {
    /// The residual before any test: the target's row after `node`.
    ///
    /// # Errors
    /// If the drafter's row is not a distribution.
    pub fn start<V: View<W>>(draft: &Draft, view: &mut V, node: usize) -> Result<Self> {
        let set: Vec<u32> =
            if draft.law().is_sampled() { draft.forced(node).collect() } else { Vec::new() };
        let mut remaining = W::one();
        let samples = draft.tree().children(node).iter().any(|&c| draft.is_sampled(c as usize));
        if samples {
            for &token in mutate!("law/top1_rest_not_renormalised", &set[..], &[]) {
                remaining = remaining.sub(&view.drafter(node, token)?);
            }
        }
        Ok(Self { node, mix: Mix::target(), total: W::one(), set, remaining })
    }

    /// `r(token)` as numerator and denominator.
    fn weight<V: View<W>>(&self, view: &mut V, token: u32, sampled: bool) -> Result<(W, W)> {
        if self.mix.removed.contains(&token) {
            return Ok((W::zero(), self.total.clone()));
        }
        let mut weight = self.mix.a.mul(&view.target(self.node, token)?);
        if sampled && self.mix.b.is_positive() {
            weight = weight.sub(&self.mix.b.mul(&view.drafter(self.node, token)?));
        }
        Ok((weight.positive_part(), self.total.clone()))
    }

    /// The acceptance ratio `w r(t) / q_c(t)` of a child, as numerator and denominator.
    ///
    /// # Errors
    /// If a row is not a distribution, or gives a sampled child the probability 0.
    pub fn ratio<V: View<W>>(
        &self,
        draft: &Draft,
        view: &mut V,
        child: usize,
        w: &W,
    ) -> Result<(W, W)> {
        let token = draft.token(child);
        let sampled = draft.is_sampled(child);
        let (weight, total) = self.weight(view, token, sampled)?;
        let weight = mutate!("td/child_row", weight, view.target(child, token)?);
        let (weight, total) = mutate!(
            "td/row_not_updated",
            (weight, total),
            (view.target(self.node, token)?, W::one())
        );
        let total = mutate!("td/residual_not_renormalised", total, W::one());
        let num = w.mul(&weight);
        if !sampled {
            return Ok((num, total));
        }
        let q = view.drafter(self.node, token)?;
        if !q.is_positive() {
            return Err(Error::ZeroDraftProbability {
                node: child,
                token,
                found: q.to_f64().to_string(),
            });
        }
        let (num, den) = (num.mul(&self.remaining), total.mul(&q));
        let (num, den) = mutate!("td/inverted_ratio", (num, den), (den, num));
        let den = mutate!("td/forget_q", den, den.div(&q));
        Ok((num, mutate!("td/halved_threshold", den, den.add(&den))))
    }

    /// Takes note that `child` was rejected, with the node itself delivered with probability `w`;
    /// returns the mass `m` that is left, which is the next `total`.
    ///
    /// # Errors
    /// If a row is not a distribution.
    pub fn reject<V: View<W>>(
        &mut self,
        draft: &Draft,
        view: &mut V,
        child: usize,
        w: &W,
    ) -> Result<W> {
        let token = draft.token(child);
        let scale = w.div(&self.total);
        let sampled = draft.is_sampled(child);
        let share = if sampled {
            None
        } else {
            let (weight, total) = self.weight(view, token, false)?;
            let lost = mutate!("lift/set_child_takes_nothing", weight.div(&total), W::zero());
            Some(w.mul(&W::one().sub(&lost)))
        };
        self.mix.a = self.mix.a.mul(&scale);
        self.mix.b = self.mix.b.mul(&scale);
        if mutate!(
            "td/residual_is_p" | "td/sample_p_after_reject" | "td/residual_zero_token_only",
            sampled,
            false
        ) {
            self.mix.b = self.mix.b.add(&W::one().div(&self.remaining));
        }
        // A rejected sampled child has weight 0 already, up to rounding (which would hide mutants).
        let guarded = mutate!("any", draft.law() != Law::Iid, false);
        if !sampled || mutate!("td/residual_zero_token_only", guarded, true) {
            self.mix.removed.push(token);
        }
        let without = matches!(draft.law(), Law::Swor | Law::Mixed);
        if sampled && mutate!("td/q_not_renormalised" | "lift/q_not_renormalised", without, false) {
            self.remaining = self.remaining.sub(&view.drafter(self.node, token)?);
        }
        // A deterministic child leaves w (1 - r(t)); where that cancels, the rows are summed again.
        self.total = match share {
            Some(mass) if mass > W::ratio(1, 1_000_000_000) => mass,
            _ => view.mixture(self.node, &self.mix, &self.set)?.total(),
        };
        let left = self.total.clone();
        mutate!("lift/row_not_updated", (), self.forget());
        Ok(left)
    }

    /// Goes back to the row before any test.
    #[cfg(feature = "mutants")]
    fn forget(&mut self) {
        self.mix = Mix::target();
        self.total = W::one();
    }

    /// Draws from the residual; the second value counts a fall back to the target's row.
    ///
    /// # Errors
    /// If a row is not a distribution.
    pub fn draw<V: View<W>, C: Choices<W>>(
        &self,
        view: &mut V,
        choices: &mut C,
    ) -> Result<(u32, usize)> {
        draw_from(view, choices, self.node, &self.mix, &self.set)
    }
}

/// Draws the token at which a walk stops; the second value counts a fall back to the target's row.
///
/// # Errors
/// If a row is not a distribution.
pub fn draw_from<W: Weight, V: View<W>, C: Choices<W>>(
    view: &mut V,
    choices: &mut C,
    node: usize,
    mix: &Mix<W>,
    set: &[u32],
) -> Result<(u32, usize)> {
    let site = Site::new(node, Purpose::Sample);
    let site = mutate!("td/u_reused_for_sample", site, Site::new(node + 1, Purpose::Accept));
    let mut cells = view.mixture(node, mix, set)?;
    if cells.total().is_positive() {
        return Ok((choices.draw(site, &mut cells)?, 0));
    }
    drop(cells);
    // Exactly, a rejection leaves mass. If rounding took it, p = q up to rounding, and the
    // target's row without the tokens already rejected is the closest law there is.
    let removed = mutate!("fallback/rejected_token_returns", mix.removed.clone(), vec![]);
    let rest = Mix { removed, ..Mix::target() };
    let mut cells = view.mixture(node, &rest, &[])?;
    if cells.total().is_positive() {
        return Ok((choices.draw(site, &mut cells)?, 1));
    }
    drop(cells);
    let whole = Mix::target();
    let mut cells = view.mixture(node, &whole, &[])?;
    Ok((choices.draw(site, &mut cells)?, 1))
}
