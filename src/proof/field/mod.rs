//! The field's rules on the bench: rules and schedulers published elsewhere, in the proof's enumeration.
//!
//! Each is written from its public description, which it cites, and runs over the same rational
//! models, drafts and choices as the rules that ship. The joint law of what it emits, continued by the
//! target, is compared with the target's own law. A rule that is not lossless is shown with the
//! smallest model found on which it is not.

mod adaptive;
mod block;
mod budgets;
mod chain;
mod hierarchical;
mod noise;
mod resolution;
mod search;
mod siblings;
mod stops;
mod table;
mod typical;

use crate::chance::enumerator::{Enumerator, OutputLaw, enumerate};
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::verify::law::Law;

pub use search::Counterexample;
pub use table::{FieldCase, FieldLine, prove_field};

/// What one run of a rule did.
#[derive(Debug, Clone, Default)]
pub(super) struct Run {
    /// The tokens that each sequence got.
    pub(super) emitted: Vec<Vec<u32>>,
    /// How many drafted tokens are among them.
    pub(super) accepted: usize,
    /// Draws from rows on which nothing was left.
    pub(super) fallbacks: usize,
}

/// A published rule or scheduler.
#[derive(Debug)]
pub(super) struct Rule {
    /// Its name on the bench.
    pub(super) name: &'static str,
    /// Where it is described.
    pub(super) source: &'static str,
    /// Whether its authors say that the law of the output is the target's.
    pub(super) is_claimed_lossless: bool,
    /// Whether it is, as far as has been found.
    pub(super) is_lossless: bool,
    /// The law of the whole drafts, before any is cut.
    pub(super) law: Law,
    /// The shapes it is run on, small ones first.
    pub(super) shapes: &'static [&'static [usize]],
    /// How many sequences are decoded at once.
    pub(super) sequences: usize,
    /// How many tokens are followed; `None` for one step to its depth plus one.
    pub(super) length: Option<usize>,
    /// How many tokens the models have on which a counterexample is looked for.
    pub(super) tried_tokens: usize,
    /// One run, drafts included.
    pub(super) run: Step,
}

/// A run of a rule on a model and a shape.
type Step = fn(&Rows<Fraction>, &'static [usize], &mut Enumerator<Fraction>) -> Result<Run>;

/// Every rule on the bench.
static RULES: &[&Rule] = &[
    &hierarchical::NAIVE,
    &hierarchical::CAPPED,
    &hierarchical::RELEASED,
    &resolution::GLOBAL,
    &block::STEP,
    &block::STEPS,
    &adaptive::THRESHOLD,
    &adaptive::SCHEDULER,
    &adaptive::UNSTOPPED,
    &adaptive::BY_ROWS,
    &budgets::BATCH,
    &budgets::BATCH_UNSTOPPED,
    &budgets::RANKED,
    &budgets::DEEPEST_FIRST,
    &budgets::BY_DRAWS,
    &adaptive::STALE,
    &adaptive::STALE_BY_POSITION,
    &stops::CONFIDENCE,
    &stops::CONFIDENCE_BLOCK,
    &stops::CONFIDENCE_LATE,
    &stops::LOW_TOKEN,
    &stops::MEAN,
    &stops::MEAN_OF_EARLIER,
    &noise::SHARED,
    &typical::TYPICAL,
    &siblings::BEAMS,
];

/// The emitted tokens of every sequence, with their probability.
type Joint = OutputLaw<Fraction, Vec<Vec<u32>>>;

/// What a rule does on one model.
pub(super) struct Measured {
    /// Total variation between the emitted law, continued, and the target's.
    pub(super) distance: Fraction,
    /// Mean number of accepted tokens of one run.
    pub(super) accepted: Fraction,
    /// Combinations of branches walked.
    pub(super) branches: usize,
    /// Draws on which nothing was left.
    pub(super) fallbacks: usize,
    /// The emitted law, continued, and the target's.
    pub(super) laws: (Joint, Joint),
}

impl Rule {
    /// A rule for one step of a chain that is claimed to be lossless, and is.
    const fn chain(name: &'static str, source: &'static str, run: Step) -> Self {
        Self {
            name,
            source,
            is_claimed_lossless: true,
            is_lossless: true,
            law: Law::Chain,
            shapes: &[&[1], &[1, 1], &[1, 1, 1]],
            sequences: 1,
            length: None,
            tried_tokens: 2,
            run,
        }
    }

    /// Whether a run is one step of one sequence, whose length can be told.
    pub(super) fn is_one_step(&self) -> bool {
        self.sequences == 1 && self.length.is_none()
    }

    /// Enumerates the rule on a model, over drafts and decisions jointly.
    pub(super) fn measure(
        &self,
        rows: &Rows<Fraction>,
        shape: &'static [usize],
    ) -> Result<Measured> {
        let outcomes = enumerate(|choices| (self.run)(rows, shape, choices))?;
        let length = self.length.unwrap_or(shape.len() + 1);
        let mut emitted = Joint::empty();
        let mut accepted = Fraction::zero();
        let mut fallbacks = 0;
        for (run, weight) in &outcomes {
            emitted.add(run.emitted.clone(), weight);
            accepted = accepted.add(&weight.mul(&Fraction::ratio(run.accepted as i64, 1)));
            fallbacks += run.fallbacks;
        }
        let mut found = Joint::empty();
        for (sequences, weight) in emitted.iter() {
            proceed(rows, length, sequences, weight, &mut found);
        }
        let mut wanted = Joint::empty();
        proceed(rows, length, &vec![vec![]; self.sequences], &Fraction::one(), &mut wanted);
        Ok(Measured {
            distance: found.distance(&wanted),
            accepted,
            branches: outcomes.len(),
            fallbacks,
            laws: (found, wanted),
        })
    }
}

/// Adds every continuation of all sequences by the target, each on its own.
fn proceed(
    rows: &Rows<Fraction>,
    length: usize,
    sequences: &[Vec<u32>],
    weight: &Fraction,
    law: &mut Joint,
) {
    let mut all = vec![(Vec::new(), weight.clone())];
    for tokens in sequences {
        let mut longer = OutputLaw::empty();
        rows.continue_to(length, tokens, &Fraction::one(), &mut longer);
        all = all
            .iter()
            .flat_map(|(before, weight)| {
                longer.iter().map(|(tokens, share)| {
                    let mut joint: Vec<Vec<u32>> = before.clone();
                    joint.push(tokens.clone());
                    (joint, weight.mul(share))
                })
            })
            .collect();
    }
    for (joint, weight) in all {
        law.add(joint, &weight);
    }
}

#[cfg(test)]
mod tests;
