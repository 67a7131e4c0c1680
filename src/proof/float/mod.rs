//! The proof over the rows that ship: floating point, lazily read, compared with production's numbers.
//!
//! The table ([`super::prove`]) shows that the rules are lossless over exact rationals. Here the same
//! cases go through everything that lies between a tensor and a token: element types, exponentials, sums,
//! the shaped rows, the lazy view with its caches, `u den < num`, and the draw's two levels, at every
//! instruction set. Three distances are bounded:
//!
//! 1. *decisions*: the law of a whole step over all `2^53` numbers, drafts drawn from the rows as they
//!    are read, against the product of the target's rows as they are read;
//! 2. *rows*: a row as it is read, against the exact softmax of the rounded logits, shaped by the
//!    definition; for probabilities against the rounded values divided by their sum;
//! 3. *whole*: the law of a step whose drafts are drawn from the exact rows, against the product of the
//!    target's exact rows. Total variation adds up along a path, so this is at most the decisions' bound,
//!    the rows' bound for each level, and the bound of the drafter's rows for each draw.

mod draws;
mod formats;
mod models;
mod stage;
#[cfg(feature = "mutants")]
pub(super) mod trials;
mod uniforms;

use crate::error::Result;
use crate::proof::growth::{self, Case};
use crate::proof::{parallel, table};
use crate::rows::simd::Kernels;
use crate::shaping::Params;
use crate::verify::law::Law;
use crate::verify::{self, Core, RULES};

pub use draws::{ACCEPT_BOUND, DRAW_BOUND, DrawLine, prove as prove_draws};
use formats::{FORMATS, Format, Kind};
use models::LogModel;
use stage::Stage;

/// The bound of the rounding of all decisions of a step.
pub const DECISION_BOUND: f64 = 1e-12;

/// The bound of a row of logits as it is read.
pub const LOGITS_BOUND: f64 = 3e-7;

/// The bound of a row of probabilities as it is read.
pub const PROBABILITIES_BOUND: f64 = 1e-15;

/// What was found for one format and instruction set, over all pairs of rule and law.
#[derive(Debug, Clone)]
pub struct FloatLine {
    /// Element types and kinds of both sides' rows.
    pub format: String,
    /// The instruction set.
    pub level: &'static str,
    /// Cases: a rule on a law, a model, a shape and a shaping.
    pub cases: usize,
    /// Combinations of drafts and intervals of numbers.
    pub branches: usize,
    /// The largest distance of decisions, and the case that has it.
    pub decisions: f64,
    /// The case of that.
    pub worst: String,
    /// The largest distance of a row of the target.
    pub target_rows: f64,
    /// The largest distance of a row of the drafter.
    pub drafter_rows: f64,
    /// The bound of these.
    pub drafter_bound: f64,
    /// The largest distance of whole steps, each as a share of its own bound.
    pub whole: f64,
    /// The largest bound of a whole step.
    pub whole_bound: f64,
}

impl FloatLine {
    /// Whether every distance is within its bound.
    pub fn holds(&self) -> bool {
        self.decisions <= DECISION_BOUND
            && self.target_rows <= LOGITS_BOUND
            && self.drafter_rows <= self.drafter_bound
            && self.whole <= 1.0
    }
}

/// Models for each pair of rule and law.
const GENERATED: u64 = 16;

/// The work of one case in one format.
struct Job<'a> {
    core: Core,
    case: Case,
    model: &'a LogModel,
    shaping: (&'static str, Params),
    format: Format,
    kernels: &'static Kernels,
}

/// What a job found.
#[derive(Clone, Copy)]
struct Found {
    branches: usize,
    decisions: f64,
    target_rows: f64,
    drafter_rows: f64,
    whole: f64,
    whole_bound: f64,
}

fn variation(found: &[Vec<f64>], wanted: &[Vec<f64>]) -> f64 {
    let of = |(found, wanted): (&Vec<f64>, &Vec<f64>)| {
        found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
    };
    found.iter().zip(wanted).map(of).fold(0.0, larger)
}

/// The larger of two distances; a NaN, which is within no bound, stays (`f64::max` drops it).
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

fn drafter_bound(format: Format) -> f64 {
    match format.kind {
        Kind::Logits => LOGITS_BOUND,
        Kind::Probabilities => PROBABILITIES_BOUND,
    }
}

impl Job<'_> {
    fn run(&self) -> Result<Found> {
        let stage = Stage::new(self.model, self.format, self.shaping.1, self.kernels)?;
        let read = stage.run(&stage.read, &self.case, self.core)?;
        let whole = stage.run(&stage.exact, &self.case, self.core)?.distance;
        let levels = self.case.shape.len() + 1;
        let draws = growth::num_draws(&self.case);
        let whole_bound = DECISION_BOUND
            + levels as f64 * LOGITS_BOUND
            + draws as f64 * drafter_bound(self.format);
        Ok(Found {
            branches: read.branches,
            decisions: read.distance,
            target_rows: variation(&stage.read.target, &stage.exact.target),
            drafter_rows: variation(&stage.read.drafter, &stage.exact.drafter),
            whole,
            whole_bound,
        })
    }

    fn describe(&self, rule: &str) -> String {
        let Case { law, shape } = self.case;
        format!("{rule} on {}{shape:?}, {}, {}", law.name(), self.model.name, self.shaping.0)
    }
}

/// Runs every pair of rule and law through every format at every instruction set.
///
/// # Errors
/// An error raised by a rule on a legal case.
pub fn prove() -> Result<Vec<FloatLine>> {
    let golden = models::golden();
    let padded: Vec<LogModel> = golden.iter().map(LogModel::padded).collect();
    let places: Vec<(Format, &'static Kernels)> = FORMATS
        .into_iter()
        .flat_map(|format| Kernels::available().into_iter().map(move |kernels| (format, kernels)))
        .collect();
    // Every place has generated models of its own.
    let generated: Vec<Vec<LogModel>> = (0..places.len() as u64)
        .map(|place| (0..GENERATED).map(|i| models::generated(place * GENERATED + i)).collect())
        .collect();
    let shapings = models::shapings()?;
    let pairs = pairs()?;
    let mut jobs = Vec::new();
    for (place, &(format, kernels)) in places.iter().enumerate() {
        for (pair, &(_, core, law)) in pairs.iter().enumerate() {
            let mut add = |model, shape, shaping| {
                let case = Case { law, shape };
                jobs.push((place, pair, Job { core, case, model, shaping, format, kernels }));
            };
            for model in &golden {
                for shape in shapes(model.vocab(), core, law) {
                    // Shaped rows are enumerated on the smaller shapes: the rule sees only rows.
                    let is_small = shape.iter().product::<usize>() <= 2 && shape.len() <= 2;
                    for &shaping in &shapings[..if is_small { shapings.len() } else { 1 }] {
                        add(model, shape, shaping);
                    }
                }
            }
            for (number, model) in generated[place].iter().enumerate() {
                let shapes = shapes(model.vocab(), core, law);
                add(model, shapes[number % shapes.len()], shapings[number % shapings.len()]);
            }
            for model in &padded {
                add(model, shapes(4, core, law)[0], shapings[place % shapings.len()]);
            }
        }
    }
    let mut lines: Vec<FloatLine> =
        places.iter().map(|&(format, kernels)| FloatLine::new(format, kernels)).collect();
    let found = parallel::map(&jobs, |(_, _, job)| job.run());
    for ((place, pair, job), found) in jobs.iter().zip(found) {
        lines[*place].add(&found?, || job.describe(pairs[*pair].0));
    }
    Ok(lines)
}

/// The shapes of a law that a rule takes, and that are quickly enumerated.
fn shapes(vocab: usize, core: Core, law: Law) -> Vec<&'static [usize]> {
    let all = table::shapes(law).iter().copied();
    let is_quick = |shape: &&'static [usize]| {
        growth::num_drafts(vocab, &Case { law, shape })
            <= table::most_drafts(core, false).min(MOST_DRAFTS)
    };
    let quick = all.filter(|shape| table::takes(core, shape)).filter(is_quick);
    let mut quick: Vec<_> = quick.collect();
    if quick.is_empty() {
        quick.push(&[1]);
    }
    quick
}

/// Cases with more drafts than this are left to the table of rationals.
const MOST_DRAFTS: usize = 64;

/// Every pair of rule and law, each once.
fn pairs() -> Result<Vec<(&'static str, Core, Law)>> {
    let mut pairs: Vec<(&'static str, Core, Law)> = Vec::new();
    for law in table::PROVEN {
        // Greedy is the same walk as target_only, over rows without chance.
        let legal = |rule: &&verify::Rule| rule.core != Core::Greedy && rule.laws.contains(&law);
        for rule in RULES.iter().filter(legal) {
            let (core, name) = verify::resolve(rule.name, law)?;
            if !pairs.iter().any(|pair| (pair.0, pair.2) == (name, law)) {
                pairs.push((name, core, law));
            }
        }
    }
    Ok(pairs)
}

impl FloatLine {
    fn new(format: Format, kernels: &Kernels) -> Self {
        Self {
            format: format.describe(),
            level: kernels.name,
            cases: 0,
            branches: 0,
            decisions: 0.0,
            worst: String::new(),
            target_rows: 0.0,
            drafter_rows: 0.0,
            drafter_bound: drafter_bound(format),
            whole: 0.0,
            whole_bound: 0.0,
        }
    }

    fn add(&mut self, found: &Found, describe: impl FnOnce() -> String) {
        self.cases += 1;
        self.branches += found.branches;
        let decisions = larger(self.decisions, found.decisions);
        if decisions.to_bits() != self.decisions.to_bits() || self.worst.is_empty() {
            self.decisions = decisions;
            self.worst = describe();
        }
        self.target_rows = larger(self.target_rows, found.target_rows);
        self.drafter_rows = larger(self.drafter_rows, found.drafter_rows);
        self.whole = larger(self.whole, found.whole / found.whole_bound);
        self.whole_bound = larger(self.whole_bound, found.whole_bound);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_that_is_no_number_is_within_no_bound() {
        let mut line = FloatLine::new(FORMATS[0], Kernels::best());
        let right = Found {
            branches: 1,
            decisions: 1e-16,
            target_rows: 1e-8,
            drafter_rows: 1e-8,
            whole: 1e-8,
            whole_bound: 1e-6,
        };
        line.add(&right, String::new);
        assert!(line.holds());
        let measures: [fn(&mut Found) -> &mut f64; 4] = [
            |found| &mut found.decisions,
            |found| &mut found.target_rows,
            |found| &mut found.drafter_rows,
            |found| &mut found.whole,
        ];
        for measure in measures {
            let mut line = line.clone();
            let mut wrong = right;
            *measure(&mut wrong) = f64::NAN;
            line.add(&wrong, String::new);
            line.add(&right, String::new);
            assert!(!line.holds(), "{line:?}");
        }
    }

    #[test]
    #[ignore = "a minute"]
    fn everything_holds() {
        for line in prove_draws().unwrap() {
            assert!(line.holds(), "{line:?}");
        }
        for line in prove().unwrap() {
            assert!(line.holds(), "{line:?}");
        }
    }
}
