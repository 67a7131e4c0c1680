//! Suffix drafting: the continuations of the longest repeated suffix, grown best first.

use super::best_first::{Counts, Followers, Limits, grow};
use super::{Context, DEFAULT_MAX_HISTORY, Proposal, SuffixAutomaton, check, check_max_history};
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

impl SuffixConfig {
    /// The depth that a match of so many tokens allows.
    pub(super) fn earned_depth(&self, match_len: usize) -> usize {
        // Saturates for a huge factor, which then means no limit.
        ((self.depth_factor * match_len as f64) as usize).max(1)
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
        let max_depth = self.config.earned_depth(self.match_len()).min(limits.max_depth);
        grow(
            self,
            self.automaton.longest_match(),
            Limits { max_depth, ..limits },
            max_children,
            self.config.min_score,
            Proposal::rooted(&self.tokens),
        )
    }

    /// Length of the longest repeated suffix of the tokens held.
    pub fn match_len(&self) -> usize {
        self.automaton.match_len()
    }

    /// Tokens held now: at most `max_history`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What it proposes, and how much it remembers.
    pub fn config(&self) -> &SuffixConfig {
        &self.config
    }

    /// The automaton of the tokens held.
    pub fn automaton(&self) -> &SuffixAutomaton {
        &self.automaton
    }
}

impl Counts for Suffix {
    type Context = Context;

    fn followers(&self, context: &Context, _min_share: f64) -> Followers<Context> {
        let mut context = *context;
        let mut next = Vec::new();
        while context.len >= self.config.min_match && next.is_empty() {
            next = self.automaton.continuations(context);
            if next.is_empty() {
                context = self.automaton.shorter(context);
            }
        }
        let len = (context.len + 1).min(self.config.max_context);
        Followers {
            total: next.iter().map(|next| f64::from(next.count)).sum(),
            found: next
                .iter()
                .map(|next| (next.token, next.count, Context { state: next.state, len }))
                .collect(),
        }
    }
}
