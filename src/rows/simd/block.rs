//! The kernels' source: loops over arrays of [`LANES`] values with a fixed striping.
//!
//! Each does one thing over a block: fused loops turned out slower, as compilers then vectorise them in
//! shorter pieces, and a block's buffers stay in L1.
//!
//! Sums go through one order, whatever the type: value `i` of a block belongs to lane `i % LANES`, a lane
//! adds its values in order, and the lanes are added halves onto halves.

use std::ops::AddAssign;

use crate::rows::simd::exp::Window;
use crate::rows::simd::{Format, LANES, PANEL, STRETCH, Scan, Total};

#[inline(always)]
pub(super) fn scan(values: &[f32]) -> Scan {
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
fn fold<T: Copy + AddAssign>(mut lanes: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] += other;
        }
        width /= 2;
    }
    lanes[0]
}

/// Adds values to the lanes, the first one to lane 0.
#[inline(always)]
fn add<T: Copy + Into<f64>>(lanes: &mut [f64; LANES], values: &[T]) {
    let (stripes, rest) = values.as_chunks::<LANES>();
    for stripe in stripes {
        for lane in 0..LANES {
            lanes[lane] += stripe[lane].into();
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        lanes[lane] += x.into();
    }
}

#[inline(always)]
pub(super) fn weigh(values: &[f32], window: &Window, cut: f32, out: &mut [f32]) {
    for (out, &y) in out.iter_mut().zip(values) {
        *out = window.weight(y, cut);
    }
}

/// `max(weight - factor taken, 0)`.
#[inline(always)]
fn left_of(weight: f32, taken: f64, factor: f64) -> f64 {
    let left = (-factor).mul_add(taken, f64::from(weight));
    if left > 0.0 { left } else { 0.0 }
}

#[inline(always)]
pub(super) fn subtract(weights: &[f32], taken: &[f64], factor: f64, out: &mut [f64]) {
    for ((out, &weight), &taken) in out.iter_mut().zip(weights).zip(taken) {
        *out = left_of(weight, taken, factor);
    }
}

#[inline(always)]
pub(super) fn subtract_narrow(weights: &[f32], taken: &[f32], factor: f64, out: &mut [f64]) {
    for ((out, &weight), &taken) in out.iter_mut().zip(weights).zip(taken) {
        *out = left_of(weight, f64::from(taken), factor);
    }
}

#[inline(always)]
pub(super) fn sum(values: &[f64]) -> f64 {
    let mut lanes = [0.0; LANES];
    add(&mut lanes, values);
    fold(lanes)
}

#[inline(always)]
pub(super) fn sum_narrow(values: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    add(&mut lanes, values);
    fold(lanes)
}

#[inline(always)]
pub(super) fn total(values: &[f32]) -> Total {
    let mut lanes = [0.0_f64; LANES];
    let mut least = [0.0_f32; LANES];
    let (stripes, rest) = values.as_chunks::<LANES>();
    for stripe in stripes {
        for lane in 0..LANES {
            lanes[lane] += f64::from(stripe[lane]);
            least[lane] = if stripe[lane] < least[lane] { stripe[lane] } else { least[lane] };
        }
    }
    add(&mut lanes, rest);
    let is_negative = |values: &[f32]| values.iter().fold(false, |any, &x| any | (x < 0.0));
    Total { sum: fold(lanes), has_negative: is_negative(&least) | is_negative(rest) }
}

#[inline(always)]
pub(super) fn divide(values: &[f32], divisor: f32, out: &mut [f32]) {
    for (out, &x) in out.iter_mut().zip(values) {
        *out = x / divisor;
    }
}

#[inline(always)]
pub(super) fn widen_bf16(values: &[u16], out: &mut [f32]) {
    for (out, &bits) in out.iter_mut().zip(values) {
        *out = f32::from_bits(u32::from(bits) << 16);
    }
}

#[inline(always)]
pub(super) fn widen_f16(values: &[u16], out: &mut [f32]) {
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

/// The nearest bfloat16, ties to even, as an `f32`.
#[inline(always)]
fn near_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    let near = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    // Rounding could carry a NaN's mantissa away.
    f32::from_bits(if x.is_nan() { bits | 0x0040_0000 } else { near })
}

#[inline(always)]
pub(super) fn narrow_bf16(values: &[f32], out: &mut [u16]) {
    for (out, &x) in out.iter_mut().zip(values) {
        *out = (near_bf16(x).to_bits() >> 16) as u16;
    }
}

/// One half of [`turn`]: `values cos + others sin`.
#[inline(always)]
fn turn_half(
    values: &[f32],
    others: &[f32],
    cos: &[f32],
    sin: &[f32],
    round: impl Fn(f32) -> f32,
    out: &mut [f32],
) {
    for ((((out, &x), &other), &cos), &sin) in
        out.iter_mut().zip(values).zip(others).zip(cos).zip(sin)
    {
        *out = round(round(x * cos) + round(other * sin));
    }
}

#[inline(always)]
pub(super) fn turn(values: &[f32], cos: &[f32], sin: &[f32], format: Format, out: &mut [f32]) {
    let half = values.len() / 2;
    let (one, two) = values.split_at(half);
    let ((cos_one, cos_two), (sin_one, sin_two)) = (cos.split_at(half), sin.split_at(half));
    let (out_one, out_two) = out.split_at_mut(half);
    let mut both = |round: fn(f32) -> f32| {
        turn_half(one, two, cos_one, sin_one, round, out_one);
        turn_half(two, one, cos_two, sin_two, round, out_two);
    };
    match format {
        Format::F32 => both(|x| x),
        Format::Bf16 => both(near_bf16),
        Format::F16 => both(|x| half::f16::from_f32(x).to_f32()),
    }
}

#[inline(always)]
fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((stripes, rest), (others, rest_of_other)) =
        (one.as_chunks::<LANES>(), other.as_chunks::<LANES>());
    for (stripe, other) in stripes.iter().zip(others) {
        for lane in 0..LANES {
            lanes[lane] = stripe[lane].mul_add(other[lane], lanes[lane]);
        }
    }
    for (lane, (&x, &y)) in rest.iter().zip(rest_of_other).enumerate() {
        lanes[lane] = x.mul_add(y, lanes[lane]);
    }
    fold(lanes)
}

/// [`dots`], with `group` for so many keys of whole stripes at once.
#[inline(always)]
pub(super) fn dots_in_groups<const GROUP: usize>(
    queries: &[f32],
    keys: &[f32],
    dim: usize,
    step: usize,
    out: &mut [f32],
    group: impl Fn(&[f32], &[f32]) -> [f32; GROUP],
) {
    let count = keys.len() / dim;
    let together = if dim.is_multiple_of(LANES) { count - count % GROUP } else { 0 };
    for (number, query) in queries.chunks_exact(dim).enumerate() {
        let (groups, rest) = out[number * step..][..count].split_at_mut(together);
        let (groups, _) = groups.as_chunks_mut::<GROUP>();
        for (out, keys) in groups.iter_mut().zip(keys.chunks_exact(GROUP * dim)) {
            *out = group(query, keys);
        }
        for (out, key) in rest.iter_mut().zip(keys[together * dim..].chunks_exact(dim)) {
            *out = dot(query, key);
        }
    }
}

#[inline(always)]
pub(super) fn dots(queries: &[f32], keys: &[f32], dim: usize, step: usize, out: &mut [f32]) {
    dots_in_groups(queries, keys, dim, step, out, |query, key| [dot(query, key)]);
}

/// [`mix`] for `N` rows of weights.
#[inline(always)]
fn mix_rows<const N: usize>(weights: [&[f32]; N], values: &[f32], dim: usize, out: &mut [f32]) {
    for from in (0..dim - dim % LANES).step_by(LANES) {
        let mut sums = [[0.0; LANES]; N];
        for row in 0..N {
            sums[row].copy_from_slice(&out[row * dim + from..][..LANES]);
        }
        for (place, value) in values.chunks_exact(dim).enumerate() {
            let value = &value[from..from + LANES];
            for row in 0..N {
                let weight = weights[row][place];
                for lane in 0..LANES {
                    sums[row][lane] = weight.mul_add(value[lane], sums[row][lane]);
                }
            }
        }
        for row in 0..N {
            out[row * dim + from..][..LANES].copy_from_slice(&sums[row]);
        }
    }
    for column in dim - dim % LANES..dim {
        for (row, weights) in weights.iter().enumerate() {
            let sum = &mut out[row * dim + column];
            for (&weight, value) in weights.iter().zip(values.chunks_exact(dim)) {
                *sum = weight.mul_add(value[column], *sum);
            }
        }
    }
}

#[inline(always)]
pub(super) fn mix(weights: &[f32], step: usize, values: &[f32], dim: usize, out: &mut [f32]) {
    const ROWS: usize = 4;
    let count = values.len() / dim;
    for (group, out) in out.chunks_mut(ROWS * dim).enumerate() {
        let row = |number: usize| &weights[(group * ROWS + number) * step..][..count];
        match out.len() / dim {
            ROWS => mix_rows([row(0), row(1), row(2), row(3)], values, dim, out),
            3 => mix_rows([row(0), row(1), row(2)], values, dim, out),
            2 => mix_rows([row(0), row(1)], values, dim, out),
            _ => mix_rows([row(0)], values, dim, out),
        }
    }
}

/// [`panel`] for `N` rows of a stretch: exact sums.
#[inline(always)]
fn panel_of<const N: usize>(rows: [&[i16]; N], weights: &[i8], out: &mut [f32]) {
    /// Weights that lie side by side and are summed up apart, as many as registers hold.
    const PART: usize = 32;
    for from in (0..2 * PANEL).step_by(PART) {
        let mut sums = [[0_i32; PART]; N];
        for (pair, weights) in weights.as_chunks::<{ 2 * PANEL }>().0.iter().enumerate() {
            let wide: [i16; PART] = std::array::from_fn(|place| i16::from(weights[from + place]));
            for row in 0..N {
                let both = [rows[row][2 * pair], rows[row][2 * pair + 1]];
                for place in 0..PART {
                    sums[row][place] += i32::from(wide[place]) * i32::from(both[place % 2]);
                }
            }
        }
        for (out, sums) in out.chunks_exact_mut(PANEL).zip(&sums) {
            for (out, pair) in out[from / 2..].iter_mut().zip(sums.as_chunks::<2>().0) {
                *out += (pair[0] + pair[1]) as f32;
            }
        }
    }
}

/// Calls `run` for groups of up to `most` rows, 4 at most, and of each for one stretch after the other.
#[inline(always)]
pub(super) fn panel_in_groups(
    rows: &[i16],
    dim: usize,
    weights: &[i8],
    out: &mut [f32],
    most: usize,
    run: impl Fn(&[&[i16]], &[i8], &mut [f32]),
) {
    out.fill(0.0);
    for (rows, out) in rows.chunks(most * dim).zip(out.chunks_mut(most * PANEL)) {
        for (stretch, weights) in weights.chunks(STRETCH * PANEL).enumerate() {
            let from = stretch * STRETCH;
            let mut parts: [&[i16]; 4] = [&[]; 4];
            for (part, row) in parts.iter_mut().zip(rows.chunks_exact(dim)) {
                *part = &row[from..dim.min(from + STRETCH)];
            }
            run(&parts[..rows.len() / dim], weights, out);
        }
    }
}

#[inline(always)]
pub(super) fn panel(rows: &[i16], dim: usize, weights: &[i8], out: &mut [f32]) {
    panel_in_groups(rows, dim, weights, out, 4, |rows, weights, out| match *rows {
        [a, b, c, d] => panel_of([a, b, c, d], weights, out),
        [a, b, c] => panel_of([a, b, c], weights, out),
        [a, b] => panel_of([a, b], weights, out),
        [a] => panel_of([a], weights, out),
        _ => {}
    });
}

#[inline(always)]
pub(super) fn round_i16(values: &[f32], out: &mut [i16]) -> f32 {
    let mut largest = [0.0_f32; LANES];
    let mut faults = [0_u32; LANES];
    let (stripes, rest) = values.as_chunks::<LANES>();
    let mut look = |lane: usize, x: f32| {
        largest[lane] = if x.abs() > largest[lane] { x.abs() } else { largest[lane] };
        faults[lane] |= u32::from(!x.is_finite());
    };
    for stripe in stripes {
        for (lane, &x) in stripe.iter().enumerate() {
            look(lane, x);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        look(lane, x);
    }
    let most = largest.iter().fold(0.0_f32, |most, &x| if x > most { x } else { most });
    let factor = f32::from(i16::MAX) / most;
    let is_sound = faults.iter().all(|&fault| fault == 0);
    if !(is_sound && factor.is_finite()) {
        out.fill(0);
        return if is_sound { 0.0 } else { f32::NAN };
    }
    for (out, &x) in out.iter_mut().zip(values) {
        *out = (x * factor).round_ties_even() as i16;
    }
    most / f32::from(i16::MAX)
}

#[inline(always)]
pub(super) fn widen_f32(values: &[f32], out: &mut [f64]) {
    for (out, &x) in out.iter_mut().zip(values) {
        *out = f64::from(x);
    }
}

/// Values that one word of flags tells apart.
pub(super) const FLAGS: usize = 64;

/// Writes the places of the values whose flags are set, of a group at a time (the last one may be
/// shorter); returns how many.
#[inline(always)]
pub(super) fn filter(values: &[f32], flags_of: impl Fn(&[f32]) -> u64, out: &mut [u32]) -> usize {
    let mut count = 0;
    for (group, values) in values.chunks(FLAGS).enumerate() {
        let mut flags = flags_of(values);
        while flags != 0 {
            out[count] = (group * FLAGS) as u32 + flags.trailing_zeros();
            count += 1;
            flags &= flags - 1;
        }
    }
    count
}

/// A bit for each value in `from..below`, and for NaN.
// Negated comparisons let NaN in.
#[allow(clippy::neg_cmp_op_on_partial_ord)]
#[inline(always)]
pub(super) fn flags(values: &[f32], from: f32, below: f32) -> u64 {
    let is_in = |x: f32| !((x < from) | (x >= below));
    // Most groups of most rows have none, which is seen before there are flags.
    if !values.iter().fold(false, |any, &x| any | is_in(x)) {
        return 0;
    }
    values.iter().enumerate().fold(0, |flags, (bit, &x)| flags | u64::from(is_in(x)) << bit)
}

#[inline(always)]
pub(super) fn gather_between(values: &[f32], from: f32, below: f32, out: &mut [u32]) -> usize {
    filter(values, |values| flags(values, from, below), out)
}

/// Writes the values that are not below `from`, in their order; returns how many.
#[inline(always)]
pub(super) fn take_from(values: &[f32], from: f32, out: &mut [f32]) -> usize {
    let out = &mut out[..values.len()];
    let mut count = 0;
    for &x in values {
        // What does not count is written over by the next value: no branch.
        out[count] = x;
        count += usize::from(x >= from);
    }
    count
}

/// `v` in `[0, 1)` for `2 * LANES` tokens from `2 * pair` on, one Philox call for two tokens.
#[inline(always)]
fn race_stripe(noise: &crate::chance::RaceNoise, pair: u32) -> [f64; 2 * LANES] {
    let [w0, w1, w2, w3] = noise.words_of::<LANES>(pair);
    let mut both = [0.0; 2 * LANES];
    for lane in 0..LANES {
        both[2 * lane] = crate::chance::rng::uniform(w0[lane], w1[lane]);
        both[2 * lane + 1] = crate::chance::rng::uniform(w2[lane], w3[lane]);
    }
    both
}

#[inline(always)]
pub(super) fn race_noise(noise: &crate::chance::RaceNoise, pair: u32, out: &mut [f64]) {
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
