//! The formats that keys and values are stored in.

use half::slice::HalfFloatSliceExt;

use crate::rows::simd::{Format, Kernels};

/// A stored number; all arithmetic is in `f32`.
pub trait Cell: Copy + Send + Sync {
    /// The format.
    const FORMAT: Format;

    /// Its name in errors.
    const NAME: &str;

    /// Zero.
    const ZERO: Self;

    /// Exact.
    fn widen(cells: &[Self], out: &mut [f32]);

    /// Rounds to the nearest, ties to even.
    fn narrow(values: &[f32], out: &mut [Self]);
}

impl Cell for f32 {
    const FORMAT: Format = Format::F32;
    const NAME: &str = "float32";
    const ZERO: Self = 0.0;

    fn widen(cells: &[Self], out: &mut [f32]) {
        out.copy_from_slice(cells);
    }

    fn narrow(values: &[f32], out: &mut [Self]) {
        out.copy_from_slice(values);
    }
}

impl Cell for half::bf16 {
    const FORMAT: Format = Format::Bf16;
    const NAME: &str = "bfloat16";
    const ZERO: Self = Self::from_bits(0);

    fn widen(cells: &[Self], out: &mut [f32]) {
        (Kernels::best().widen_bf16)(cells.reinterpret_cast(), out);
    }

    fn narrow(values: &[f32], out: &mut [Self]) {
        (Kernels::best().narrow_bf16)(values, out.reinterpret_cast_mut());
    }
}

impl Cell for half::f16 {
    const FORMAT: Format = Format::F16;
    const NAME: &str = "float16";
    const ZERO: Self = Self::from_bits(0);

    fn widen(cells: &[Self], out: &mut [f32]) {
        (Kernels::best().widen_f16)(cells.reinterpret_cast(), out);
    }

    fn narrow(values: &[f32], out: &mut [Self]) {
        out.convert_from_f32_slice(values);
    }
}
