//! Suffix drafting: the continuations of the longest repeated suffix, grown best first.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{
    Context, DEFAULT_MAX_HISTORY, MAX_DRAFTED, Proposal, SuffixAutomaton, check, check_max_history,
};
use crate::error::Result;

/// What a [`Suffix`] index proposes and how much it remembers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuffixConfig {
    /// A shorter match proposes nothing (>= 1).
    pub min_match: usize,
    /// Contexts are cut to this many tokens (see [`SuffixAutomaton`]).
    pub max_context: usize,
    /// Depth of the tree <= `depth_factor * length of the match` (rounded down, at least 1): a long
    /// match is evidence of a long copy. 1.0 is the factor of arXiv 2411.04975's engine.
    pub depth_factor: f64,
    /// Nodes of a lower path score are not proposed.
    pub min_score: f64,
    /// At most this many children a node; 1 gives chains.
    pub max_children: usize,
    /// Tokens held before the older half is forgotten.
    pub max_history: usize,
}

impl Default for SuffixConfig {
    fn default() -> Self {
        Self {
            min_match: 1,
            max_context: 32,
            depth_factor: 1.0,
            min_score: 0.1,
            max_children: 4,
            max_history: DEFAULT_MAX_HISTORY,
        }
    }
}

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

/// Suffix drafting: the continuations of the longest repeated suffix, as a tree.
///
/// A child's score is its parent's times `count(context + token) / sum over its siblings`, and the
/// tree grows best first, so it has the largest sum of scores among the trees of its size
/// (scores never increase along a path). A context that nothing followed (it is the text's end) is
/// shortened to its longest suffix that something did follow, as long as `min_match` tokens are
/// left: a repetition is thus continued beyond the end of the text.
#[derive(Clone, Debug)]
pub struct Suffix {
    config: SuffixConfig,
    tokens: Vec<u32>,
    automaton: SuffixAutomaton,
}

impl Suffix {
    /// An empty history.
    ///
    /// # Errors
    /// `ParamOutOfRange` names the field of `config` that makes no sense.
    pub fn new(config: SuffixConfig) -> Result<Self> {
        let SuffixConfig { min_match, depth_factor, min_score, max_children, max_history, .. } =
            config;
        let automaton = SuffixAutomaton::new(config.max_context)?;
        check(
            (1..=config.max_context).contains(&min_match),
            "min_match",
            &min_match,
            "1 to max_context",
        )?;
        check(
            depth_factor > 0.0 && depth_factor.is_finite(),
            "depth_factor",
            &depth_factor,
            "a finite number > 0",
        )?;
        check((0.0..=1.0).contains(&min_score), "min_score", &min_score, "0 to 1")?;
        check(max_children >= 1, "max_children", &max_children, "at least 1")?;
        check_max_history(max_history)?;
        Ok(Self { config, tokens: Vec::new(), automaton })
    }

    /// Appends emitted tokens; see [`SuffixAutomaton::extend`] for the cost.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            let max_history = self.config.max_history;
            if self.tokens.len() == max_history {
                self.tokens.drain(..max_history - max_history / 2);
                self.automaton.clear();
                self.automaton.extend(&self.tokens);
            }
            self.tokens.push(token);
            self.automaton.push(token);
        }
    }

    /// A tree within the limits, best first, with the configured number of children.
    pub fn propose(&self, limits: Limits<'_>) -> Proposal {
        self.grow(limits, self.config.max_children)
    }

    /// A chain within the limits: the best continuation at each step.
    pub fn propose_chain(&self, limits: Limits<'_>) -> Proposal {
        self.grow(limits, 1)
    }

    fn grow(&self, limits: Limits<'_>, max_children: usize) -> Proposal {
        let mut proposal = Proposal::rooted(&self.tokens);
        let max_nodes = if limits.max_depth == 0 { 0 } else { limits.max_nodes.min(MAX_DRAFTED) };
        // Saturates for a huge factor, which then means no limit.
        let earned = (self.config.depth_factor * self.automaton.match_len() as f64) as usize;
        let max_depth = earned.max(1).min(limits.max_depth);
        let mut heap = BinaryHeap::new();
        let root = Candidate {
            score: 1.0,
            parent: 0,
            rank: 0,
            token: 0,
            depth: 0,
            context: self.automaton.longest_match(),
        };
        self.expand(&mut heap, &root, 0, max_children.min(max_nodes));
        while proposal.num_drafted() < max_nodes
            && let Some(best) = heap.pop()
        {
            let node = proposal.push(best.parent, best.token);
            if best.depth < max_depth && !limits.stop.contains(&best.token) {
                let room = max_nodes - proposal.num_drafted();
                self.expand(&mut heap, &best, node, max_children.min(room));
            }
        }
        proposal
    }

    /// Puts the best children of a node into the heap.
    fn expand(&self, heap: &mut BinaryHeap<Candidate>, at: &Candidate, node: usize, most: usize) {
        let mut context = at.context;
        let mut found = Vec::new();
        while context.len >= self.config.min_match && found.is_empty() {
            found = self.automaton.continuations(context);
            if found.is_empty() {
                context = self.automaton.shorter(context);
            }
        }
        let total: f64 = found.iter().map(|next| f64::from(next.count)).sum();
        for (rank, next) in found.iter().take(most).enumerate() {
            let score = at.score * (f64::from(next.count) / total);
            if score >= self.config.min_score {
                heap.push(Candidate {
                    score,
                    parent: node,
                    rank,
                    token: next.token,
                    depth: at.depth + 1,
                    context: Context {
                        state: next.state,
                        len: (context.len + 1).min(self.config.max_context),
                    },
                });
            }
        }
    }

    /// Length of the longest repeated suffix of the tokens held.
    pub fn match_len(&self) -> usize {
        self.automaton.match_len()
    }

    /// Tokens held now: at most `max_history`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The automaton of the tokens held.
    pub fn automaton(&self) -> &SuffixAutomaton {
        &self.automaton
    }
}

/// A node that may be drafted next.
#[derive(Clone, Debug)]
struct Candidate {
    score: f64,
    parent: usize,
    /// Place among its siblings.
    rank: usize,
    token: u32,
    depth: usize,
    context: Context,
}

impl Ord for Candidate {
    /// By score; ties: the earlier parent first, then the earlier sibling.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| (other.parent, other.rank).cmp(&(self.parent, self.rank)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
