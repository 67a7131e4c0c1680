//! One path, stopped early only for reasons that are known before a token is drawn.
//!
//! # Law
//! `chain` if tokens are drawn, `deterministic` if each is the most probable one.
//!
//! # Why lossless
//! The decision to draw looks at the row that would be drawn from and at the tokens already kept.
//! A drawn token stays, however improbable it is: dropping it would bias.
//!
//! # Source
//! Leviathan et al. (arXiv 2211.17192); the stops are those of transformers' assisted generation,
//! applied before the draw.

use crate::chance::Choices;
use crate::error::Result;
use crate::growers::{DraftRows, Grower, Growth, check_nodes};
use crate::number::Weight;
use crate::verify::law::Law;

/// When a chain ends before its full length; weights of 0 are off.
#[derive(Debug, Clone)]
pub struct Stop<W> {
    /// A row whose largest probability is below this is not drawn from.
    pub min_top: W,
    /// Nothing is drawn below a path whose drafter's probability is below this.
    pub min_path: W,
}

impl<W: Weight> Stop<W> {
    /// Full length always.
    pub fn never() -> Self {
        Self { min_top: W::zero(), min_path: W::zero() }
    }
}

/// A chain of at most `length` tokens.
#[derive(Debug, Clone)]
pub struct Chain<W> {
    growth: Growth,
    length: usize,
    sampled: bool,
    stop: Stop<W>,
    path: W,
}

impl<W: Weight> Chain<W> {
    /// A chain below the root that `growth` holds.
    ///
    /// # Errors
    /// [`crate::error::Error::Overflow`] for more nodes than a tree can have.
    pub fn new(mut growth: Growth, length: usize, sampled: bool, stop: Stop<W>) -> Result<Self> {
        check_nodes("num_tokens", length)?;
        growth.want((length > 0).then_some(0));
        Ok(Self { growth, length, sampled, stop, path: W::one() })
    }
}

impl<W: Weight> Grower<W> for Chain<W> {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        if self.sampled { Law::Chain } else { Law::Deterministic }
    }

    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<()> {
        let Some(&node) = self.growth.frontier().first() else {
            return Ok(());
        };
        let node = node as usize;
        self.growth.want(None);
        let needs_top = !self.sampled || self.stop.min_top.is_positive();
        let top = if needs_top { rows.best(node, 1)?.pop() } else { None };
        if top.as_ref().is_some_and(|(_, q)| *q < self.stop.min_top) {
            return Ok(());
        }
        let child = if self.sampled {
            self.growth.draw(node, &[], true, rows, choices)?
        } else {
            top.map(|(token, _)| self.growth.push(node, token, false))
        };
        let Some(child) = child else {
            return Ok(());
        };
        if self.stop.min_path.is_positive() {
            let q = rows.probability(node, self.growth.tokens()[child] as u32)?;
            self.path = self.path.mul(&q);
            if self.path < self.stop.min_path {
                return Ok(());
            }
        }
        self.growth.want((self.growth.num_drafted() < self.length).then_some(child));
        Ok(())
    }
}
