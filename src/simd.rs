//! Block kernels, one source compiled for several instruction sets and chosen at run time.
//!
//! A kernel is written once over arrays of [`LANES`] values with a fixed striping, and the compiler
//! vectorises it under each set's features. Floating-point operations are never reordered, so every
//! level gives the same bits: the plain-Rust level is the scalar twin of the others.
//!
//! Exponentials are `f32` with a stated error; sums of them are `f64`.
//!
//! Blocks hold at most [`BLOCK`] values: 8 KiB of `f32`, so a block and its weights stay in L1.

#![allow(unsafe_code)]
// A short circuit would be a branch for every value.
#![allow(clippy::needless_bitwise_bool)]

/// Values that a kernel treats as one stripe.
pub const LANES: usize = 16;

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

/// What [`Kernels::subtract`] saw on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// The sum of what is left.
    pub left: f64,
    /// The sum of the values taken.
    pub taken: f64,
    /// Whether any of these is below zero.
    pub has_negative: bool,
}

/// Tokens whose logit is this far below the row's maximum have probability 0 (`exp` would give a
/// subnormal `f32`): rows are cut there.
pub const EXP_FLOOR: f32 = -87.0;

/// Above this exponent [`exp`] would overflow.
pub const EXP_CEILING: f32 = 88.0;

/// `exp(y)` for `EXP_FLOOR <= y <= EXP_CEILING`. Relative error below `2e-7 + 2e-8 |y|` (tested):
/// less than what rounding `y = logit - max` to `f32` costs.
///
/// `exp(y) = 2^n 2^r` with `n` the nearest integer to `y log2(e)`, and a degree-6 Chebyshev fit of
/// `2^r` whose own error is `9e-9`; adding `n` to the exponent's bits is the multiplication by `2^n`.
#[inline(always)]
pub fn exp(y: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // Adding it rounds to the nearest integer and leaves that integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let shifted = y.mul_add(LOG2_E, MAGIC);
    let r = y.mul_add(LOG2_E, MAGIC - shifted);
    let mut p = 0.000_154_532_62_f32;
    p = p.mul_add(r, 0.001_339_097_9);
    p = p.mul_add(r, 0.009_618_082);
    p = p.mul_add(r, 0.055_503_57);
    p = p.mul_add(r, 0.240_226_5);
    p = p.mul_add(r, std::f32::consts::LN_2);
    p = p.mul_add(r, 1.0);
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `exp(y - origin)` for values that are not below `cut`, 0 below; `cut >= origin + EXP_FLOOR`.
/// What lies beyond the ceiling, NaN included, gives the ceiling's huge value.
#[inline(always)]
fn kept(y: f32, origin: f32, cut: f32) -> f32 {
    let distance = y - origin;
    let e = exp(if distance < EXP_CEILING { distance } else { EXP_CEILING });
    if y < cut { 0.0 } else { e }
}

#[inline(always)]
fn scan(values: &[f32]) -> Scan {
    // Four stripes at once, so that no comparison waits for the one before it.
    let mut lanes = [f32::NEG_INFINITY; 4 * LANES];
    let mut has_nan = false;
    let (stripes, rest) = values.as_chunks::<{ 4 * LANES }>();
    for stripe in stripes {
        for lane in 0..4 * LANES {
            lanes[lane] = if stripe[lane] > lanes[lane] { stripe[lane] } else { lanes[lane] };
        }
        has_nan |= stripe.iter().fold(false, |found, x| found | x.is_nan());
    }
    has_nan |= rest.iter().any(|x| x.is_nan());
    let all = lanes.iter().chain(rest);
    Scan { max: all.fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max }), has_nan }
}

/// Adds the lanes in a fixed order: halves onto halves.
#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn sum_exp(values: &[f32], origin: f32, cut: f32) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (stripes, rest) = values.as_chunks::<LANES>();
    for stripe in stripes {
        let terms = stripe.map(|y| kept(y, origin, cut));
        for lane in 0..LANES {
            lanes[lane] += f64::from(terms[lane]);
        }
    }
    for (lane, &y) in rest.iter().enumerate() {
        lanes[lane] += f64::from(kept(y, origin, cut));
    }
    fold(lanes)
}

#[inline(always)]
fn weigh(values: &[f32], origin: f32, cut: f32, scale: f64, out: &mut [f64]) {
    for (out, &y) in out.iter_mut().zip(values) {
        *out = f64::from(kept(y, origin, cut)) * scale;
    }
}

#[inline(always)]
fn subtract(out: &mut [f64], taken: &[f64], factor: f64) -> Taken {
    let mut lanes = [[0.0_f64; LANES]; 2];
    let mut negative = [false; LANES];
    let (stripes, rest) = out.as_chunks_mut::<LANES>();
    let (taken, taken_rest) = taken.as_chunks::<LANES>();
    for (stripe, taken) in stripes.iter_mut().zip(taken) {
        *stripe = std::array::from_fn(|lane| {
            let left = stripe[lane] - factor * taken[lane];
            if left > 0.0 { left } else { 0.0 }
        });
        for lane in 0..LANES {
            lanes[0][lane] += stripe[lane];
            lanes[1][lane] += taken[lane];
            negative[lane] |= taken[lane] < 0.0;
        }
    }
    for (lane, (out, &taken)) in rest.iter_mut().zip(taken_rest).enumerate() {
        let left = *out - factor * taken;
        *out = if left > 0.0 { left } else { 0.0 };
        lanes[0][lane] += *out;
        lanes[1][lane] += taken;
        negative[lane] |= taken < 0.0;
    }
    Taken {
        left: fold(lanes[0]),
        taken: fold(lanes[1]),
        has_negative: negative.iter().fold(false, |any, &x| any | x),
    }
}

#[inline(always)]
fn left(values: &[f32], origin: f32, cut: f32, scale: f64, taken: &[f32], factor: f64) -> Taken {
    let mut lanes = [[0.0_f64; LANES]; 2];
    let mut negative = [false; LANES];
    let (stripes, rest) = values.as_chunks::<LANES>();
    let (taken, taken_rest) = taken.as_chunks::<LANES>();
    let one = |y: f32, q: f32| {
        let left = f64::from(kept(y, origin, cut)) * scale - factor * f64::from(q);
        if left > 0.0 { left } else { 0.0 }
    };
    for (stripe, taken) in stripes.iter().zip(taken) {
        let left: [f64; LANES] = std::array::from_fn(|lane| one(stripe[lane], taken[lane]));
        for lane in 0..LANES {
            lanes[0][lane] += left[lane];
            lanes[1][lane] += f64::from(taken[lane]);
            negative[lane] |= taken[lane] < 0.0;
        }
    }
    for (lane, (&y, &q)) in rest.iter().zip(taken_rest).enumerate() {
        lanes[0][lane] += one(y, q);
        lanes[1][lane] += f64::from(q);
        negative[lane] |= q < 0.0;
    }
    Taken {
        left: fold(lanes[0]),
        taken: fold(lanes[1]),
        has_negative: negative.iter().fold(false, |any, &x| any | x),
    }
}

#[inline(always)]
fn sum(values: &[f64]) -> f64 {
    let mut lanes = [0.0_f64; LANES];
    let (stripes, rest) = values.as_chunks::<LANES>();
    for stripe in stripes {
        for lane in 0..LANES {
            lanes[lane] += stripe[lane];
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        lanes[lane] += x;
    }
    fold(lanes)
}

#[inline(always)]
fn divide(values: &[f32], divisor: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(values) {
        *out = x / divisor;
    }
}

#[inline(always)]
fn widen_bf16(values: &[u16], out: &mut [f32]) {
    for (out, &bits) in out.iter_mut().zip(values) {
        *out = f32::from_bits(u32::from(bits) << 16);
    }
}

#[inline(always)]
fn widen_f16(values: &[u16], out: &mut [f32]) {
    // Shifting moves exponent and mantissa into place; the multiplication rebiases the exponent and
    // is exact for subnormals too. An all-ones exponent (inf, NaN) is set by hand.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    for (out, &half) in out.iter_mut().zip(values) {
        let bits = u32::from(half);
        let sign = (bits & 0x8000) << 16;
        let rest = (bits & 0x7fff) << 13;
        let finite = f32::from_bits(rest) * REBIAS;
        let special = f32::from_bits(rest | 0x7f80_0000);
        let magnitude = if rest >= 0x0f80_0000 { special } else { finite };
        *out = f32::from_bits(magnitude.to_bits() | sign);
    }
}

#[inline(always)]
fn widen_f32(values: &[f32], out: &mut [f64]) {
    for (out, &x) in out.iter_mut().zip(values) {
        *out = f64::from(x);
    }
}

/// The first index at or after `from` whose value is above `bound`, or the length.
#[inline(always)]
fn first_above(values: &[f32], bound: f32, from: usize) -> usize {
    let mut at = from;
    for stripe in values[from.min(values.len())..].as_chunks::<{ 4 * LANES }>().0 {
        if stripe.iter().fold(false, |any, &x| any | (x > bound)) {
            break;
        }
        at += 4 * LANES;
    }
    // NaN is above nothing and is passed over.
    let found = values.iter().skip(at).position(|&x| x > bound);
    found.map_or(values.len(), |further| at + further)
}

/// The distance below the maximum, in steps of `1 / resolution`, capped at `buckets - 1`.
#[inline(always)]
fn buckets(values: &[f32], max: f32, resolution: f32, buckets: u32, out: &mut [u32]) {
    let cap = (buckets - 1) as f32;
    for (out, &y) in out.iter_mut().zip(values) {
        let step = (max - y) * resolution;
        let step = if step < cap { step } else { cap };
        // SAFETY: `step` is in [0, cap]: max >= y for every value, and NaN fails the comparison.
        *out = unsafe { step.to_int_unchecked::<u32>() };
    }
}

/// `v` in `[0, 1)` for `2 * LANES` tokens from `2 * pair` on, one Philox call for two tokens.
#[inline(always)]
fn race_stripe(noise: &crate::choice::RaceNoise, pair: u32) -> [f64; 2 * LANES] {
    let [w0, w1, w2, w3] = noise.words_of::<LANES>(pair);
    let mut both = [0.0; 2 * LANES];
    for lane in 0..LANES {
        both[2 * lane] = crate::rng::uniform(w0[lane], w1[lane]);
        both[2 * lane + 1] = crate::rng::uniform(w2[lane], w3[lane]);
    }
    both
}

#[inline(always)]
fn race_noise(noise: &crate::choice::RaceNoise, pair: u32, out: &mut [f64]) {
    let mut at = pair;
    let (stripes, rest) = out.as_chunks_mut::<{ 2 * LANES }>();
    for stripe in stripes {
        *stripe = race_stripe(noise, at);
        at = at.wrapping_add(LANES as u32);
    }
    if !rest.is_empty() {
        let last = race_stripe(noise, at);
        rest.copy_from_slice(&last[..rest.len()]);
    }
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

        kernels!(@level AVX2 "avx2" "avx2,fma" $( fn $name($($arg: $type),*) $(-> $result)?; )*);
        kernels!(@level AVX512 "avx512" "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"
            $( fn $name($($arg: $type),*) $(-> $result)?; )*);
    };
    (@level $level:ident $label:literal $features:literal
        $(fn $name:ident ( $($arg:ident : $type:ty),* ) $(-> $result:ty)? ;)*) => {
        #[cfg(target_arch = "x86_64")]
        static $level: Kernels = Kernels {
            name: $label,
            $( $name: {
                fn dispatch($($arg: $type),*) $(-> $result)? {
                    #[target_feature(enable = $features)]
                    fn compiled($($arg: $type),*) $(-> $result)? {
                        $name($($arg),*)
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
    /// `sum exp(y - origin)` over the values that are not below `cut`.
    fn sum_exp(values: &[f32], origin: f32, cut: f32) -> f64;
    /// `out = scale * exp(y - origin)`, 0 for values below `cut`.
    fn weigh(values: &[f32], origin: f32, cut: f32, scale: f64, out: &mut [f64]) ;
    /// `out = max(out - factor * taken, 0)`.
    fn subtract(out: &mut [f64], taken: &[f64], factor: f64) -> Taken;
    /// What [`Kernels::weigh`] and then [`Kernels::subtract`] would leave, summed on the way and
    /// not written down.
    fn left(values: &[f32], origin: f32, cut: f32, scale: f64, taken: &[f32], factor: f64) -> Taken;
    /// The sum of a block.
    fn sum(values: &[f64]) -> f64;
    /// `out = values / divisor`, rounded as `f32`.
    fn divide(values: &[f32], divisor: f32, out: &mut [f32]);
    /// bfloat16 bits to `f32`.
    fn widen_bf16(values: &[u16], out: &mut [f32]);
    /// IEEE half bits to `f32`.
    fn widen_f16(values: &[u16], out: &mut [f32]);
    /// `f32` to `f64`.
    fn widen_f32(values: &[f32], out: &mut [f64]);
    /// The first index at or after `from` whose value is above `bound`, or the length.
    fn first_above(values: &[f32], bound: f32, from: usize) -> usize;
    /// `min((max - y) * resolution, count - 1)`, rounded down.
    fn buckets(values: &[f32], max: f32, resolution: f32, count: u32, out: &mut [u32]);
    /// The race's uniforms for the tokens from `2 * pair` on.
    fn race_noise(noise: &crate::choice::RaceNoise, pair: u32, out: &mut [f64]);
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

    /// The fastest level of this processor, detected once.
    pub fn best() -> &'static Self {
        static BEST: std::sync::OnceLock<&'static Kernels> = std::sync::OnceLock::new();
        BEST.get_or_init(|| Self::available().last().copied().unwrap_or(&SCALAR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_keeps_its_stated_error() {
        for i in 0..=2_000_000 {
            let y = EXP_FLOOR + (EXP_CEILING - EXP_FLOOR) * (f64::from(i) / 2e6) as f32;
            let error = (f64::from(exp(y)) / f64::from(y).exp() - 1.0).abs();
            assert!(error < 2e-7 + 2e-8 * f64::from(y).abs(), "exp({y}): relative error {error}");
        }
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert_eq!(kept(f32::NEG_INFINITY, 0.0, EXP_FLOOR).to_bits(), 0);
        for beyond in [f32::NAN, f32::INFINITY, 1e30] {
            assert!(kept(beyond, 0.0, EXP_FLOOR) > 1e38);
        }
    }

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
    fn faults_are_seen_at_every_place() {
        for level in Kernels::available() {
            for at in 0..100 {
                let mut values = vec![-1.0; 100];
                assert_eq!((level.scan)(&values), Scan { max: -1.0, has_nan: false });
                values[at] = f32::NAN;
                let found = (level.scan)(&values);
                assert_eq!(found, Scan { max: -1.0, has_nan: true }, "{} {at}", level.name);
                let mut weights = vec![0.0; 100];
                let mut left = vec![1.0; 100];
                assert!(!(level.subtract)(&mut left, &weights, 1.0).has_negative);
                weights[at] = -1e-30;
                assert!((level.subtract)(&mut left, &weights, 1.0).has_negative);
            }
        }
    }

    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![9 => -120.0_f32..20.0, 1 => Just(f32::NEG_INFINITY)];
        proptest::collection::vec(value, 0..200)
    }

    proptest! {
        #[test]
        fn every_level_gives_the_bits_of_the_scalar_twin(
            values in values(), cut in -60.0_f32..5.0, scale in 0.1_f64..3.0, seed: u64
        ) {
            let max = (SCALAR.scan)(&values).max;
            prop_assume!(max.is_finite());
            let cut = if cut < max + EXP_FLOOR { max + EXP_FLOOR } else { cut };
            let run = |level: &Kernels| {
                let mut weights = vec![0.0; values.len()];
                (level.weigh)(&values, max, cut, scale, &mut weights);
                let mut left = weights.clone();
                let rest = (level.subtract)(&mut left, &weights, 0.7);
                let narrow: Vec<f32> = weights.iter().map(|&w| w as f32).collect();
                let fused = (level.left)(&values, max, cut, scale, &narrow, 0.7);
                let near = (fused.left - rest.left).abs() <= 1e-6 * (1.0 + rest.taken);
                let mut divided = vec![0.0; values.len()];
                (level.divide)(&values, 0.7, &mut divided);
                let mut steps = vec![0; values.len()];
                (level.buckets)(&values, max, 16.0, 64, &mut steps);
                let mut noise = vec![0.0; values.len()];
                let race = crate::choice::RaceNoise::new(seed, 9);
                (level.race_noise)(&race, 3, &mut noise);
                let mut wide = vec![0.0; values.len()];
                (level.widen_f32)(&values, &mut wide);
                (
                    (level.scan)(&values),
                    (rest.left.to_bits(), rest.taken.to_bits(), rest.has_negative),
                    (fused.left.to_bits(), fused.taken.to_bits(), fused.has_negative, near),
                    (level.sum_exp)(&values, max, cut).to_bits(),
                    (level.sum)(&left).to_bits(),
                    left.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                    divided.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                    noise.iter().chain(&wide).map(|x| x.to_bits()).collect::<Vec<_>>(),
                    steps,
                    (level.first_above)(&values, cut, 0),
                )
            };
            let wanted = run(&SCALAR);
            for level in Kernels::available() {
                prop_assert_eq!(&run(level), &wanted, "{}", level.name);
            }
        }

        #[test]
        fn first_above_is_the_first(values in values(), bound in -60.0_f32..5.0, from in 0_usize..8) {
            let wanted = (from..values.len()).find(|&i| values[i] > bound).unwrap_or(values.len());
            prop_assume!(from <= values.len());
            prop_assert_eq!((SCALAR.first_above)(&values, bound, from), wanted);
        }
    }
}
