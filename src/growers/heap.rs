//! The tree of `N` nodes with the largest sum of path probabilities.
//!
//! # Law
//! `deterministic`: no token is drawn, so the tree may be cut freely.
//!
//! # Decision
//! ```text
//! score(v) = product of q along the path to v
//! keep the N nodes of largest score; ties by the earlier parent, then the smaller token
//! cost stop: S(n) = 1 + sum of the n best scores, T(n) = measured time of a step with n nodes;
//!            add node n + 1 while score(n + 1) T(n) > S(n) (T(n + 1) - T(n))
//! ```
//! Scores never increase along a path, so the `N` best nodes form a tree, and rows are needed only
//! of nodes that are among the `N` best when their level is reached: one call a level. For a convex
//! `T` the rate `S / T` rises and then falls, so the first failure is the optimum.
//!
//! # Settings
//! OPT-Tree: no limits but `N` and the depth. EAGLE-2: `width` and `max_children` are its `k`.
//! DDTree: rows by position, from one drafting pass. CaDDTree: the cost stop.
//!
//! # Source
//! OPT-Tree (arXiv 2406.17276), EAGLE-2 (2406.16858), DDTree (2604.12989), CaDDTree (2606.01813).

use crate::chance::Choices;
use crate::error::{Error, Result};
use crate::growers::{DraftRows, Grower, Growth, check, check_nodes};
use crate::verify::law::Law;

/// What a tree may grow to.
#[derive(Debug, Clone)]
pub struct HeapLimits {
    /// Drafted nodes.
    pub max_nodes: usize,
    /// Depth of the deepest node.
    pub max_depth: usize,
    /// Children of a node.
    pub max_children: usize,
    /// Nodes of a level that get children: the best ones.
    pub width: usize,
    /// Nodes of a smaller score are not kept.
    pub min_score: f64,
    /// `T(0), T(1), ..`: the time of a step with that many drafted nodes; empty: no cost stop.
    pub times: Vec<f64>,
}

/// A tree grown level by level.
#[derive(Debug, Clone)]
pub struct Heap {
    /// All candidates, in the order in which their rows came.
    candidates: Growth,
    /// Logarithm of each candidate's score.
    scores: Vec<f64>,
    limits: HeapLimits,
    /// The candidates kept now, the best first; parents come before their children.
    kept: Vec<u32>,
}

impl Heap {
    /// A tree within the limits, below the root that `growth` holds.
    ///
    /// # Errors
    /// [`Error::Overflow`] and [`Error::ParamOutOfRange`] name the limit.
    pub fn new(mut growth: Growth, limits: HeapLimits) -> Result<Self> {
        check_nodes("max_nodes", limits.max_nodes)?;
        check(limits.max_children > 0, "max_children", &limits.max_children, "at least 1")?;
        check(limits.width > 0, "width", &limits.width, "at least 1")?;
        let score = limits.min_score;
        check((0.0..=1.0).contains(&score), "min_score", &score, "0 to 1")?;
        if let Some(time) = limits.times.iter().find(|time| !(**time > 0.0 && time.is_finite())) {
            return Err(Error::ParamOutOfRange {
                name: "times",
                value: time.to_string(),
                wanted: "finite times > 0, by number of drafted nodes from 0 on",
            });
        }
        growth.want((limits.max_nodes > 0 && limits.max_depth > 0).then_some(0));
        Ok(Self { candidates: growth, scores: vec![0.0], limits, kept: Vec::new() })
    }

    /// Ranks the candidates again and keeps the best.
    fn rank(&mut self) {
        let floor = self.limits.min_score.ln();
        let mut order: Vec<u32> = (1..self.candidates.num_nodes() as u32)
            .filter(|&node| self.scores[node as usize] >= floor)
            .collect();
        // Stable: of equal scores the earlier candidate, which is the one with the earlier parent.
        order.sort_by(|&a, &b| self.scores[b as usize].total_cmp(&self.scores[a as usize]));
        order.truncate(self.limits.max_nodes);
        let scores = order.iter().map(|&node| self.scores[node as usize].exp());
        order.truncate(worth(scores, &self.limits.times));
        self.kept = order;
    }

    /// The scores of the nodes kept, largest first: what each adds to the expected tokens.
    pub fn kept_scores(&self) -> Vec<f64> {
        self.kept.iter().map(|&node| self.scores[node as usize].exp()).collect()
    }

    /// The tree of the `most` best nodes, in descending score, and which candidate each node was.
    pub fn best(&self, most: usize) -> (Growth, Vec<u32>) {
        let mut tree = Growth::new(self.candidates.tokens()[0], Vec::new());
        let mut number = vec![0; self.candidates.num_nodes()];
        let mut origin = vec![0];
        for &node in self.kept.iter().take(most) {
            let at = node as usize;
            let parent = number[self.candidates.parents()[at] as usize];
            number[at] = tree.push(parent, self.candidates.tokens()[at] as u32, false);
            origin.push(node);
        }
        (tree, origin)
    }
}

/// How many nodes of descending scores are worth their time.
fn worth(scores: impl Iterator<Item = f64>, times: &[f64]) -> usize {
    let mut total = 1.0;
    let mut count = 0;
    for score in scores {
        match times.get(count..count + 2) {
            Some(&[now, next]) if score * now > total * (next - now) => {}
            // Without times everything is worth it; beyond the last time nothing is known.
            _ if times.is_empty() => {}
            _ => break,
        }
        total += score;
        count += 1;
    }
    count
}

impl Grower<f64> for Heap {
    /// The candidates; the tree itself is [`Heap::best`].
    fn growth(&self) -> &Growth {
        &self.candidates
    }

    fn law(&self) -> Law {
        Law::Deterministic
    }

    fn extend<R: DraftRows<f64>, C: Choices<f64>>(
        &mut self,
        rows: &mut R,
        _choices: &mut C,
    ) -> Result<()> {
        let level = self.candidates.num_nodes();
        let most = self.limits.max_children.min(self.limits.max_nodes);
        for node in self.candidates.frontier().to_vec() {
            let node = node as usize;
            for (token, q) in rows.best(node, most)? {
                self.candidates.push(node, token, false);
                self.scores.push(self.scores[node] + q.ln());
            }
        }
        self.rank();
        let open = |&node: &usize| {
            node >= level
                && self.candidates.depth(node) < self.limits.max_depth
                && !self.candidates.is_end(node)
        };
        let next = self.kept.iter().map(|&node| node as usize).filter(open);
        let next: Vec<usize> = next.take(self.limits.width).collect();
        self.candidates.want(next);
        Ok(())
    }
}
