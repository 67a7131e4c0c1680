//! The numbers a rule computes with: `f64` in production, exact rationals in the proof.

#[cfg(any(test, feature = "proof"))]
pub mod fraction;
#[cfg(any(test, feature = "proof"))]
mod rational;

/// A field with an order; all that a rule may use.
///
/// Rules take weights by value or reference and never look behind this trait, so the text that is
/// proven over rationals is the text that ships over `f64`.
pub trait Weight: Clone + PartialOrd + std::fmt::Debug {
    /// The neutral element of addition.
    fn zero() -> Self;
    /// The neutral element of multiplication.
    fn one() -> Self;
    /// `num / den`, exact where the type is; `den > 0`.
    fn ratio(num: i64, den: i64) -> Self;
    /// Sum.
    fn add(&self, other: &Self) -> Self;
    /// Difference.
    fn sub(&self, other: &Self) -> Self;
    /// Product.
    fn mul(&self, other: &Self) -> Self;
    /// Quotient; the caller has made sure that `other` is not zero.
    fn div(&self, other: &Self) -> Self;
    /// The nearest `f64`.
    fn to_f64(&self) -> f64;

    /// Whether the weight is above zero.
    fn is_positive(&self) -> bool {
        *self > Self::zero()
    }
    /// The smaller of the two.
    fn min(&self, other: &Self) -> Self {
        if other < self { other.clone() } else { self.clone() }
    }
    /// The larger of the two.
    fn max(&self, other: &Self) -> Self {
        if other > self { other.clone() } else { self.clone() }
    }
    /// `max(self, 0)`.
    fn positive_part(&self) -> Self {
        if self.is_positive() { self.clone() } else { Self::zero() }
    }
}

impl Weight for f64 {
    fn zero() -> Self {
        0.0
    }
    fn one() -> Self {
        1.0
    }
    fn ratio(num: i64, den: i64) -> Self {
        num as f64 / den as f64
    }
    fn add(&self, other: &Self) -> Self {
        self + other
    }
    fn sub(&self, other: &Self) -> Self {
        self - other
    }
    fn mul(&self, other: &Self) -> Self {
        self * other
    }
    fn div(&self, other: &Self) -> Self {
        self / other
    }
    fn to_f64(&self) -> f64 {
        *self
    }
}
