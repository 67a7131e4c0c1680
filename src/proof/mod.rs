//! The proof: the shipped rules over exact rationals, every draft and every choice enumerated.
//!
//! For each legal (law, shape, rule) and each golden model, the joint law of the emitted tokens,
//! continued by the target to the tree's depth plus one, must equal the target's own law: difference
//! exactly 0. The same decision code over `f64` must agree to `1e-14`.

pub mod field;
pub mod float;
mod generated;
mod golden;
mod growth;
mod misdeclared;
#[cfg(feature = "mutants")]
pub mod mutants;
mod parallel;
#[cfg(any(test, feature = "mutants"))]
mod past;
mod table;

use crate::chance::enumerator::{OutputLaw, enumerate};
use crate::error::Result;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::view::Outcome;
use crate::verify::{self, Core};

pub use golden::{MODELS, Model, Rows};
pub use growth::{Case, draft};
pub use misdeclared::{MISDECLARED, Misdeclared, try_misdeclared};
pub use table::{F64_TOLERANCE, Line, prove, shapes};

/// What one case gave.
#[derive(Debug, Clone)]
pub struct Finding<W> {
    /// Total variation between the emitted law, continued, and the target's.
    pub distance: W,
    /// Mean emitted tokens.
    pub expected: W,
    /// Combinations of branches walked.
    pub branches: usize,
    /// Residuals that were empty; an error in exact arithmetic.
    pub fallbacks: usize,
    /// The law of emitted strings, continued.
    pub law: OutputLaw<W, Vec<u32>>,
}

/// Enumerates one step of a rule on a case, over drafts and decisions jointly.
///
/// # Errors
/// Whatever the rule raises.
pub fn run<W: Weight>(rows: &Rows<W>, case: &Case, core: Core) -> Result<Finding<W>> {
    let outcomes = enumerate(|choices| {
        let (draft, mut view) = growth::draft(rows, case, choices)?;
        verify::decide(core, &draft, &mut view, choices)
    })?;
    Ok(summarise(rows, case.shape.len() + 1, &outcomes))
}

/// Enumerates as many steps as it takes to emit `length` tokens, each step at its own position.
///
/// # Errors
/// Whatever the rule raises.
pub fn run_steps<W: Weight>(
    rows: &Rows<W>,
    case: &Case,
    core: Core,
    length: usize,
) -> Result<Finding<W>> {
    let outcomes = enumerate(|choices| {
        let mut whole = Outcome::default();
        while whole.tokens.len() < length {
            let position = whole.tokens.len() as u64;
            choices.set_position(mutate!("rng/position_noise_reused", position, 0));
            let after = rows.after(&whole.tokens);
            let (draft, mut view) = growth::draft(&after, case, choices)?;
            let outcome = verify::decide(core, &draft, &mut view, choices)?;
            whole.tokens.extend(&outcome.tokens);
            whole.fallbacks += outcome.fallbacks;
        }
        whole.tokens.truncate(length);
        Ok(whole)
    })?;
    Ok(summarise(rows, length, &outcomes))
}

fn summarise<W: Weight>(rows: &Rows<W>, length: usize, outcomes: &[(Outcome, W)]) -> Finding<W> {
    let mut emitted = OutputLaw::empty();
    let mut expected = W::zero();
    let mut fallbacks = 0;
    for (outcome, weight) in outcomes {
        emitted.add(outcome.tokens.clone(), weight);
        expected = expected.add(&weight.mul(&W::ratio(outcome.tokens.len() as i64, 1)));
        fallbacks += outcome.fallbacks;
    }
    let mut law = OutputLaw::empty();
    for (tokens, weight) in emitted.iter() {
        rows.continue_to(length, tokens, weight, &mut law);
    }
    let mut wanted = OutputLaw::empty();
    rows.continue_to(length, &[], &W::one(), &mut wanted);
    Finding { distance: law.distance(&wanted), expected, branches: outcomes.len(), fallbacks, law }
}

#[cfg(test)]
mod append_only;
#[cfg(test)]
mod lossy_tests;
#[cfg(test)]
mod multi_path_tests;
#[cfg(test)]
mod one_more_draw;
#[cfg(test)]
mod tests;
