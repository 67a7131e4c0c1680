//! Hits of a deterministic source, with one sampled source beside them.
//!
//! # Law
//! `mixed`: at each node the hits below it are the set `S`; the sampled children are drawn without
//! replacement from the drafter's row outside `S` and tested first.
//!
//! # Why lossless
//! The hits are a function of the past, so `S` is known before any draw; the node budget decides
//! before a draw whether it happens. Two sampled sources at one node have
//! no law that a rule could use, and are not offered.
//!
//! # Source
//! The generalisation of Hu et al. (arXiv 2502.18779) to any set; hits as in prompt lookup and
//! SuffixDecoding (2411.04975).

use crate::chance::Choices;
use crate::error::Result;
use crate::growers::{DraftRows, Grower, Growth, check_nodes};
use crate::number::Weight;
use crate::verify::law::{Draft, Law};

/// A deterministic tree and drawn tokens around it.
#[derive(Debug, Clone)]
pub struct Union {
    growth: Growth,
    hits: Draft,
    /// Drawn children of a node, by its depth.
    counts: Vec<usize>,
    /// The node of `hits` that each node is, if it is one.
    at: Vec<Option<usize>>,
    max_nodes: usize,
    /// Nodes of `hits` not grown yet; their places in the budget are kept free.
    waiting: usize,
}

impl Union {
    /// The hits, all of them, and up to `counts[depth]` drawn children of every node, as long as the
    /// tree has at most `max_nodes` drafted nodes.
    ///
    /// # Errors
    /// [`crate::error::Error::Overflow`] for more nodes than a tree can have, hits included;
    /// [`crate::error::Error::DuplicateSibling`] for hits with equal siblings.
    pub fn new(
        mut growth: Growth,
        hits: Draft,
        counts: Vec<usize>,
        max_nodes: usize,
    ) -> Result<Self> {
        let waiting = hits.num_nodes() - 1;
        check_nodes("max_nodes", max_nodes.max(waiting))?;
        let open = counts.first().is_some_and(|&count| count > 0) && waiting < max_nodes;
        growth.want((open || waiting > 0).then_some(0));
        Ok(Self { growth, hits, counts, at: vec![Some(0)], max_nodes, waiting })
    }

    fn hits_below(&self, node: usize) -> &[u32] {
        self.at[node].map_or(&[], |at| self.hits.tree().children(at))
    }
}

impl<W: Weight> Grower<W> for Union {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        Law::Mixed
    }

    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<()> {
        let level = self.growth.num_nodes();
        for node in self.growth.frontier().to_vec() {
            let node = node as usize;
            let hits = self.hits_below(node).to_vec();
            let set: Vec<u32> = hits.iter().map(|&hit| self.hits.token(hit as usize)).collect();
            let wanted = self.counts.get(self.growth.depth(node)).copied().unwrap_or(0);
            let room = self.max_nodes.saturating_sub(self.growth.num_drafted() + self.waiting);
            let draws = wanted.min(room);
            self.growth.children(node, draws, &set, false, rows, choices)?;
            let drawn = self.growth.num_nodes() - self.at.len() - hits.len();
            self.at.extend(std::iter::repeat_n(None, drawn));
            self.at.extend(hits.iter().map(|&hit| Some(hit as usize)));
            self.waiting -= hits.len();
        }
        let full = self.growth.num_drafted() + self.waiting >= self.max_nodes;
        let inner = |&node: &usize| {
            let draws = self.counts.get(self.growth.depth(node)).is_some_and(|&count| count > 0);
            !self.hits_below(node).is_empty() || (draws && !full)
        };
        let next: Vec<usize> = (level..self.growth.num_nodes()).filter(inner).collect();
        self.growth.want(next);
        Ok(())
    }
}
