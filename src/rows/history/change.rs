//! What becomes of one logit, in numbers that a verifier on another device applies as well.

/// What becomes of a logit. Numbers that are neutral leave it as it is, bit for bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// Whether the token may not follow, whatever its logit is.
    pub banned: bool,
    /// Added first.
    pub bias: f32,
    /// What a sum below 0 is multiplied by.
    pub below: f32,
    /// What any other sum is multiplied by.
    pub above: f32,
    /// What such a product is divided by.
    pub divisor: f32,
    /// Taken off then, for all times that the token was output.
    pub frequency: f32,
    /// Taken off last.
    pub presence: f32,
}

impl Default for Change {
    /// Nothing.
    fn default() -> Self {
        Self {
            banned: false,
            bias: 0.0,
            below: 1.0,
            above: 1.0,
            divisor: 1.0,
            frequency: 0.0,
            presence: 0.0,
        }
    }
}

impl Change {
    /// The changed logit, each operation rounded.
    pub fn apply(&self, x: f32) -> f32 {
        if self.banned {
            return f32::NEG_INFINITY;
        }
        let y = x + self.bias;
        let y = if y < 0.0 { y * self.below } else { y * self.above / self.divisor };
        y - self.frequency - self.presence
    }

    /// The numbers, in the order in which they are applied.
    pub fn numbers(&self) -> [f32; 6] {
        [self.bias, self.below, self.above, self.divisor, self.frequency, self.presence]
    }
}
