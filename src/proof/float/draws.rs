//! Draws and acceptances by themselves: how many of the `2^53` numbers lead to each token.

use crate::error::Result;
use crate::proof::float::formats::{FORMATS, Format};
use crate::proof::float::larger;
use crate::proof::float::models::{self, LogModel};
use crate::proof::float::stage::Stage;
use crate::proof::float::uniforms;
use crate::proof::parallel;
use crate::rows::simd::Kernels;
use crate::shaping::Params;
use crate::verify::view::{Mix, View};

/// The bound of a draw, for each token of the row: total variation from the weights as they are read.
///
/// A token's cell is off by at most six roundings of `2^-53`: of the sum that it ends at; of the same sum
/// once more, and of the block's own sum in another order, which both come to the block's last token; of
/// the number times the total at either end; and numbers are counted whole. Half of that counts.
pub const DRAW_BOUND: f64 = 3.0 / (1_u64 << 53) as f64;

/// The bound of an acceptance: difference from the exact ratio. The number times the denominator is
/// rounded, and numbers are counted whole.
pub const ACCEPT_BOUND: f64 = 1.0 / (1_u64 << 52) as f64;

const COUNT: f64 = (1_u64 << 53) as f64;

/// What was found for one format and instruction set.
#[derive(Debug, Clone)]
pub struct DrawLine {
    /// Element types and kinds of both sides' rows.
    pub format: String,
    /// The instruction set.
    pub level: &'static str,
    /// Mixtures that were drawn from.
    pub draws: usize,
    /// The largest distance of a draw, for each token of its row.
    pub distance: f64,
    /// The same among rows of a power of two of equal weights, whose draws are exact.
    pub exact: f64,
    /// Acceptances.
    pub acceptances: usize,
    /// The largest difference of an acceptance.
    pub difference: f64,
}

impl DrawLine {
    /// Whether every distance is within its bound.
    pub fn holds(&self) -> bool {
        self.distance <= DRAW_BOUND && self.exact <= 0.0 && self.difference <= ACCEPT_BOUND
    }
}

/// The target's row, the row without its likeliest token, and what a drafted token leaves.
fn mixtures(target: &[f64]) -> [Mix<f64>; 3] {
    let top = (0..target.len()).max_by(|&a, &b| target[a].total_cmp(&target[b]));
    let removed = top.map(|token| token as u32).into_iter().collect();
    [Mix::target(), Mix { removed, ..Mix::target() }, Mix { b: 1.0, ..Mix::target() }]
}

/// Calls `each` with the distance of each mixture of each row: its law by counting numbers against its
/// weights as they are read, for each token. A mixture is drawn from with the probability that it has, so
/// that is what its distance counts with.
fn measure(stage: &Stage, mut each: impl FnMut(&Mix<f64>, f64)) -> Result<()> {
    for (number, target) in stage.read.target.iter().enumerate() {
        let drafter = &stage.read.drafter[number];
        for mix in mixtures(target) {
            let mut wanted: Vec<f64> =
                target.iter().zip(drafter).map(|(p, q)| (p - mix.b * q).max(0.0)).collect();
            for &token in &mix.removed {
                wanted[token as usize] = 0.0;
            }
            let total: f64 = wanted.iter().sum();
            if total <= f64::EPSILON {
                continue; // Nothing but rounding is left.
            }
            let mut found = vec![0.0; wanted.len()];
            stage.look(number, |mut view, node| {
                for (token, count) in uniforms::counts(&mut view.mixture(node, &mix)?)? {
                    found[token as usize] = total * (count as f64 / COUNT);
                }
                Ok(())
            })?;
            each(&mix, variation(&found, &wanted) / wanted.len() as f64);
        }
    }
    Ok(())
}

fn variation(found: &[f64], wanted: &[f64]) -> f64 {
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
}

/// The largest distance of a draw from a model's rows as they are, over all tokens together.
pub(super) fn whole(stage: &Stage) -> Result<f64> {
    let mut largest = 0.0_f64;
    let vocab = stage.read.target[0].len() as f64;
    measure(stage, |mix, distance| {
        if *mix == Mix::target() {
            largest = larger(largest, distance * vocab);
        }
    })?;
    Ok(largest)
}

/// `count` tokens of equal weight, spread over a few blocks among others that are masked out.
fn equal(count: usize) -> LogModel {
    let row: Vec<f64> = (0..5000)
        .map(|token| if token * count % 5000 < count { 0.0 } else { f64::NEG_INFINITY })
        .collect();
    LogModel {
        name: format!("{count} equal tokens"),
        target: vec![row.clone()],
        drafter: vec![row],
        sums: vec![1.0],
    }
}

/// Many tokens of all sizes, spread over a few blocks among others that are masked out.
fn long() -> LogModel {
    let row = |step: usize| {
        let value = |token: usize| -((token * step % 997) as f64) / 50.0;
        let is_kept = |token: &usize| token.is_multiple_of(53);
        (0..5000).map(|t| if is_kept(&t) { value(t) } else { f64::NEG_INFINITY }).collect()
    };
    LogModel {
        name: "long".to_owned(),
        target: vec![row(7)],
        drafter: vec![row(11)],
        sums: vec![1.0],
    }
}

/// Generated models for each place.
const GENERATED: u64 = 40;

/// Counts numbers for rows of every kind, in every format at every instruction set.
///
/// # Errors
/// None on these rows.
pub fn prove() -> Result<Vec<DrawLine>> {
    let places: Vec<(Format, &'static Kernels)> = FORMATS
        .into_iter()
        .flat_map(|format| Kernels::available().into_iter().map(move |kernels| (format, kernels)))
        .collect();
    parallel::map(&places, |&(format, kernels)| line(format, kernels)).into_iter().collect()
}

fn line(format: Format, kernels: &'static Kernels) -> Result<DrawLine> {
    let mut line = DrawLine {
        format: format.describe(),
        level: kernels.name,
        draws: 0,
        distance: 0.0,
        exact: 0.0,
        acceptances: 0,
        difference: 0.0,
    };
    for power in 0..4 {
        let stage = Stage::new(&equal(1 << power), format, Params::default(), kernels)?;
        line.exact = larger(line.exact, whole(&stage)?);
    }
    let generated = (0..GENERATED).map(models::generated);
    for (model, (_, params)) in generated.zip(models::shapings()?.into_iter().cycle()) {
        let stage = Stage::new(&model, format, params, kernels)?;
        measure(&stage, |_, distance| {
            line.draws += 1;
            line.distance = larger(line.distance, distance);
        })?;
        for (p, q) in stage.read.target.iter().zip(&stage.read.drafter) {
            for (&p, &q) in p.iter().zip(q).filter(|pair| *pair.1 > 0.0) {
                let found = uniforms::accepted(p, q) as f64 / COUNT;
                line.acceptances += 1;
                line.difference = larger(line.difference, (found - (p / q).min(1.0)).abs());
            }
        }
    }
    let stage = Stage::new(&long(), format, Params::default(), kernels)?;
    measure(&stage, |_, distance| {
        line.draws += 1;
        line.distance = larger(line.distance, distance);
    })?;
    Ok(line)
}
