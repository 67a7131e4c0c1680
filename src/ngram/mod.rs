//! Drafting from a sequence's own history, and from past texts that requests share.
//!
//! Text that repeats itself (code edits, quotes, tables, agents' transcripts) can be drafted
//! without a model: find where the last few tokens occurred before, and propose what followed.
//! [`NGram`] does so with the most recent occurrence of the longest suffix of at most
//! `max_ngram` tokens; [`Suffix`] takes the longest suffix of any length and weighs *all* its
//! continuations by how often each followed, which gives a small tree.
//!
//! A [`SuffixStore`] holds past texts of many requests, and drafts where they have a longer match than
//! the request's own text.
//!
//! All are functions of texts alone, so the law of their drafts is `Deterministic`. The first two
//! are incremental: appending a token costs amortised O(1) steps (each a look-up in an ordered map,
//! never a hash, so that no result depends on a hash order). Memory is bounded: when `max_history`
//! tokens are held, the index is rebuilt over the most recent half of them. A rebuild of
//! `max_history / 2` tokens is paid for by the `max_history / 2` appends before it.
//!
//! Only emitted tokens are appended, so there is no rollback.
//!
//! References: prompt lookup as in transformers' `PromptLookupCandidateGenerator`; the online
//! automaton of Blumer et al. (1985); suffix drafting, arXiv 2411.04975.

mod automaton;
mod best_first;
mod lookup;
mod order;
mod store;
mod suffix;

pub use automaton::{Context, Continuation, SuffixAutomaton};
pub use best_first::Limits;
pub use lookup::NGram;
pub use store::{SuffixStore, Ticket};
pub use suffix::{Suffix, SuffixConfig};

use crate::error::{Error, Result};
use crate::tree::MAX_NODES;

/// How many tokens an index holds by default before it forgets the older half.
///
/// A [`Suffix`] of that size has at most `2 * max_history` states and `3 * max_history` transitions
/// (Blumer et al.), about 7 MiB; a rebuild takes about 10 ms.
pub const DEFAULT_MAX_HISTORY: usize = 1 << 16;

/// A `TokenTree` takes no more, the root aside.
const MAX_DRAFTED: usize = MAX_NODES - 1;
/// No state, no trie node, no position.
const NONE: u32 = u32::MAX;
/// The automaton's start state and the trie's root: the empty string.
const ROOT: u32 = 0;

/// A drafted tree in the form that `TokenTree` takes: node 0 is the root, the last token of the
/// history (-1 if there is none), `parents[0] == -1`, `parents[i] < i`.
///
/// Sibling tokens are distinct, and siblings come in descending score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Parent of each node, (N+1,).
    pub parents: Vec<i64>,
    /// Token of each node, (N+1,).
    pub tokens: Vec<i64>,
}

impl Proposal {
    fn rooted(tokens: &[u32]) -> Self {
        let root = tokens.last().map_or(-1, |&token| i64::from(token));
        Self { parents: vec![-1], tokens: vec![root] }
    }

    fn push(&mut self, parent: usize, token: u32) -> usize {
        self.parents.push(parent as i64);
        self.tokens.push(i64::from(token));
        self.tokens.len() - 1
    }

    /// N, the number of drafted nodes: the root does not count.
    pub fn num_drafted(&self) -> usize {
        self.tokens.len() - 1
    }
}

fn check(ok: bool, name: &'static str, value: &impl ToString, wanted: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::ParamOutOfRange { name, value: value.to_string(), wanted }) }
}

fn check_max_history(max_history: usize) -> Result<()> {
    // Positions and state numbers are u32, and an automaton has up to two states a token.
    check((2..=1 << 30).contains(&max_history), "max_history", &max_history, "2 to 2**30")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(max_nodes: usize) -> Limits<'static> {
        Limits { max_nodes, ..Limits::default() }
    }

    fn ngram(max_ngram: usize, tokens: &[u32]) -> NGram {
        let mut index = NGram::new(max_ngram, 1, 1 << 10).unwrap();
        index.extend(tokens);
        index
    }

    fn suffix(config: SuffixConfig, tokens: &[u32]) -> Suffix {
        let mut index = Suffix::new(config).unwrap();
        index.extend(tokens);
        index
    }

    #[test]
    fn most_recent_occurrence_wins() {
        //  1 2 followed by 3, later by 4
        let index = ngram(3, &[1, 2, 3, 1, 2, 4, 9, 1, 2]);
        assert_eq!(index.longest_match(), Some((2, 4)));
        let draft = index.propose(3, &[]);
        assert_eq!(draft.parents, [-1, 0, 1, 2]);
        assert_eq!(draft.tokens, [2, 4, 9, 1]);
    }

    #[test]
    fn short_periods_are_continued() {
        assert_eq!(ngram(3, &[7, 5, 6, 5, 6]).propose(5, &[]).tokens, [6, 5, 6, 5, 6, 5]);
        assert_eq!(ngram(3, &[4, 4]).propose(3, &[]).tokens, [4, 4, 4, 4]);
    }

    #[test]
    fn nothing_to_copy_gives_the_root_alone() {
        for tokens in [&[][..], &[3], &[1, 2, 3]] {
            let root = tokens.last().map_or(-1, |&token| i64::from(token));
            let alone = Proposal { parents: vec![-1], tokens: vec![root] };
            assert_eq!(ngram(2, tokens).propose(4, &[]), alone);
            assert_eq!(suffix(SuffixConfig::default(), tokens).propose(nodes(4)), alone);
            assert_eq!(suffix(SuffixConfig::default(), tokens).propose_chain(nodes(0)), alone);
        }
    }

    #[test]
    fn suffix_tree_weighs_continuations() {
        // After 1: 2 twice, 3 once; after "1 2": 8, later 9.
        //     1
        //    / \            scores 2/3, 1/3; depth 1 since the match has one token
        //   2   3
        let text = [1, 2, 8, 1, 3, 1, 2, 9, 1];
        let shallow = suffix(SuffixConfig::default(), &text).propose(nodes(8));
        assert_eq!((shallow.parents, shallow.tokens), (vec![-1, 0, 0], vec![1, 2, 3]));
        // Depth 2 allowed: 9 and 8 below 2 tie at 1/3 with node 3; the earlier parent goes first,
        // of the two siblings the more recent.
        let config = SuffixConfig { depth_factor: 2.0, ..SuffixConfig::default() };
        let deep = suffix(config, &text).propose(nodes(4));
        assert_eq!((deep.parents, deep.tokens), (vec![-1, 0, 0, 1, 1], vec![1, 2, 3, 9, 8]));
        let chain = suffix(config, &text).propose_chain(nodes(4));
        assert_eq!((chain.parents, chain.tokens), (vec![-1, 0, 1], vec![1, 2, 9]));
    }

    #[test]
    fn low_scores_and_short_matches_are_not_proposed() {
        let text = [1, 2, 8, 1, 3, 1, 2, 9, 1];
        let choosy = SuffixConfig { min_score: 0.5, ..SuffixConfig::default() };
        assert_eq!(suffix(choosy, &text).propose(nodes(8)).tokens, [1, 2]);
        let strict = SuffixConfig { min_match: 2, ..SuffixConfig::default() };
        assert_eq!(suffix(strict, &text).propose(nodes(8)).num_drafted(), 0);
    }

    #[test]
    fn suffix_continues_a_repetition_beyond_the_end() {
        let index = suffix(SuffixConfig::default(), &[1, 2, 3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(index.match_len(), 6);
        assert_eq!(index.propose_chain(nodes(9)).tokens, [3, 1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn nothing_is_drafted_below_a_stop_token_or_the_depth_limit() {
        let text = [1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3];
        assert_eq!(ngram(3, &text).propose(4, &[1]).tokens, [3, 5, 1]);
        //   3        5 and 4 follow; below 5 comes 1, and 1 2 below 4
        //  5 4
        let index = suffix(SuffixConfig::default(), &text);
        let whole = index.propose(nodes(8));
        assert_eq!(whole.parents, [-1, 0, 0, 1, 2, 3, 4]);
        assert_eq!(whole.tokens, [3, 5, 4, 1, 1, 2, 2]);
        let stopped = index.propose(Limits { stop: &[5], ..nodes(8) });
        assert_eq!((stopped.parents, stopped.tokens), (vec![-1, 0, 0, 2, 3], vec![3, 5, 4, 1, 2]));
        let shallow = index.propose(Limits { max_depth: 1, ..nodes(8) });
        assert_eq!(shallow.tokens, [3, 5, 4]);
        assert_eq!(index.propose(Limits { max_depth: 0, ..nodes(8) }).num_drafted(), 0);
    }

    #[test]
    fn memory_stays_bounded_for_the_worst_texts() {
        // One repeated token (longest link path) and a b^n (most states).
        for text in [vec![5; 5000], std::iter::once(1).chain(vec![2; 4999]).collect()] {
            let config = SuffixConfig { max_history: 64, ..SuffixConfig::default() };
            let index = suffix(config, &text);
            assert!(index.tokens().len() <= 64);
            assert!(index.automaton().num_states() <= 2 * 64 + 1);
            assert!(index.automaton().num_transitions() <= 3 * 64);
            let mut lookup = NGram::new(3, 1, 64).unwrap();
            lookup.extend(&text);
            assert!(lookup.tokens().len() <= 64 && lookup.num_nodes() <= 1 + 3 * 64);
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let name = |error: Error| match error {
            Error::ParamOutOfRange { name, .. } => name,
            other => panic!("{other}"),
        };
        assert_eq!(name(NGram::new(0, 1, 64).unwrap_err()), "max_ngram");
        assert_eq!(name(NGram::new(2, 3, 64).unwrap_err()), "min_ngram");
        assert_eq!(name(NGram::new(2, 1, 3).unwrap_err()), "max_history");
        let bad = |config| name(Suffix::new(config).unwrap_err());
        let fine = SuffixConfig::default();
        assert_eq!(bad(SuffixConfig { max_context: 0, ..fine }), "max_context");
        assert_eq!(bad(SuffixConfig { min_match: 0, ..fine }), "min_match");
        assert_eq!(bad(SuffixConfig { depth_factor: f64::NAN, ..fine }), "depth_factor");
        assert_eq!(bad(SuffixConfig { min_score: 1.5, ..fine }), "min_score");
        assert_eq!(bad(SuffixConfig { max_children: 0, ..fine }), "max_children");
        assert_eq!(bad(SuffixConfig { max_history: 1, ..fine }), "max_history");
    }
}
