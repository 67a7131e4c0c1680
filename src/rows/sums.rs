//! Sums over a row in one order, whatever the form in which its values are at hand.
//!
//! Value `i` of a block belongs to lane `i % LANES`; a lane adds its values in order, the lanes are
//! folded, and so are the sums of the blocks ([`fold`]). Zeros change no bit of such a sum. So a row has
//! the same sum if only its positive values are listed ([`sum_listed`]), if its blocks are summed apart and
//! on different processors, and if zeros follow it.

use crate::rows::simd::{BLOCK, LANES};

/// Up to so many values are folded without memory of their own.
const FEW: usize = 256;

/// Adds halves onto halves, after filling up with zeros to a power of two.
pub fn fold(values: &[f64]) -> f64 {
    let mut half = values.len().next_power_of_two() / 2;
    if half == 0 {
        return values.first().copied().unwrap_or(0.0);
    }
    let (low, high) = values.split_at(half);
    let mut few = [0.0; FEW];
    let mut many = Vec::new();
    let sums = if half <= FEW {
        &mut few[..half]
    } else {
        many.resize(half, 0.0);
        &mut many[..]
    };
    sums.copy_from_slice(low);
    for (sum, &value) in sums.iter_mut().zip(high) {
        *sum += value;
    }
    while half > 1 {
        half /= 2;
        let (low, high) = sums[..2 * half].split_at_mut(half);
        for (sum, &value) in low.iter_mut().zip(&*high) {
            *sum += value;
        }
    }
    sums[0]
}

/// The sum of a row whose values that are not 0 are listed by ascending token: `value(i)` is that of
/// `tokens[i]`. `sums` is written to.
pub fn sum_listed(tokens: &[u32], value: impl Fn(usize) -> f64, sums: &mut Vec<f64>) -> f64 {
    sums.clear();
    let mut start = 0;
    while let Some(&first) = tokens.get(start) {
        let block = first as usize / BLOCK;
        let is_here = |token: &&u32| **token as usize / BLOCK == block;
        let end = start + tokens[start..].iter().take_while(is_here).count();
        sums.resize(block, 0.0);
        sums.push(match end - start {
            // Two values have one sum, whatever the lanes.
            1 => value(start),
            2 => value(start) + value(start + 1),
            _ => {
                let mut lanes = [0.0; LANES];
                for at in start..end {
                    lanes[tokens[at] as usize % LANES] += value(at);
                }
                fold(&lanes)
            }
        });
        start = end;
    }
    fold(sums)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::simd::Kernels;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_form_of_a_row_changes_no_bit(
            row in proptest::collection::vec(prop_oneof![4 => Just(0.0), 1 => 0.0_f64..3.0], 1..9000),
            zeros in 0_usize..9000,
        ) {
            let blocks = |row: &[f64]| -> Vec<f64> {
                row.chunks(BLOCK).map(|block| (Kernels::best().sum)(block)).collect()
            };
            let whole = fold(&blocks(&row));
            let mut longer = row.clone();
            longer.resize(row.len() + zeros, 0.0);
            prop_assert_eq!(fold(&blocks(&longer)).to_bits(), whole.to_bits());
            let tokens: Vec<u32> =
                (0..row.len() as u32).filter(|&token| row[token as usize] > 0.0).collect();
            let listed = sum_listed(&tokens, |at| row[tokens[at] as usize], &mut vec![1.0; 3]);
            prop_assert_eq!(listed.to_bits(), whole.to_bits());
        }

        #[test]
        fn long_folds_are_those_of_short_ones(values in proptest::collection::vec(0.0_f64..1.0, 1..3000)) {
            let half = values.len().next_power_of_two() / 2;
            let wanted = if half == 0 {
                values[0]
            } else {
                let halves: Vec<f64> = (0..half)
                    .map(|at| values[at] + values.get(at + half).copied().unwrap_or(0.0))
                    .collect();
                fold(&halves)
            };
            prop_assert_eq!(fold(&values).to_bits(), wanted.to_bits());
        }
    }

    #[test]
    fn nothing_sums_to_nothing() {
        assert_eq!(fold(&[]).to_bits(), 0);
        assert_eq!(sum_listed(&[], |_| 1.0, &mut Vec::new()).to_bits(), 0);
    }
}
