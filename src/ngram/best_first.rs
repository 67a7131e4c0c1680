//! Best-first growth: a tree of the continuations that counts make most likely.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{MAX_DRAFTED, Proposal};

/// What one draft may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Drafted nodes, the root not counted.
    pub max_nodes: usize,
    /// Depth of the deepest node, beside what the match's length allows.
    pub max_depth: usize,
    /// Tokens that end the sequence: nothing below them can be of use.
    pub stop: &'a [u32],
}

impl Default for Limits<'_> {
    fn default() -> Self {
        Self { max_nodes: MAX_DRAFTED, max_depth: MAX_DRAFTED, stop: &[] }
    }
}

/// What followed a context.
pub(super) struct Followers<C> {
    /// Occurrences of the context that something followed.
    pub(super) total: f64,
    /// The tokens, best first: how often each followed, and the context that it leads to.
    pub(super) found: Vec<(u32, u32, C)>,
}

/// Where contexts are counted.
pub(super) trait Counts {
    type Context;

    /// What followed a context. Tokens of a smaller share than `min_share` may be left out.
    fn followers(&self, context: &Self::Context, min_share: f64) -> Followers<Self::Context>;
}

/// Grows `proposal` below its root, which stands in `context`.
///
/// A child's score is its parent's times its share of what followed. Scores never increase along a
/// path, so that growing best first gives the largest sum of scores of any tree of its size.
pub(super) fn grow<S: Counts>(
    source: &S,
    context: S::Context,
    limits: Limits<'_>,
    max_children: usize,
    min_score: f64,
    mut proposal: Proposal,
) -> Proposal {
    let max_nodes = if limits.max_depth == 0 { 0 } else { limits.max_nodes.min(MAX_DRAFTED) };
    let mut heap = BinaryHeap::new();
    let expand = |heap: &mut BinaryHeap<_>, at: &Candidate<S::Context>, node, most| {
        let next = source.followers(&at.context, min_score / at.score);
        for (rank, (token, count, context)) in next.found.into_iter().take(most).enumerate() {
            let score = at.score * (f64::from(count) / next.total);
            if score >= min_score {
                let depth = at.depth + 1;
                heap.push(Candidate { score, parent: node, rank, token, depth, context });
            }
        }
    };
    let root = Candidate { score: 1.0, parent: 0, rank: 0, token: 0, depth: 0, context };
    if max_nodes > 0 {
        expand(&mut heap, &root, 0, max_children.min(max_nodes));
    }
    while proposal.num_drafted() < max_nodes
        && let Some(best) = heap.pop()
    {
        let node = proposal.push(best.parent, best.token);
        let capacity = max_nodes - proposal.num_drafted();
        if capacity > 0 && best.depth < limits.max_depth && !limits.stop.contains(&best.token) {
            expand(&mut heap, &best, node, max_children.min(capacity));
        }
    }
    proposal
}

/// A node that may be drafted next.
struct Candidate<C> {
    score: f64,
    parent: usize,
    /// Place among its siblings.
    rank: usize,
    token: u32,
    depth: usize,
    context: C,
}

impl<C> Ord for Candidate<C> {
    /// By score; ties: the earlier parent first, then the earlier sibling.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| (other.parent, other.rank).cmp(&(self.parent, self.rank)))
    }
}

impl<C> PartialOrd for Candidate<C> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<C> PartialEq for Candidate<C> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<C> Eq for Candidate<C> {}
