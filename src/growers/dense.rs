//! The proof's rows: whole rows of any number type, one for each node that has asked for it.

use crate::chance::{Cells, Choices, RaceNoise, Site};
use crate::error::Result;
use crate::growers::{DraftRows, Grower};
use crate::number::Weight;
use crate::verify::dense::DenseCells;

/// Rows held in memory, by node.
#[derive(Debug, Clone, Default)]
pub struct DenseRows<W> {
    rows: Vec<Vec<W>>,
}

impl<W: Weight> DenseRows<W> {
    /// No rows yet.
    pub fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Grows to the end, taking the row after each path from `row`.
    ///
    /// # Errors
    /// Whatever the source of choices raises.
    pub fn grow<G: Grower<W>, C: Choices<W>>(
        grower: &mut G,
        choices: &mut C,
        row: impl Fn(&[u32]) -> Vec<W>,
    ) -> Result<()> {
        let mut rows = Self::new();
        while !grower.frontier().is_empty() {
            for &node in grower.frontier() {
                rows.set(node as usize, row(&grower.growth().path(node as usize)));
            }
            grower.extend(&mut rows, choices)?;
        }
        Ok(())
    }

    /// Sets the row after a node.
    pub fn set(&mut self, node: usize, row: Vec<W>) {
        if self.rows.len() <= node {
            self.rows.resize(node + 1, Vec::new());
        }
        self.rows[node] = row;
    }
}

impl<W: Weight> DraftRows<W> for DenseRows<W> {
    fn probability(&mut self, node: usize, token: u32) -> Result<W> {
        Ok(self.rows[node][token as usize].clone())
    }

    fn best(&mut self, node: usize, n: usize) -> Result<Vec<(u32, W)>> {
        let mut best: Vec<(u32, W)> = (0_u32..)
            .zip(self.rows[node].iter().cloned())
            .filter(|(_, q)| q.is_positive())
            .collect();
        best.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
        best.truncate(n);
        Ok(best)
    }

    fn draw<C: Choices<W>>(
        &mut self,
        node: usize,
        without: &[u32],
        site: Site,
        choices: &mut C,
    ) -> Result<Option<u32>> {
        let mut left = self.rows[node].clone();
        for &token in without {
            left[token as usize] = W::zero();
        }
        let mut cells = DenseCells::new(left);
        if !cells.total().is_positive() {
            return Ok(None);
        }
        choices.draw(site, &mut cells).map(Some)
    }

    fn race(&mut self, node: usize, n: usize, noise: &RaceNoise) -> Result<Vec<u32>> {
        let mut times: Vec<(f64, u32)> = (0_u32..)
            .zip(&self.rows[node])
            .filter(|(_, q)| q.is_positive())
            .map(|(token, q)| (-(-noise.uniform(token)).ln_1p() / q.to_f64(), token))
            .collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(times.into_iter().take(n).map(|(_, token)| token).collect())
    }
}
