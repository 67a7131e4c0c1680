//! The most likely tokens behind each emitted one, and what the model itself thought of it.

use crate::error::{Error, Result};
use crate::shaping::{Scratch, ShapedRows};
use crate::verify::Verdict;

/// For each emitted token the `n` most likely tokens of the model's row, and their log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct TopLogprobs {
    /// How many each has.
    pub n: usize,
    /// `n` tokens for each emitted one, the most likely first; -1 where the row has no more.
    pub tokens: Vec<i64>,
    /// Their log-probabilities in the row as the model gave it.
    pub raw: Vec<f32>,
    /// Their log-probabilities in the shaped row.
    pub shaped: Vec<f32>,
    /// The raw log-probability of each emitted token.
    pub emitted: Vec<f32>,
}

impl TopLogprobs {
    /// What was listed elsewhere behind the `emitted` tokens of a verdict.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the part whose shape is not (emitted, `n`).
    pub fn of(
        n: usize,
        tokens: Vec<i64>,
        [raw, shaped, emitted]: [Vec<f32>; 3],
        count: usize,
    ) -> Result<Self> {
        let lengths = [
            ("top_logprobs.emitted", emitted.len(), count),
            ("top_logprobs.tokens", tokens.len(), count.saturating_mul(n)),
            ("top_logprobs.raw", raw.len(), count.saturating_mul(n)),
            ("top_logprobs.shaped", shaped.len(), count.saturating_mul(n)),
        ];
        for (what, found, wanted) in lengths {
            if found != wanted {
                let (found, wanted) = (format!("{found} values"), format!("{wanted}"));
                return Err(Error::ShapeMismatch { what, found, wanted });
            }
        }
        let is_token = |&token: &i64| token == -1 || u32::try_from(token).is_ok();
        if let Some(place) = tokens.iter().position(|token| !is_token(token)) {
            return Err(Error::ParamOutOfRange {
                name: "top_logprobs.tokens",
                value: tokens[place].to_string(),
                wanted: "token ids from 0 to 2**32 - 1, or -1",
            });
        }
        Ok(Self { n, tokens, raw, shaped, emitted })
    }

    /// Reads the rows that a verdict's tokens came from once more.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for more tokens than a row has; or if a row as the model gave it is
    /// no distribution.
    pub fn new(target: &ShapedRows<'_>, verdict: &Verdict, n: usize) -> Result<Self> {
        if n > target.num_cols() {
            return Err(Error::ParamOutOfRange {
                name: "top_logprobs",
                value: n.to_string(),
                wanted: "at most the size of the vocabulary",
            });
        }
        let raw_rows = target.unshaped();
        let mut scratch = Scratch::default();
        let mut top = Self {
            n,
            tokens: Vec::new(),
            raw: Vec::new(),
            shaped: Vec::new(),
            emitted: Vec::new(),
        };
        let nodes = std::iter::once(0).chain(verdict.path.iter().map(|&node| node as usize));
        for (node, &token) in nodes.zip(&verdict.tokens) {
            let raw = raw_rows.shape(node, &mut scratch)?;
            let best = raw_rows.best(node, &raw, n, |token| token, &mut scratch);
            let shaped = target.shape(node, &mut scratch)?;
            top.emitted.push(raw_rows.log_probability(node, &raw, token)? as f32);
            for &(token, _) in &best {
                top.tokens.push(i64::from(token));
                top.raw.push(raw_rows.log_probability(node, &raw, token)? as f32);
                top.shaped.push(target.log_probability(node, &shaped, token)? as f32);
            }
            top.tokens.resize(top.emitted.len() * n, -1);
            top.raw.resize(top.emitted.len() * n, f32::NEG_INFINITY);
            top.shaped.resize(top.emitted.len() * n, f32::NEG_INFINITY);
        }
        Ok(top)
    }

    /// Keeps those of the first `count` tokens.
    pub fn cut(&mut self, count: usize) {
        self.tokens.truncate(count * self.n);
        self.raw.truncate(count * self.n);
        self.shaped.truncate(count * self.n);
        self.emitted.truncate(count);
    }
}
