//! Exact fractions: two 64-bit words where they fit, as long as needed where they do not.
//!
//! The proof multiplies and adds millions of small fractions. Nearly all of them fit two words, and
//! only products that do not go through [`BigRational`]; the value is exact either way.

use std::cmp::Ordering;
use std::fmt;

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::ToPrimitive;

use crate::number::Weight;

/// A rational number in lowest terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fraction(Form);

/// `Small` whenever both words fit, so that equal values have equal forms.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// In lowest terms, `den > 0` and `num > i64::MIN`.
    Small {
        num: i64,
        den: i64,
    },
    Big(Box<BigRational>),
}

/// Whole numbers up to this are exact in `f64`.
const EXACT_IN_F64: u64 = 1 << 53;

impl Fraction {
    /// `num / den`, which are in lowest terms with `den > 0`.
    fn reduced(num: i128, den: i128) -> Self {
        match (i64::try_from(num), i64::try_from(den)) {
            (Ok(num), Ok(den)) if num > i64::MIN => Self(Form::Small { num, den }),
            _ => Self(Form::Big(Box::new(BigRational::new_raw(num.into(), den.into())))),
        }
    }

    fn big(&self) -> BigRational {
        match &self.0 {
            &Form::Small { num, den } => BigRational::new_raw(num.into(), den.into()),
            Form::Big(value) => (**value).clone(),
        }
    }

    /// The result of an operation on the two as big numbers.
    fn widely(
        &self,
        other: &Self,
        operation: impl FnOnce(BigRational, BigRational) -> BigRational,
    ) -> Self {
        Self::from(operation(self.big(), other.big()))
    }

    /// `self + sign * other`.
    fn sum(&self, other: &Self, sign: i64) -> Self {
        let (&Form::Small { num: a, den: b }, &Form::Small { num: c, den: d }) =
            (&self.0, &other.0)
        else {
            return self.widely(other, |x, y| if sign > 0 { x + y } else { x - y });
        };
        // Knuth, The Art of Computer Programming, 4.5.1: only divisors of gcd(b, d) can cancel.
        let shared = gcd(b.unsigned_abs(), d.unsigned_abs()) as i64;
        let (b, rest) = (b / shared, d / shared);
        let num = i128::from(a) * i128::from(rest) + i128::from(sign * c) * i128::from(b);
        // Division of 128 bits is slow, and is rarely needed.
        let residue = i64::try_from(num)
            .map_or_else(|_| (num % i128::from(shared)) as i64, |num| num % shared);
        let cancels = gcd(residue.unsigned_abs(), shared.unsigned_abs()) as i64;
        let num = match i64::try_from(num) {
            Ok(num) => i128::from(num / cancels),
            Err(_) => num / i128::from(cancels),
        };
        Self::reduced(num, i128::from(b) * i128::from(d / cancels))
    }

    /// `(a / b) * (c / d)` for two fractions in lowest terms with positive denominators.
    fn product([a, b]: [i64; 2], [c, d]: [i64; 2]) -> Self {
        let left = gcd(a.unsigned_abs(), d.unsigned_abs()) as i64;
        let right = gcd(c.unsigned_abs(), b.unsigned_abs()) as i64;
        let num = i128::from(a / left) * i128::from(c / right);
        Self::reduced(num, i128::from(b / right) * i128::from(d / left))
    }
}

/// The greatest common divisor (Stein's binary method); `gcd(0, x) = x`.
fn gcd(mut a: u64, mut b: u64) -> u64 {
    if a == 0 || b == 0 {
        return a | b;
    }
    let shift = (a | b).trailing_zeros();
    a >>= a.trailing_zeros();
    while b != 0 {
        b >>= b.trailing_zeros();
        if a > b {
            std::mem::swap(&mut a, &mut b);
        }
        b -= a;
    }
    a << shift
}

impl From<BigRational> for Fraction {
    fn from(value: BigRational) -> Self {
        match (value.numer().to_i64(), value.denom().to_i64()) {
            (Some(num), Some(den)) if num > i64::MIN => Self(Form::Small { num, den }),
            _ => Self(Form::Big(Box::new(value))),
        }
    }
}

impl PartialOrd for Fraction {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Fraction {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (&Form::Small { num: a, den: b }, &Form::Small { num: c, den: d }) => {
                (i128::from(a) * i128::from(d)).cmp(&(i128::from(c) * i128::from(b)))
            }
            _ => self.big().cmp(&other.big()),
        }
    }
}

/// `3/4`; whole numbers without a denominator.
impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.big().fmt(f)
    }
}

impl Weight for Fraction {
    fn zero() -> Self {
        Self(Form::Small { num: 0, den: 1 })
    }
    fn one() -> Self {
        Self(Form::Small { num: 1, den: 1 })
    }
    fn ratio(num: i64, den: i64) -> Self {
        Self::from(BigRational::new(BigInt::from(num), BigInt::from(den)))
    }
    fn add(&self, other: &Self) -> Self {
        self.sum(other, 1)
    }
    fn sub(&self, other: &Self) -> Self {
        self.sum(other, -1)
    }
    fn mul(&self, other: &Self) -> Self {
        match (&self.0, &other.0) {
            (&Form::Small { num: a, den: b }, &Form::Small { num: c, den: d }) => {
                Self::product([a, b], [c, d])
            }
            _ => self.widely(other, |x, y| x * y),
        }
    }
    fn div(&self, other: &Self) -> Self {
        match (&self.0, &other.0) {
            (&Form::Small { num: a, den: b }, &Form::Small { num: c, den: d }) if c != 0 => {
                Self::product([a, b], [c.signum() * d, c.abs()])
            }
            _ => self.widely(other, |x, y| x / y),
        }
    }
    fn to_f64(&self) -> f64 {
        match &self.0 {
            // Both exact, so the one rounding is the division's.
            &Form::Small { num, den }
                if num.unsigned_abs() <= EXACT_IN_F64 && den.unsigned_abs() <= EXACT_IN_F64 =>
            {
                num as f64 / den as f64
            }
            _ => ToPrimitive::to_f64(&self.big()).unwrap_or(f64::NAN),
        }
    }
    fn is_positive(&self) -> bool {
        match &self.0 {
            Form::Small { num, .. } => *num > 0,
            Form::Big(value) => Weight::is_positive(&**value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Words from all scales: small ones cancel, large ones overflow.
    fn word() -> impl Strategy<Value = i64> {
        (any::<i64>(), 0_u32..63).prop_map(|(word, shift)| (word >> shift).max(-i64::MAX))
    }

    fn pair() -> impl Strategy<Value = (i64, i64)> {
        (word(), word().prop_map(|den| den.abs().max(1)))
    }

    proptest! {
        #[test]
        fn agrees_with_big_rationals((a, b) in pair(), (c, d) in pair()) {
            let (x, y) = (Fraction::ratio(a, b), Fraction::ratio(c, d));
            let (u, v) = (x.big(), y.big());
            prop_assert_eq!(x.add(&y), Fraction::from(&u + &v));
            prop_assert_eq!(x.sub(&y), Fraction::from(&u - &v));
            prop_assert_eq!(x.mul(&y), Fraction::from(&u * &v));
            prop_assert_eq!(x.mul(&y).mul(&y), Fraction::from(&u * &v * &v));
            if c != 0 {
                prop_assert_eq!(x.div(&y), Fraction::from(&u / &v));
            }
            prop_assert_eq!(x.cmp(&y), u.cmp(&v));
            prop_assert_eq!(x.is_positive(), u.is_positive());
            prop_assert_eq!(x.to_string(), u.to_string());
            let difference = Weight::to_f64(&x) - ToPrimitive::to_f64(&u).unwrap();
            prop_assert!(difference.abs() <= f64::EPSILON * Weight::to_f64(&x).abs());
        }
    }
}
