//! Philox4x32-10: a random function of an address, not a stream.
//!
//! Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The same
//! address gives the same number on every thread, machine and device, whatever else was drawn.

use crate::mutants::mutate;

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The ten rounds of Philox4x32: a bijection of the counter for each key.
#[inline(always)]
pub fn philox(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    philox_lanes(key, counter.map(|word| [word])).map(|[word]| word)
}

/// [`philox`] of `N` counters at once, word by word, in a form that compilers vectorise.
#[inline(always)]
pub fn philox_lanes<const N: usize>(key: [u32; 2], counters: [[u32; N]; 4]) -> [[u32; N]; 4] {
    let [mut k0, mut k1] = key;
    let [mut c0, mut c1, mut c2, mut c3] = counters;
    for round in 0..ROUNDS {
        if round > 0 {
            k0 = k0.wrapping_add(WEYL[0]);
            k1 = k1.wrapping_add(WEYL[1]);
        }
        for lane in 0..N {
            let low = u64::from(MULTIPLIER[0]) * u64::from(c0[lane]);
            let high = u64::from(MULTIPLIER[1]) * u64::from(c2[lane]);
            c0[lane] = (high >> 32) as u32 ^ c1[lane] ^ k0;
            c2[lane] = (low >> 32) as u32 ^ c3[lane] ^ k1;
            c1[lane] = high as u32;
            c3[lane] = low as u32;
        }
    }
    [c0, c1, c2, c3]
}

/// The key of a seed: its low word first.
#[inline(always)]
pub fn key(seed: u64) -> [u32; 2] {
    [seed as u32, mutate!("seed/high_word_dropped", (seed >> 32) as u32, 0)]
}

/// A multiple of `2^-53` in `[0, 1)` from two words, the first one the more significant.
#[inline(always)]
pub fn uniform(high: u32, low: u32) -> f64 {
    const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
    let bits = mutate!("float/uniforms_of_24_bits", bits, bits >> 29 << 29);
    bits as f64 * SCALE
}

/// The seed of row `row` of a batch that was given one seed; row 0 keeps the seed itself.
///
/// Distinct rows get distinct keys: the row is the counter of a Philox call under the seed, and a
/// row's noise is drawn under the result, so rows share no addresses but by a collision of 64 bits.
pub fn derive_seed(seed: u64, row: u64) -> u64 {
    if mutate!("rng/batch_rows_share_noise", row == 0, true) {
        return seed;
    }
    // The last word keeps these counters apart from those of any noise (whose purpose is small).
    let high = mutate!("seed/row_cut_to_one_word", (row >> 32) as u32, 0);
    let words = philox(key(seed), [row as u32, high, 0, u32::MAX]);
    u64::from(words[1]) << 32 | u64::from(words[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_answers() {
        // Random123's kat_vectors for philox4x32-10.
        let ones = u32::MAX;
        let cases = [
            ([0; 2], [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 2], [ones; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, wanted) in cases {
            assert_eq!(philox(key, counter), wanted);
        }
    }

    #[test]
    fn uniforms_fill_the_half_open_unit_interval() {
        assert_eq!(uniform(0, 0).to_bits(), 0.0_f64.to_bits());
        let largest = uniform(u32::MAX, u32::MAX);
        assert!(largest < 1.0);
        assert_eq!(largest.to_bits(), (1.0 - f64::EPSILON / 2.0).to_bits());
        assert_eq!(uniform(0x8000_0000, 0).to_bits(), 0.5_f64.to_bits());
    }

    #[test]
    fn derived_seeds_keep_row_zero_and_differ() {
        assert_eq!(derive_seed(7, 0), 7);
        let mut seeds: Vec<u64> = (0..1000).map(|row| derive_seed(7, row)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 1000);
    }
}
