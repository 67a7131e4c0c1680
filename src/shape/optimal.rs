//! The best fixed shape for measured acceptance: Sequoia's dynamic programme.
//!
//! # Decision
//! ```text
//! a_k = Pr[the child tested k-th is the one accepted]
//! f(m, d) = g(m, 1, d)                    accepted nodes of the best tree of m nodes, d levels
//! g(m, k, d) = max(0, max over 1 <= j <= m of a_k (1 + f(j - 1, d - 1)) + g(m - j, k + 1, d))
//! ```
//! The size and depth to use are those of the largest `(1 + f(N, D)) / (t_draft(D) + t_verify(N))`.
//!
//! # Source
//! Sequoia (arXiv 2402.12374), with a bound on the depth.

use crate::error::{Error, Result};
use crate::num::Weight;
use crate::tree::TokenTree;

/// The optimum for every number of nodes and levels up to given ones.
#[derive(Debug, Clone)]
pub struct Optimal<W> {
    max_nodes: usize,
    max_depth: usize,
    ranks: usize,
    /// `g` and the `j` that attains it (0: no child), by depth, rank and nodes.
    best: Vec<(W, usize)>,
}

/// `nodes * nodes * ranks * depth` beyond this would take minutes.
const MOST_STEPS: usize = 1 << 31;

impl<W: Weight> Optimal<W> {
    /// Solves for `acceptance[k - 1] = a_k`; a node has at most as many children.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for rates that are negative or sum to more than 1,
    /// [`Error::Overflow`] for sizes that would take minutes.
    pub fn new(acceptance: &[W], max_nodes: usize, max_depth: usize) -> Result<Self> {
        let sum = acceptance.iter().fold(W::zero(), |sum, a| sum.add(a));
        let legal = acceptance.iter().all(|a| *a >= W::zero());
        // Measured rates may sum to 1 up to rounding.
        if !(legal && sum <= W::one().add(&W::ratio(1, 1_000_000))) {
            return Err(Error::ParamOutOfRange {
                name: "acceptance",
                value: format!("{:?}", acceptance.iter().map(Weight::to_f64).collect::<Vec<_>>()),
                wanted: "probabilities of exclusive events: none negative, sum at most 1",
            });
        }
        let steps = [max_nodes, max_nodes, max_depth, acceptance.len()]
            .iter()
            .try_fold(1_usize, |product, &factor| product.checked_mul(factor));
        if steps.is_none_or(|steps| steps > MOST_STEPS) {
            return Err(Error::Overflow {
                what: "nodes * nodes * depth * ranks of a shape",
                found: steps.map_or(u64::MAX, |steps| steps as u64),
                limit: MOST_STEPS as u64,
            });
        }
        let ranks = acceptance.len();
        let cells = (max_depth + 1) * (ranks + 1) * (max_nodes + 1);
        let mut table = Self { max_nodes, max_depth, ranks, best: vec![(W::zero(), 0); cells] };
        for depth in 1..=max_depth {
            for rank in (0..ranks).rev() {
                for nodes in 1..=max_nodes {
                    let mut best = (W::zero(), 0);
                    for child in 1..=nodes {
                        let below = W::one().add(&table.at(depth - 1, 0, child - 1).0);
                        let value = acceptance[rank]
                            .mul(&below)
                            .add(&table.at(depth, rank + 1, nodes - child).0);
                        if value > best.0 {
                            best = (value, child);
                        }
                    }
                    let index = table.index(depth, rank, nodes);
                    table.best[index] = best;
                }
            }
        }
        Ok(table)
    }

    fn index(&self, depth: usize, rank: usize, nodes: usize) -> usize {
        (depth * (self.ranks + 1) + rank) * (self.max_nodes + 1) + nodes
    }

    fn at(&self, depth: usize, rank: usize, nodes: usize) -> &(W, usize) {
        &self.best[self.index(depth, rank, nodes)]
    }

    /// `f(nodes, depth)`: the mean number of accepted tokens.
    pub fn accepted(&self, nodes: usize, depth: usize) -> &W {
        &self.at(depth.min(self.max_depth), 0, nodes.min(self.max_nodes)).0
    }

    /// The best shape of at most `nodes` nodes and `depth` levels, numbered level by level.
    ///
    /// # Errors
    /// [`Error::Overflow`] for more nodes than a tree can have.
    pub fn shape(&self, nodes: usize, depth: usize) -> Result<TokenTree> {
        let mut parents = vec![-1_i64];
        let root = (0, nodes.min(self.max_nodes), depth.min(self.max_depth));
        let mut level = vec![root];
        while !level.is_empty() {
            let mut next = Vec::new();
            for (parent, mut nodes, depth) in level {
                let mut rank = 0;
                while rank < self.ranks {
                    let child = self.at(depth, rank, nodes).1;
                    if child == 0 {
                        break;
                    }
                    next.push((parents.len(), child - 1, depth - 1));
                    parents.push(parent as i64);
                    nodes -= child;
                    rank += 1;
                }
            }
            level = next;
        }
        TokenTree::new(&parents)
    }

    /// The number of nodes and levels with the most emitted tokens per time; `(0, 0)` if drafting
    /// does not pay. `draft_times[d]` and `verify_times[n]` are measured, from 0 on.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for an empty list, or a time of a step that is not above 0.
    pub fn fastest(&self, draft_times: &[f64], verify_times: &[f64]) -> Result<(usize, usize)> {
        let mut best = (f64::NEG_INFINITY, (0, 0));
        for (depth, draft) in draft_times.iter().enumerate().take(self.max_depth + 1) {
            for (nodes, verify) in verify_times.iter().enumerate().take(self.max_nodes + 1) {
                let time = draft + verify;
                if !(time > 0.0 && time.is_finite()) {
                    return Err(Error::ParamOutOfRange {
                        name: "times",
                        value: format!("{time} for {nodes} nodes and {depth} levels"),
                        wanted: "finite times > 0",
                    });
                }
                let rate = (1.0 + self.accepted(nodes, depth).to_f64()) / time;
                if rate > best.0 {
                    best = (rate, (nodes, depth));
                }
            }
        }
        if best.0 == f64::NEG_INFINITY {
            return Err(Error::ParamOutOfRange {
                name: "times",
                value: "an empty list".to_owned(),
                wanted: "at least the time without a draft",
            });
        }
        Ok(best.1)
    }
}
