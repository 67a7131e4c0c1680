//! Borrowed rows of a model's output: element types widened on read, rows a stride apart.

pub mod history;
pub mod simd;
pub mod sums;

use std::ops::Range;

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::simd::{BLOCK, Kernels};

/// The elements of a matrix, as the producer laid them out.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// IEEE single.
    F32(&'a [f32]),
    /// IEEE half, as bits.
    F16(&'a [u16]),
    /// bfloat16, as bits.
    Bf16(&'a [u16]),
    /// IEEE double; probabilities only.
    F64(&'a [f64]),
}

impl Values<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) | Self::Bf16(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }
}

/// A matrix of rows with unit stride inside a row; never copied.
#[derive(Debug, Clone, Copy)]
pub struct RawRows<'a> {
    values: Values<'a>,
    rows: usize,
    cols: usize,
    stride: usize,
}

/// Where a block of a row is widened to when it is not `f32` already.
pub type Buffer = [f32; BLOCK];

impl<'a> RawRows<'a> {
    /// `rows` rows of `cols` values, `stride` values apart.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the values do not hold that matrix, or if its rows have no tokens or
    /// more than token ids can name.
    pub fn new(values: Values<'a>, rows: usize, cols: usize, stride: usize) -> Result<Self> {
        if cols == 0 || cols > u32::MAX as usize {
            return Err(Error::ShapeMismatch {
                what: "rows",
                found: format!("({rows}, {cols})"),
                wanted: "rows of 1 to 2**32 - 1 tokens".into(),
            });
        }
        let needed = rows
            .checked_sub(1)
            .map_or(Some(0), |above| above.checked_mul(stride)?.checked_add(cols));
        if rows > 1 && stride < cols || needed.is_none_or(|needed| needed > values.len()) {
            return Err(Error::ShapeMismatch {
                what: "rows",
                found: format!("{} values", values.len()),
                wanted: format!("({rows}, {cols}) with a row stride of {stride}"),
            });
        }
        Ok(Self { values, rows, cols, stride })
    }

    /// Rows of `f32` without gaps.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if the length is not a multiple of `cols`.
    pub fn from_f32(values: &'a [f32], cols: usize) -> Result<Self> {
        Self::new(Values::F32(values), values.len() / cols.max(1), cols, cols)
    }

    /// One row as a matrix of its own.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there is no such row.
    pub fn row(&self, row: usize) -> Result<Self> {
        self.part(row..row.saturating_add(1))
    }

    /// Checks that there is one row.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] about `what`.
    pub fn check_single(&self, what: &'static str) -> Result<()> {
        if self.rows == 1 {
            return Ok(());
        }
        let found = format!("{} rows", self.rows);
        Err(Error::ShapeMismatch { what, found, wanted: "one row, (V,)".into() })
    }

    /// Some rows as a matrix of their own.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there are no such rows.
    pub fn part(&self, rows: Range<usize>) -> Result<Self> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::ShapeMismatch {
                what: "rows",
                found: format!("{} rows", self.rows),
                wanted: format!("at least {}", rows.end),
            });
        }
        let count = rows.len();
        let from = if count == 0 { 0 } else { rows.start * self.stride };
        let range =
            from..from + count.checked_sub(1).map_or(0, |above| above * self.stride + self.cols);
        let values = match self.values {
            Values::F32(values) => Values::F32(&values[range]),
            Values::F16(values) => Values::F16(&values[range]),
            Values::Bf16(values) => Values::Bf16(&values[range]),
            Values::F64(values) => Values::F64(&values[range]),
        };
        Self::new(values, count, self.cols, self.stride)
    }

    /// The number of rows.
    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// The number of tokens in a row.
    pub fn num_cols(&self) -> usize {
        self.cols
    }

    /// The starts of a row's blocks.
    pub fn blocks(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.cols).step_by(BLOCK)
    }

    /// Where the `len` values of a row from `start` on lie.
    ///
    /// # Panics
    /// If they are not that row's own: what lies beside them in memory is another row, or padding.
    fn place(&self, row: usize, start: usize, len: usize) -> Range<usize> {
        assert!(
            row < self.rows && start < self.cols && len <= self.cols - start,
            "row {row}, columns {start} to {start} + {len} of ({}, {})",
            self.rows,
            self.cols
        );
        let from = row * self.stride + start;
        from..from + len
    }

    /// The values of a row from `start` on, a block of them at most.
    fn block_at(&self, row: usize, start: usize) -> Range<usize> {
        self.place(row, start, BLOCK.min(self.cols.saturating_sub(start)))
    }

    /// The block of a row from `start` on, widened to `f32` (through `buffer` where needed).
    pub fn block<'s>(
        &'s self,
        kernels: &Kernels,
        row: usize,
        start: usize,
        buffer: &'s mut Buffer,
    ) -> &'s [f32] {
        let place = self.block_at(row, start);
        let buffer = &mut buffer[..place.len()];
        match self.values {
            Values::F32(values) => return &values[place],
            Values::F16(values) => {
                let widen =
                    mutate!("float/f16_read_as_bf16", kernels.widen_f16, kernels.widen_bf16);
                widen(&values[place], buffer);
            }
            Values::Bf16(values) => (kernels.widen_bf16)(&values[place], buffer),
            Values::F64(values) => {
                for (out, &x) in buffer.iter_mut().zip(&values[place]) {
                    *out = x as f32;
                }
            }
        }
        buffer
    }

    /// Whether values are no wider than `f32`, which holds them all.
    pub fn is_narrow(&self) -> bool {
        !matches!(self.values, Values::F64(_))
    }

    /// The block of a row from `start` on, if its values are `f32` already.
    pub fn block_f32(&self, row: usize, start: usize) -> Option<&'a [f32]> {
        match self.values {
            Values::F32(values) => Some(&values[self.block_at(row, start)]),
            Values::F16(_) | Values::Bf16(_) | Values::F64(_) => None,
        }
    }

    /// A block of probabilities in `f64` (through `buffer` where needed).
    pub fn block_f64(
        &self,
        kernels: &Kernels,
        row: usize,
        start: usize,
        out: &mut [f64],
        buffer: &mut Buffer,
    ) {
        if let Values::F64(values) = self.values {
            out.copy_from_slice(&values[self.place(row, start, out.len())]);
            mutate!("float/f64_narrowed", (), narrow(out));
            return;
        }
        (kernels.widen_f32)(self.block(kernels, row, start, buffer), out);
    }

    /// One value, widened.
    ///
    /// # Panics
    /// For a column beyond the row: what stands there is another row's, or nobody's.
    pub fn value(&self, row: usize, col: usize) -> f64 {
        let at = self.place(row, col, 1).start;
        match self.values {
            Values::F32(values) => f64::from(values[at]),
            Values::F16(values) => half::f16::from_bits(values[at]).to_f64(),
            Values::Bf16(values) => half::bf16::from_bits(values[at]).to_f64(),
            Values::F64(values) => values[at],
        }
    }
}

/// Rounds to `f32`.
#[cfg(feature = "mutants")]
fn narrow(values: &mut [f64]) {
    for x in values {
        *x = f64::from(*x as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_rows_of_every_type_read_alike() {
        let wide: Vec<f32> = (0..24).map(|i| i as f32 / 4.0).collect();
        let half: Vec<u16> = wide.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect();
        let brain: Vec<u16> = wide.iter().map(|&x| half::bf16::from_f32(x).to_bits()).collect();
        let double: Vec<f64> = wide.iter().map(|&x| f64::from(x)).collect();
        for values in
            [Values::F32(&wide), Values::F16(&half), Values::Bf16(&brain), Values::F64(&double)]
        {
            let rows = RawRows::new(values, 3, 5, 8).unwrap();
            let mut buffer = [0.0; BLOCK];
            assert_eq!(rows.block(Kernels::best(), 2, 0, &mut buffer), &wide[16..21]);
            let mut out = [0.0; 5];
            rows.block_f64(Kernels::best(), 1, 0, &mut out, &mut buffer);
            assert!(out.iter().zip(&double[8..13]).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert_eq!(rows.value(2, 4).to_bits(), double[20].to_bits());
        }
    }

    #[test]
    fn parts_are_matrices_of_their_own() {
        let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
        let rows = RawRows::new(Values::F32(&values), 3, 5, 8).unwrap();
        let part = rows.part(1..3).unwrap();
        assert_eq!((part.num_rows(), part.num_cols()), (2, 5));
        assert_eq!(part.value(1, 4).to_bits(), 20.0_f64.to_bits());
        assert_eq!(rows.row(2).unwrap().value(0, 0).to_bits(), 16.0_f64.to_bits());
        assert_eq!(rows.part(3..3).unwrap().num_rows(), 0);
        assert!(rows.part(2..4).is_err());
        assert!(rows.row(usize::MAX).is_err());
    }

    #[test]
    fn no_row_reads_beyond_its_own_columns() {
        let values = [0.0_f32; 24];
        let rows = RawRows::new(Values::F32(&values), 2, 5, 8).unwrap();
        let refused = |read: &dyn Fn() -> f64| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)).is_err()
        };
        assert!(!refused(&|| rows.value(1, 4)));
        assert!(refused(&|| rows.value(0, 5)));
        assert!(refused(&|| rows.value(2, 0)));
        assert!(refused(&|| f64::from(rows.block_f32(0, 5).unwrap()[0])));
        assert!(refused(&|| f64::from(rows.block_f32(2, 0).unwrap()[0])));
    }

    #[test]
    fn matrices_that_do_not_fit_are_refused() {
        let values = [0.0_f32; 10];
        assert!(RawRows::new(Values::F32(&values), 2, 5, 5).is_ok());
        assert!(RawRows::new(Values::F32(&values), 2, 5, 6).is_err());
        assert!(RawRows::new(Values::F32(&values), 2, 5, 4).is_err());
        assert!(RawRows::new(Values::F32(&values), usize::MAX, 5, 5).is_err());
        assert!(RawRows::new(Values::F32(&values), 0, 5, 5).is_ok());
        for rows in 0..3 {
            assert!(RawRows::new(Values::F32(&values), rows, 0, 5).is_err());
        }
        assert!(RawRows::new(Values::F32(&values), 0, 1 << 32, 1 << 32).is_err());
    }
}
