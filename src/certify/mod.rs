//! The proof: the shipped rules over exact rationals, every draft and every choice enumerated.
//!
//! For each legal (law, shape, rule) and each golden model, the joint law of the emitted tokens,
//! continued by the target to the tree's depth plus one, must equal the target's own law: difference
//! exactly 0. The same decision code over `f64` must agree to `1e-14`.

mod golden;
mod growth;

use num_rational::BigRational;

use crate::dist::Preset;
use crate::dist::weights::WeightParams;
use crate::error::Result;
use crate::exact::{OutputLaw, enumerate};
use crate::num::Weight;
use crate::verify::law::Law;
use crate::verify::view::Outcome;
use crate::verify::{self, Core, RULES};

pub use golden::{MODELS, Model, Rows};
pub use growth::{Case, draft};

/// The largest difference allowed between `f64` and the rationals.
pub const F64_TOLERANCE: f64 = 1e-14;

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
pub fn run_rounds<W: Weight>(
    rows: &Rows<W>,
    case: &Case,
    core: Core,
    length: usize,
) -> Result<Finding<W>> {
    let outcomes = enumerate(|choices| {
        let mut whole = Outcome::default();
        while whole.tokens.len() < length {
            choices.set_position(whole.tokens.len() as u64);
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

/// One line of the certificate: a rule on a law, over all models, shapes and shapings.
#[derive(Debug, Clone)]
pub struct Line {
    /// The rule's name in the literature.
    pub rule: &'static str,
    /// The law of the drafts.
    pub law: &'static str,
    /// Cases enumerated.
    pub cases: usize,
    /// Branches walked over all cases.
    pub branches: usize,
    /// The largest total variation, as an exact fraction ("0" when the rule is lossless).
    pub distance: String,
    /// The largest difference of one probability between `f64` and the rationals.
    pub f64_difference: f64,
    /// Mean emitted tokens by case, as exact fractions: the case and the value.
    pub expected: Vec<(String, String)>,
}

impl Line {
    /// Whether the line is a proof: exactly lossless, and `f64` within its tolerance.
    pub fn holds(&self) -> bool {
        self.distance == "0" && self.f64_difference <= F64_TOLERANCE
    }
}

/// The shapings that the proof applies to target and drafter.
fn shapings() -> Vec<(&'static str, WeightParams<BigRational>)> {
    let neutral = WeightParams::<BigRational>::neutral;
    let ratio = <BigRational as Weight>::ratio;
    vec![
        ("plain", neutral()),
        ("temperature=1/2", WeightParams { inverse_temperature: 2, ..neutral() }),
        ("top_k=2", WeightParams { top_k: 2, ..neutral() }),
        (
            "temperature=1/2 top_p=7/10 min_p=1/5",
            WeightParams {
                inverse_temperature: 2,
                top_p: ratio(7, 10),
                min_p: ratio(1, 5),
                ..neutral()
            },
        ),
        (
            "vllm min_p=3/10 top_k=3 top_p=3/5",
            WeightParams {
                top_k: 3,
                top_p: ratio(3, 5),
                min_p: ratio(3, 10),
                preset: Preset::Vllm,
                ..neutral()
            },
        ),
    ]
}

/// The shapes that a law is enumerated on.
pub fn shapes(law: Law) -> &'static [&'static [usize]] {
    match law {
        Law::Chain | Law::Coupled => &[&[], &[1], &[1, 1], &[1, 1, 1]],
        Law::Deterministic | Law::Unknown => &[&[1, 1], &[2, 1], &[2, 2], &[3, 1]],
        Law::Iid | Law::Swor | Law::TopPlusOne | Law::Mixed => &[&[2], &[2, 1], &[2, 2], &[3, 1]],
    }
}

/// Whether a rule that is legal for the law also takes trees of this shape.
fn takes(core: Core, shape: &[usize]) -> bool {
    core != Core::Gbv || shape.iter().skip(1).all(|&children| children == 1)
}

/// Cases with more drafts than this are left to the wider suites.
fn most_drafts(core: Core, is_plain: bool) -> usize {
    match core {
        // Bisecting in exact fractions of 40 bits costs milliseconds a draft.
        Core::KSeq if is_plain => 100,
        Core::KSeq => 9,
        _ => 5_000,
    }
}

/// Proves every legal pair of rule and law on the golden models.
///
/// # Errors
/// An error raised by a rule on a legal case.
pub fn certify() -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for law in [Law::Deterministic, Law::Chain, Law::Iid, Law::Swor, Law::TopPlusOne, Law::Mixed] {
        let mut done = Vec::new();
        for rule in &RULES {
            // Greedy is the same walk as target_only, over rows without chance.
            if rule.core == Core::Greedy || !rule.laws.contains(&law) {
                continue;
            }
            let (core, name) = verify::resolve(rule.name, law)?;
            if !done.contains(&name) {
                done.push(name);
                lines.push(line(name, core, law)?);
            }
        }
    }
    Ok(lines)
}

fn line(rule: &'static str, core: Core, law: Law) -> Result<Line> {
    let mut line = Line {
        rule,
        law: law.name(),
        cases: 0,
        branches: 0,
        distance: "0".to_owned(),
        f64_difference: 0.0,
        expected: Vec::new(),
    };
    let mut worst = <BigRational as Weight>::zero();
    for model in &MODELS {
        for &shape in shapes(law) {
            let case = Case { law, shape };
            let num_drafts = growth::num_drafts(model.vocab(), &case);
            if !takes(core, shape) {
                continue;
            }
            for (shaping, params) in shapings() {
                if num_drafts > most_drafts(core, shaping == "plain") {
                    continue;
                }
                // Shaped rows are enumerated on the smaller shapes: the rule sees only rows.
                if shaping != "plain" && shape.iter().product::<usize>() > 2 {
                    continue;
                }
                let rows = model.rows(&params);
                let exact = run(&rows, &case, core)?;
                let float = run(&rows.to_f64(), &case, core)?;
                line.cases += 1;
                line.branches += exact.branches;
                if exact.distance > worst {
                    worst = exact.distance.clone();
                }
                let difference = float.law.largest_difference(&exact.law.map(Weight::to_f64));
                line.f64_difference = line.f64_difference.max(difference);
                if shaping == "plain" {
                    let at = format!("{} {shape:?}", model.name);
                    line.expected.push((at, exact.expected.to_string()));
                }
            }
        }
    }
    line.distance = worst.to_string();
    Ok(line)
}

#[cfg(test)]
mod append_only;
#[cfg(test)]
mod multi_path_tests;
#[cfg(test)]
mod tests;
