//! What a rule decided, with the probabilities of what it emitted.

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::verify::{RULES, lossy};

/// A rule's result.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Emitted tokens: the accepted ones and the bonus.
    pub tokens: Vec<u32>,
    /// Accepted nodes from below the root down.
    pub path: Vec<u32>,
    /// The shaped log-probability of each emitted token under the target.
    pub logprobs: Vec<f32>,
    /// The rule that ran, or the lossy acceptance.
    pub rule: &'static str,
}

impl Verdict {
    /// A verdict that was made elsewhere.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for lengths, [`Error::NotAPath`] for nodes that are not below each other
    /// in any tree, [`Error::UnknownRule`], [`Error::ParamOutOfRange`] for what is no log-probability.
    pub fn new(tokens: Vec<u32>, path: &[i64], logprobs: Vec<f32>, rule: &str) -> Result<Self> {
        for (what, length) in [("tokens", tokens.len()), ("logprobs", logprobs.len())] {
            if length != path.len() + 1 {
                return Err(Error::ShapeMismatch {
                    what,
                    found: format!("({length},)"),
                    wanted: format!("({},), one more than the path has nodes", path.len() + 1),
                });
            }
        }
        let mut nodes = Vec::with_capacity(path.len());
        let mut above = 0;
        for (index, &node) in path.iter().enumerate() {
            let Some(below) = u32::try_from(node).ok().filter(|&node| node > above) else {
                let reason = "nodes of a path ascend from 1 on: a parent comes before its children";
                return Err(Error::NotAPath { index, node, reason });
            };
            nodes.push(below);
            above = below;
        }
        if let Some(place) = logprobs.iter().position(|&logprob| logprob.is_nan() || logprob > 0.0)
        {
            return Err(Error::ParamOutOfRange {
                name: "logprobs",
                value: format!("{} at index {place}", logprobs[place]),
                wanted: "log-probabilities, numbers <= 0",
            });
        }
        let names = RULES.iter().map(|rule| rule.name).chain(lossy::NAMES);
        let Some(name) = names.clone().find(|&name| name == rule) else {
            let known = names.collect::<Vec<_>>().join(", ");
            return Err(Error::UnknownRule { found: rule.to_owned(), known });
        };
        Ok(Self { tokens, path: nodes, logprobs, rule: name })
    }

    /// Whether the tokens have the target's law: not under a lossy acceptance.
    pub fn is_lossless(&self) -> bool {
        !lossy::is_name(self.rule)
    }

    /// Keeps the first `n >= 1` tokens; the last of them is never cached, so the path loses one more.
    pub fn cut(&mut self, n: usize) {
        self.tokens.truncate(mutate!("stop/emits_after_eos", n, self.tokens.len()));
        self.logprobs.truncate(n);
        self.path.truncate(n - 1);
    }
}
