//! Sampling parameters: what is done to a row of logits, and in whose order.

use crate::error::{Error, Result};

/// Whose order and conventions shaping follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// temperature, top-k, top-p, min-p.
    Transformers,
    /// temperature (below 1e-5: greedy), min-p, top-k, top-p.
    Vllm,
}

/// Sampling parameters, checked at construction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    temperature: f64,
    pub(super) top_k: usize,
    pub(super) top_p: f64,
    pub(super) min_p: f64,
    pub(super) preset: Preset,
}

impl Default for Params {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, preset: Preset::Transformers }
    }
}

impl Params {
    /// Checks the ranges; `top_k` of -1 and 0 mean off.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] names the parameter.
    pub fn new(
        temperature: f64,
        top_k: i64,
        top_p: f64,
        min_p: f64,
        preset: Preset,
    ) -> Result<Self> {
        let check = |legal: bool, name, value: String, wanted| {
            if legal { Ok(()) } else { Err(Error::ParamOutOfRange { name, value, wanted }) }
        };
        // Logits are divided in f32: a divisor that is infinite or 0 there leaves no distribution.
        let divisors = f64::from(f32::MIN_POSITIVE)..=f64::from(f32::MAX);
        check(
            temperature == 0.0 || divisors.contains(&temperature),
            "temperature",
            temperature.to_string(),
            "0 (greedy) or a number that is a normal float32, 1.18e-38 to 3.4e38",
        )?;
        check(top_k >= -1, "top_k", top_k.to_string(), "an integer >= -1 (-1 and 0: off)")?;
        check(
            top_p > 0.0 && top_p <= 1.0,
            "top_p",
            top_p.to_string(),
            "a number in (0, 1] (1: off)",
        )?;
        check(
            (0.0..=1.0).contains(&min_p),
            "min_p",
            min_p.to_string(),
            "a number in [0, 1] (0: off)",
        )?;
        Ok(Self { temperature, top_k: top_k.max(0) as usize, top_p, min_p, preset })
    }

    /// Whether rows are one-hot: temperature 0, or below vLLM's threshold under its preset.
    pub fn is_greedy(&self) -> bool {
        let floor = match self.preset {
            Preset::Transformers => 0.0,
            Preset::Vllm => 1e-5,
        };
        self.temperature <= 0.0 || self.temperature < floor
    }

    /// Whether any step after the temperature is on.
    pub(super) fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// The temperature.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// top-k, top-p and min-p; 0, 1 and 0 are off.
    pub fn cuts(&self) -> (usize, f64, f64) {
        (self.top_k, self.top_p, self.min_p)
    }

    /// Whose order and conventions are followed.
    pub fn preset(&self) -> Preset {
        self.preset
    }
}
