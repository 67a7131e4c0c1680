//! A mixture of rows as a distribution to draw from.

use crate::chance::{Cells, RaceNoise};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::simd::BLOCK;
use crate::verify::lazy::{Form, LazyView, Parts};
use crate::verify::memory::Memory;

/// A mixture of a node's rows; its weights have been summed.
pub struct LazyCells<'s, 'a> {
    pub(super) view: &'s mut LazyView<'a>,
    pub(super) parts: Parts<'s>,
}

impl LazyCells<'_, '_> {
    /// Calls `each` with every token of positive weight and its weight, ascending, until it says stop.
    ///
    /// Of a mixture in blocks it begins with block `from`.
    fn scan(&mut self, from: usize, mut each: impl FnMut(u32, f64) -> bool) {
        match self.parts.form {
            Form::Only(token) => {
                each(token, 1.0);
            }
            Form::List => {
                let Memory { kept, mixture, .. } = &*self.view.memory;
                for (&token, &weight) in kept.tokens.iter().zip(&mixture.weights) {
                    if weight > 0.0 && each(token, weight) {
                        return;
                    }
                }
            }
            Form::Blocks => {
                for start in (0..self.view.target.num_cols()).step_by(BLOCK).skip(from) {
                    let len = self.view.fill(&self.parts, start);
                    let weights = &self.view.memory.scratch.weights[..len];
                    for (token, &weight) in (start as u32..).zip(weights) {
                        if weight > 0.0 && each(token, weight) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The block in which a point lies, and the sum of those before it; the last one of positive sum if
    /// rounding put the point beyond the others.
    fn find_block(&self, point: f64) -> (usize, f64) {
        let (mut found, mut before) = ((0, 0.0), 0.0);
        for (block, &sum) in self.view.memory.mixture.sums.iter().enumerate() {
            if sum > 0.0 {
                found = (block, before);
                before += sum;
                if mutate!("float/block_edge_le", point < before, point <= before) {
                    break;
                }
            }
        }
        mutate!("float/block_s_start_forgotten", found, (found.0, 0.0))
    }
}

impl Cells<f64> for LazyCells<'_, '_> {
    fn total(&self) -> f64 {
        match self.parts.form {
            Form::Only(_) => self.parts.mix.scale,
            Form::List | Form::Blocks => self.view.memory.mixture.total * self.parts.unit,
        }
    }

    fn weight(&mut self, token: u32) -> Result<f64> {
        let parts = &self.parts;
        let whole = self.view.target.weight(parts.node, &parts.target, token);
        let taken = match &parts.drafter {
            Some(drafted) if !parts.mix.set.contains(&token) => {
                self.view.drafter.weight(drafted, token)
            }
            _ => 0.0,
        };
        Ok(parts.weight(token, whole, taken) * parts.unit)
    }

    fn locate(&mut self, point: &f64) -> Result<u32> {
        let point = mutate!("float/unit_forgotten", point / self.parts.unit, *point);
        let (block, mut before) = match self.parts.form {
            Form::Blocks => self.find_block(point),
            Form::Only(_) | Form::List => (0, 0.0),
        };
        let end = match self.parts.form {
            Form::Blocks => (block + 1) * BLOCK,
            Form::Only(_) | Form::List => usize::MAX,
        };
        let mut found = None;
        self.scan(block, |token, weight| {
            if found.is_some() && token as usize >= end {
                return true;
            }
            before += weight;
            found = Some(token);
            let is_here = mutate!("float/token_edge_le", point < before, point <= before);
            is_here || token as usize >= end
        });
        if found.is_none() {
            // The last block may have a sum (below 2^-100) and no token above the row's cut.
            self.scan(0, |token, _| {
                found = Some(token);
                false
            });
        }
        found.ok_or_else(|| changed(self.parts.node))
    }

    fn visit(&mut self, each: &mut dyn FnMut(u32, &f64)) -> Result<()> {
        let unit = self.parts.unit;
        self.scan(0, |token, weight| {
            each(token, &(weight * unit));
            false
        });
        Ok(())
    }

    fn race(&mut self, noise: &RaceNoise) -> Result<u32> {
        let mut race = Race { earliest: f64::INFINITY, winner: None };
        match self.parts.form {
            Form::Only(token) => return Ok(token),
            Form::List => self.scan(0, |token, weight| {
                race.enter(token, noise.uniform(token), weight);
                false
            }),
            Form::Blocks => {
                let mut numbers = [0.0; BLOCK];
                for start in (0..self.view.target.num_cols()).step_by(BLOCK) {
                    let len = self.view.fill(&self.parts, start);
                    let numbers = &mut numbers[..len];
                    (self.view.target.kernels().race_noise)(noise, start as u32 / 2, numbers);
                    let weights = &self.view.memory.scratch.weights[..len];
                    for (token, (&v, &weight)) in (start as u32..).zip(numbers.iter().zip(weights))
                    {
                        race.enter(token, v, weight);
                    }
                }
            }
        }
        race.winner.ok_or_else(|| changed(self.parts.node))
    }
}

/// The exponential race of a row's tokens.
struct Race {
    earliest: f64,
    winner: Option<u32>,
}

impl Race {
    /// Lets a token take part, with its number in `[0, 1)` and its weight.
    fn enter(&mut self, token: u32, v: f64, weight: f64) {
        // -ln(1 - v) >= v, so most tokens lose without a logarithm.
        if v < self.earliest * weight || (self.winner.is_none() && weight > 0.0) {
            let time = -(-v).ln_1p() / weight;
            if time < self.earliest {
                self.earliest = time;
                self.winner = Some(token);
            }
        }
    }
}

/// The error of a row whose weights are gone when they are read again.
fn changed(node: usize) -> Error {
    Error::RowChanged { side: "target", row: node }
}
