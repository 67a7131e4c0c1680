//! What a whole row is measured by: its largest logit, the sum of its weights.

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::simd::{Scan, Window, exp};
use crate::rows::sums::fold;
use crate::shaping::{Scratch, Shaped, ShapedRows};

/// A block sum beyond this shows values far above the window (or NaN, or `+inf`): the block is looked
/// at again. Below it all weights were exact, as the window's ceiling lies higher.
const LIMIT: f64 = 1_152_921_504_606_846_976.0;

impl ShapedRows<'_> {
    /// The sum of weights of a row in one pass over its memory, and those of its blocks in `scratch`.
    pub(super) fn sum_whole(&self, row: usize, scratch: &mut Scratch) -> Result<Shaped> {
        if let Some(shaped) = self.sum_around(row, None, scratch)? {
            return Ok(shaped);
        }
        let max = self.max(row, scratch)?;
        // The window holds the largest value now, so that this is never refused.
        self.sum_around(row, Some(max), scratch)?.ok_or_else(|| self.changed(row))
    }

    /// The same, given the row's largest scaled logit if it is known; `None` if it has to be, since that of
    /// a block is out of reach.
    ///
    /// Otherwise the window is laid around the largest value of the first block, and moves up only where a block's
    /// sum shows much larger ones: that block is then read again, from L1. Block sums under different
    /// windows are brought together exactly.
    fn sum_around(
        &self,
        row: usize,
        max: Option<f32>,
        scratch: &mut Scratch,
    ) -> Result<Option<Shaped>> {
        let Scratch { buffers, terms, sums, exponents, .. } = scratch;
        sums.clear();
        exponents.clear();
        let known = max.map(Shaped::around);
        let (origin, mut window) = known.map_or((0.0, None), |row| (row.origin, Some(row.window)));
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, origin, buffers);
            let mut sum_exp =
                |window: &Window| self.kernels.sum_exp(values, window, window.floor(), terms);
            let mut sum = window.as_ref().map_or(f64::INFINITY, &mut sum_exp);
            if mutate!("float/window_not_moved", sum >= LIMIT, window.is_none()) {
                let max = self.larger(row, f32::NEG_INFINITY, (self.kernels.scan)(values))?;
                sum = 0.0;
                if max > f32::NEG_INFINITY {
                    self.check_max(row, max)?;
                    if mutate!("float/origin_forgotten", max.abs(), 0.0) > exp::REACH {
                        return Ok(None);
                    }
                    sum = sum_exp(window.insert(Window::around(max)));
                }
            }
            sums.push(sum);
            exponents.push(window.map_or(0, |window| window.exponent()));
        }
        let Some(window) = window else {
            self.check_max(row, f32::NEG_INFINITY)?;
            return Err(self.changed(row));
        };
        for (sum, &exponent) in sums.iter_mut().zip(&*exponents) {
            let shift = exponent - window.exponent();
            *sum *= mutate!("float/windows_not_aligned", exp::power_of_two(shift), 1.0);
        }
        let (window, factor) = canonical(window, fold(sums));
        for sum in sums.iter_mut() {
            *sum *= factor;
        }
        Ok(Some(Shaped {
            origin,
            window,
            total: fold(sums),
            cut: window.floor(),
            tie_end: u32::MAX,
            only: None,
            is_truncated: false,
        }))
    }

    /// The largest scaled logit of a row.
    pub(super) fn max(&self, row: usize, scratch: &mut Scratch) -> Result<f32> {
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
    pub(super) fn check_max(&self, row: usize, max: f32) -> Result<()> {
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
    pub(super) fn not_finite(&self, row: usize) -> Error {
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
}

/// The window in which a total becomes one in `[1, 4)`, and the factor that brings weights there.
pub(super) fn canonical(window: Window, total: f64) -> (Window, f64) {
    let shift = exp::even_exponent(total);
    (Window::new(window.exponent() + shift), exp::power_of_two(-shift))
}

#[cfg(test)]
mod tests {
    use crate::rows::RawRows;
    use crate::rows::simd::BLOCK;
    use crate::shaping::{Params, Scratch, ShapedRows, Side};

    #[test]
    fn blocks_out_of_reach_may_stand_anywhere() {
        for low in [-1e9, f32::MIN, -2e6, f32::NEG_INFINITY] {
            for max in [0.0_f32, 5.0, -5.0, 3e6, -2e6 + 1.0] {
                let high: Vec<f32> = (0..BLOCK).map(|i| max - (i % 7) as f32).collect();
                let row = |is_first: bool| {
                    let parts = [vec![low; BLOCK], high.clone()];
                    if is_first { parts.concat() } else { [&parts[1][..], &parts[0]].concat() }
                };
                let sum = |logits: &[f32]| {
                    let raw = RawRows::from_f32(logits, logits.len()).unwrap();
                    let rows = ShapedRows::new(raw, Params::default(), Side::Target);
                    let mut scratch = Scratch::default();
                    let shaped = rows.shape(0, &mut scratch).unwrap();
                    let top = logits.iter().position(|&y| y >= max).unwrap();
                    (shaped.total().to_bits(), rows.probability(0, &shaped, top as u32))
                };
                let (found, last) = (sum(&row(true)), sum(&row(false)));
                assert_eq!(found, last, "{low} {max}");
                let weights = (0..BLOCK).map(|i| (-((i % 7) as f64)).exp()).sum::<f64>();
                let rest =
                    if low > max - 50.0 { BLOCK as f64 * f64::from(low - max).exp() } else { 0.0 };
                assert!((found.1 * (weights + rest) - 1.0).abs() < 1e-6, "{low} {max} {}", found.1);
            }
        }
    }
}
