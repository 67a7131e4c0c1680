//! Shaping: from raw logits to the row that is sampled from.
//!
//! A shaped row is never written down. Temperature, top-k, top-p and min-p each keep the tokens above
//! a cut, so a row is described by five numbers, and every later question (the probability of a
//! token, a sum, a draw) is one streaming pass that compares with the cut. [`weights`] is the same
//! definition over any number type, for the proof.
//!
//! What a node's history, a mask or the caller do to its logits comes before all that: [`Edits`].
//!
//! Logits are divided by the temperature in `f32`, as transformers and vLLM do, so that values that
//! become equal there are equal here; probabilities and sums are `f64`.

mod best;
mod edits;
mod scratch;
mod select;
pub mod weights;

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::{Buffer, RawRows};
use crate::simd::{self, BLOCK, Kernels, Scan, Taken};

pub use edits::{Edits, Mask, Processor};
pub use scratch::Scratch;

/// Whose order and conventions shaping follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// temperature, top-k, top-p, min-p.
    Transformers,
    /// temperature (below 1e-5: greedy), min-p, top-k, top-p.
    Vllm,
}

/// Sampling parameters, checked at construction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    temperature: f64,
    top_k: usize,
    top_p: f64,
    min_p: f64,
    preset: Preset,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, preset: Preset::Transformers }
    }
}

impl Params {
    /// Checks the ranges; `top_k` of -1 and 0 mean off.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] names the parameter.
    pub fn new(
        temperature: f64,
        top_k: i64,
        top_p: f64,
        min_p: f64,
        preset: Preset,
    ) -> Result<Self> {
        let check = |legal: bool, name, value: String, wanted| {
            if legal { Ok(()) } else { Err(Error::ParamOutOfRange { name, value, wanted }) }
        };
        check(
            temperature >= 0.0 && temperature.is_finite(),
            "temperature",
            temperature.to_string(),
            "a finite number >= 0 (0: greedy)",
        )?;
        check(top_k >= -1, "top_k", top_k.to_string(), "an integer >= -1 (-1 and 0: off)")?;
        check(
            top_p > 0.0 && top_p <= 1.0,
            "top_p",
            top_p.to_string(),
            "a number in (0, 1] (1: off)",
        )?;
        check(
            (0.0..=1.0).contains(&min_p),
            "min_p",
            min_p.to_string(),
            "a number in [0, 1] (0: off)",
        )?;
        Ok(Self { temperature, top_k: top_k.max(0) as usize, top_p, min_p, preset })
    }

    /// Whether rows are one-hot: temperature 0, or below vLLM's threshold under its preset.
    pub fn is_greedy(&self) -> bool {
        let floor = match self.preset {
            Preset::Transformers => 0.0,
            Preset::Vllm => 1e-5,
        };
        self.temperature <= 0.0 || self.temperature < floor
    }

    /// Whether any step after the temperature is on.
    fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// The temperature.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }
}

/// A row after shaping: token `x` with scaled logit `y` has probability
/// `exp(y - origin) / total` if it is kept, which is `y > cut`, or `y == cut` and `x < tie_end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shaped {
    /// The maximum, or a number not far from it.
    origin: f32,
    total: f64,
    cut: f32,
    tie_end: u32,
    greedy: bool,
}

impl Shaped {
    /// The one token left, if the row is one-hot by greedy decoding.
    pub fn only(&self) -> Option<u32> {
        self.greedy.then(|| self.tie_end - 1)
    }
}

/// Whose rows they are; named in errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The model whose law is kept.
    Target,
    /// Whatever proposed the tokens.
    Drafter,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Drafter => "drafter",
        }
    }
}

/// Rows of logits under sampling parameters.
#[derive(Debug, Clone, Copy)]
pub struct ShapedRows<'a> {
    raw: RawRows<'a>,
    params: Params,
    kernels: &'static Kernels,
    side: Side,
    edits: Option<&'a Edits<'a>>,
}

impl<'a> ShapedRows<'a> {
    /// Logits to be shaped.
    pub fn new(raw: RawRows<'a>, params: Params, side: Side) -> Self {
        Self { raw, params, kernels: Kernels::best(), side, edits: None }
    }

    /// The same rows, changed by what their nodes' histories and the caller say before anything else.
    pub fn edited(self, edits: &'a Edits<'a>) -> Self {
        Self { edits: (!edits.is_empty()).then_some(edits), ..self }
    }

    /// The rows as the model gave them, at temperature 1.
    pub fn unshaped(&self) -> Self {
        Self::new(self.raw, Params::default(), self.side)
    }

    /// The number of rows.
    pub fn num_rows(&self) -> usize {
        self.raw.num_rows()
    }

    /// The sampling parameters.
    pub fn params(&self) -> Params {
        self.params
    }

    /// The number of tokens in a row.
    pub fn num_cols(&self) -> usize {
        self.raw.num_cols()
    }

    /// A block of logits, edited.
    fn block<'s>(&'s self, row: usize, start: usize, buffer: &'s mut Buffer) -> &'s [f32] {
        match self.edits {
            None => self.raw.block(self.kernels, row, start, buffer),
            Some(edits) => edits.block(&self.raw, self.kernels, row, start, buffer),
        }
    }

    /// One logit, edited.
    fn value(&self, row: usize, token: u32) -> f64 {
        match self.edits {
            None => self.raw.value(row, token as usize),
            Some(edits) => edits.value(&self.raw, row, token),
        }
    }

    /// A block of scaled logits: divided by the temperature unless that is 1.
    fn scaled<'s>(&'s self, row: usize, start: usize, buffers: &'s mut [Buffer; 2]) -> &'s [f32] {
        let [raw, out] = buffers;
        let values = self.block(row, start, raw);
        if self.divisor().to_bits() == 1.0_f32.to_bits() {
            return values;
        }
        let out = &mut out[..values.len()];
        (self.kernels.divide)(values, self.divisor(), out);
        out
    }

    fn divisor(&self) -> f32 {
        // Greedy rows are compared raw: any division could only create ties.
        if self.params.is_greedy() { 1.0 } else { self.params.temperature as f32 }
    }

    fn scaled_value(&self, row: usize, token: u32) -> f32 {
        self.value(row, token) as f32 / self.divisor()
    }

    /// Reads a row (once if nothing truncates it) and returns its five numbers.
    ///
    /// Where the sums of its blocks came up, they stay in `scratch`: a draw from the row that was
    /// shaped last then finds its block without another pass.
    ///
    /// # Errors
    /// [`Error::RowNotFinite`] for NaN and `+inf`, [`Error::RowEmpty`] if nothing is left.
    pub fn shape(&self, row: usize, scratch: &mut Scratch) -> Result<Shaped> {
        scratch.sums.forget();
        if let Some(edits) = self.edits {
            edits.prepare(&self.raw, self.kernels, row)?;
        }
        if self.params.is_greedy() {
            let max = self.max(row, scratch)?;
            let token = self.first_maximum(row, max, scratch);
            return Ok(Shaped {
                origin: max,
                total: 1.0,
                cut: max,
                tie_end: token + 1,
                greedy: true,
            });
        }
        let shaped = if self.params.truncates() {
            let max = self.max(row, scratch)?;
            self.truncate(row, max, scratch)
        } else {
            self.sum_whole(row, scratch)?
        };
        if !scratch.sums.is_empty() {
            scratch.sums.remember(self.side, row);
        }
        Ok(shaped)
    }

    /// The sum of exponentials of a row in one pass over its memory.
    ///
    /// The origin is the largest value of the first block, and moves up only where a block's sum
    /// shows a much larger one (or NaN, or `+inf`): that block is then read again, from L1. Sums
    /// relative to earlier origins are brought to the last one at the end.
    fn sum_whole(&self, row: usize, scratch: &mut Scratch) -> Result<Shaped> {
        // A block of values within three nats of the origin stays below; a single value that is
        // eleven above it does not. So the origin is never far below the maximum.
        const LIMIT: f64 = 65_536.0;
        let Scratch { buffers, sums, values: origins, .. } = scratch;
        origins.clear();
        let mut origin = f32::NEG_INFINITY;
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, buffers);
            let mut sum = f64::INFINITY;
            if origin > f32::NEG_INFINITY {
                sum = (self.kernels.sum_exp)(values, origin, origin + simd::EXP_FLOOR);
            }
            if sum >= LIMIT {
                origin = self.larger(row, origin, (self.kernels.scan)(values))?;
                sum = match origin {
                    f32::INFINITY => break,
                    f32::NEG_INFINITY => 0.0,
                    _ => (self.kernels.sum_exp)(values, origin, origin + simd::EXP_FLOOR),
                };
            }
            sums.push(sum);
            origins.push(origin);
        }
        self.check_max(row, origin)?;
        for (sum, &seen) in sums.iter_mut().zip(&*origins) {
            if seen < origin {
                *sum *= (f64::from(seen) - f64::from(origin)).exp();
            }
        }
        let cut = origin + simd::EXP_FLOOR;
        Ok(Shaped { origin, total: sums.total(), cut, tie_end: u32::MAX, greedy: false })
    }

    /// The largest scaled logit of a row.
    fn max(&self, row: usize, scratch: &mut Scratch) -> Result<f32> {
        let mut max = f32::NEG_INFINITY;
        for start in self.raw.blocks() {
            let values = self.block(row, start, &mut scratch.buffers[0]);
            max = self.larger(row, max, (self.kernels.scan)(values))?;
        }
        // Division by a positive number keeps the order, so the largest stays the largest.
        let max = max / self.divisor();
        self.check_max(row, max)?;
        Ok(max)
    }

    /// The larger of a maximum so far and a block's, if the block is free of NaN.
    fn larger(&self, row: usize, max: f32, scan: Scan) -> Result<f32> {
        if scan.has_nan {
            return Err(self.not_finite(row));
        }
        Ok(if scan.max > max { scan.max } else { max })
    }

    /// A row whose largest scaled logit is not finite is no distribution.
    fn check_max(&self, row: usize, max: f32) -> Result<()> {
        if max.is_finite() {
            return Ok(());
        }
        let has_infinity = (0..self.num_cols() as u32).any(|t| self.value(row, t) == f64::INFINITY);
        if has_infinity {
            return Err(self.not_finite(row));
        }
        let reason = if max == f32::INFINITY {
            "the largest logit overflows when divided by the temperature"
        } else if self.edits.is_some() {
            "no token is left by masks, bans and processors; allow one, or leave the node out"
        } else {
            "every logit is -inf"
        };
        Err(Error::RowEmpty { side: self.side.name(), row, reason })
    }

    /// The error of a row that is known to hold NaN or `+inf`: finds the first one.
    fn not_finite(&self, row: usize) -> Error {
        let bad = |x: f64| x.is_nan() || x == f64::INFINITY;
        let token = (0..self.num_cols() as u32).find(|&token| bad(self.value(row, token)));
        let token = token.unwrap_or(0);
        Error::RowNotFinite {
            side: self.side.name(),
            row,
            token: token as usize,
            found: self.value(row, token).to_string(),
            wanted: "logits are finite or -inf",
        }
    }

    /// The lowest token among the maxima.
    fn first_maximum(&self, row: usize, max: f32, scratch: &mut Scratch) -> u32 {
        let below = max.next_down();
        for start in self.raw.blocks() {
            let values = self.block(row, start, &mut scratch.buffers[0]);
            let first = (self.kernels.first_above)(values, below, 0);
            let at = mutate!(
                "greedy/tie_to_higher_id",
                first,
                values.iter().rposition(|&y| y > below).unwrap_or(first)
            );
            if at < values.len() {
                return (start + at) as u32;
            }
        }
        unreachable!("the maximum of row {row} stands in it")
    }

    /// `exp(y - origin)` of a kept token, 0 for others; divide by the total for the probability.
    fn kept(&self, row: usize, shaped: &Shaped, token: u32) -> f64 {
        let y = self.scaled_value(row, token);
        let kept = y > shaped.cut || (y >= shaped.cut && token < shaped.tie_end);
        if kept { f64::from(simd::exp(y - shaped.origin)) } else { 0.0 }
    }

    /// The probability of a token.
    pub fn probability(&self, row: usize, shaped: &Shaped, token: u32) -> f64 {
        self.kept(row, shaped, token) / shaped.total
    }

    /// The log-probability of a kept token, `-inf` for others; exact where `exp` would underflow.
    pub fn log_probability(&self, row: usize, shaped: &Shaped, token: u32) -> f64 {
        let y = self.scaled_value(row, token);
        if y > shaped.cut || (y >= shaped.cut && token < shaped.tie_end) {
            f64::from(y) - f64::from(shaped.origin) - shaped.total.ln()
        } else {
            f64::NEG_INFINITY
        }
    }

    /// `out = scale * exp(y - origin)` for the kept tokens of a block, 0 for the others.
    fn weigh(
        &self,
        row: usize,
        shaped: &Shaped,
        start: usize,
        scale: f64,
        buffers: &mut [Buffer; 2],
        out: &mut [f64; BLOCK],
    ) -> usize {
        let values = self.scaled(row, start, buffers);
        let out = &mut out[..values.len()];
        (self.kernels.weigh)(values, shaped.origin, shaped.cut, scale, out);
        let tie_end = (shaped.tie_end as usize).saturating_sub(start);
        if tie_end < out.len() {
            for (weight, &y) in out[tie_end..].iter_mut().zip(&values[tie_end..]) {
                if y <= shaped.cut {
                    *weight = 0.0;
                }
            }
        }
        out.len()
    }

    /// The block sums of a row's probabilities times `factor`, if the row was the last one shaped.
    pub fn sums_of_last(
        &self,
        row: usize,
        shaped: &Shaped,
        factor: f64,
        scratch: &Scratch,
        out: &mut Vec<f64>,
    ) -> bool {
        let Some(sums) = scratch.sums.of(self.side, row) else {
            return false;
        };
        let scale = factor / shaped.total;
        out.extend(sums.iter().map(|sum| sum * scale));
        true
    }

    /// The sum of `max(a p - b q, 0)` over a block, without its weights; `None` if ties are cut in it.
    pub fn left(
        &self,
        row: usize,
        shaped: &Shaped,
        start: usize,
        (a, b): (f64, f64),
        taken: &[f32],
        buffers: &mut [Buffer; 2],
    ) -> Option<Taken> {
        let values = self.scaled(row, start, buffers);
        if (shaped.tie_end as usize) < start + values.len() {
            return None;
        }
        let scale = a / shaped.total;
        Some((self.kernels.left)(values, shaped.origin, shaped.cut, scale, taken, b))
    }

    /// The probabilities of a block times `factor`; returns how many were written.
    pub fn probabilities(
        &self,
        row: usize,
        shaped: &Shaped,
        start: usize,
        factor: f64,
        buffers: &mut [Buffer; 2],
        out: &mut [f64; BLOCK],
    ) -> usize {
        self.weigh(row, shaped, start, factor / shaped.total, buffers, out)
    }
}
