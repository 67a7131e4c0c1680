//! What a logit owes to the tokens before it: penalties, biases and bans, per node.
//!
//! With `x` the raw logit of a token after a node, in the order of transformers and of vLLM alike:
//!
//! ```text
//! x + bias                                     logit_bias
//! x < 0 ? x theta : x / theta                  repetition: the token stands in history or path
//! x - f count - p [count > 0]                  frequency f, presence p: count in output and path
//! -inf                                         banned; completes an n-gram that was there before;
//!                                              a stop token before min_new_tokens
//! ```
//!
//! History is prompt and output up to the root, the path leads from there to the node. Most of this is
//! the same at every node of a step: [`Table`] finds the tokens concerned once, and a node's own path
//! changes a few of them. All other tokens are never looked at.
//!
//! Sources: arXiv 1909.05858 sec. 4.1 (repetition), `OpenAI`'s API reference (presence, frequency); values
//! as `transformers.generation.logits_process` and `vllm.model_executor.layers.utils` compute them.

mod change;
mod table;
mod weights;

pub use change::Change;
pub use table::{Concern, Table};
pub use weights::WeightPenalties;

use crate::error::{Error, Result};

/// The parameters that depend on tokens, checked by [`Penalties::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct Penalties {
    /// Divides positive logits and multiplies negative ones of tokens that were there; 1: off.
    pub repetition: f64,
    /// Taken off once for a token that was output; 0: off.
    pub presence: f64,
    /// Taken off for each time that a token was output; 0: off.
    pub frequency: f64,
    /// No n-gram of this length comes twice; 0: off.
    pub no_repeat_ngram: usize,
    /// What is added to tokens' logits; ascending tokens after the check.
    pub bias: Vec<(u32, f32)>,
    /// Tokens that are never emitted.
    pub banned: Vec<u32>,
    /// Stop tokens are held back before this many tokens.
    pub min_new_tokens: usize,
    /// The stop tokens.
    pub stop_ids: Vec<u32>,
    /// Whether the repetition penalty multiplies by a rounded `1 / theta`, as vLLM does.
    pub by_reciprocal: bool,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            repetition: 1.0,
            presence: 0.0,
            frequency: 0.0,
            no_repeat_ngram: 0,
            bias: Vec::new(),
            banned: Vec::new(),
            min_new_tokens: 0,
            stop_ids: Vec::new(),
            by_reciprocal: false,
        }
    }
}

impl Penalties {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] names the parameter.
    pub fn check(mut self) -> Result<Self> {
        let check = |legal: bool, name, value: f64, wanted| {
            let value = value.to_string();
            if legal { Ok(()) } else { Err(Error::ParamOutOfRange { name, value, wanted }) }
        };
        let theta = self.repetition;
        let finite = "a finite number (0: off)";
        check(
            theta > 0.0 && theta.is_finite(),
            "repetition_penalty",
            theta,
            "a finite number > 0 (1: off)",
        )?;
        check(self.presence.is_finite(), "presence_penalty", self.presence, finite)?;
        check(self.frequency.is_finite(), "frequency_penalty", self.frequency, finite)?;
        for &(_, bias) in &self.bias {
            check(
                bias < f32::INFINITY,
                "logit_bias",
                f64::from(bias),
                "finite numbers or -inf for each token",
            )?;
        }
        self.bias.sort_by_key(|pair| pair.0);
        // To add the biases up, or to take the last, would be a guess at what was meant.
        if let Some(pair) = self.bias.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let value = format!("token {} twice", pair[0].0);
            let wanted = "each token once";
            return Err(Error::ParamOutOfRange { name: "logit_bias", value, wanted });
        }
        Ok(self)
    }

    /// Whether logits stay as they are.
    pub fn is_neutral(&self) -> bool {
        self.needs_history().is_none() && self.bias.is_empty() && self.banned.is_empty()
    }

    /// The parameter that cannot do without the tokens up to the root, if one cannot.
    pub fn needs_history(&self) -> Option<&'static str> {
        [
            ("repetition_penalty", self.marks_history()),
            ("presence_penalty", self.presence != 0.0),
            ("frequency_penalty", self.frequency != 0.0),
            ("no_repeat_ngram_size", self.no_repeat_ngram > 0),
            ("min_new_tokens", self.holds_back()),
        ]
        .into_iter()
        .find_map(|(name, is_on)| is_on.then_some(name))
    }

    /// The logit of a token concerned.
    pub fn apply(&self, concern: &Concern, x: f32) -> f32 {
        self.change(concern).apply(x)
    }

    /// What becomes of the logit of a token concerned, in numbers.
    pub fn change(&self, concern: &Concern) -> Change {
        let mut change = Change { banned: concern.banned, bias: concern.bias, ..Change::default() };
        if concern.seen {
            let theta = self.repetition as f32;
            change.below = theta;
            if self.by_reciprocal {
                change.above = 1.0 / theta;
            } else {
                change.divisor = theta;
            }
        }
        if concern.count > 0 {
            change.frequency = self.frequency as f32 * concern.count as f32;
            change.presence = self.presence as f32;
        }
        change
    }

    /// Whether tokens of history and path are penalised wherever they stand.
    fn marks_history(&self) -> bool {
        (self.repetition - 1.0).abs() > 0.0
    }

    /// Whether tokens of output and path are counted.
    fn counts_output(&self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0
    }

    /// Whether stop tokens are held back at all.
    fn holds_back(&self) -> bool {
        self.min_new_tokens > 0 && !self.stop_ids.is_empty()
    }
}

#[cfg(test)]
mod tests;
