//! What compilers do not find: comparisons that the processor answers with one bit for each value.
//!
//! Each module is [`super::block`] for one level, with the kernels in their place that do better so.

pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m512, __mmask16, _CMP_GE_OQ, _CMP_NGE_UQ, _CMP_NLT_UQ, _mm512_add_epi32, _mm512_add_ps,
        _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_cmp_ps_mask,
        _mm512_maskz_compress_epi32, _mm512_maskz_compress_ps, _mm512_permutexvar_ps,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
        _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_storeu_si512,
    };

    use crate::rows::simd::LANES;
    pub(in super::super) use crate::rows::simd::block::*;
    pub(in super::super) use crate::rows::simd::panels::avx512::panel;

    /// The lanes' sums of sixteen dot products at once, in the order of `fold`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fold_all(lanes: &[__m512; LANES]) -> __m512 {
        // Each step adds one half of what is left of a product to the other, and puts two products
        // where one was.
        let eighths: [__m512; 8] = std::array::from_fn(|i| {
            let (one, two) = (lanes[2 * i], lanes[2 * i + 1]);
            let (low, high) =
                (_mm512_shuffle_f32x4(one, two, 0x44), _mm512_shuffle_f32x4(one, two, 0xee));
            _mm512_add_ps(low, high)
        });
        let quarters: [__m512; 4] = std::array::from_fn(|i| {
            let (one, two) = (eighths[2 * i], eighths[2 * i + 1]);
            let (low, high) =
                (_mm512_shuffle_f32x4(one, two, 0x88), _mm512_shuffle_f32x4(one, two, 0xdd));
            _mm512_add_ps(low, high)
        });
        let halves: [__m512; 2] = std::array::from_fn(|i| {
            let (one, two) = (quarters[2 * i], quarters[2 * i + 1]);
            let (low, high) =
                (_mm512_shuffle_ps(one, two, 0x44), _mm512_shuffle_ps(one, two, 0xee));
            _mm512_add_ps(low, high)
        });
        let [one, two] = halves;
        let (low, high) = (_mm512_shuffle_ps(one, two, 0x88), _mm512_shuffle_ps(one, two, 0xdd));
        // Product 4 m + l is in place m of group l.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_permutexvar_ps(order, _mm512_add_ps(low, high))
    }

    /// The products of a query with sixteen keys of whole stripes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn sixteen_dots(query: &[f32], keys: &[f32]) -> [f32; LANES] {
        let (dim, mut lanes) = (query.len(), [_mm512_setzero_ps(); LANES]);
        assert!(dim.is_multiple_of(LANES) && keys.len() == LANES * dim);
        for from in (0..dim).step_by(LANES) {
            // SAFETY: a stripe from `from` on is within the query, by the assertion.
            let stripe = unsafe { _mm512_loadu_ps(query.as_ptr().add(from)) };
            for (key, lanes) in lanes.iter_mut().enumerate() {
                // SAFETY: and within each key.
                let other = unsafe { _mm512_loadu_ps(keys.as_ptr().add(key * dim + from)) };
                *lanes = _mm512_fmadd_ps(stripe, other, *lanes);
            }
        }
        let mut out = [0.0; LANES];
        // SAFETY: the array has as many places as are written.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), fold_all(&lanes)) };
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn dots(
        queries: &[f32],
        keys: &[f32],
        dim: usize,
        step: usize,
        out: &mut [f32],
    ) {
        dots_in_groups(queries, keys, dim, step, out, |query, keys| sixteen_dots(query, keys));
    }

    /// Values that [`mix_rows`] adds up at a time, and rows: as many sums as registers hold.
    const STRIPES: usize = 4;
    const ROWS: usize = 6;

    /// [`mix`] for `N` rows of weights, `step` apart, and values of whole [`STRIPES`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn mix_rows<const N: usize>(
        weights: &[f32],
        step: usize,
        values: &[f32],
        dim: usize,
        out: &mut [f32],
    ) {
        let count = values.len() / dim;
        assert!(dim.is_multiple_of(STRIPES * LANES) && out.len() == N * dim);
        assert!(count <= step && (N - 1) * step + count <= weights.len());
        for from in (0..dim).step_by(STRIPES * LANES) {
            let mut sums = [[_mm512_setzero_ps(); STRIPES]; N];
            for (row, sums) in sums.iter_mut().enumerate() {
                for (stripe, sum) in sums.iter_mut().enumerate() {
                    let place = row * dim + from + stripe * LANES;
                    // SAFETY: `out` has N rows of `dim`, by the assertion.
                    *sum = unsafe { _mm512_loadu_ps(out.as_ptr().add(place)) };
                }
            }
            for place in 0..count {
                let value: [__m512; STRIPES] = std::array::from_fn(|stripe| {
                    let at = place * dim + from + stripe * LANES;
                    // SAFETY: `values` has `count` rows of `dim`.
                    unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) }
                });
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: so many weights there are, by the assertion.
                    let weight = unsafe { *weights.get_unchecked(row * step + place) };
                    let weight = _mm512_set1_ps(weight);
                    for (sum, &value) in sums.iter_mut().zip(&value) {
                        *sum = _mm512_fmadd_ps(weight, value, *sum);
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                for (stripe, &sum) in sums.iter().enumerate() {
                    let place = row * dim + from + stripe * LANES;
                    // SAFETY: as where they were read.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr().add(place), sum) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn mix(
        weights: &[f32],
        step: usize,
        values: &[f32],
        dim: usize,
        out: &mut [f32],
    ) {
        if !dim.is_multiple_of(STRIPES * LANES) {
            return crate::rows::simd::block::mix(weights, step, values, dim, out);
        }
        for (group, out) in out.chunks_mut(ROWS * dim).enumerate() {
            let weights = &weights[group * ROWS * step..];
            match out.len() / dim {
                1 => mix_rows::<1>(weights, step, values, dim, out),
                2 => mix_rows::<2>(weights, step, values, dim, out),
                3 => mix_rows::<3>(weights, step, values, dim, out),
                4 => mix_rows::<4>(weights, step, values, dim, out),
                5 => mix_rows::<5>(weights, step, values, dim, out),
                _ => mix_rows::<ROWS>(weights, step, values, dim, out),
            }
        }
    }

    /// The places of a part are moved together and written all at once: what is behind the last one
    /// that counts is written over by the next part.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn gather_between(
        values: &[f32],
        from: f32,
        below: f32,
        out: &mut [u32],
    ) -> usize {
        let out = &mut out[..values.len()];
        let (first, end) = (_mm512_set1_ps(from), _mm512_set1_ps(below));
        let mut places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let (step, mut count) = (_mm512_set1_epi32(16), 0);
        let (groups, rest) = values.as_chunks::<FLAGS>();
        for group in groups {
            let mut masks: [__mmask16; FLAGS / 16] = [0; FLAGS / 16];
            for (mask, part) in masks.iter_mut().zip(group.as_chunks::<16>().0) {
                // SAFETY: a part holds as many values as are read.
                let x = unsafe { _mm512_loadu_ps(part.as_ptr()) };
                let is_from = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, first);
                *mask = _mm512_mask_cmp_ps_mask::<_CMP_NGE_UQ>(is_from, x, end);
            }
            let is_empty = masks == [0; FLAGS / 16];
            for mask in masks {
                if !is_empty {
                    let found = _mm512_maskz_compress_epi32(mask, places);
                    let room = &mut out[count..count + 16];
                    // SAFETY: the room holds as many places as are written.
                    unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), found) };
                    count += mask.count_ones() as usize;
                }
                places = _mm512_add_epi32(places, step);
            }
        }
        let start = (values.len() - rest.len()) as u32;
        let tail = filter(rest, |values| flags(values, from, below), &mut out[count..]);
        for place in &mut out[count..count + tail] {
            *place += start;
        }
        count + tail
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn take_from(values: &[f32], from: f32, out: &mut [f32]) -> usize {
        let out = &mut out[..values.len()];
        let (first, mut count) = (_mm512_set1_ps(from), 0);
        let (parts, rest) = values.as_chunks::<16>();
        for part in parts {
            // SAFETY: a part holds as many values as are read.
            let x = unsafe { _mm512_loadu_ps(part.as_ptr()) };
            let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, first);
            let room = &mut out[count..count + 16];
            // SAFETY: the room holds as many values as are written.
            unsafe { _mm512_storeu_ps(room.as_mut_ptr(), _mm512_maskz_compress_ps(mask, x)) };
            count += mask.count_ones() as usize;
        }
        count + crate::rows::simd::block::take_from(rest, from, &mut out[count..])
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m256, _CMP_NGE_UQ, _CMP_NLT_UQ, _mm256_add_ps, _mm256_and_ps, _mm256_cmp_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_movemask_ps, _mm256_permute2f128_ps,
        _mm256_permutevar8x32_ps, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_ps,
        _mm256_shuffle_ps, _mm256_storeu_ps,
    };

    pub(in super::super) use crate::rows::simd::block::*;
    pub(in super::super) use crate::rows::simd::panels::avx2::panel;

    /// The lanes' sums of eight dot products at once, in the order of `fold`, whose first step
    /// has been done.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fold_all(lanes: &[__m256; 8]) -> __m256 {
        let quarters: [__m256; 4] = std::array::from_fn(|i| {
            let (one, two) = (lanes[2 * i], lanes[2 * i + 1]);
            let low = _mm256_permute2f128_ps(one, two, 0x20);
            _mm256_add_ps(low, _mm256_permute2f128_ps(one, two, 0x31))
        });
        let halves: [__m256; 2] = std::array::from_fn(|i| {
            let (one, two) = (quarters[2 * i], quarters[2 * i + 1]);
            let low = _mm256_shuffle_ps(one, two, 0x44);
            _mm256_add_ps(low, _mm256_shuffle_ps(one, two, 0xee))
        });
        let [one, two] = halves;
        let low = _mm256_shuffle_ps(one, two, 0x88);
        let sums = _mm256_add_ps(low, _mm256_shuffle_ps(one, two, 0xdd));
        // Even products are in the first half, odd ones in the second.
        _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }

    /// The products of a query with eight keys of whole stripes.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn eight_dots(query: &[f32], keys: &[f32]) -> [f32; 8] {
        // SAFETY: the slice has as many values as are read.
        let load = |values: &[f32; 8]| unsafe { _mm256_loadu_ps(values.as_ptr()) };
        let (dim, mut lanes) = (query.len(), [_mm256_setzero_ps(); 8]);
        for (key, lanes) in lanes.iter_mut().enumerate() {
            let key = &keys[key * dim..(key + 1) * dim];
            let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
            let stripes = query.as_chunks::<8>().0.chunks_exact(2);
            for (query, key) in stripes.zip(key.as_chunks::<8>().0.chunks_exact(2)) {
                low = _mm256_fmadd_ps(load(&query[0]), load(&key[0]), low);
                high = _mm256_fmadd_ps(load(&query[1]), load(&key[1]), high);
            }
            *lanes = _mm256_add_ps(low, high);
        }
        let mut out = [0.0; 8];
        // SAFETY: the array has as many places as are written.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), fold_all(&lanes)) };
        out
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(in super::super) fn dots(
        queries: &[f32],
        keys: &[f32],
        dim: usize,
        step: usize,
        out: &mut [f32],
    ) {
        dots_in_groups(queries, keys, dim, step, out, |query, keys| eight_dots(query, keys));
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(in super::super) fn gather_between(
        values: &[f32],
        from: f32,
        below: f32,
        out: &mut [u32],
    ) -> usize {
        let (first, end) = (_mm256_set1_ps(from), _mm256_set1_ps(below));
        let flags_of = |values: &[f32]| {
            let Ok(group) = <&[f32; FLAGS]>::try_from(values) else {
                return flags(values, from, below);
            };
            let parts = group.as_chunks::<8>().0.iter().enumerate();
            parts.fold(0, |flags, (at, part)| {
                // SAFETY: a part holds as many values as are read.
                let x = unsafe { _mm256_loadu_ps(part.as_ptr()) };
                let is_from = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, first);
                let is_in = _mm256_and_ps(is_from, _mm256_cmp_ps::<_CMP_NGE_UQ>(x, end));
                flags | (_mm256_movemask_ps(is_in) as u64) << (8 * at)
            })
        };
        filter(values, flags_of, out)
    }
}
