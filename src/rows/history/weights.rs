//! The penalties over weights (exponentiated logits), which the proof computes with.

use crate::number::Weight;
use crate::rows::history::Concern;

/// Penalties of weights that are at most 1, that is, of logits that are not positive.
#[derive(Debug, Clone)]
pub struct WeightPenalties<W> {
    /// The repetition penalty, a whole number so that powers of rationals stay rational.
    pub repetition: u32,
    /// `exp(-frequency)`.
    pub frequency: W,
    /// `exp(-presence)`.
    pub presence: W,
}

impl<W: Weight> WeightPenalties<W> {
    /// The weight of a token concerned; [`crate::rows::history::Penalties::apply`] on its logarithm.
    pub fn apply(&self, concern: &Concern, weight: &W) -> W {
        if concern.banned {
            return W::zero();
        }
        let power = |x: &W, times: u32| (0..times).fold(W::one(), |y, _| y.mul(x));
        let mut weight = power(weight, if concern.seen { self.repetition } else { 1 });
        if concern.count > 0 {
            weight = weight.mul(&power(&self.frequency, concern.count)).mul(&self.presence);
        }
        weight
    }
}
