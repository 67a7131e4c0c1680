//! The proof's view: whole rows of any number type, held in memory.

use crate::chance::{Cells, RaceNoise, nothing_left};
use crate::error::Result;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::view::{Mix, View};

/// The rows of every node of one drafted tree.
#[derive(Debug, Clone)]
pub struct DenseView<W> {
    /// The target's row after each node.
    pub target: Vec<Vec<W>>,
    /// The drafter's row after each node; empty where none is needed.
    pub drafter: Vec<Vec<W>>,
}

#[cfg(feature = "mutants")]
impl<W: Weight> DenseView<W> {
    /// The drafter's rows where nothing was rejected.
    fn wrong_rows(&self, mix: &Mix<W>) -> &[Vec<W>] {
        if mix.b.is_positive() { &self.target } else { &self.drafter }
    }
}

impl<W: Weight> View<W> for DenseView<W> {
    type Mixture<'s>
        = DenseCells<W>
    where
        Self: 's,
        W: 's;

    fn vocab(&self) -> usize {
        self.target.first().map_or(0, Vec::len)
    }

    fn check_target(&mut self, node: usize) -> Result<()> {
        if self.target[node].iter().any(W::is_positive) { Ok(()) } else { Err(nothing_left()) }
    }

    fn target(&mut self, node: usize, token: u32) -> Result<W> {
        Ok(self.target[node][token as usize].clone())
    }

    fn drafter(&mut self, node: usize, token: u32) -> Result<W> {
        Ok(self.drafter[node][token as usize].clone())
    }

    fn drafter_rest(&mut self, node: usize, without: &[u32]) -> Result<W> {
        if without.is_empty() { Ok(W::one()) } else { Ok(rest(&self.drafter[node], without)) }
    }

    fn drafter_row(&mut self, node: usize) -> Result<Vec<W>> {
        Ok(self.drafter[node].clone())
    }

    fn mixture<'s>(&'s mut self, node: usize, mix: &'s Mix<W>) -> Result<DenseCells<W>> {
        let rows = mutate!("td/bonus_draft_row", &self.target[..], self.wrong_rows(mix));
        Ok(DenseCells::mixed(&rows[node], &self.drafter[node], mix))
    }
}

/// The whole row of the target after a node, one weight for each token.
pub(super) fn target_row<W: Weight, V: View<W>>(view: &mut V, node: usize) -> Result<Vec<W>> {
    let mut row = vec![W::zero(); view.vocab()];
    let mix = Mix::target();
    view.mixture(node, &mix)?.visit(&mut |token, weight| row[token as usize] = weight.clone())?;
    Ok(row)
}

/// The sum of a row outside some tokens.
pub(super) fn rest<W: Weight>(row: &[W], without: &[u32]) -> W {
    let outside = (0..).zip(row).filter(|(token, _)| !without.contains(token));
    outside.fold(W::zero(), |sum, (_, weight)| sum.add(weight))
}

/// Weights held in memory.
#[derive(Debug, Clone)]
pub struct DenseCells<W> {
    weights: Vec<W>,
    total: W,
}

impl<W: Weight> DenseCells<W> {
    /// Cells of the given weights.
    pub fn new(weights: Vec<W>) -> Self {
        let total = weights.iter().fold(W::zero(), |sum, weight| sum.add(weight));
        Self { weights, total }
    }

    /// A mixture of two rows; `q` may be empty where nothing is taken.
    pub(super) fn mixed(p: &[W], q: &[W], mix: &Mix<W>) -> Self {
        let mut weights = p.to_vec();
        if mix.b.is_positive() {
            for (token, weight) in weights.iter_mut().enumerate() {
                if mutate!("mixed/set_not_left_out", !mix.set.contains(&(token as u32)), true) {
                    let taken = mix.b.mul(&q[token]);
                    let left =
                        mutate!("td/residual_flipped", weight.sub(&taken), taken.sub(weight));
                    let left = left.max(&mix.floor.mul(&p[token]));
                    *weight = mutate!(
                        "td/residual_abs",
                        left,
                        left.add(&taken.sub(weight).positive_part())
                    );
                }
            }
        }
        for weight in &mut weights {
            *weight = mix.scale.mul(weight);
        }
        for &token in &mix.removed {
            weights[token as usize] = W::zero();
        }
        Self::new(weights)
    }

    /// Cells that rounding has left short of their total.
    #[cfg(feature = "mutants")]
    pub(crate) fn rounded(weights: Vec<W>, total: W) -> Self {
        Self { weights, total }
    }

    /// The last token of all, for a point beyond the last cell.
    #[cfg(feature = "mutants")]
    fn overrun(&self, point: &W) -> Option<u32> {
        let sum = self.weights.iter().fold(W::zero(), |sum, weight| sum.add(weight));
        (*point >= sum).then(|| self.weights.len() as u32 - 1)
    }
}

impl<W: Weight> Cells<W> for DenseCells<W> {
    fn total(&self) -> W {
        self.total.clone()
    }

    fn weight(&mut self, token: u32) -> Result<W> {
        Ok(self.weights[token as usize].clone())
    }

    fn locate(&mut self, point: &W) -> Result<u32> {
        let mut sum = W::zero();
        let mut last = None;
        for (token, weight) in self.weights.iter().enumerate() {
            if weight.is_positive() {
                sum = sum.add(weight);
                last = Some(token as u32);
                if mutate!("rng/cdf_uses_le", *point < sum, *point <= sum) {
                    break;
                }
            }
        }
        let last = mutate!("rng/cdf_runs_past_last_positive", last, self.overrun(point).or(last));
        last.ok_or_else(nothing_left)
    }

    fn visit(&mut self, each: &mut dyn FnMut(u32, &W)) -> Result<()> {
        for (token, weight) in (0_u32..).zip(&self.weights) {
            if weight.is_positive() {
                each(token, weight);
            }
        }
        Ok(())
    }

    fn race(&mut self, noise: &RaceNoise) -> Result<u32> {
        let mut best = None;
        for (token, weight) in self.list()? {
            let time = -(-noise.uniform(token)).ln_1p() / weight.to_f64();
            if best.is_none_or(|(earliest, _)| time < earliest) {
                best = Some((time, token));
            }
        }
        best.map(|(_, token)| token).ok_or_else(nothing_left)
    }
}
