//! The tokens that a step's penalties concern, found once, and what a node's path changes in them.

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::history::Penalties;

/// A token whose logit is changed, and by what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Concern {
    /// The token.
    pub token: u32,
    /// What is added.
    pub bias: f32,
    /// Whether it stands in history or path.
    pub seen: bool,
    /// How often it stands in output and path.
    pub count: u32,
    /// Whether it may not follow.
    pub banned: bool,
}

impl Concern {
    fn blank(token: u32) -> Self {
        Self { token, bias: 0.0, seen: false, count: 0, banned: false }
    }
}

/// The history of a step under penalties: the tokens concerned at its root.
#[derive(Debug)]
pub struct Table<'a> {
    penalties: &'a Penalties,
    history: &'a [u32],
    prompt_len: usize,
    /// Ascending tokens.
    base: Vec<Concern>,
}

impl<'a> Table<'a> {
    /// Finds what a history makes of each token.
    ///
    /// `history` are the tokens up to and including the root, `prompt_len` of them prompt; it may be
    /// empty where [`Penalties::needs_history`] says so.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for a token outside the vocabulary, and for a prompt longer than the
    /// history.
    pub fn new(
        penalties: &'a Penalties,
        history: &'a [u32],
        prompt_len: usize,
        vocab: usize,
    ) -> Result<Self> {
        if prompt_len > history.len() {
            return Err(Error::ParamOutOfRange {
                name: "prompt_len",
                value: prompt_len.to_string(),
                wanted: "at most the length of history",
            });
        }
        check_tokens("history", history.iter(), vocab)?;
        check_tokens("logit_bias", penalties.bias.iter().map(|pair| &pair.0), vocab)?;
        check_tokens("banned", penalties.banned.iter(), vocab)?;
        check_tokens("stop_ids", penalties.stop_ids.iter(), vocab)?;
        let base = concerns_of(penalties, history, prompt_len, vocab);
        Ok(Self { penalties, history, prompt_len, base })
    }

    /// The penalties.
    pub fn penalties(&self) -> &'a Penalties {
        self.penalties
    }

    /// The tokens concerned after a node, ascending; `path` are the tokens from below the root to it.
    pub fn concerns(&self, path: &[u32]) -> Vec<Concern> {
        let path = mutate!("history/root_s_for_all_nodes", path, &path[..0]);
        let own = self.own(path);
        let mut merged = Vec::with_capacity(self.base.len() + own.len());
        let mut rest = &self.base[..];
        for concern in own {
            let at = rest.partition_point(|other| other.token < concern.token);
            merged.extend_from_slice(&rest[..at]);
            let replaced = rest.get(at).is_some_and(|other| other.token == concern.token);
            rest = &rest[at + usize::from(replaced)..];
            merged.push(concern);
        }
        merged.extend_from_slice(rest);
        merged
    }

    /// What differs after a node from the root, ascending.
    fn own(&self, path: &[u32]) -> Vec<Concern> {
        let penalties = self.penalties;
        let (marks, counts) = (penalties.marks_history(), penalties.counts_output());
        let repeats = self.repeats(path);
        let emitted = self.history.len() - self.prompt_len + path.len();
        let emitted =
            mutate!("history/min_new_tokens_counts_prompt", emitted, emitted + self.prompt_len);
        let held_back: &[u32] =
            if emitted < penalties.min_new_tokens { &penalties.stop_ids } else { &[] };
        let mut tokens: Vec<u32> = [&repeats[..], held_back].concat();
        if marks || counts {
            tokens.extend(path);
        }
        tokens.sort_unstable();
        tokens.dedup();
        let concern_of = |token| {
            let at = self.base.binary_search_by_key(&token, |concern| concern.token);
            let mut concern = at.map_or_else(|_| Concern::blank(token), |at| self.base[at]);
            let times = path.iter().filter(|&&other| other == token).count() as u32;
            concern.seen |= marks && times > 0;
            concern.count += if counts { mutate!("history/path_not_counted", times, 0) } else { 0 };
            concern.banned |= held_back.contains(&token) || repeats.contains(&token);
            concern
        };
        tokens.into_iter().map(concern_of).collect()
    }

    /// The tokens that would complete an n-gram of history and path once more.
    fn repeats(&self, path: &[u32]) -> Vec<u32> {
        let path = mutate!("history/ngram_of_root", path, &path[..0]);
        let (n, length) = (self.penalties.no_repeat_ngram, self.history.len() + path.len());
        if n == 0 || length < n {
            return Vec::new();
        }
        let at = |index: usize| match index.checked_sub(self.history.len()) {
            None => self.history[index],
            Some(below) => path[below],
        };
        // The n - 1 last tokens, and where they stood before.
        let last = length - (n - 1);
        let is_there = |start: usize| (0..n - 1).rev().all(|k| at(start + k) == at(last + k));
        (0..last).filter(|&start| is_there(start)).map(|start| at(start + n - 1)).collect()
    }
}

fn concerns_of(
    penalties: &Penalties,
    history: &[u32],
    prompt_len: usize,
    vocab: usize,
) -> Vec<Concern> {
    let prompt_len = mutate!("history/prompt_is_counted", prompt_len, 0);
    let mut concerned = Bits::new(vocab);
    let mut seen = Bits::new(vocab);
    let mut counts = Vec::new();
    if penalties.marks_history() {
        for &token in history {
            seen.set(token);
        }
        concerned.union(&seen);
    }
    if penalties.counts_output() {
        counts = vec![0; vocab];
        for &token in &history[prompt_len..] {
            counts[token as usize] += 1;
            concerned.set(token);
        }
    }
    let mut banned = Bits::new(vocab);
    for &token in &penalties.banned {
        banned.set(token);
    }
    concerned.union(&banned);
    for pair in &penalties.bias {
        concerned.set(pair.0);
    }
    let mut biases = penalties.bias.iter().peekable();
    concerned
        .iter()
        .map(|token| Concern {
            token,
            bias: biases.next_if(|pair| pair.0 == token).map_or(0.0, |pair| pair.1),
            seen: seen.has(token),
            count: counts.get(token as usize).copied().unwrap_or(0),
            banned: banned.has(token),
        })
        .collect()
}

fn check_tokens<'t>(
    name: &'static str,
    tokens: impl Iterator<Item = &'t u32>,
    vocab: usize,
) -> Result<()> {
    match tokens.enumerate().find(|&(_, &token)| token as usize >= vocab) {
        None => Ok(()),
        Some((index, token)) => Err(Error::ParamOutOfRange {
            name,
            value: format!("token {token} at index {index}"),
            wanted: "tokens of the vocabulary of the rows",
        }),
    }
}

/// A set of tokens.
struct Bits(Vec<u64>);

impl Bits {
    fn new(vocab: usize) -> Self {
        Self(vec![0; vocab.div_ceil(64)])
    }

    fn set(&mut self, token: u32) {
        self.0[token as usize / 64] |= 1 << (token % 64);
    }

    fn has(&self, token: u32) -> bool {
        self.0[token as usize / 64] >> (token % 64) & 1 == 1
    }

    fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine |= theirs;
        }
    }

    /// The tokens, ascending.
    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).step_by(64).zip(&self.0).flat_map(|(first, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(first + bit)
            })
        })
    }
}
