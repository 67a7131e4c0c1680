//! The certificate: every legal pair of rule and law over the golden models, a line for each.

use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::{MODELS, Rows};
use crate::proof::growth::{self, Case};
use crate::proof::{Finding, generated, parallel, run, run_steps};
use crate::shaping::Preset;
use crate::shaping::weights::WeightParams;
use crate::verify::law::Law;
use crate::verify::{self, Core, RULES};

/// The largest difference allowed between `f64` and the rationals.
pub const F64_TOLERANCE: f64 = 1e-14;

/// One line of the certificate: a rule on a law, over all models, shapes and shapings.
#[derive(Debug, Clone)]
pub struct Line {
    /// The rule's name in the literature.
    pub rule: &'static str,
    /// The law of the drafts.
    pub law: &'static str,
    /// Cases of one step that were enumerated.
    pub cases: usize,
    /// Cases of three tokens over as many steps as they take.
    pub steps: usize,
    /// Generated models.
    pub generated: usize,
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

/// The laws whose drafts are enumerated. Coupled drafts look at the noise of the race, which has no
/// finite list of branches.
pub(super) const PROVEN: [Law; 7] = [
    Law::Deterministic,
    Law::Chain,
    Law::Iid,
    Law::Swor,
    Law::TopPlusOne,
    Law::Mixed,
    Law::Unknown,
];

/// The shapings that the proof applies to target and drafter.
fn shapings() -> Vec<(&'static str, WeightParams<Fraction>)> {
    let neutral = WeightParams::<Fraction>::neutral;
    let ratio = Fraction::ratio;
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
        Law::Deterministic => &[&[1, 1], &[2, 1], &[2, 2], &[3, 1]],
        Law::Unknown => &[&[1, 1], &[2], &[2, 1]],
        Law::Iid | Law::Swor | Law::TopPlusOne | Law::Mixed => &[&[2], &[2, 1], &[2, 2], &[3, 1]],
    }
}

/// Whether a rule that is legal for the law also takes trees of this shape.
pub(super) fn takes(core: Core, shape: &[usize]) -> bool {
    core.takes_branches() || shape.iter().skip(1).all(|&children| children == 1)
}

/// Cases with more drafts than this are left to the wider suites.
pub(super) fn most_drafts(core: Core, is_plain: bool) -> usize {
    match (core.bisects(), is_plain) {
        // Bisecting in exact fractions of 40 bits costs milliseconds a draft.
        (true, true) => 100,
        (true, false) => 9,
        _ => 5_000,
    }
}

/// How many tokens are followed over several steps, whose noise must not meet.
const STEPS_LENGTH: usize = 3;

/// Cases whose one step has up to this many drafts times outcomes are followed over several steps.
fn most_in_steps(core: Core) -> usize {
    // As above; and the fractions grow with every step.
    if core.bisects() { 16 } else { 250 }
}

/// The work of one case: a line's rule on drafts of a law over a model's rows.
struct Job {
    line: usize,
    core: Core,
    rows: Rows<Fraction>,
    case: Case,
    kind: Kind,
}

/// What a case is for.
enum Kind {
    /// One step on a golden model; its name if the rows are plain, as its mean is in the tables.
    Step(Option<String>),
    /// Several steps on a golden model.
    Steps,
    /// One step on a generated model.
    Generated,
}

/// What a job found.
struct Found {
    distance: Fraction,
    expected: Fraction,
    branches: usize,
    f64_difference: f64,
}

impl Job {
    fn run(&self) -> Result<Found> {
        let (exact, float) = (self.over(&self.rows)?, self.over(&self.rows.to_f64())?);
        Ok(Found {
            f64_difference: float.law.largest_difference(&exact.law.map(Weight::to_f64)),
            distance: exact.distance,
            expected: exact.expected,
            branches: exact.branches,
        })
    }

    fn over<W: Weight>(&self, rows: &Rows<W>) -> Result<Finding<W>> {
        match self.kind {
            Kind::Steps => run_steps(rows, &self.case, self.core, STEPS_LENGTH),
            Kind::Step(_) | Kind::Generated => run(rows, &self.case, self.core),
        }
    }
}

/// Proves every legal pair of rule and law on the golden models.
///
/// # Errors
/// An error raised by a rule on a legal case.
pub fn prove() -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut jobs = Vec::new();
    for law in PROVEN {
        for rule in RULES {
            // Greedy is the same walk as target_only, over rows without chance.
            if rule.core == Core::Greedy || !rule.laws.contains(&law) {
                continue;
            }
            let (core, rule) = verify::resolve(rule.name, law)?;
            let law_name = law.name();
            if !lines.iter().any(|line| line.rule == rule && line.law == law_name) {
                jobs.extend(jobs_of(lines.len(), core, law));
                lines.push(Line {
                    rule,
                    law: law_name,
                    cases: 0,
                    steps: 0,
                    generated: 0,
                    branches: 0,
                    distance: "0".to_owned(),
                    f64_difference: 0.0,
                    expected: Vec::new(),
                });
            }
        }
    }
    let mut worst = vec![Fraction::zero(); lines.len()];
    for (job, found) in jobs.iter().zip(parallel::map(&jobs, Job::run)) {
        let found = found?;
        let line = &mut lines[job.line];
        line.branches += found.branches;
        line.f64_difference = line.f64_difference.max(found.f64_difference);
        match &job.kind {
            Kind::Step(name) => {
                line.cases += 1;
                line.expected.extend(name.clone().map(|at| (at, found.expected.to_string())));
            }
            Kind::Steps => line.steps += 1,
            Kind::Generated => line.generated += 1,
        }
        if found.distance > worst[job.line] {
            line.distance = found.distance.to_string();
            worst[job.line] = found.distance;
        }
    }
    Ok(lines)
}

fn jobs_of(line: usize, core: Core, law: Law) -> Vec<Job> {
    let mut jobs = Vec::new();
    for model in &MODELS {
        for &shape in shapes(law) {
            let case = Case { law, shape };
            let drafts = growth::num_drafts(model.vocab(), &case);
            if !takes(core, shape) {
                continue;
            }
            for (shaping, params) in shapings() {
                let is_plain = shaping == "plain";
                // Shaped rows are enumerated on the smaller shapes: the rule sees only rows.
                if drafts <= most_drafts(core, is_plain)
                    && (is_plain || shape.iter().product::<usize>() <= 2)
                {
                    let name = is_plain.then(|| format!("{} {shape:?}", model.name));
                    let rows = model.rows(&params);
                    jobs.push(Job { line, core, rows, case, kind: Kind::Step(name) });
                }
            }
            let outcomes = drafts * model.vocab().pow(shape.len() as u32 + 1);
            if outcomes <= most_in_steps(core) {
                let rows = model.rows(&WeightParams::neutral());
                jobs.push(Job { line, core, rows, case, kind: Kind::Steps });
            }
        }
    }
    for number in 0..generated::PER_PAIR {
        let (rows, case) = generated::model(number, core, law);
        jobs.push(Job { line, core, rows, case, kind: Kind::Generated });
    }
    jobs
}
