//! What compilers do not find: comparisons that the processor answers with one bit for each value.
//!
//! Each module is [`super::block`] for one level, with the kernels in their place that do better so.

use crate::rows::simd::block::FLAGS;

/// The values of a group in parts of `N`, each with the place of its first bit; `None` of fewer values.
#[inline(always)]
fn parts<const N: usize>(values: &[f32]) -> Option<impl Iterator<Item = (usize, &[f32; N])>> {
    let group = <&[f32; FLAGS]>::try_from(values).ok()?;
    Some(group.as_chunks().0.iter().enumerate().map(|(at, part)| (N * at, part)))
}

pub(super) mod avx512 {
    use std::arch::x86_64::{
        _CMP_NGE_UQ, _CMP_NLT_UQ, _mm512_cmp_ps_mask, _mm512_loadu_ps, _mm512_mask_cmp_ps_mask,
        _mm512_set1_ps,
    };

    use super::parts;
    pub(in super::super) use crate::rows::simd::block::*;

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn gather_between(
        values: &[f32],
        from: f32,
        below: f32,
        out: &mut [u32],
    ) -> usize {
        let (first, end) = (_mm512_set1_ps(from), _mm512_set1_ps(below));
        let flags_of = |values: &[f32]| {
            let Some(parts) = parts::<16>(values) else {
                return flags(values, from, below);
            };
            parts.fold(0, |flags, (bit, part)| {
                // SAFETY: a part holds as many values as are read.
                let x = unsafe { _mm512_loadu_ps(part.as_ptr()) };
                let is_in = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, first);
                let is_in = _mm512_mask_cmp_ps_mask::<_CMP_NGE_UQ>(is_in, x, end);
                flags | u64::from(is_in) << bit
            })
        };
        filter(values, flags_of, out)
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        _CMP_NGE_UQ, _CMP_NLT_UQ, _mm256_and_ps, _mm256_cmp_ps, _mm256_loadu_ps,
        _mm256_movemask_ps, _mm256_set1_ps,
    };

    use super::parts;
    pub(in super::super) use crate::rows::simd::block::*;

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
            let Some(parts) = parts::<8>(values) else {
                return flags(values, from, below);
            };
            parts.fold(0, |flags, (bit, part)| {
                // SAFETY: a part holds as many values as are read.
                let x = unsafe { _mm256_loadu_ps(part.as_ptr()) };
                let is_from = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, first);
                let is_in = _mm256_and_ps(is_from, _mm256_cmp_ps::<_CMP_NGE_UQ>(x, end));
                flags | (_mm256_movemask_ps(is_in) as u64) << bit
            })
        };
        filter(values, flags_of, out)
    }
}
