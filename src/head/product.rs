//! Products with weights of eight bits: what a row of a draft costs is the weights that it reads.

use crate::error::{Error, Result};
use crate::rows::simd::{Kernels, PANEL};

/// The largest eight-bit weight; the smallest is its negative.
const LARGEST: f32 = 127.0;

/// Bytes that a matrix may have.
const MOST_BYTES: u64 = 1 << 36;

/// A matrix, each row of whose weights is rounded to multiples of a 127th of its largest.
///
/// Weights lie by panels of [`PANEL`] outputs, within a panel input after input, so that they are read
/// in one run and no sum has to be put together from lanes.
#[derive(Debug)]
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
        mut read: impl FnMut(usize, &mut [f32]),
    ) -> Result<Self> {
        let length = bias.as_ref().map_or(outputs, Vec::len);
        if outputs == 0 || inputs == 0 || length != outputs {
            return Err(Error::ShapeMismatch {
                what: "weight",
                found: format!("({outputs}, {inputs}) and a bias of {length}"),
                wanted: "(outputs, inputs), and a bias of (outputs,)".into(),
            });
        }
        let panels = outputs.div_ceil(PANEL);
        let size = panels as u64 * PANEL as u64 * inputs as u64;
        let mut weights = Vec::new();
        if size > MOST_BYTES || weights.try_reserve_exact(size as usize).is_err() {
            return Err(Error::Overflow { what: "weight", found: size, limit: MOST_BYTES });
        }
        weights.resize(size as usize, 0);
        let mut made =
            Self { inputs, outputs, weights, scales: vec![0.0; panels * PANEL], bias };
        let mut row = vec![0.0; inputs];
        for output in 0..outputs {
            read(output, &mut row);
            made.round(output, &row);
        }
        Ok(made)
    }

    fn round(&mut self, output: usize, row: &[f32]) {
        let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        // One weight that is not finite makes all products of its row NaN, as it does unrounded.
        let is_sound = row.iter().all(|x| x.is_finite());
        self.scales[output] = if is_sound { largest / LARGEST } else { f32::NAN };
        let panel = &mut self.weights[output / PANEL * PANEL * self.inputs..];
        for (weights, &x) in panel.chunks_exact_mut(PANEL).zip(row) {
            let part = if is_sound && largest > 0.0 { x / largest * LARGEST } else { 0.0 };
            weights[output % PANEL] = part.round_ties_even() as i8;
        }
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

    /// The products of rows (n, `inputs`): (n, `outputs`). A row's bits depend on nothing but the row.
    pub fn multiply(&self, rows: &[f32], out: &mut [f32]) {
        let kernels = Kernels::best();
        let mut sums = vec![0.0; rows.len() / self.inputs * PANEL];
        let panels = self.weights.chunks_exact(PANEL * self.inputs);
        for (panel, weights) in panels.enumerate() {
            (kernels.panel)(rows, self.inputs, weights, &mut sums);
            let from = panel * PANEL;
            let to = self.outputs.min(from + PANEL);
            let scales = &self.scales[from..to];
            for (sums, out) in sums.chunks_exact(PANEL).zip(out.chunks_exact_mut(self.outputs)) {
                let out = &mut out[from..to];
                match &self.bias {
                    None => {
                        for ((out, &sum), &scale) in out.iter_mut().zip(sums).zip(scales) {
                            *out = sum * scale;
                        }
                    }
                    Some(bias) => {
                        let parts = sums.iter().zip(scales).zip(&bias[from..to]);
                        for (out, ((&sum, &scale), &bias)) in out.iter_mut().zip(parts) {
                            *out = sum.mul_add(scale, bias);
                        }
                    }
                }
            }
        }
    }
}
