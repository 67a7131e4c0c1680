//! Products with weights of eight bits: what a row of a draft costs is the weights that it reads.

use crate::batch::threads;
use crate::error::{Error, Result};
use crate::rows::simd::{Kernels, PANEL};

/// The largest eight-bit weight; the smallest is its negative.
const LARGEST: f32 = 127.0;

/// Multiplications from which on more threads pay: those of products before may still spin.
const LEAST_FOR_THREADS: usize = 5 << 20;

/// Bytes that a matrix may have.
const MOST_BYTES: u64 = 1 << 36;

/// A matrix, each row of whose weights is rounded to multiples of a 127th of its largest.
///
/// Rows are rounded too, to 16 bits: products are those of integers, twice as many at a time as of `f32`,
/// and exact. Weights lie by panels of [`PANEL`] outputs, within a panel pair of inputs after pair, so that
/// they are read in one run and no sum has to be put together from lanes.
#[derive(Debug, Clone)]
pub struct Product {
    inputs: usize,
    outputs: usize,
    weights: Vec<i8>,
    /// By output, and zeros up to a whole panel.
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Product {
    /// Rounds a matrix of (`outputs`, `inputs`); `read` gives its rows, one after the other.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for a matrix without numbers, or a bias that is not (`outputs`,);
    /// [`Error::Overflow`] if there is no memory for it.
    pub fn new(
        outputs: usize,
        inputs: usize,
        bias: Option<Vec<f32>>,
        read: impl FnMut(usize, &mut [f32]),
    ) -> Result<Self> {
        let length = bias.as_ref().map_or(outputs, Vec::len);
        if outputs == 0 || inputs == 0 || length != outputs {
            return Err(Error::ShapeMismatch {
                what: "weight",
                found: format!("({outputs}, {inputs}) and a bias of {length}"),
                wanted: "(outputs, inputs), and a bias of (outputs,)".into(),
            });
        }
        let mut made =
            Self { inputs, outputs: 0, weights: Vec::new(), scales: Vec::new(), bias: None };
        made.extend(outputs, read)?;
        made.bias = bias;
        Ok(made)
    }

    /// Adds `count` outputs, whose rows `read` gives as [`Product::new`] takes them.
    ///
    /// # Errors
    /// [`Error::Overflow`] if there is no memory for them, [`Error::ShapeMismatch`] if others have a bias;
    /// nothing has changed then.
    pub fn extend(&mut self, count: usize, mut read: impl FnMut(usize, &mut [f32])) -> Result<()> {
        if self.bias.is_some() {
            let (found, wanted) = ("a bias".into(), "a product without, to extend it".into());
            return Err(Error::ShapeMismatch { what: "weight", found, wanted });
        }
        let panels = self.outputs.saturating_add(count).div_ceil(PANEL);
        let size = (panels as u64).saturating_mul(PANEL as u64 * self.depth() as u64);
        let more = (size as usize).saturating_sub(self.weights.len());
        if size > MOST_BYTES || self.weights.try_reserve(more).is_err() {
            return Err(Error::Overflow { what: "weight", found: size, limit: MOST_BYTES });
        }
        self.weights.resize(size as usize, 0);
        self.scales.resize(panels * PANEL, 0.0);
        let mut row = vec![0.0; self.inputs];
        for number in 0..count {
            read(number, &mut row);
            self.round(self.outputs + number, &row);
        }
        self.outputs += count;
        Ok(())
    }

    fn round(&mut self, output: usize, row: &[f32]) {
        let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        // One weight that is not finite makes all products of its row NaN, as it does unrounded.
        let is_sound = row.iter().all(|x| x.is_finite());
        self.scales[output] = if is_sound { largest / LARGEST } else { f32::NAN };
        let first = output / PANEL * PANEL * self.depth();
        let panel = &mut self.weights[first..];
        for (input, &x) in row.iter().enumerate() {
            let part = if is_sound && largest > 0.0 { x / largest * LARGEST } else { 0.0 };
            let place = (input / 2 * PANEL + output % PANEL) * 2 + input % 2;
            panel[place] = part.round_ties_even() as i8;
        }
    }

    /// Inputs, of which there are two to a pair.
    fn depth(&self) -> usize {
        self.inputs.next_multiple_of(2)
    }

    /// Numbers of a row.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Numbers that a row becomes.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Bytes that it holds.
    pub fn nbytes(&self) -> usize {
        self.weights.len() + size_of::<f32>() * self.scales.len()
    }

    /// The products of rows (n, `inputs`), by at most so many threads: (n, `outputs`). A row's bits depend
    /// on nothing but the row.
    pub fn multiply(&self, rows: &[f32], out: &mut [f32], threads: usize) {
        self.multiply_into(rows, out, self.outputs, 0, threads);
    }

    /// [`Product::multiply`] into the columns from `first` on of rows of `width` numbers.
    pub fn multiply_into(
        &self,
        rows: &[f32],
        out: &mut [f32],
        width: usize,
        first: usize,
        threads: usize,
    ) {
        let (count, depth, kernels) = (rows.len() / self.inputs, self.depth(), Kernels::best());
        let mut rounded = vec![0; count * depth];
        let worths: Vec<f32> = rows
            .chunks_exact(self.inputs)
            .zip(rounded.chunks_exact_mut(depth))
            .map(|(row, rounded)| (kernels.round_i16)(row, &mut rounded[..self.inputs]))
            .collect();
        let panels: Vec<&[i8]> = self.weights.chunks_exact(PANEL * depth).collect();
        let pays = self.weights.len() * count >= LEAST_FOR_THREADS;
        let threads = if pays { threads.max(1) } else { 1 };
        let parts: Vec<&[&[i8]]> = panels.chunks(panels.len().div_ceil(threads).max(1)).collect();
        let sums = threads::map(&parts, threads, |panels| {
            let mut sums = vec![0.0; panels.len() * count * PANEL];
            for (weights, sums) in panels.iter().zip(sums.chunks_exact_mut(count * PANEL)) {
                (kernels.panel)(&rounded, depth, weights, sums);
            }
            sums
        });
        let panels = sums.iter().flat_map(|sums| sums.chunks_exact(count * PANEL));
        for (panel, sums) in panels.enumerate() {
            let own = panel * PANEL..self.outputs.min((panel + 1) * PANEL);
            let scales = &self.scales[own.clone()];
            let each = sums.chunks_exact(PANEL).zip(out.chunks_exact_mut(width)).zip(&worths);
            for ((sums, out), &worth) in each {
                let out = &mut out[first + own.start..first + own.end];
                for ((out, &sum), &scale) in out.iter_mut().zip(sums).zip(scales) {
                    *out = sum * (scale * worth);
                }
                if let Some(bias) = &self.bias {
                    for (out, &bias) in out.iter_mut().zip(&bias[own.clone()]) {
                        *out += bias;
                    }
                }
            }
        }
    }
}
