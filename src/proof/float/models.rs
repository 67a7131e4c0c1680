//! Models whose rows are those that language models have: peaked, tied, masked, flat, and worse.
//!
//! A row is a list of log-weights, `-inf` for tokens that are masked out.

use crate::chance::rng;
use crate::error::Result;
use crate::proof::golden::{MODELS, Model};
use crate::shaping::weights::WeightParams;
use crate::shaping::{Params, Preset};

/// Log-weights of both sides, by row.
#[derive(Debug, Clone)]
pub(super) struct LogModel {
    pub(super) name: String,
    pub(super) target: Vec<Vec<f64>>,
    pub(super) drafter: Vec<Vec<f64>>,
    /// What the drafter's rows sum to where they are probabilities.
    pub(super) sums: Vec<f64>,
}

impl LogModel {
    fn golden(model: &Model) -> Self {
        let rows = model.rows::<f64>(&WeightParams::neutral());
        let logs = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
            rows.iter().map(|row| row.iter().map(|p| p.ln()).collect()).collect()
        };
        Self {
            name: model.name.to_owned(),
            target: logs(&rows.target),
            drafter: logs(&rows.drafter),
            sums: vec![1.0; rows.drafter.len()],
        }
    }

    pub(super) fn vocab(&self) -> usize {
        self.target[0].len()
    }

    /// The same model with its tokens spread over several blocks, at their borders; all other tokens are
    /// masked out.
    pub(super) fn padded(&self) -> Self {
        use crate::rows::simd::BLOCK;
        let places = [0, BLOCK - 1, BLOCK, 2 * BLOCK - 1];
        let spread = |rows: &[Vec<f64>]| -> Vec<Vec<f64>> {
            rows.iter()
                .map(|row| {
                    let mut wide = vec![f64::NEG_INFINITY; 2 * BLOCK + 3];
                    for (&place, &x) in places.iter().zip(row) {
                        wide[place] = x;
                    }
                    wide
                })
                .collect()
        };
        Self {
            name: format!("{}, padded", self.name),
            target: spread(&self.target),
            drafter: spread(&self.drafter),
            sums: self.sums.clone(),
        }
    }
}

/// Nats between the likeliest token and the next: probabilities of `1 - 1e-4` to `1 - 1e-9`, exactly 1
/// in `f32` (above 17), weights that are denormal as `f32` probabilities (above 87) or nothing (above 104).
const GAPS: [f64; 10] = [3.0, 9.2, 11.5, 13.8, 16.1, 18.4, 20.7, 36.0, 60.0, 95.0];

struct Source {
    key: [u32; 2],
    count: u32,
}

impl Source {
    fn below(&mut self, end: u64) -> u64 {
        self.count += 1;
        u64::from(rng::philox(self.key, [self.count, 0, 0, 1])[0]) % end
    }

    fn row(&mut self, vocab: usize) -> Vec<f64> {
        let top = self.below(vocab as u64) as usize;
        let gap = GAPS[self.below(GAPS.len() as u64) as usize];
        let kind = self.below(8);
        (0..vocab)
            .map(|token| {
                let rank = ((token + vocab - top) % vocab) as f64;
                let is_top = rank < 0.5;
                let is_near = rank < 1.5;
                match kind {
                    // Flat; masked to one token; to two; two tops that tie.
                    0 => 0.25,
                    1 if is_top => 5.0,
                    2 if is_near => -gap * rank,
                    1 | 2 => f64::NEG_INFINITY,
                    3 => -gap * f64::from(u8::from(!is_near)),
                    // Peaked over a tail: of equal weights, falling slowly, falling fast.
                    4 => -gap * f64::from(u8::from(!is_top)),
                    5 if !is_top => -gap - rank,
                    5 | 6 => -gap * rank,
                    // An ordinary row with ties.
                    _ => self.below(9) as f64 / 2.0 - 3.0,
                }
            })
            .collect()
    }
}

/// The model of a number.
pub(super) fn generated(number: u64) -> LogModel {
    let mut source = Source { key: rng::key(number ^ 0x00f1_0a75), count: 0 };
    let vocab = 2 + source.below(3) as usize;
    let rows = 1 + source.below(2) as usize;
    let target: Vec<Vec<f64>> = (0..rows).map(|_| source.row(vocab)).collect();
    let drafter = target
        .iter()
        .map(|row| match source.below(5) {
            0 => row.clone(),
            // Nearly equal: ratios of 1 up to rounding.
            1 => row.iter().map(|x| x * (1.0 + 1e-7)).collect(),
            _ => source.row(vocab),
        })
        .collect();
    // The root's row is nearly normalised, as it has to be; the others are whatever they are.
    let sums =
        [[1.0, 0.995, 1.004][source.below(3) as usize], [1.0, 0.6, 1.7][source.below(3) as usize]];
    LogModel { name: format!("generated {number}"), target, drafter, sums: sums.to_vec() }
}

/// Rows that one mistake needs.
#[cfg(feature = "mutants")]
pub(super) fn special(name: &str) -> LogModel {
    if name == "off" {
        let rows = |rows: [[f64; 3]; 2]| rows.map(Vec::from).to_vec();
        return LogModel {
            name: name.to_owned(),
            target: rows([[0.0, -1.0, -2.0], [-2.0, 0.0, -1.0]]),
            drafter: rows([[-1.0, 0.0, 0.0], [0.0, 0.0, -2.0]]),
            sums: vec![1.0, 0.6],
        };
    }
    let (target, drafter) = match name {
        // Eight equal tokens in three blocks: every edge is a dyadic number.
        "equal" => {
            let is_live = |token: usize| token.is_multiple_of(625);
            let row: Vec<f64> =
                (0..5000).map(|t| if is_live(t) { 0.0 } else { f64::NEG_INFINITY }).collect();
            (row.clone(), row)
        }
        // More equal tokens than are listed.
        "many" => (vec![0.0; 1 << 15], vec![0.0; 1 << 15]),
        "flat" => (vec![0.0; 4], vec![0.0, 0.0, -1.0, -1.0]),
        // The likeliest tokens in a later block than the first.
        "late" | "later" => {
            let below = if name == "late" { 50.0 } else { 95.0 };
            let row = |x: [f64; 4]| {
                let mut row = vec![f64::NEG_INFINITY; 5000];
                for (place, x) in [0, 2047, 2048, 4095].into_iter().zip(x) {
                    row[place] = x;
                }
                row
            };
            (row([-below, -below - 1.0, 0.0, -1.0]), row([-below, 0.0, 0.0, -1.0]))
        }
        // Far from 0, where whole numbers are no longer told apart by what rounds to them.
        "far" => (vec![3e6, 3e6 - 0.5, 3e6 - 1.0], vec![3e6, 3e6 - 1.0, 3e6 - 2.0]),
        // Scaled logits of some hundreds.
        "steep" => (vec![61.3, 61.1, 61.0], vec![61.0, 61.2, 61.3]),
        // Many equal tokens, and one whose weight is near the least.
        "floor" => {
            let row = |last: f64| [vec![0.0; 64], vec![last, -90.0]].concat();
            (row(-85.5), row(-1.0))
        }
        // At the edge of min_p = 1/5: the largest logit below it.
        _ => {
            let near = 0.2_f64.ln() as f32;
            let edge = if f64::from(near) < 0.2_f64.ln() { near } else { near.next_down() };
            let edge = f64::from(edge);
            (vec![0.0, edge, -9.0], vec![0.0, -1.0, -2.0])
        }
    };
    let sums = vec![1.0];
    LogModel { name: name.to_owned(), target: vec![target], drafter: vec![drafter], sums }
}

/// The golden models.
pub(super) fn golden() -> Vec<LogModel> {
    MODELS.iter().map(LogModel::golden).collect()
}

/// The shapings that the proof applies.
///
/// # Errors
/// None: the parameters are legal.
pub(super) fn shapings() -> Result<Vec<(&'static str, Params)>> {
    let transformers = Preset::Transformers;
    Ok(vec![
        ("plain", Params::default()),
        ("temperature=1/5", Params::new(0.2, 0, 1.0, 0.0, transformers)?),
        ("temperature=1/2 top_k=2", Params::new(0.5, 2, 1.0, 0.0, transformers)?),
        ("top_p=7/10", Params::new(1.0, 0, 0.7, 0.0, transformers)?),
        ("temperature=1/2 top_p=7/10 min_p=1/5", Params::new(0.5, 0, 0.7, 0.2, transformers)?),
        ("vllm min_p=3/10 top_k=3 top_p=3/5", Params::new(1.0, 3, 0.6, 0.3, Preset::Vllm)?),
    ])
}
