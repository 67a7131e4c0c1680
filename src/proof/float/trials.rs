//! Single cases in which a mistake shows.

use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::float::formats::FORMATS;
use crate::proof::float::models::{self, LogModel};
use crate::proof::float::stage::Stage;
use crate::proof::float::{DECISION_BOUND, LOGITS_BOUND, draws, variation};
use crate::proof::growth::Case;
use crate::rows::simd::Kernels;
use crate::shaping::{Params, Preset};
use crate::verify::Core;

/// Which rows.
#[derive(Debug, Clone, Copy)]
pub(in crate::proof) enum Rows {
    /// A golden model, by its place.
    Golden(usize),
    /// The same spread over blocks.
    Padded(usize),
    /// A generated model.
    Generated(u64),
    /// A model made for one mistake.
    Special(&'static str),
}

impl Rows {
    fn model(self) -> LogModel {
        match self {
            Self::Golden(place) => models::golden().swap_remove(place),
            Self::Padded(place) => models::golden()[place].padded(),
            Self::Generated(number) => models::generated(number),
            Self::Special(name) => models::special(name),
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(in crate::proof) enum Measure {
    /// The law of a step of a rule.
    Decisions(Core, Case),
    /// The target's rows.
    Target,
    /// The law of a draw from the target's rows, whose edges are dyadic numbers.
    Draws,
}

/// A case of floating point.
#[derive(Debug, Clone, Copy)]
pub(in crate::proof) struct Trial {
    pub(in crate::proof) rows: Rows,
    /// The place of the format in the list.
    pub(in crate::proof) format: usize,
    /// Temperature, `top_k`, `top_p`, `min_p`.
    pub(in crate::proof) params: (f64, i64, f64, f64),
    pub(in crate::proof) measure: Measure,
}

impl Trial {
    /// The distance that is measured, 0 if it is within its bound: to nine digits, or in numbers of
    /// `2^-53` for draws. An error counts as 1, and so does what is no law.
    pub(in crate::proof) fn distance(&self) -> Fraction {
        const DIGITS: i64 = 1_000_000_000;
        const NUMBERS: i64 = 1 << 53;
        let (found, bound, unit) = match self.measure {
            Measure::Decisions(..) => (self.measured(), DECISION_BOUND, DIGITS),
            Measure::Target => (self.measured(), LOGITS_BOUND, DIGITS),
            Measure::Draws => (self.measured(), 0.0, NUMBERS),
        };
        let distance = found.unwrap_or(1.0).min(1.0); // NaN, too, becomes 1.
        if distance <= bound {
            return Fraction::zero();
        }
        Fraction::ratio((distance * unit as f64).round() as i64, unit)
    }

    fn measured(&self) -> Result<f64> {
        let (temperature, top_k, top_p, min_p) = self.params;
        let params = Params::new(temperature, top_k, top_p, min_p, Preset::Transformers)?;
        let stage = Stage::new(&self.rows.model(), FORMATS[self.format], params, Kernels::best())?;
        Ok(match self.measure {
            Measure::Decisions(core, case) => stage.run(&stage.read, &case, core)?.distance,
            Measure::Target => variation(&stage.read.target, &stage.exact.target),
            Measure::Draws => draws::whole(&stage)?,
        })
    }

    pub(in crate::proof) fn describe(&self) -> String {
        let (temperature, top_k, top_p, min_p) = self.params;
        let mut text = format!("{}, {}", self.rows.model().name, FORMATS[self.format].describe());
        match self.measure {
            Measure::Decisions(core, Case { law, shape }) => {
                text = format!("{}{shape:?} {core:?} on {text}", law.name());
            }
            Measure::Target => text = format!("rows of {text}"),
            Measure::Draws => text = format!("draws from {text}"),
        }
        for (name, value, off) in [
            ("temperature", temperature, 1.0),
            ("top_k", top_k as f64, 0.0),
            ("top_p", top_p, 1.0),
            ("min_p", min_p, 0.0),
        ] {
            if (value - off).abs() > 0.0 {
                text = format!("{text}, {name}={value}");
            }
        }
        text
    }
}
