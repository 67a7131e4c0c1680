//! The bench's table: for each rule its exact distance and mean length beside the rules that ship.

use super::search::{self, Counterexample};
use super::{Measured, RULES, Rule};
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::{MODELS, Rows};
use crate::proof::growth::{self, Case};
use crate::proof::{generated, parallel, run};
use crate::shaping::weights::WeightParams;
use crate::verify::Core;
use crate::verify::law::Law;

/// A rule on one golden model.
#[derive(Debug, Clone)]
pub struct FieldCase {
    /// The model and the shape.
    pub case: String,
    /// Total variation from the target's law, an exact fraction.
    pub distance: String,
    /// Mean accepted tokens of a step plus one; empty where several steps are followed.
    pub expected: String,
    /// Mean emitted tokens of the rules that ship, on the whole drafts, by name.
    pub shipped: Vec<(&'static str, String)>,
}

/// A rule of the field on all models.
#[derive(Debug, Clone)]
pub struct FieldLine {
    /// Its name on the bench.
    pub rule: &'static str,
    /// Where it is described.
    pub source: &'static str,
    /// Whether its authors say that it is lossless.
    pub is_claimed_lossless: bool,
    /// Whether it is stated to be lossless here.
    pub is_stated_lossless: bool,
    /// The law of the whole drafts.
    pub law: &'static str,
    /// The golden models.
    pub cases: Vec<FieldCase>,
    /// The largest distance of all cases, an exact fraction.
    pub distance: String,
    /// Generated models that were enumerated, and on how many of them the rule is biased.
    pub generated: (usize, usize),
    /// Branches walked over golden and generated models.
    pub branches: usize,
    /// Draws from rows on which nothing was left.
    pub fallbacks: usize,
    /// Small models that were tried to find a counterexample.
    pub tried: usize,
    /// The smallest counterexample found.
    pub counterexample: Option<Counterexample>,
}

impl FieldLine {
    /// Whether no case and no model tried tells the rule from the target.
    pub fn is_lossless(&self) -> bool {
        self.distance == "0" && self.generated.1 == 0 && self.counterexample.is_none()
    }

    /// Whether the line is as it is stated to be.
    pub fn holds(&self) -> bool {
        self.is_lossless() == self.is_stated_lossless && self.fallbacks == 0
    }
}

/// Whether a rule's drafts of one step, over all sequences, are few enough.
fn is_small(rule: &Rule, vocab: usize, shape: &'static [usize]) -> bool {
    let one = growth::num_drafts(vocab, &Case { law: rule.law, shape });
    // Of several steps each has as many.
    let most = if rule.length.is_some() { 16 } else { 256 };
    one.saturating_pow(rule.sequences as u32) <= most
}

/// The rules that ship on drafts of a law, beside which a rule is shown.
fn shipped(law: Law) -> &'static [(&'static str, Core)] {
    match law {
        Law::Chain => &[("token", Core::TopDown), ("block", Core::Lifted)],
        Law::Iid => &[
            ("specinfer", Core::TopDown),
            ("traversal", Core::Lifted),
            ("gbv", Core::Gbv),
            ("global_resolution", Core::GlobalResolution),
        ],
        _ => &[("target_only", Core::TargetOnly)],
    }
}

fn golden(rule: &Rule) -> Result<Vec<(FieldCase, Measured)>> {
    let mut found = Vec::new();
    for model in &MODELS {
        let rows: Rows<Fraction> = model.rows(&WeightParams::neutral());
        for &shape in rule.shapes {
            if !is_small(rule, model.vocab(), shape) {
                continue;
            }
            let measured = rule.measure(&rows, shape)?;
            let mut case = FieldCase {
                case: format!("{} {shape:?}", model.name),
                distance: measured.distance.to_string(),
                expected: String::new(),
                shipped: Vec::new(),
            };
            if rule.is_one_step() {
                case.expected = measured.accepted.add(&Fraction::one()).to_string();
                for &(name, core) in shipped(rule.law) {
                    let beside = run(&rows, &Case { law: rule.law, shape }, core)?;
                    case.shipped.push((name, beside.expected.to_string()));
                }
            }
            found.push((case, measured));
        }
    }
    Ok(found)
}

/// What a rule does on the generated models that have its shapes.
fn on_generated(rule: &Rule) -> Result<Vec<Measured>> {
    let law = if rule.law == Law::Iid { Law::Iid } else { Law::Chain };
    let mut found = Vec::new();
    for number in 0..generated::PER_PAIR {
        let (rows, case) = generated::model(number, Core::Lifted, law);
        let vocab = rows.target(&[]).len();
        if rule.shapes.contains(&case.shape) && is_small(rule, vocab, case.shape) {
            found.push(rule.measure(&rows, case.shape)?);
        }
    }
    Ok(found)
}

fn line(rule: &Rule) -> Result<FieldLine> {
    let (cases, mut measured): (Vec<FieldCase>, Vec<Measured>) = golden(rule)?.into_iter().unzip();
    let generated = on_generated(rule)?;
    let biased = generated.iter().filter(|found| found.distance.is_positive()).count();
    let generated_count = generated.len();
    let largest = measured
        .iter()
        .fold(Fraction::zero(), |largest, found| Weight::max(&largest, &found.distance))
        .to_string();
    measured.extend(generated);
    let (counterexample, tried) = search::smallest(rule)?;
    Ok(FieldLine {
        rule: rule.name,
        source: rule.source,
        is_claimed_lossless: rule.is_claimed_lossless,
        is_stated_lossless: rule.is_lossless,
        law: rule.law.name(),
        cases,
        distance: largest,
        generated: (generated_count, biased),
        branches: measured.iter().map(|found| found.branches).sum(),
        fallbacks: measured.iter().map(|found| found.fallbacks).sum(),
        tried,
        counterexample,
    })
}

/// Runs every rule of the field.
///
/// # Errors
/// An error raised by a rule.
pub fn prove_field() -> Result<Vec<FieldLine>> {
    parallel::map(RULES, |rule| line(rule)).into_iter().collect()
}
