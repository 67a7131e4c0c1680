//! Exponentials as weights: `exp(y)` times a power of two, the same bits from wherever they are seen.
//!
//! A row's probabilities are `exp(y) / sum exp(y)`, and any common factor cancels. With a power of two
//! for the factor it cancels *exactly*: `exp(y) 2^-a` and `exp(y) 2^-b` have the same mantissa, so
//! blocks that were summed under different exponents are brought together without rounding, and a
//! weight has the same bits in every pass that meets it.
//!
//! Error: with `n + r = y log2(e)`, `n` whole and `|r| <= 1/2`, a fused multiplication gives `r` to
//! within `3e-8` for every `y` in reach, the polynomial misses `2^r` by `9e-9` and rounds by `1.5e-7` at
//! most (tested: [`RELATIVE_ERROR`] in all). The constant `log2(e)` is off by `1.4e-8` of itself, which
//! acts on all of a row's logits alike, as if the temperature were: `1.4e-8` for each nat between two
//! tokens.

/// Largest relative error of a weight, apart from that of the constant `log2(e)` (see the module).
pub const RELATIVE_ERROR: f64 = 2e-7;

/// Relative error of the constant `log2(e)` as an `f32`.
pub const SCALE_ERROR: f64 = 1.4e-8;

/// Values beyond this are brought near 0 before they are exponentiated: the arithmetic below needs
/// whole numbers of [`MAGIC`]'s neighbourhood.
pub const REACH: f32 = 1_048_576.0;

/// Weights span so many powers of two below the window's exponent; lower ones are 0. They stay normal
/// `f32` numbers, whose exponents end at `2^-126`.
const BELOW: i32 = 124;

/// Weights above `2^ABOVE` are capped there.
const ABOVE: i32 = 100;

/// Adding it rounds to a whole number and leaves that number in the low bits. It is even, so that a
/// tie goes the same way under every even exponent.
const MAGIC: f32 = 12_582_912.0;

/// Which powers of two weights are taken in, and where they end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    exponent: i32,
    magic: f32,
    floor: f32,
    ceiling: f32,
}

impl Window {
    /// The window whose weights are `exp(y) 2^-exponent`; `exponent` is even.
    pub fn new(exponent: i32) -> Self {
        debug_assert!(exponent % 2 == 0);
        let nats = |power: i32| (f64::from(power) * std::f64::consts::LN_2) as f32;
        Self {
            exponent,
            magic: MAGIC - exponent as f32,
            floor: nats(exponent - BELOW),
            ceiling: nats(exponent + ABOVE),
        }
    }

    /// The window in which `y`, of at most [`REACH`], has a weight of 1/2 to 4.
    pub fn around(y: f32) -> Self {
        Self::new(2 * (f64::from(y) * (std::f64::consts::LOG2_E / 2.0)).floor() as i32)
    }

    /// The power of two that weights are divided by.
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// Values below it have the weight 0.
    pub fn floor(&self) -> f32 {
        self.floor
    }

    /// `exp(y) 2^-exponent` for values from `cut` on, 0 below; `cut` is at least [`Window::floor`].
    /// What lies above the ceiling, NaN included, gets the ceiling's huge weight.
    #[inline(always)]
    pub fn weight(&self, y: f32, cut: f32) -> f32 {
        let weight = self.exp(if y < self.ceiling { y } else { self.ceiling });
        if y < cut { 0.0 } else { weight }
    }

    /// `exp(y) 2^-exponent` for `floor <= y <= ceiling`.
    ///
    /// `2^n` is multiplied by adding `n` to the exponent's bits; `2^r` is a Chebyshev fit.
    #[inline(always)]
    fn exp(&self, y: f32) -> f32 {
        const LOG2_E: f32 = std::f32::consts::LOG2_E;
        let shifted = y.mul_add(LOG2_E, self.magic);
        let r = y.mul_add(LOG2_E, self.magic - shifted);
        let mut p = 0.000_154_532_62_f32;
        p = p.mul_add(r, 0.001_339_097_9);
        p = p.mul_add(r, 0.009_618_082);
        p = p.mul_add(r, 0.055_503_57);
        p = p.mul_add(r, 0.240_226_5);
        p = p.mul_add(r, std::f32::consts::LN_2);
        p = p.mul_add(r, 1.0);
        f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
    }
}

/// `2^power` as an `f64`; 0 where that is less than the smallest normal number.
pub fn power_of_two(power: i32) -> f64 {
    if power < -1022 { 0.0 } else { f64::from_bits(((power.min(1023) + 1023) as u64) << 52) }
}

/// The even number `2 m` with `4^m <= x < 4^(m + 1)`, for a positive normal `x`.
pub fn even_exponent(x: f64) -> i32 {
    let exponent = ((x.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    exponent & !1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_stated_error() {
        let constant = f64::from(std::f32::consts::LOG2_E) / std::f64::consts::LOG2_E - 1.0;
        assert!(constant.abs() < SCALE_ERROR);
        for centre in [0.0_f64, -1.0, 700.0, -3000.0, 90_000.0, 1e6] {
            let window = Window::around(centre as f32);
            let unit = f64::from(window.exponent) * std::f64::consts::LN_2;
            for i in 0..=400_000 {
                let y = (centre - 85.0 + 100.0 * f64::from(i) / 4e5) as f32;
                let wanted = (f64::from(y) * (1.0 + constant) - unit).exp();
                let error = f64::from(window.weight(y, window.floor)) / wanted - 1.0;
                assert!(error.abs() < RELATIVE_ERROR, "{y}: {error:e}");
            }
        }
    }

    #[test]
    fn windows_differ_by_powers_of_two_alone() {
        for i in -320_000..320_000 {
            let y = i as f32 * 1.7e-4;
            let (near, far) = (Window::new(0), Window::new(-20));
            let scaled = near.weight(y, near.floor) * 1_048_576.0;
            assert_eq!(scaled.to_bits(), far.weight(y, near.floor).to_bits(), "{y}");
        }
    }

    #[test]
    fn what_lies_outside_the_window_is_zero_or_huge() {
        let window = Window::around(3.0);
        for below in [f32::NEG_INFINITY, f32::MIN, -1e6, window.floor.next_down()] {
            assert_eq!(window.weight(below, window.floor).to_bits(), 0);
        }
        assert!(window.weight(window.floor, window.floor) >= f32::MIN_POSITIVE);
        for above in [f32::NAN, f32::INFINITY, f32::MAX, 1e6, 90.0] {
            assert!(window.weight(above, window.floor) > 1e29, "{above}");
        }
    }

    #[test]
    fn windows_hold_what_they_are_made_around() {
        for y in [0.0, 0.3, -0.3, 5.0, -1000.0, REACH, -REACH, 88.0] {
            let window = Window::around(y);
            let weight = window.weight(y, window.floor);
            assert!((0.5..=4.1).contains(&weight), "{y}: {weight}");
        }
    }

    #[test]
    fn powers_and_exponents_fit() {
        for power in [-1022, -60, -1, 0, 1, 2, 1000] {
            assert!((power_of_two(power).log2() - f64::from(power)).abs() < 1e-12);
            assert_eq!(even_exponent(1.5 * power_of_two(power)), power.div_euclid(2) * 2);
        }
        assert_eq!(power_of_two(-1_000_000).to_bits(), 0);
    }
}
