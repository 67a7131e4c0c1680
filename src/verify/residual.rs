//! The running residual that the rules share: what the target has left while children are tested.
//!
//! At a node `v` the tests of its children leave a residual law that one scalar, a removed set `R` and
//! a set `S` describe completely:
//!
//! ```text
//! r(x) = (p_v(x) - b q_v(x) [x not in S])+ [x not in R] / total
//! ```
//!
//! It starts as `p_v`. The rejection of a sampled child whose law is `q_v` outside `E`, divided by the
//! mass `z` that `q_v` has there, leaves `(w r - q_v / z)+` with the sum `m`. As every rejection takes a
//! further multiple of the same `q_v`, the clamps collapse to one, and a factor `w / total` can be taken
//! out of both terms:
//!
//! ```text
//! b' = b + total / (w z),  total' = sum of (p_v - b' q_v [not in S])+ [not in R],  m = w total' / total
//! ```
//!
//! Source: the recursions of Leviathan et al. (arXiv 2211.17192), SpecInfer (2305.09781) and Hu et al.
//! (2502.18779), in one form.
//!
//! # Numerics
//! No difference of sums decides anything: `z` and `total'` are sums of what is left, over the rows
//! themselves. A row is seen with a relative error (see [`crate::shaping`]); given the rows as they are
//! seen, each sum has a relative error below `1e-13`, and `b` one of at most `2e-13` for each sibling.
//! Where `p` and `b q` nearly cancel, the weights left have the *absolute* error of the two, and it is
//! the absolute error that reaches the output: a residual of mass `m` is drawn from with probability `m`.

use crate::chance::{Cells, Choices, Purpose, Site};
use crate::error::{Error, Result};
#[cfg(feature = "mutants")]
use crate::mutants::is_on;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::law::{Draft, Law};
use crate::verify::view::{Mix, View};

/// The running residual of one node while its children are tested.
#[derive(Debug, Clone)]
pub struct Residual<W> {
    node: usize,
    mix: Mix<W>,
    /// The sum of the mixture.
    total: W,
    /// Tokens outside of which the next sampled child was drawn: the set, and its earlier siblings
    /// where draws do not repeat.
    excluded: Vec<u32>,
}

impl<W: Weight> Residual<W> {
    /// The residual before any test: the target's row after `node`.
    pub fn start(draft: &Draft, node: usize) -> Self {
        let mut mix = Mix::target();
        if draft.law().is_sampled() {
            mix.set = draft.forced(node).collect();
        }
        let excluded = mutate!("law/top1_rest_not_renormalised", mix.set.clone(), vec![]);
        Self { node, mix, total: W::one(), excluded }
    }

    /// `r(token)` as numerator and denominator.
    fn weight<V: View<W>>(&self, view: &mut V, token: u32, sampled: bool) -> Result<(W, W)> {
        if self.mix.removed.contains(&token) {
            return Ok((W::zero(), self.total.clone()));
        }
        let mut weight = view.target(self.node, token)?;
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
        let found = self.weight(view, token, sampled)?;
        let (weight, total) = mutate!(
            "td/child_row" | "td/row_not_updated" | "td/residual_not_renormalised",
            found,
            self.mistaken_weight(view, child, token, found)?
        );
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
        let rest = view.drafter_rest(self.node, &self.excluded)?;
        // q / rest, which both may be tiny, and not num * rest.
        let den = total.mul(&q.div(&rest));
        Ok(mutate!(
            "td/inverted_ratio" | "td/forget_q" | "td/halved_threshold",
            (num, den),
            mistaken_ratio(num, den, &q)
        ))
    }

    /// Takes note that `child` was rejected, with the node itself delivered with probability `w > 0`;
    /// returns the mass `m` that is left.
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
        let sampled = draft.is_sampled(child);
        let takes = mutate!(
            "td/residual_is_p" | "td/sample_p_after_reject" | "td/residual_zero_token_only",
            sampled,
            false
        );
        if takes {
            let rest = view.drafter_rest(self.node, &self.excluded)?;
            let share = self.total.div(&w.mul(&rest));
            self.mix.b = self.mix.b.add(&share);
        }
        // A rejected sampled child has weight 0 already, up to rounding (which would hide mutants).
        let guarded = mutate!("any", true, false);
        if !sampled || mutate!("td/residual_zero_token_only", guarded, true) {
            self.mix.removed.push(token);
        }
        let without = matches!(draft.law(), Law::Swor | Law::Mixed);
        if sampled && mutate!("td/q_not_renormalised" | "lift/q_not_renormalised", without, false) {
            self.excluded.push(token);
        }
        let before = self.total.clone();
        self.total = view.mixture(self.node, &self.mix)?.total();
        let left = w.mul(&self.total).div(&before);
        let left =
            mutate!("lift/set_child_takes_nothing", left, if sampled { left } else { w.clone() });
        mutate!("lift/row_not_updated", (), self.forget());
        Ok(left)
    }

    /// Goes back to the row before any test.
    #[cfg(feature = "mutants")]
    fn forget(&mut self) {
        self.mix = Mix { set: std::mem::take(&mut self.mix.set), ..Mix::target() };
        self.total = W::one();
    }

    /// The weight as the mutants of `weight` have it.
    #[cfg(feature = "mutants")]
    fn mistaken_weight<V: View<W>>(
        &self,
        view: &mut V,
        child: usize,
        token: u32,
        (weight, total): (W, W),
    ) -> Result<(W, W)> {
        Ok(if is_on("td/child_row") {
            (view.target(child, token)?, total)
        } else if is_on("td/row_not_updated") {
            (view.target(self.node, token)?, W::one())
        } else {
            (weight, W::one())
        })
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
        draw_from(view, choices, self.node, &self.mix)
    }
}

/// The ratio as the mutants of `ratio` have it.
#[cfg(feature = "mutants")]
fn mistaken_ratio<W: Weight>(num: W, den: W, q: &W) -> (W, W) {
    if is_on("td/inverted_ratio") {
        (den, num)
    } else if is_on("td/forget_q") {
        (num, den.div(q))
    } else {
        (num, den.add(&den))
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
) -> Result<(u32, usize)> {
    let site = Site::new(node, Purpose::Sample);
    let site = mutate!("td/u_reused_for_sample", site, Site::new(node + 1, Purpose::Accept));
    let mut cells = view.mixture(node, mix)?;
    if cells.total().is_positive() {
        return Ok((choices.draw(site, &mut cells)?, 0));
    }
    drop(cells);
    // Exactly, a rejection leaves mass. If rounding took it, p = q up to rounding, and the
    // target's row without the tokens already rejected is the closest law there is.
    let removed = mutate!("fallback/rejected_token_returns", mix.removed.clone(), vec![]);
    let rest = Mix { removed, ..Mix::target() };
    let mut cells = view.mixture(node, &rest)?;
    if cells.total().is_positive() {
        return Ok((choices.draw(site, &mut cells)?, 1));
    }
    drop(cells);
    let whole = Mix::target();
    let mut cells = view.mixture(node, &whole)?;
    Ok((choices.draw(site, &mut cells)?, 1))
}
