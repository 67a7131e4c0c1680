//! Shaping: from raw logits to the row that is sampled from.
//!
//! A shaped row is never written down. Temperature, top-k, top-p and min-p each keep the tokens above
//! a cut, so a row is described by a few numbers ([`Shaped`]), and every later question (the
//! probability of a token, a sum, a draw) compares with the cut. [`weights`] is the same definition
//! over any number type, for the proof.
//!
//! What a node's history, a mask or the caller do to its logits comes before all that: [`Edits`].
//!
//! # Numerics
//! Logits are divided by the temperature in `f32`, as transformers and vLLM do, so that values that
//! become equal there are equal here. A token's weight is `exp(y) 2^-k` as an `f32`
//! ([`crate::rows::simd::exp`]: relative error `2e-7`, and `1.4e-8` for each nat of distance, alike for all
//! tokens), with `k` such that the sum of all weights lies in `[1, 4)`; sums are `f64`. A weight has the
//! same bits in every pass, whatever was read before: `k` is a power of two and cancels exactly.
//! Weights below `2^-124` are 0. So each probability is that of the exact softmax of the `f32` values
//! `y` up to a factor of `1 +- (4e-7 + 1.4e-8 d)`, `d` the distance from the row's mean logit in nats.

mod best;
mod edits;
mod measure;
mod params;
mod scratch;
mod select;
pub mod weights;

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::simd::{BLOCK, Kernels, Window, exp};
use crate::rows::{Buffer, RawRows};

pub use edits::{Edits, Mask, Processor};
pub use params::{Params, Preset};
pub(crate) use scratch::List;
pub use scratch::Scratch;

/// A row after shaping: a token of scaled logit `y` has the weight `window(y - origin)` if it is kept,
/// which is `y - origin > cut`, or `== cut` and the token below `tie_end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shaped {
    /// Taken off the scaled logits of a row whose largest one is far from 0; else 0.
    origin: f32,
    window: Window,
    /// The sum of all weights.
    total: f64,
    cut: f32,
    tie_end: u32,
    /// The one token left by greedy decoding.
    only: Option<u32>,
    /// Whether a step after the temperature left tokens out.
    is_truncated: bool,
}

impl Shaped {
    /// A row whose largest scaled logit is `max`, before anything is cut or summed.
    fn around(max: f32) -> Self {
        let origin = if max.abs() > exp::REACH { max } else { 0.0 };
        let window = Window::around(max - origin);
        Self {
            origin,
            window,
            total: 0.0,
            cut: window.floor(),
            tie_end: u32::MAX,
            only: None,
            is_truncated: false,
        }
    }

    /// The one token left, if the row is one-hot by greedy decoding.
    pub fn only(&self) -> Option<u32> {
        self.only
    }

    /// The sum of all weights: a weight divided by it is a probability.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// Whether tokens were left out, so that few may be left.
    pub(crate) fn is_truncated(&self) -> bool {
        self.is_truncated
    }

    /// Whether a token is kept, given its scaled logit minus the origin.
    fn keeps(&self, y: f32, token: u32) -> bool {
        y > self.cut || (y >= self.cut && token < self.tie_end)
    }

    /// The cut in a block of tokens from `start` on, and from which of them on values equal to it are
    /// below it.
    fn cut_in(&self, start: usize, len: usize) -> (f32, usize) {
        let tie_end = mutate!("float/tied_tokens_weighed", self.tie_end as usize, usize::MAX);
        if tie_end <= start {
            (self.cut.next_up(), len)
        } else {
            (self.cut, len.min(tie_end - start))
        }
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

    /// The same rows, read with the kernels of one instruction set.
    pub fn read_with(self, kernels: &'static Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The rows as the model gave them, at temperature 1.
    pub fn unshaped(&self) -> Self {
        Self::new(self.raw, Params::default(), self.side).read_with(self.kernels)
    }

    /// The number of rows.
    pub fn num_rows(&self) -> usize {
        self.raw.num_rows()
    }

    /// The sampling parameters.
    pub fn params(&self) -> Params {
        self.params
    }

    /// The kernels that read the rows.
    pub(crate) fn kernels(&self) -> &'static Kernels {
        self.kernels
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

    /// A block of scaled logits minus the origin.
    fn scaled<'s>(
        &'s self,
        row: usize,
        start: usize,
        origin: f32,
        buffers: &'s mut [Buffer; 2],
    ) -> &'s [f32] {
        let [raw, out] = buffers;
        let values = self.block(row, start, raw);
        if self.is_unscaled() && origin == 0.0 {
            return values;
        }
        let out = &mut out[..values.len()];
        (self.kernels.divide)(values, self.divisor(), out);
        mutate!("float/temperature_by_reciprocal", (), self.multiply(values, out));
        if origin != 0.0 {
            for y in out.iter_mut() {
                *y -= origin;
            }
        }
        out
    }

    /// Multiplies by the reciprocal of the temperature.
    #[cfg(feature = "mutants")]
    fn multiply(&self, values: &[f32], out: &mut [f32]) {
        for (y, x) in out.iter_mut().zip(values) {
            *y = x * (1.0 / self.divisor());
        }
    }

    fn is_unscaled(&self) -> bool {
        self.divisor().to_bits() == 1.0_f32.to_bits()
    }

    fn divisor(&self) -> f32 {
        // Greedy rows are compared raw: any division could only create ties.
        if self.params.is_greedy() { 1.0 } else { self.params.temperature() as f32 }
    }

    fn scaled_value(&self, row: usize, token: u32) -> f32 {
        self.value(row, token) as f32 / self.divisor()
    }

    /// Reads a row (once if nothing truncates it) and returns what describes it.
    ///
    /// A row that nothing truncates leaves the sums of its blocks' weights in `scratch`; one of which
    /// top-k keeps few tokens leaves these.
    ///
    /// # Errors
    /// [`Error::RowNotFinite`] for NaN and `+inf`, [`Error::RowEmpty`] if nothing is left.
    pub fn shape(&self, row: usize, scratch: &mut Scratch) -> Result<Shaped> {
        scratch.sums.clear();
        scratch.kept.clear();
        if let Some(edits) = self.edits {
            edits.prepare(&self.raw, self.kernels, row)?;
        }
        if self.params.is_greedy() {
            let max = self.max(row, scratch)?;
            return self.one_hot(row, max, scratch);
        }
        if self.params.truncates() {
            return self.truncate(row, scratch);
        }
        self.sum_whole(row, scratch)
    }

    /// The row of greedy decoding: all mass on the lowest token among the maxima.
    fn one_hot(&self, row: usize, max: f32, scratch: &mut Scratch) -> Result<Shaped> {
        let Scratch { buffers, places, .. } = scratch;
        for start in self.raw.blocks() {
            let values = self.block(row, start, &mut buffers[0]);
            let count = self.kernels.gather(values, max, places);
            let found = &places[..count];
            let place = mutate!("greedy/tie_to_higher_id", found.first(), found.last());
            if let Some(&place) = place {
                let token = start as u32 + place;
                let window = Window::new(0);
                return Ok(Shaped {
                    origin: 0.0,
                    window,
                    total: 1.0,
                    cut: max,
                    tie_end: token + 1,
                    only: Some(token),
                    is_truncated: true,
                });
            }
        }
        Err(self.changed(row))
    }

    /// The error of a row that was written to while it was read.
    fn changed(&self, row: usize) -> Error {
        Error::RowChanged { side: self.side.name(), row }
    }

    /// The weight of a kept token, 0 for others.
    pub(crate) fn weight(&self, row: usize, shaped: &Shaped, token: u32) -> f64 {
        if let Some(only) = shaped.only {
            return f64::from(u8::from(token == only));
        }
        let y = self.scaled_value(row, token) - shaped.origin;
        if !shaped.keeps(y, token) {
            return 0.0;
        }
        // Through the kernel: its fused multiplications are slow outside of it.
        let mut weight = [0.0];
        (self.kernels.weigh)(&[y], &shaped.window, shaped.cut, &mut weight);
        f64::from(weight[0])
    }

    /// The probability of a token.
    pub fn probability(&self, row: usize, shaped: &Shaped, token: u32) -> f64 {
        self.weight(row, shaped, token) / shaped.total
    }

    /// The natural logarithm of [`ShapedRows::probability`].
    ///
    /// # Errors
    /// [`Error::RowChanged`] if the row is no longer what it was.
    pub fn log_probability(&self, row: usize, shaped: &Shaped, token: u32) -> Result<f64> {
        let log = self.probability(row, shaped, token).ln();
        // A weight is a term of the total, so no probability is above 1 unless the row has changed.
        if log <= 0.0 { Ok(log) } else { Err(self.changed(row)) }
    }

    /// Writes the weights of a block; returns how many there are.
    pub(crate) fn weigh(
        &self,
        row: usize,
        shaped: &Shaped,
        start: usize,
        buffers: &mut [Buffer; 2],
        out: &mut Buffer,
    ) -> usize {
        if let Some(only) = shaped.only {
            let len = BLOCK.min(self.num_cols() - start);
            let out = &mut out[..len];
            for (token, weight) in (start as u32..).zip(out) {
                *weight = f32::from(u8::from(token == only));
            }
            return len;
        }
        let values = self.scaled(row, start, shaped.origin, buffers);
        let out = &mut out[..values.len()];
        let (cut, tie_end) = shaped.cut_in(start, out.len());
        (self.kernels.weigh)(values, &shaped.window, cut, out);
        for (weight, &y) in out[tie_end..].iter_mut().zip(&values[tie_end..]) {
            if y <= cut {
                *weight = 0.0;
            }
        }
        out.len()
    }

    /// The sum of a block's weights.
    pub(crate) fn sum_block(
        &self,
        row: usize,
        shaped: &Shaped,
        start: usize,
        scratch: &mut Scratch,
    ) -> f64 {
        let Scratch { buffers, terms, weights, .. } = scratch;
        let len = BLOCK.min(self.num_cols() - start);
        let (cut, tie_end) = shaped.cut_in(start, len);
        if shaped.only.is_none() && tie_end == len {
            let values = self.scaled(row, start, shaped.origin, buffers);
            return self.kernels.sum_exp(values, &shaped.window, cut, terms);
        }
        let len = self.weigh(row, shaped, start, buffers, terms);
        (self.kernels.widen_f32)(&terms[..len], &mut weights[..len]);
        (self.kernels.sum)(&weights[..len])
    }

    /// Lists the kept tokens of a row with their weights, ascending; false if there are more than
    /// [`select::MANY`], which are then not all listed.
    pub(crate) fn list_kept(&self, row: usize, shaped: &Shaped, scratch: &mut Scratch) -> bool {
        if let Some(only) = shaped.only {
            scratch.list.clear();
            scratch.list.tokens.push(only);
            scratch.list.weights.push(1.0);
            return true;
        }
        let is_complete = self.gather(row, shaped, scratch);
        if is_complete {
            self.keep(shaped, &mut scratch.list);
        }
        is_complete
    }
}
