//! Drafts whose declared law is not the one they were made by: each is biased, and by how much.
//!
//! This is the evidence for refusing pairs of rule and law, for checking a draft against its law, and
//! for the growers' rule that a drawn token is never removed, reordered or exchanged. The machinery is
//! the proof's: the same rules, the same enumerator.

mod changes;
mod list;

use crate::chance::enumerator::enumerate;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::{MODELS, Rows};
use crate::proof::growth::{Case, Grown, grow};
use crate::proof::summarise;
use crate::shaping::weights::WeightParams;
use crate::verify::law::Law;
use crate::verify::{self, Core};

pub use list::MISDECLARED;

/// What happens to a tree after its tokens were drawn, before a law is declared.
type Change = fn(&mut Grown<Fraction>, &Rows<Fraction>);

/// A draft that is not what it says, under a rule that believes it.
#[derive(Debug, Clone, Copy)]
pub struct Misdeclared {
    /// Its name in the list of mutants.
    pub name: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// The model of [`MODELS`].
    pub model: &'static str,
    /// How the tree is really grown.
    pub grown: Case,
    change: Change,
    /// The law that the draft declares.
    pub declared: Law,
    /// The rule that believes it.
    pub core: Core,
    /// The bias.
    pub bias: (i64, i64),
    /// Whether the specification states it, too.
    is_listed: bool,
}

/// Every misdeclared draft with the total variation that it causes.
///
/// # Errors
/// Whatever a rule raises.
pub fn try_misdeclared() -> Result<Vec<(Misdeclared, Fraction)>> {
    MISDECLARED.iter().map(|draft| Ok((*draft, draft.distance()?))).collect()
}

impl Misdeclared {
    /// The model, how the tree is grown, and the rule that believes the declared law.
    pub fn describe(&self) -> String {
        let Case { law, shape } = self.grown;
        let declared = self.declared.name();
        format!("{} {}{shape:?} as {declared}, {:?}", self.model, law.name(), self.core)
    }

    /// The bias in the words of the specification; empty if it has none.
    pub fn stated(&self) -> String {
        if !self.is_listed {
            return String::new();
        }
        if self.name == "td/sort_siblings" {
            return "113/1400 (there each sibling keeps its law from the order of drawing)".into();
        }
        let (num, den) = self.bias;
        Fraction::ratio(num, den).to_string()
    }

    /// Whether a found bias is the one that is written down.
    pub fn is_biased_as_written(&self, distance: &Fraction) -> bool {
        let (num, den) = self.bias;
        *distance == Fraction::ratio(num, den)
    }

    /// The total variation between what the rule emits, continued, and the target's law.
    ///
    /// # Errors
    /// Whatever the rule raises.
    pub fn distance(&self) -> Result<Fraction> {
        let rows = self.rows();
        let outcomes = enumerate(|choices| {
            let mut grown = grow(&rows, &self.grown, choices)?;
            (self.change)(&mut grown, &rows);
            let (draft, mut view) = grown.declare(self.declared)?;
            verify::decide(self.core, &draft, &mut view, choices)
        })?;
        Ok(summarise(&rows, self.grown.shape.len() + 1, &outcomes).distance)
    }

    fn rows(&self) -> Rows<Fraction> {
        let plain = WeightParams::neutral();
        match self.model {
            "tempered" => Rows::new(&[B0], &[B0_SQUARED], &plain),
            "masked" => Rows::new(&[MASKED], &[UNMASKED], &plain),
            "by depth" => Rows::new(BY_DEPTH, &[B0], &plain),
            name => MODELS
                .iter()
                .find(|model| model.name == name)
                .expect("a model of the list")
                .rows(&plain),
        }
    }
}

const B0: &[(i64, i64)] = &[(1, 2), (1, 3), (1, 6)];
const B0_SQUARED: &[(i64, i64)] = &[(9, 14), (4, 14), (1, 14)];
// A fair row of three tokens whose first one a grammar forbids, and a drafter that does not know.
const MASKED: &[(i64, i64)] = &[(0, 1), (1, 2), (1, 2)];
const UNMASKED: &[(i64, i64)] = &[(1, 2), (1, 2), (0, 1)];
// A target whose rows depend on the path, and a drafter with one row.
const BY_DEPTH: &[&[(i64, i64)]] =
    &[&[(1, 6), (1, 2), (1, 3)], &[(1, 4), (1, 4), (1, 2)], &[(1, 2), (1, 3), (1, 6)]];

#[cfg(test)]
mod tests;
