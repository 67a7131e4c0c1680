//! Where all randomness of a case comes from.

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub(crate) struct Bits(u64);

/// Numbers at which something has gone wrong before, or might.
const EXTREMES: [u64; 24] = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    63,
    64,
    65,
    1 << 14,
    (1 << 14) - 1,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 2,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    1 << 53,
    (1 << 63) - 1,
    u64::MAX,
]; // fmt: skip

impl Bits {
    pub(crate) fn new(seed: u64, case: u64) -> Self {
        let mut bits = Self(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bits.next();
        bits
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to n - 1.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// `low` to `high`, both included.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    /// Uniform in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Normal, by Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// A number from anywhere in 64 bits, most often from where it matters.
    pub(crate) fn extreme(&mut self) -> u64 {
        if self.one_in(4) { self.next() >> self.below(64) } else { self.pick(&EXTREMES) }
    }

    /// Small as a rule, any size at times.
    pub(crate) fn size(&mut self, usual: usize) -> usize {
        if self.one_in(16) { self.extreme() as usize } else { self.below(usual + 1) }
    }

    /// A number as a parameter might be, legal or not.
    pub(crate) fn real(&mut self) -> f64 {
        const SPECIAL: [f64; 18] = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            2.0,
            1e-5,
            1e-8,
            1e-45,
            1e-300,
            1e10,
            4e38,
            1e300,
            f64::MAX,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::EPSILON,
        ]; // fmt: skip
        if self.one_in(2) { self.pick(&SPECIAL) } else { self.normal() }
    }
}
