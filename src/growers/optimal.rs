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

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::number::Weight;
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

/// More steps than this would take minutes.
const MOST_STEPS: usize = 1 << 31;

/// A table of more cells than this would take hundreds of megabytes, most of them for a depth or a rank
/// that no tree of so few nodes has.
const MOST_CELLS: usize = 1 << 24;

/// The product of some sizes, if it is at most `limit`.
fn check_product(what: &'static str, factors: [usize; 4], limit: usize) -> Result<usize> {
    let multiply = |product: usize, &factor: &usize| product.checked_mul(factor);
    let product = factors.iter().try_fold(1, multiply);
    product.filter(|&product| product <= limit).ok_or(Error::Overflow {
        what,
        found: product.map_or(u64::MAX, |product| product as u64),
        limit: limit as u64,
    })
}

impl<W: Weight> Optimal<W> {
    /// Solves for `acceptance[k - 1] = a_k`; a node has at most as many children.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for rates that are negative or sum to more than 1,
    /// [`Error::Overflow`] for sizes that would take minutes.
    pub fn new(acceptance: &[W], max_nodes: usize, max_depth: usize) -> Result<Self> {
        let refuse = |value| {
            let wanted = "probabilities of exclusive events: none negative, sum at most 1";
            Err(Error::ParamOutOfRange { name: "acceptance", value, wanted })
        };
        if let Some(rate) = acceptance
            .iter()
            .find(|rate| (**rate).partial_cmp(&W::zero()).is_none_or(Ordering::is_lt))
        {
            return refuse(rate.to_f64().to_string());
        }
        let sum = acceptance.iter().fold(W::zero(), |sum, a| sum.add(a));
        // Measured rates may sum to 1 up to rounding.
        if sum > W::one().add(&W::ratio(1, 1_000_000)) {
            return refuse(format!("a sum of {}", sum.to_f64()));
        }
        let ranks = acceptance.len();
        check_product(
            "max_nodes * max_nodes * max_depth * rates",
            [max_nodes, max_nodes, max_depth, ranks],
            MOST_STEPS,
        )?;
        let [depths, places, sizes] = [max_depth, ranks, max_nodes].map(|n| n.saturating_add(1));
        let cells = check_product(
            "(max_depth + 1) * (rates + 1) * (max_nodes + 1)",
            [depths, places, sizes, 1],
            MOST_CELLS,
        )?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use num_rational::BigRational;

    type R = BigRational;

    fn r(num: i64, den: i64) -> R {
        <R as Weight>::ratio(num, den)
    }

    /// Mean accepted nodes of a shape: the sum over nodes of the product of `a` by rank.
    fn accepted(tree: &TokenTree, a: &[R]) -> R {
        let mut reach = vec![r(1, 1); tree.num_nodes()];
        for node in 0..tree.num_nodes() {
            for (rank, &child) in tree.children(node).iter().enumerate() {
                let rate = a.get(rank).cloned().unwrap_or_else(|| r(0, 1));
                reach[child as usize] = reach[node].clone() * rate;
            }
        }
        reach[1..].iter().fold(r(0, 1), |sum, x| sum + x.clone())
    }

    #[test]
    fn the_dynamic_programme_gives_the_stated_optima() {
        let a = [r(3, 5), r(1, 5), r(1, 10)];
        let table = Optimal::new(&a, 6, 3).unwrap();
        let deep = [r(3, 5), r(24, 25), r(147, 125), r(172, 125), r(187, 125), r(202, 125)];
        let flat = [r(3, 5), r(24, 25), r(29, 25), r(32, 25), r(7, 5), r(3, 2)];
        for nodes in 1..=6 {
            for (depth, wanted) in [(3, &deep[nodes - 1]), (2, &flat[nodes - 1])] {
                assert_eq!(table.accepted(nodes, depth), wanted);
                let shape = table.shape(nodes, depth).unwrap();
                assert!(shape.num_nodes() <= nodes + 1);
                assert!((0..shape.num_nodes()).all(|node| shape.depth(node) <= depth));
                assert_eq!(accepted(&shape, &a), *wanted);
                assert_eq!(best_by_search(nodes, depth, &a), *wanted);
            }
        }
    }

    /// The optimum over every tree of at most `nodes` nodes and `depth` levels.
    fn best_by_search(nodes: usize, depth: usize, a: &[R]) -> R {
        let mut best = r(0, 1);
        let mut parents = vec![-1_i64];
        search(nodes, depth, a, &mut parents, &mut best);
        best
    }

    fn search(nodes: usize, depth: usize, a: &[R], parents: &mut Vec<i64>, best: &mut R) {
        let tree = TokenTree::new(parents).unwrap();
        let value = accepted(&tree, a);
        if value > *best {
            *best = value;
        }
        if parents.len() > nodes {
            return;
        }
        for parent in 0..parents.len() {
            if tree.depth(parent) < depth {
                parents.push(parent as i64);
                search(nodes, depth, a, parents, best);
                parents.pop();
            }
        }
    }

    #[test]
    fn the_fastest_shape_balances_gain_and_time() {
        let table = Optimal::new(&[0.8, 0.1], 16, 8).unwrap();
        let verify: Vec<f64> = (0..=16).map(|n| 1.0 + 0.02 * f64::from(n)).collect();
        let draft = |level: f64| (0..=8).map(|d| level * f64::from(d)).collect::<Vec<f64>>();
        assert_eq!(table.fastest(&draft(2.0), &verify).unwrap(), (0, 0));
        let (nodes, depth) = table.fastest(&draft(0.05), &verify).unwrap();
        assert!(nodes >= depth && depth > 1);
        assert!(table.fastest(&[], &verify).is_err());
        assert!(table.fastest(&[0.0], &[0.0]).is_err());
        assert!(Optimal::new(&[0.8, 0.3], 4, 2).is_err());
        assert!(Optimal::new(&[-0.1], 4, 2).is_err());
        assert!(Optimal::new(&[0.5], 1 << 20, 1 << 20).is_err());
    }

    #[test]
    fn sizes_that_no_memory_holds_are_refused_before_any_is_taken() {
        for nodes in [0, 1, 2, 1 << 40, usize::MAX] {
            for depth in [0, 1, 1 << 29, 1 << 40, usize::MAX] {
                let sensible = nodes <= 2 && depth <= 1;
                assert_eq!(Optimal::new(&[0.5], nodes, depth).is_ok(), sensible, "{nodes} {depth}");
            }
        }
        assert!(Optimal::new(&vec![0.0; 1 << 12], 0, 1 << 12).is_err());
    }
}
