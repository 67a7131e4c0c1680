//! Sampled growth that puts the next draw where it is worth most.
//!
//! # Law
//! `swor`.
//!
//! # Decision
//! ```text
//! slots: (node, value), the root's of value 1
//! take the slot of largest value; draw x from what is left of its row, r;
//! push (x, value r(x)) and, for the next sibling, (node, value (1 - r(x)))
//! ```
//! A slot's value is the probability that a target equal to the drafter reaches it.
//!
//! # Why lossless
//! Which slot is next depends on what has been drawn, never on the draw itself, and no token is taken
//! back: append-only. Ranking the finished tree and cutting it would not be.
//!
//! # Source
//! DySpec (arXiv 2410.11744).

use crate::chance::Choices;
use crate::error::Result;
use crate::growers::{DraftRows, Grower, Growth, check, check_nodes};
use crate::number::Weight;
use crate::verify::law::Law;

/// What a tree may grow to.
#[derive(Debug, Clone)]
pub struct Limits<W> {
    /// Drafted nodes.
    pub max_nodes: usize,
    /// Depth of the deepest node.
    pub max_depth: usize,
    /// Slots of a smaller value are not drawn from; 0: off.
    pub min_value: W,
    /// How many rows are asked for at once: those of the next slots by value. More rows than are
    /// used, fewer passes of the drafter; the draft is the same.
    pub lookahead: usize,
}

#[derive(Debug, Clone)]
struct Slot<W> {
    value: W,
    parent: usize,
    /// Mass of the row outside the children drawn so far.
    left: W,
}

/// A tree grown draw by draw.
#[derive(Debug, Clone)]
pub struct Stochastic<W> {
    growth: Growth,
    limits: Limits<W>,
    slots: Vec<Slot<W>>,
    has_row: Vec<bool>,
}

impl<W: Weight> Stochastic<W> {
    /// A tree within the limits.
    ///
    /// # Errors
    /// [`crate::error::Error::Overflow`] and [`crate::error::Error::ParamOutOfRange`] name the limit.
    pub fn new(growth: Growth, limits: Limits<W>) -> Result<Self> {
        check_nodes("max_nodes", limits.max_nodes)?;
        check(limits.lookahead > 0, "lookahead", &limits.lookahead, "at least 1")?;
        let mut grower = Self { growth, limits, slots: Vec::new(), has_row: vec![false] };
        grower.open(W::one(), 0, W::one());
        grower.ask();
        Ok(grower)
    }

    fn open(&mut self, value: W, parent: usize, left: W) {
        let useful = value.is_positive() && value >= self.limits.min_value && left.is_positive();
        let deep = self.growth.depth(parent) >= self.limits.max_depth;
        if useful && !deep && !self.growth.is_end(parent) {
            self.slots.push(Slot { value, parent, left });
        }
    }

    /// The best slot; of equal ones that of the earlier node.
    fn best(&self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for (index, slot) in self.slots.iter().enumerate() {
            let better = best.is_none_or(|at| {
                let held = &self.slots[at];
                slot.value > held.value || (slot.value == held.value && slot.parent < held.parent)
            });
            if better {
                best = Some(index);
            }
        }
        best
    }

    /// Asks for the rows of the best slots without one, if the best of all is among them.
    fn ask(&mut self) {
        let mut wanted = Vec::new();
        if self.growth.num_drafted() < self.limits.max_nodes {
            let mut waiting: Vec<&Slot<W>> =
                self.slots.iter().filter(|slot| !self.has_row[slot.parent]).collect();
            waiting.sort_by(|a, b| {
                let by_value = b.value.partial_cmp(&a.value);
                by_value.unwrap_or(std::cmp::Ordering::Equal).then(a.parent.cmp(&b.parent))
            });
            wanted = waiting.iter().take(self.limits.lookahead).map(|slot| slot.parent).collect();
        }
        self.growth.want(wanted);
    }
}

impl<W: Weight> Grower<W> for Stochastic<W> {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        Law::Swor
    }

    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<()> {
        for &node in self.growth.frontier() {
            self.has_row[node as usize] = true;
        }
        while self.growth.num_drafted() < self.limits.max_nodes {
            let Some(index) = self.best().filter(|&at| self.has_row[self.slots[at].parent]) else {
                break;
            };
            let Slot { value, parent, left } = self.slots.swap_remove(index);
            let Some(child) = self.growth.draw(parent, &[], false, rows, choices)? else {
                continue;
            };
            self.has_row.push(false);
            let q = rows.probability(parent, self.growth.tokens()[child] as u32)?;
            let share = q.div(&left);
            self.open(value.mul(&share), child, W::one());
            self.open(value.mul(&W::one().sub(&share)), parent, left.sub(&q));
        }
        // Slots are left only if the best of them has no row, or the budget is used up.
        self.ask();
        Ok(())
    }
}
