//! Children that are likely to win the verifier's own race.
//!
//! # Law
//! `coupled`: to be verified by the rule `coupled` under the same seed (or by rules that read no
//! drafter's rows and use other noise).
//!
//! # Decision
//! ```text
//! children of a node at depth d: the n smallest E_t(x) / q(x), t = root position + 1 + d
//! ```
//! where `E_t` are the exponential variates by which the rule `coupled` picks the token at `t`. The
//! first child agrees with the target with probability `sum_j 1 / sum_i max(p_i / p_j, q_i / q_j)`.
//!
//! # Source
//! Gumbel coupling, Daliri et al. (arXiv 2408.07978); list form, 2506.05632.

use crate::choice::{Choices, RaceNoise};
use crate::error::Result;
use crate::num::Weight;
use crate::shape::{DraftRows, Grower, Growth};
use crate::tree::TokenTree;
use crate::verify::Noise;
use crate::verify::law::Law;

/// A tree of a given shape, ranked by the race.
#[derive(Debug, Clone)]
pub struct Coupled {
    growth: Growth,
    template: TokenTree,
    slots: Vec<u32>,
    noise: Noise,
}

impl Coupled {
    /// A tree of the shape of `template` below the root at `noise.position`.
    ///
    /// # Errors
    /// [`crate::error::Error::Overflow`] if a position does not fit the noise address.
    pub fn new(mut growth: Growth, template: TokenTree, noise: Noise) -> Result<Self> {
        noise.philox(template.num_nodes())?;
        growth.want((template.num_nodes() > 1).then_some(0));
        Ok(Self { growth, template, slots: vec![0], noise })
    }
}

impl<W: Weight> Grower<W> for Coupled {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        Law::Coupled
    }

    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        _choices: &mut C,
    ) -> Result<()> {
        let mut next = Vec::new();
        for node in self.growth.frontier().to_vec() {
            let node = node as usize;
            let slots = self.template.children(self.slots[node] as usize);
            let emitted = self.noise.position as u32 + 1 + self.growth.depth(node) as u32;
            let race = RaceNoise::new(self.noise.seed, emitted);
            for (token, &slot) in rows.race(node, slots.len(), &race)?.into_iter().zip(slots) {
                let child = self.growth.push(node, token, false);
                self.slots.push(slot);
                if !self.template.children(slot as usize).is_empty() {
                    next.push(child);
                }
            }
        }
        self.growth.want(next);
        Ok(())
    }
}
