//! Prompt lookup: copy what followed the most recent occurrence of the last few tokens.

use std::collections::BTreeMap;

use super::{MAX_DRAFTED, NONE, Proposal, ROOT, check, check_max_history};
use crate::error::Result;

/// Prompt lookup: the most recent earlier occurrence of the longest suffix of
/// `min_ngram ..= max_ngram` tokens proposes the tokens that followed it.
///
/// The n-grams are the nodes of a trie of depth `max_ngram`: n-gram `xt` is the child of n-gram `x`
/// by token `t`, and the n-grams that end at the newest token are one step below those that ended
/// at the token before. So an append costs `max_ngram` look-ups.
#[derive(Clone, Debug)]
pub struct NGram {
    max_ngram: usize,
    min_ngram: usize,
    max_history: usize,
    tokens: Vec<u32>,
    children: BTreeMap<(u32, u32), u32>,
    /// Per trie node: where its most recent occurrence ends.
    newest: Vec<u32>,
    /// `suffixes[n]`: trie node of the history's last n tokens, `NONE` where it is shorter.
    suffixes: Vec<u32>,
    /// `earlier[n]`: where the occurrence before that one ends, `NONE` if it is the first.
    earlier: Vec<u32>,
}

impl NGram {
    /// An empty history.
    ///
    /// # Errors
    /// `ParamOutOfRange` unless `1 <= min_ngram <= max_ngram <= 64` and
    /// `2 * max_ngram <= max_history <= 2**30`.
    pub fn new(max_ngram: usize, min_ngram: usize, max_history: usize) -> Result<Self> {
        check((1..=64).contains(&max_ngram), "max_ngram", &max_ngram, "1 to 64")?;
        check((1..=max_ngram).contains(&min_ngram), "min_ngram", &min_ngram, "1 to max_ngram")?;
        check_max_history(max_history)?;
        check(max_history >= 2 * max_ngram, "max_history", &max_history, "at least 2 * max_ngram")?;
        let mut index = Self {
            max_ngram,
            min_ngram,
            max_history,
            tokens: Vec::new(),
            children: BTreeMap::new(),
            newest: Vec::new(),
            suffixes: Vec::new(),
            earlier: Vec::new(),
        };
        index.clear();
        Ok(index)
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.children.clear();
        self.newest.clear();
        self.newest.push(NONE);
        self.suffixes.clear();
        self.suffixes.resize(self.max_ngram + 1, NONE);
        self.suffixes[0] = ROOT;
        self.earlier.clear();
        self.earlier.resize(self.max_ngram + 1, NONE);
    }

    /// Appends emitted tokens; amortised `max_ngram` look-ups each.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            if self.tokens.len() == self.max_history {
                let recent = self.tokens.split_off(self.max_history - self.max_history / 2);
                self.clear();
                for &kept in &recent {
                    self.push(kept);
                }
            }
            self.push(token);
        }
    }

    fn push(&mut self, token: u32) {
        let position = self.tokens.len() as u32;
        self.tokens.push(token);
        // Longest first: suffixes[n] is read before it is overwritten.
        for n in (1..=self.max_ngram).rev() {
            let prefix = self.suffixes[n - 1];
            if prefix == NONE {
                continue;
            }
            let fresh = self.newest.len() as u32;
            let node = *self.children.entry((prefix, token)).or_insert(fresh);
            if node == fresh {
                self.newest.push(NONE);
            }
            self.suffixes[n] = node;
            self.earlier[n] = std::mem::replace(&mut self.newest[node as usize], position);
        }
    }

    /// Length of the longest usable suffix and where its most recent earlier occurrence ends
    /// (index into the tokens held), if there is one.
    pub fn longest_match(&self) -> Option<(usize, usize)> {
        (self.min_ngram..=self.max_ngram)
            .rev()
            .find(|&n| self.earlier[n] != NONE)
            .map(|n| (n, self.earlier[n] as usize))
    }

    /// A chain of `num` tokens, or the root alone where nothing matches.
    ///
    /// Where the copied text runs into the end of the history the copy goes on with what it has
    /// just copied (as in LZ77), so that a period shorter than `num` is continued. A token of `stop`
    /// ends the chain: nothing below it can be of use.
    pub fn propose(&self, num: usize, stop: &[u32]) -> Proposal {
        let mut proposal = Proposal::rooted(&self.tokens);
        if let Some((_, end)) = self.longest_match() {
            let period = self.tokens.len() - (end + 1);
            for node in 0..num.min(MAX_DRAFTED) {
                let token = self.tokens[end + 1 + node % period];
                proposal.push(node, token);
                if stop.contains(&token) {
                    break;
                }
            }
        }
        proposal
    }

    /// Tokens held now: at most `max_history`.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Trie nodes held now, the root included: at most `1 + max_ngram * max_history`.
    pub fn num_nodes(&self) -> usize {
        self.newest.len()
    }
}
