//! A map from the callers' sequence numbers.

#![allow(clippy::disallowed_types)] // Nothing that can be seen depends on the order of this map.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Values by sequence number. A step looks each of its sequences up several times, and a tree of
/// numbers took a third of it.
pub(super) type ByNumber<T> = HashMap<i64, T, BuildHasherDefault<Spread>>;

/// One multiplication (Fibonacci hashing, Knuth 6.4).
#[derive(Debug, Clone, Default)]
pub(super) struct Spread(u64);

impl Hasher for Spread {
    fn write_i64(&mut self, number: i64) {
        let product = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The low bits of a product know only the low bits of the number; the map reads both ends.
        self.0 = product ^ (product >> 32);
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_i64(self.0 as i64 ^ i64::from(byte));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
