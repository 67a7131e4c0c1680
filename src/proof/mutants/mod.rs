//! The mutants: for each the case that kills it, and the bias that it causes there.
//!
//! Each is one line of a real file behind the feature `mutants` (see [`crate::mutants`]), run through
//! the same enumerator as the proof. The right code must be exactly lossless on every case here, and
//! no mutant may be. Biases are those of the specification's list where the case is the same.

mod checks;
mod float;
mod list;

use crate::error::Result;
use crate::mutants;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::float::trials;
use crate::proof::golden::MODELS;
use crate::proof::growth::Case;
use crate::proof::past::{self, Setting};
use crate::proof::{parallel, run, run_steps};
use crate::shaping::weights::WeightParams;
use crate::verify::Core;
use crate::verify::law::Law;

use float::FLOAT_MUTANTS;
use list::MUTANTS;

/// Every mutant.
fn all() -> Vec<Mutant> {
    [MUTANTS, FLOAT_MUTANTS].concat()
}

/// How a mutant is looked for.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// One step of a rule on a golden model.
    Step(&'static str, Law, &'static [usize], Core),
    /// As many steps as a number of tokens takes.
    Rounds(&'static str, Law, &'static [usize], Core, usize),
    /// One step of a deterministic chain on B, whose rows depend on their own past.
    Past(&'static str, Setting),
    /// A shaped row, or another value.
    Shaping(&'static str, fn() -> Fraction),
    /// A case of the float path.
    Float(trials::Trial),
    /// Something else, in words.
    Other(&'static str, fn() -> Result<Fraction>),
}

impl Check {
    /// The total variation from the right law.
    fn distance(self) -> Result<Fraction> {
        let rows = |name| {
            let model = MODELS.iter().find(|model| model.name == name).unwrap_or(&MODELS[0]);
            model.rows(&WeightParams::<Fraction>::neutral())
        };
        Ok(match self {
            Self::Step(model, law, shape, core) => {
                run(&rows(model), &Case { law, shape }, core)?.distance
            }
            Self::Rounds(model, law, shape, core, length) => {
                run_steps(&rows(model), &Case { law, shape }, core, length)?.distance
            }
            Self::Past(_, setting) => {
                let case = Case { law: Law::Deterministic, shape: &[1, 1] };
                past::distance(&rows("B"), &case, Core::TargetOnly, setting)?
            }
            Self::Shaping(_, distance) => distance(),
            Self::Float(trial) => trial.distance(),
            Self::Other(_, distance) => distance()?,
        })
    }

    fn describe(self) -> String {
        let step =
            |model, law: Law, shape, core| format!("{model} {}{shape:?} {core:?}", law.name());
        match self {
            Self::Step(model, law, shape, core) => step(model, law, shape, core),
            Self::Rounds(model, law, shape, core, length) => {
                format!("{}, {length} tokens in steps", step(model, law, shape, core))
            }
            Self::Float(trial) => trial.describe(),
            Self::Shaping(case, _) | Self::Other(case, _) | Self::Past(case, _) => case.to_owned(),
        }
    }
}

/// A mistake with a name.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// The name in the line that it changes.
    pub name: &'static str,
    /// What it changes.
    pub change: &'static str,
    check: Check,
    /// The bias on that case.
    bias: (i64, i64),
    listed: Listed,
}

impl Mutant {
    /// What the mistake is in: `rules`, or `float`, what lies between a tensor and a token.
    pub fn group(&self) -> &'static str {
        let is_float = FLOAT_MUTANTS.iter().any(|mutant| mutant.name == self.name);
        if is_float { "float" } else { "rules" }
    }
}

/// Whether a mutant stands in the specification's list.
#[derive(Debug, Clone, Copy)]
enum Listed {
    /// With the bias that is found.
    AsFound,
    /// With another figure, for a reason.
    Otherwise(&'static str, &'static str),
    /// Not at all.
    No,
}

/// What became of a mutant.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The mutant.
    pub mutant: Mutant,
    /// The case that it was tried on.
    pub case: String,
    /// The total variation of the right code on that case.
    pub right: Fraction,
    /// The total variation of the mutant.
    pub distance: Fraction,
}

impl Trial {
    /// Whether the case tells the mutant from the right code.
    pub fn is_killed(&self) -> bool {
        !self.right.is_positive() && self.distance.is_positive()
    }

    /// The bias that the specification states; empty for a mutant that it does not list.
    pub fn stated(&self) -> String {
        match self.mutant.listed {
            Listed::AsFound => {
                let (num, den) = self.mutant.bias;
                Fraction::ratio(num, den).to_string()
            }
            Listed::Otherwise(stated, why) => format!("{stated} ({why})"),
            Listed::No => String::new(),
        }
    }

    /// Whether the bias is the one that is written down.
    pub fn is_as_written(&self) -> bool {
        let (num, den) = self.mutant.bias;
        self.distance == Fraction::ratio(num, den)
    }
}

/// Tries every mutant.
///
/// # Errors
/// Whatever a rule raises.
pub fn try_all() -> Result<Vec<Trial>> {
    parallel::map(&all(), |&mutant| {
        Ok(Trial {
            mutant,
            case: mutant.check.describe(),
            right: mutant.check.distance()?,
            distance: mutants::with(mutant.name, || mutant.check.distance())?,
        })
    })
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests;
