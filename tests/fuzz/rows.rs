//! Rows as models give them, and as none should.

use mtp_verify::rows::{RawRows, Values};
use mtp_verify::shaping::{Params, Preset};

use crate::bits::Bits;

/// A matrix in one of the element types, with padding between its rows that nobody may read.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    data: Data,
    rows: usize,
    cols: usize,
    stride: usize,
}

#[derive(Debug, Clone)]
enum Data {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    F64(Vec<f64>),
}

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    F64,
}

impl Matrix {
    /// Rows of equal length in an element type; what lies between them is NaN.
    pub(crate) fn new(bits: &mut Bits, rows: &[Vec<f64>], cols: usize, kind: Kind) -> Self {
        let stride = cols + if bits.one_in(3) { bits.between(1, 9) } else { 0 };
        let length = rows.len().saturating_sub(1) * stride + cols * rows.len().min(1);
        let mut all = vec![f64::NAN; length];
        for (row, values) in rows.iter().enumerate() {
            all[row * stride..row * stride + cols].copy_from_slice(values);
        }
        let data = match kind {
            Kind::F32 => Data::F32(all.iter().map(|&x| x as f32).collect()),
            Kind::F16 => Data::F16(all.iter().map(|&x| half::f16::from_f64(x).to_bits()).collect()),
            Kind::Bf16 => {
                Data::Bf16(all.iter().map(|&x| half::bf16::from_f64(x).to_bits()).collect())
            }
            Kind::F64 => Data::F64(all),
        };
        Self { data, rows: rows.len(), cols, stride }
    }

    pub(crate) fn raw(&self) -> RawRows<'_> {
        let values = match &self.data {
            Data::F32(values) => Values::F32(values),
            Data::F16(values) => Values::F16(values),
            Data::Bf16(values) => Values::Bf16(values),
            Data::F64(values) => Values::F64(values),
        };
        RawRows::new(values, self.rows, self.cols, self.stride).unwrap()
    }
}

/// How many tokens: few as a rule, and around the borders of blocks and of vectors.
pub(crate) fn vocabulary(bits: &mut Bits) -> usize {
    match bits.below(40) {
        0 => bits.pick(&[2047, 2048, 2049, 2051, 4096, 4100]),
        1..4 => bits.between(30, 140),
        4..6 => 1,
        _ => bits.between(2, 9),
    }
}

/// A row of logits from which something can be drawn.
pub(crate) fn logits(bits: &mut Bits, vocab: usize) -> Vec<f64> {
    let scale = bits.pick(&[0.1, 1.0, 3.0, 20.0]);
    let mut row: Vec<f64> = (0..vocab).map(|_| scale * bits.normal()).collect();
    let token = bits.below(vocab);
    match bits.below(12) {
        // Peaked, as at low temperatures: one minus the rest is a rounding error.
        0..3 => row[token] += bits.pick(&[8.0, 16.0, 18.0, 20.0, 36.0, 60.0, 88.0, 104.0]),
        // Tied.
        3 => row.iter_mut().for_each(|x| *x = x.signum()),
        4 => row.fill(bits.pick(&[0.0, -0.0, 1.0, -87.0])),
        // Masked to a few tokens, by what libraries mask with.
        5 | 6 => {
            let kept: Vec<usize> = (0..bits.between(1, 3)).map(|_| bits.below(vocab)).collect();
            let mask = bits.pick(&[f64::NEG_INFINITY, f64::from(f32::MIN), -65504.0, -1e9]);
            let masked = (0..vocab).filter(|at| !kept.contains(at));
            masked.for_each(|at| row[at] = mask);
        }
        // Denormal values; sums of exponentials of very different size.
        7 => row.iter_mut().for_each(|x| *x *= 1e-44),
        8 => row.iter_mut().for_each(|x| *x *= 30.0),
        // So large that a temperature's rounding shows.
        9 if bits.one_in(4) => row.iter_mut().for_each(|x| *x = 1.5e4 + 16.0 * x.round()),
        _ => {}
    }
    row
}

/// A row of logits that is no distribution, or hardly one.
pub(crate) fn bad_logits(bits: &mut Bits, vocab: usize) -> Vec<f64> {
    let mut row = logits(bits, vocab);
    let token = bits.below(vocab);
    match bits.below(6) {
        0 => row[token] = f64::NAN,
        1 => row[token] = f64::INFINITY,
        2 => row.fill(f64::NEG_INFINITY),
        3 => row.fill(f64::NAN),
        4 => row.iter_mut().for_each(|x| *x *= 1e37),
        _ => row[token] = f64::from(f32::MAX),
    }
    row
}

/// Probabilities that sum to 1 within the rounding of f32.
pub(crate) fn probabilities(bits: &mut Bits, vocab: usize) -> Vec<f64> {
    let row = logits(bits, vocab);
    let most = row.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(x));
    let weights: Vec<f64> = row.iter().map(|x| (x - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut row: Vec<f64> = weights.iter().map(|w| w / total).collect();
    if bits.one_in(8) {
        // Exactly one-hot, with a tail that no sum notices.
        let token = bits.below(vocab);
        for p in &mut row {
            *p *= 1e-20;
        }
        row[token] = 1.0;
    }
    row
}

/// Rows of probabilities in any element type, in f32 where rounding puts a sum further from 1 than `bound`.
pub(crate) fn distribution(bits: &mut Bits, rows: &[Vec<f64>], cols: usize, bound: f64) -> Matrix {
    let kind = bits.pick(&[Kind::F32, Kind::F32, Kind::F16, Kind::Bf16, Kind::F64]);
    let matrix = Matrix::new(bits, rows, cols, kind);
    let raw = matrix.raw();
    let sum = |row| (0..cols).map(|column| raw.value(row, column)).sum::<f64>();
    if (0..rows.len()).all(|row| (sum(row) - 1.0).abs() <= bound) {
        return matrix;
    }
    Matrix::new(bits, rows, cols, Kind::F32)
}

/// Values that are no probabilities, or do not sum to 1.
pub(crate) fn bad_probabilities(bits: &mut Bits, vocab: usize) -> Vec<f64> {
    let mut row = probabilities(bits, vocab);
    let token = bits.below(vocab);
    match bits.below(7) {
        0 => row[token] = f64::NAN,
        1 => row[token] = -0.25,
        2 => row.iter_mut().for_each(|p| *p *= 1.01),
        3 => row.fill(0.0),
        4 => row[token] = f64::INFINITY,
        5 => row[token] = 1e-300,
        _ => row.iter_mut().for_each(|p| *p = 1.0 - *p),
    }
    row
}

/// Sampling parameters as people set them.
pub(crate) fn params(bits: &mut Bits, vocab: usize) -> Params {
    let preset = bits.pick(&[Preset::Transformers, Preset::Vllm]);
    let temperature = bits.pick(&[0.0, 0.05, 0.2, 0.7, 1.0, 1.0, 1.0, 1.5]);
    let top_k = if bits.one_in(4) { bits.between(1, vocab + 1) as i64 } else { 0 };
    let top_p = if bits.one_in(4) { bits.pick(&[1e-9, 0.1, 0.5, 0.9, 1.0 - 1e-12]) } else { 1.0 };
    let min_p = if bits.one_in(4) { bits.pick(&[1e-9, 0.05, 0.5, 1.0]) } else { 0.0 };
    Params::new(temperature, top_k, top_p, min_p, preset).unwrap()
}

/// The same, or any numbers at all where those are legal.
pub(crate) fn any_params(bits: &mut Bits, vocab: usize) -> Params {
    let preset = bits.pick(&[Preset::Transformers, Preset::Vllm]);
    let extreme = bits.extreme() as i64;
    let (temperature, top_p, min_p) = (bits.real().abs(), bits.unit(), bits.unit());
    let wild = Params::new(temperature, extreme, top_p, min_p, preset);
    if bits.one_in(3) { wild.unwrap_or_else(|_| params(bits, vocab)) } else { params(bits, vocab) }
}
