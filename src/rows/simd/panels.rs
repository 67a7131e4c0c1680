//! Products of integers: one instruction multiplies numbers of 16 bits and adds up pairs, which compilers
//! do not find.
//!
//! Integers add up the same in any order: these are the sums of [`super::block::panel`].

macro_rules! panel {
    ($level:ident, $features:literal, $vector:ident, rows $rows:literal, zero $zero:ident, pair $pair:ident,
        load $load:ident, widen $widen:ident, multiply $multiply:ident, add $add:ident, store $store:ident) => {
        pub(super) mod $level {
            use std::arch::x86_64::{
                $add, $load, $multiply, $pair, $store, $vector, $widen, $zero,
            };

            use crate::rows::simd::PANEL;
            use crate::rows::simd::block::panel_in_groups;

            /// Sums of a vector, and vectors that are summed up at a time.
            const WIDTH: usize = size_of::<$vector>() / size_of::<i32>();
            const VECTORS: usize = 4;

            #[inline]
            #[target_feature(enable = $features)]
            fn widened(weights: &[i8; 2 * WIDTH]) -> $vector {
                // SAFETY: the array has as many weights as are read.
                $widen(unsafe { $load(weights.as_ptr().cast()) })
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn add_to(out: &mut [f32], sums: $vector) {
                let mut exact = [0_i32; WIDTH];
                // SAFETY: the array has as many places as are written.
                unsafe { $store(exact.as_mut_ptr().cast(), sums) };
                for (out, &sum) in out.iter_mut().zip(&exact) {
                    *out += sum as f32;
                }
            }

            /// Adds the products of `N` rows of a stretch to `out`.
            #[inline]
            #[target_feature(enable = $features)]
            fn panel_of<const N: usize>(rows: [&[i16]; N], weights: &[i8], out: &mut [f32]) {
                let panels = weights.as_chunks::<{ 2 * PANEL }>().0;
                let rows = rows.map(|row| &row.as_chunks::<2>().0[..panels.len()]);
                for first in (0..PANEL / WIDTH).step_by(VECTORS) {
                    let mut sums = [[$zero(); VECTORS]; N];
                    for (pair, weights) in panels.iter().enumerate() {
                        let parts = &weights.as_chunks::<{ 2 * WIDTH }>().0[first..first + VECTORS];
                        let wide: [$vector; VECTORS] =
                            std::array::from_fn(|vector| widened(&parts[vector]));
                        for (sums, row) in sums.iter_mut().zip(&rows) {
                            let [low, high] = row[pair];
                            let both = $pair(i32::from(low) & 0xffff | i32::from(high) << 16);
                            for (sum, &wide) in sums.iter_mut().zip(&wide) {
                                *sum = $add(*sum, $multiply(wide, both));
                            }
                        }
                    }
                    for (out, sums) in out.chunks_exact_mut(PANEL).zip(&sums) {
                        let out = out[first * WIDTH..].chunks_exact_mut(WIDTH);
                        for (out, &sums) in out.zip(sums) {
                            add_to(out, sums);
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            pub(in super::super) fn panel(
                rows: &[i16],
                dim: usize,
                weights: &[i8],
                out: &mut [f32],
            ) {
                panel_in_groups(rows, dim, weights, out, $rows, |rows, weights, out| match *rows {
                    [a] => panel_of([a], weights, out),
                    [a, b] => panel_of([a, b], weights, out),
                    [a, b, c] => panel_of([a, b, c], weights, out),
                    [a, b, c, d] => panel_of([a, b, c, d], weights, out),
                    _ => {}
                });
            }
        }
    };
}

// As many rows at a time as registers hold sums of.
panel!(
    avx512, "avx512f,avx512bw", __m512i, rows 4, zero _mm512_setzero_si512, pair _mm512_set1_epi32,
    load _mm256_loadu_si256, widen _mm512_cvtepi8_epi16, multiply _mm512_madd_epi16,
    add _mm512_add_epi32, store _mm512_storeu_si512
);
panel!(
    avx2, "avx2", __m256i, rows 2, zero _mm256_setzero_si256, pair _mm256_set1_epi32,
    load _mm_loadu_si128, widen _mm256_cvtepi8_epi16, multiply _mm256_madd_epi16,
    add _mm256_add_epi32, store _mm256_storeu_si256
);
