//! Block kernels, one source compiled for several instruction sets and chosen at run time.
//!
//! A kernel is written once over arrays of [`LANES`] values with a fixed striping ([`block`]), and the
//! compiler vectorises it under each set's features (what it does not find is in [`masks`]). Floating-point operations are never reordered, so
//! every level gives the same bits: the plain-Rust level is the scalar twin of the others.
//!
//! Exponentials are `f32` with a stated error ([`exp`]); sums of them are `f64`.
//!
//! Blocks hold at most [`BLOCK`] values: 8 KiB of `f32`, so a block and its weights stay in L1.

#![allow(unsafe_code)]
// A short circuit would be a branch for every value.
#![allow(clippy::needless_bitwise_bool)]

mod block;
pub mod exp;
#[cfg(target_arch = "x86_64")]
mod masks;
#[cfg(target_arch = "x86_64")]
mod panels;

use crate::chance::RaceNoise;
use block::{
    divide, dots, gather_between, mix, narrow_bf16, panel, race_noise, round_i16, scan, subtract,
    subtract_narrow, sum, sum_narrow, take_from, total, turn, weigh, widen_bf16, widen_f16,
    widen_f32,
};

pub use exp::Window;

/// Values that a kernel treats as one stripe.
pub const LANES: usize = 16;

/// Outputs of a product whose weights lie side by side.
pub const PANEL: usize = 64;

/// Inputs of a product that are summed up exactly: so many numbers of 16 bits, times -127 to 127, stay
/// within 31.
pub const STRETCH: usize = 512;

/// Values of a row that are processed together, and the step of the two-level draw.
pub const BLOCK: usize = 2048;

/// What a first look at a block tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scan {
    /// The largest value, ignoring NaN; `-inf` for an empty block.
    pub max: f32,
    /// Whether any value is NaN.
    pub has_nan: bool,
}

/// The sum of a block of probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Total {
    /// The sum; not finite if a value is not.
    pub sum: f64,
    /// Whether any value is below zero.
    pub has_negative: bool,
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

macro_rules! kernels {
    ($( $(#[$doc:meta])* fn $name:ident ( $($arg:ident : $type:ty),* ) $(-> $result:ty)? ;)*) => {
        /// The kernels of one instruction set.
        #[derive(Debug)]
        pub struct Kernels {
            /// The name of the instruction set.
            pub name: &'static str,
            $( $(#[$doc])* pub $name: fn($($type),*) $(-> $result)?, )*
        }

        /// Plain Rust: every machine has it, and the other levels give the same bits.
        pub static SCALAR: Kernels = Kernels { name: "scalar", $( $name, )* };

        kernels!(@level AVX2 "avx2" avx2 "avx2,fma" $( fn $name($($arg: $type),*) $(-> $result)?; )*);
        kernels!(@level AVX512 "avx512" avx512 "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"
            $( fn $name($($arg: $type),*) $(-> $result)?; )*);
    };
    (@level $level:ident $label:literal $source:ident $features:literal
        $(fn $name:ident ( $($arg:ident : $type:ty),* ) $(-> $result:ty)? ;)*) => {
        #[cfg(target_arch = "x86_64")]
        static $level: Kernels = Kernels {
            name: $label,
            $( $name: {
                fn dispatch($($arg: $type),*) $(-> $result)? {
                    #[target_feature(enable = $features)]
                    fn compiled($($arg: $type),*) $(-> $result)? {
                        masks::$source::$name($($arg),*)
                    }
                    // SAFETY: `Kernels::available` hands this level out only where the processor
                    // has its features, and the table is private otherwise.
                    unsafe { compiled($($arg),*) }
                }
                dispatch
            }, )*
        };
    };
}

kernels! {
    /// The largest value of a block, and whether it holds NaN.
    fn scan(values: &[f32]) -> Scan;
    /// The weights of a window, 0 for values below `cut`.
    fn weigh(values: &[f32], window: &Window, cut: f32, out: &mut [f32]);
    /// `out = max(weights - factor * taken, 0)`.
    fn subtract(weights: &[f32], taken: &[f64], factor: f64, out: &mut [f64]);
    /// [`Kernels::subtract`] of values that are `f32`.
    fn subtract_narrow(weights: &[f32], taken: &[f32], factor: f64, out: &mut [f64]);
    /// The sum of a block.
    fn sum(values: &[f64]) -> f64;
    /// [`Kernels::sum`] of values that are `f32`.
    fn sum_narrow(values: &[f32]) -> f64;
    /// The sum of a block, and whether it holds a value below zero.
    fn total(values: &[f32]) -> Total;
    /// `out = values / divisor`, rounded as `f32`.
    fn divide(values: &[f32], divisor: f32, out: &mut [f32]);
    /// bfloat16 bits to `f32`.
    fn widen_bf16(values: &[u16], out: &mut [f32]);
    /// IEEE half bits to `f32`.
    fn widen_f16(values: &[u16], out: &mut [f32]);
    /// `f32` to `f64`.
    fn widen_f32(values: &[f32], out: &mut [f64]);
    /// Writes the places of the values in `from..below`, and of NaN, ascending; returns how many.
    fn gather_between(values: &[f32], from: f32, below: f32, out: &mut [u32]) -> usize;
    /// Writes the values that are not below `from`, in their order; returns how many. What `out` holds
    /// behind them is of no use.
    fn take_from(values: &[f32], from: f32, out: &mut [f32]) -> usize;
    /// The nearest bfloat16, as bits.
    fn narrow_bf16(values: &[f32], out: &mut [u16]);
    /// A head's values turned to their position: `x cos + (x with its halves swapped) sin`, every
    /// operation rounded to the format.
    fn turn(values: &[f32], cos: &[f32], sin: &[f32], format: Format, out: &mut [f32]);
    /// `out[i * step + j] = queries[i] . keys[j]`, of `dim` numbers each.
    fn dots(queries: &[f32], keys: &[f32], dim: usize, step: usize, out: &mut [f32]);
    /// `out[i] += sum of weights[i * step + j] * values[j]` by ascending `j`; `dim` numbers each.
    fn mix(weights: &[f32], step: usize, values: &[f32], dim: usize, out: &mut [f32]);
    /// Rounds values to multiples of a 32767th of the largest; returns what one is worth: 0 where all are
    /// below 1e-34, NaN where one is not finite, and then `out` holds zeros.
    fn round_i16(values: &[f32], out: &mut [i16]) -> f32;
    /// `out[i * PANEL + j]` becomes the sum of `rows[i * dim + k]` times the weight of input k and output
    /// j, which lies at `(k / 2 * PANEL + j) * 2 + k % 2`; exact within each [`STRETCH`] of `k`, and these
    /// added up as `f32`. `dim` is even, and no weight is -128.
    fn panel(rows: &[i16], dim: usize, weights: &[i8], out: &mut [f32]);
    /// The race's uniforms for the tokens from `2 * pair` on.
    fn race_noise(noise: &RaceNoise, pair: u32, out: &mut [f64]);
}

impl Kernels {
    /// Every level that this processor has, the plain one first.
    pub fn available() -> Vec<&'static Self> {
        #[allow(unused_mut)]
        let mut levels = vec![&SCALAR];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(&AVX2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                {
                    levels.push(&AVX512);
                }
            }
        }
        levels
    }

    /// The sum of a window's weights over the values that are not below `cut`.
    pub fn sum_exp(
        &self,
        values: &[f32],
        window: &Window,
        cut: f32,
        terms: &mut [f32; BLOCK],
    ) -> f64 {
        let terms = &mut terms[..values.len()];
        (self.weigh)(values, window, cut, terms);
        (self.sum_narrow)(terms)
    }

    /// [`Kernels::gather_between`] without an end.
    pub fn gather(&self, values: &[f32], from: f32, out: &mut [u32]) -> usize {
        (self.gather_between)(values, from, f32::NAN, out)
    }

    /// The fastest level of this processor, detected once.
    pub fn best() -> &'static Self {
        static BEST: std::sync::OnceLock<&'static Kernels> = std::sync::OnceLock::new();
        BEST.get_or_init(|| Self::available().last().copied().unwrap_or(&SCALAR))
    }
}

/// Asks for memory that is going to be read, so that work until then hides the way to it.
#[inline]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks((64 / size_of::<T>()).max(1)) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, about an address within a slice; nothing is read.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn halves_widen_exactly() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for level in Kernels::available() {
            let mut out = vec![0.0; all.len()];
            (level.widen_f16)(&all, &mut out);
            for (&bits, &found) in all.iter().zip(&out) {
                let wanted = half::f16::from_bits(bits).to_f32();
                assert!(found.to_bits() == wanted.to_bits() || (found.is_nan() && wanted.is_nan()));
            }
            (level.widen_bf16)(&all, &mut out);
            for (&bits, &found) in all.iter().zip(&out) {
                assert_eq!(found.to_bits(), u32::from(bits) << 16);
            }
        }
    }

    #[test]
    fn bfloat16_is_the_nearest() {
        let bits = (0..=u32::MAX).step_by(65_521).chain([0x7f80_0000, 0xff80_0000, 0x7f80_0001]);
        let all: Vec<f32> = bits.map(f32::from_bits).collect();
        for level in Kernels::available() {
            let mut out = vec![0; all.len()];
            (level.narrow_bf16)(&all, &mut out);
            for (&x, &found) in all.iter().zip(&out) {
                let (found, wanted) = (half::bf16::from_bits(found), half::bf16::from_f32(x));
                assert!(
                    found.to_bits() == wanted.to_bits() || (found.is_nan() && x.is_nan()),
                    "{x}"
                );
            }
        }
    }

    #[test]
    fn faults_are_seen_at_every_place() {
        let window = Window::new(0);
        for level in Kernels::available() {
            for at in 0..100 {
                let mut values = vec![-1.0; 100];
                assert_eq!((level.scan)(&values), Scan { max: -1.0, has_nan: false });
                values[at] = f32::NAN;
                let found = (level.scan)(&values);
                assert_eq!(found, Scan { max: -1.0, has_nan: true }, "{} {at}", level.name);
                let mut terms = [0.0; BLOCK];
                assert!(level.sum_exp(&values, &window, window.floor(), &mut terms) > 1e29);
                values.fill(0.0);
                assert!(!(level.total)(&values).has_negative);
                values[at] = -1e-30;
                assert!((level.total)(&values).has_negative, "{} {at}", level.name);
                values[at] = f32::NAN;
                assert!((level.total)(&values).sum.is_nan());
            }
        }
    }

    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![9 => -120.0_f32..20.0, 1 => Just(f32::NEG_INFINITY)];
        proptest::collection::vec(value, 0..1300)
    }

    proptest! {
        #[test]
        fn every_level_gives_the_bits_of_the_scalar_twin(
            values in values(), cut in -60.0_f32..5.0, factor in 0.1_f64..3.0, seed: u64
        ) {
            let max = (SCALAR.scan)(&values).max;
            prop_assume!(max.is_finite());
            let window = Window::around(max);
            let cut = cut.max(window.floor());
            let run = |level: &Kernels| {
                let mut weights = vec![0.0; values.len()];
                (level.weigh)(&values, &window, cut, &mut weights);
                let mut taken = vec![0.0; values.len()];
                (level.widen_f32)(&weights, &mut taken);
                let whole = (level.sum)(&taken);
                taken.rotate_left(values.len() / 2);
                let narrow: Vec<f32> = taken.iter().map(|&w| w as f32).collect();
                let mut left = vec![0.0; values.len()];
                (level.subtract)(&weights, &taken, factor, &mut left);
                let mut divided = vec![0.0; values.len()];
                (level.divide)(&values, 0.7, &mut divided);
                let mut places = vec![0; values.len()];
                let count = (level.gather_between)(&values, cut, cut + 9.0, &mut places);
                places.truncate(count);
                let mut narrowed = vec![0; values.len()];
                (level.narrow_bf16)(&values, &mut narrowed);
                let mut noise = vec![0.0; values.len()];
                (level.race_noise)(&RaceNoise::new(seed, 9), 3, &mut noise);
                // One order of addition, and one way to take away, whatever the type.
                let mut alike = vec![0.0; values.len()];
                (level.subtract_narrow)(&weights, &narrow, factor, &mut alike);
                assert_eq!(alike, left);
                let mut terms = [0.0; BLOCK];
                let all = level.sum_exp(&values, &window, cut, &mut terms);
                assert_eq!(all.to_bits(), whole.to_bits());
                assert_eq!((level.total)(&narrow).sum.to_bits(), (level.sum)(&taken).to_bits());
                (
                    (level.scan)(&values),
                    all.to_bits(),
                    (level.sum)(&left).to_bits(),
                    (level.total)(&narrow),
                    left.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                    weights.iter().chain(&divided).map(|x| x.to_bits()).collect::<Vec<_>>(),
                    noise.iter().chain(&taken).map(|x| x.to_bits()).collect::<Vec<_>>(),
                    (places, narrowed),
                )
            };
            let wanted = run(&SCALAR);
            for level in Kernels::available() {
                prop_assert_eq!(&run(level), &wanted, "{}", level.name);
            }
        }

        #[test]
        fn every_level_attends_with_the_bits_of_the_scalar_twin(
            numbers in proptest::collection::vec(-9.0_f32..9.0, 40 * 128),
            rows in 1..12_usize, keys in 1..40_usize,
            half in prop_oneof![Just(8), Just(32), Just(64), 1..32_usize]
        ) {
            let dim = 2 * half;
            let (queries, keys) = (&numbers[..rows * dim], &numbers[numbers.len() - keys * dim..]);
            let step = keys.len() / dim + 3;
            let run = |level: &Kernels| {
                let (mut scores, mut out) = (vec![0.5; rows * step], queries.to_vec());
                (level.dots)(queries, keys, dim, step, &mut scores);
                (level.mix)(&scores, step, keys, dim, &mut out);
                for format in [Format::F32, Format::F16, Format::Bf16] {
                    let mut turned = vec![0.0; dim];
                    (level.turn)(&queries[..dim], &keys[..dim], &keys[..dim], format, &mut turned);
                    out.extend(turned);
                }
                scores.into_iter().chain(out).map(f32::to_bits).collect::<Vec<_>>()
            };
            let wanted = run(&SCALAR);
            for level in Kernels::available() {
                prop_assert_eq!(&run(level), &wanted, "{}", level.name);
            }
        }

        #[test]
        fn every_level_multiplies_with_the_bits_of_the_scalar_twin(
            numbers in proptest::collection::vec(-i16::MAX..=i16::MAX, 9 * 1100),
            weights in proptest::collection::vec(-127..=127_i8, 1100 * PANEL),
            rows in 1..10_usize, pairs in 1..550_usize, is_extreme: bool
        ) {
            let dim = 2 * pairs;
            let (mut numbers, mut weights) = (numbers, weights);
            if is_extreme {
                numbers.fill(i16::MAX);
                weights.fill(-127);
            }
            let (numbers, weights) = (&numbers[..rows * dim], &weights[..dim * PANEL]);
            let mut wanted = vec![0.0_f32; rows * PANEL];
            for (place, out) in wanted.iter_mut().enumerate() {
                let row = &numbers[place / PANEL * dim..][..dim];
                for (stretch, part) in row.chunks(STRETCH).enumerate() {
                    let products = part.iter().enumerate().map(|(k, &x)| {
                        let k = stretch * STRETCH + k;
                        let weight = weights[(k / 2 * PANEL + place % PANEL) * 2 + k % 2];
                        i64::from(x) * i64::from(weight)
                    });
                    *out += products.sum::<i64>() as f32;
                }
            }
            for level in Kernels::available() {
                let mut found = vec![f32::NAN; rows * PANEL];
                (level.panel)(numbers, dim, weights, &mut found);
                prop_assert_eq!(&found, &wanted, "{}", level.name);
            }
        }

        #[test]
        fn every_level_rounds_to_sixteen_bits_with_the_bits_of_the_scalar_twin(
            mut values in values(), fault: bool, at: usize
        ) {
            if fault && !values.is_empty() {
                let at = at % values.len();
                values[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][at % 3];
            }
            let run = |level: &Kernels| {
                let mut out = vec![7; values.len()];
                let worth = (level.round_i16)(&values, &mut out);
                (worth.to_bits(), out)
            };
            let (worth, rounded) = run(&SCALAR);
            let worth = f32::from_bits(worth);
            for level in Kernels::available() {
                prop_assert_eq!(run(level), (worth.to_bits(), rounded.clone()), "{}", level.name);
            }
            let is_sound = values.iter().all(|x| x.is_finite());
            prop_assert_eq!(worth.is_nan(), !is_sound);
            if is_sound {
                for (&x, &found) in values.iter().zip(&rounded) {
                    prop_assert!((worth * f32::from(found) - x).abs() <= worth * 0.51 + 1e-34);
                }
            }
        }

        #[test]
        fn gather_finds_what_a_filter_finds(
            mut values in values(), from in -60.0_f32..5.0, width in 0.0_f32..90.0, at: usize
        ) {
            if !values.is_empty() {
                let at = at % values.len();
                values[at] = f32::NAN;
            }
            let below = from + width;
            let places = |is_in: &dyn Fn(f32) -> bool| -> Vec<u32> {
                let places = (0..values.len()).filter(|&i| values[i].is_nan() || is_in(values[i]));
                places.map(|i| i as u32).collect()
            };
            for level in Kernels::available() {
                let mut found = vec![0; values.len()];
                let count = level.gather(&values, from, &mut found);
                prop_assert_eq!(&found[..count], &places(&|x| x >= from)[..]);
                let count = (level.gather_between)(&values, from, below, &mut found);
                prop_assert_eq!(&found[..count], &places(&|x| x >= from && x < below)[..]);
                let mut taken = vec![0.0; values.len()];
                let count = (level.take_from)(&values, from, &mut taken);
                let wanted: Vec<f32> = values.iter().copied().filter(|&x| x >= from).collect();
                prop_assert_eq!(&taken[..count], &wanted[..]);
            }
        }
    }
}
