//! The online suffix automaton: every repeated string of a text, and what followed it how often.

use std::collections::BTreeMap;

use super::{NONE, ROOT, check};
use crate::error::Result;

#[derive(Clone, Copy, Debug)]
struct State {
    /// Length of the longest string of the state.
    len: u32,
    /// The state of the longest suffix that occurs in more places.
    link: u32,
    /// Occurrences of the state's strings that have at most `max_context` tokens.
    count: u32,
    /// Where the most recent of them ends.
    newest: u32,
}

/// A context: one string of at most `max_context` tokens, as its state and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub(super) state: u32,
    /// Number of tokens.
    pub len: usize,
}

/// One continuation of a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// The token that followed.
    pub token: u32,
    /// How often it did.
    pub count: u32,
    /// Where its most recent occurrence is.
    pub newest: u32,
    pub(super) state: u32,
}

/// The online suffix automaton with occurrence counts.
///
/// Exact counts of *every* substring would cost a walk of the whole suffix-link path per token,
/// n steps for a text of one repeated token. So strings are counted only up to `max_context`
/// tokens: the walk then has at most that many steps, and contexts are cut to their last
/// `max_context` tokens.
#[derive(Clone, Debug)]
pub struct SuffixAutomaton {
    max_context: u32,
    states: Vec<State>,
    next: BTreeMap<(u32, u32), u32>,
    /// State of the whole text.
    last: u32,
    /// The last `min(n, max_context)` tokens.
    cursor: Context,
}

impl SuffixAutomaton {
    /// The automaton of the empty text.
    ///
    /// # Errors
    /// `ParamOutOfRange` unless `1 <= max_context <= 4096`.
    pub fn new(max_context: usize) -> Result<Self> {
        check((1..=4096).contains(&max_context), "max_context", &max_context, "1 to 4096")?;
        let root = State { len: 0, link: NONE, count: 0, newest: NONE };
        Ok(Self {
            max_context: max_context as u32,
            states: vec![root],
            next: BTreeMap::new(),
            last: ROOT,
            cursor: Context { state: ROOT, len: 0 },
        })
    }

    pub(super) fn clear(&mut self) {
        self.states.truncate(1);
        self.next.clear();
        self.last = ROOT;
        self.cursor = Context { state: ROOT, len: 0 };
    }

    /// Appends tokens; amortised O(1) steps each, plus at most `max_context` for the counts.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.push(token);
        }
    }

    fn add(&mut self, state: State) -> u32 {
        self.states.push(state);
        (self.states.len() - 1) as u32
    }

    pub(super) fn push(&mut self, token: u32) {
        let position = self.states[self.last as usize].len;
        let whole = self.add(State { len: position + 1, link: ROOT, count: 0, newest: NONE });
        let mut suffix = self.last;
        let mut known = None;
        while suffix != NONE && known.is_none() {
            known = self.next.get(&(suffix, token)).copied();
            if known.is_none() {
                self.next.insert((suffix, token), whole);
                suffix = self.states[suffix as usize].link;
            }
        }
        if let Some(target) = known {
            let len = self.states[suffix as usize].len + 1;
            self.states[whole as usize].link = if self.states[target as usize].len == len {
                target
            } else {
                self.split(suffix, token, target, len)
            };
        }
        self.last = whole;
        self.count_suffixes(token, position);
    }

    /// Moves the strings of `target` that have at most `len` tokens to a state of their own:
    /// they now occur at the newest position too, the longer ones do not.
    fn split(&mut self, from: u32, token: u32, target: u32, len: u32) -> u32 {
        let short = self.add(State { len, ..self.states[target as usize] });
        let edges: Vec<_> = self.edges(target).collect();
        for (edge, state) in edges {
            self.next.insert((short, edge), state);
        }
        let mut suffix = from;
        while suffix != NONE && self.next.get(&(suffix, token)) == Some(&target) {
            self.next.insert((suffix, token), short);
            suffix = self.states[suffix as usize].link;
        }
        self.states[target as usize].link = short;
        short
    }

    /// Steps to the last `min(n, max_context)` tokens; each suffix of theirs has occurred once more, at
    /// `position`. A split before this leaves the cursor's state usable: both halves have the same
    /// edges.
    fn count_suffixes(&mut self, token: u32, position: u32) {
        let edge = self.next.get(&(self.cursor.state, token)).copied();
        let Some(state) = edge else { return };
        self.cursor = self.cut(Context { state, len: self.cursor.len + 1 });
        let mut suffix = self.cursor.state;
        while suffix != ROOT {
            let state = &mut self.states[suffix as usize];
            state.count += 1;
            state.newest = position;
            suffix = state.link;
        }
    }

    /// Drops the oldest token of a context that has grown by one beyond `max_context`.
    fn cut(&self, context: Context) -> Context {
        let max = self.max_context as usize;
        if context.len <= max {
            return context;
        }
        let shorter = self.shorter(context);
        let state = if shorter.len >= max { shorter.state } else { context.state };
        Context { state, len: max }
    }

    /// The longest suffix of the context that occurs in more places; the empty context's is itself.
    pub(super) fn shorter(&self, context: Context) -> Context {
        let link = self.states[context.state as usize].link;
        if link == NONE {
            return context;
        }
        Context { state: link, len: self.states[link as usize].len as usize }
    }

    fn edges(&self, state: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.next.range((state, 0)..=(state, u32::MAX)).map(|(&(_, token), &to)| (token, to))
    }

    /// Length of the longest suffix of the text that also occurs earlier (the two may overlap).
    pub fn match_len(&self) -> usize {
        let link = self.states[self.last as usize].link;
        if link == NONE { 0 } else { self.states[link as usize].len as usize }
    }

    /// That suffix, cut to its last `max_context` tokens.
    pub fn longest_match(&self) -> Context {
        let context = self.shorter(Context { state: self.last, len: self.num_tokens() });
        if context.len > self.cursor.len { self.cursor } else { context }
    }

    /// What followed a context, most frequent first; ties: most recent first, then lower id.
    pub fn continuations(&self, context: Context) -> Vec<Continuation> {
        let mut found: Vec<_> = self
            .edges(context.state)
            .map(|(token, to)| {
                let state = self.cut(Context { state: to, len: context.len + 1 }).state;
                // The edge's own string (context + token) may be one token too long to be counted;
                // its count is that of the cut string.
                let State { count, newest, .. } = self.states[state as usize];
                Continuation { token, count, newest, state }
            })
            .collect();
        found.sort_unstable_by(|a, b| {
            (b.count, b.newest, a.token).cmp(&(a.count, a.newest, b.token))
        });
        found
    }

    /// How often a string of at most `max_context` tokens occurs; `None` for a longer one.
    pub fn count(&self, tokens: &[u32]) -> Option<u32> {
        if tokens.len() > self.max_context as usize {
            return None;
        }
        let mut state = ROOT;
        for &token in tokens {
            match self.next.get(&(state, token)) {
                Some(&to) => state = to,
                None => return Some(0),
            }
        }
        Some(if state == ROOT {
            self.num_tokens() as u32
        } else {
            self.states[state as usize].count
        })
    }

    /// Length of the text.
    pub fn num_tokens(&self) -> usize {
        self.states[self.last as usize].len as usize
    }

    /// States held now: at most `2 * num_tokens + 1`.
    pub fn num_states(&self) -> usize {
        self.states.len()
    }

    /// Transitions held now: at most `3 * num_tokens`.
    pub fn num_transitions(&self) -> usize {
        self.next.len()
    }
}
