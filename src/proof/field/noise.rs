//! A draft's noise that is the residual's, too: vLLM before pull request vllm-project/vllm#54282.
//!
//! The drafted token is the winner of a race, `argmin_x E(x) / q(x)` over exponential variates `E`
//! (Gumbel noise added to logits). A rejected one is replaced by the winner of the race of the residual
//! `(p - q)+` for the same position, with the same variates. With `s = E(a)`, `t = E(b)`, `u = t / s`,
//! draft `a` and replacement `b != a` win both races where
//!
//! ```text
//! alpha_b <= u,  beta_a u <= 1,  E(y) >= s max(alpha_y, beta_y u) for every other y
//! alpha_y = q(y) / q(a),  beta_y = r(y) / r(b)
//! P(a, b) = int du / (1 + u + sum_y max(alpha_y, beta_y u))^2,   P(a, a) = 1 / sum_y max(alpha_y, beta_y)
//! ```
//!
//! The denominator is linear between the points `alpha_y / beta_y`, so that every term is rational. The
//! number of an acceptance stays fresh here; in the source it is a word of the noise's counter.

use super::chain::{self, Noise};
use super::{Rule, Run};
use crate::chance::Purpose;
use crate::chance::enumerator::Enumerator;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;

pub(super) static SHARED: Rule = Rule {
    is_lossless: false,
    // With two tokens a residual has one, which needs no noise.
    tried_tokens: 3,
    ..Rule::chain(
        "vllm_shared_noise",
        "vllm-project/vllm before #54282, drafts and replacements from one noise",
        step,
    )
};

fn step(rows: &Rows<Fraction>, shape: &[usize], choices: &mut Enumerator<Fraction>) -> Result<Run> {
    let one = Fraction::one();
    let mut noise = Noise::fresh(choices);
    let mut path: Vec<u32> = Vec::new();
    for depth in 1..=shape.len() {
        let q = rows.drafter(&path);
        let residual = chain::excess(rows, &path, &one, &one);
        let pairs = pairs(q, &residual);
        let weights = pairs.iter().map(|(_, weight)| weight.clone()).collect();
        let (drafted, replacement) = pairs[noise.draw(depth, Purpose::Draft, weights)? as usize].0;
        let p = rows.target(&path)[drafted].clone();
        if !noise.accept(depth, &p, &q[drafted]) {
            path.push(replacement as u32);
            return Ok(Run { accepted: depth - 1, emitted: vec![path], fallbacks: 0 });
        }
        path.push(drafted as u32);
    }
    let row = rows.target(&path).to_vec();
    path.push(noise.draw(shape.len(), Purpose::Sample, row)?);
    Ok(Run { accepted: shape.len(), emitted: vec![path], fallbacks: 0 })
}

/// Every drafted token with its replacement and their probability; itself where nothing is left over.
pub(super) fn pairs(q: &[Fraction], r: &[Fraction]) -> Vec<((usize, usize), Fraction)> {
    let live = |row: &[Fraction]| -> Vec<usize> {
        (0..row.len()).filter(|&token| row[token].is_positive()).collect()
    };
    let (drafts, left) = (live(q), live(r));
    let mut all = Vec::new();
    for &a in &drafts {
        if left.is_empty() {
            all.push(((a, a), q[a].clone()));
        }
        all.extend(left.iter().map(|&b| ((a, b), both_win(q, r, a, b))));
    }
    all
}

/// The probability that one vector of variates lets `a` win the race of `q` and `b` that of `r`.
fn both_win(q: &[Fraction], r: &[Fraction], a: usize, b: usize) -> Fraction {
    let alpha = |y: usize| q[y].div(&q[a]);
    let beta = |y: usize| r[y].div(&r[b]);
    let one = Fraction::one();
    if a == b {
        let sum = (0..q.len())
            .fold(Fraction::zero(), |sum, y| sum.add(&Weight::max(&alpha(y), &beta(y))));
        return one.div(&sum);
    }
    let others: Vec<usize> = (0..q.len()).filter(|&y| y != a && y != b).collect();
    let from = alpha(b);
    // `None` is without end.
    let to = beta(a).is_positive().then(|| one.div(&beta(a)));
    let is_below = |u: &Fraction| to.as_ref().is_none_or(|to| u < to);
    if !is_below(&from) {
        return Fraction::zero();
    }
    let mut ends: Vec<Fraction> = others
        .iter()
        .filter(|&&y| beta(y).is_positive())
        .map(|&y| alpha(y).div(&beta(y)))
        .filter(|u| *u > from && is_below(u))
        .collect();
    ends.push(from);
    ends.sort();
    let mut mass = Fraction::zero();
    for (number, low) in ends.iter().enumerate() {
        let (mut level, mut slope) = (one.clone(), one.clone());
        for &y in &others {
            // Beyond its own point the residual's race is the stricter one.
            if alpha(y) <= beta(y).mul(low) && beta(y).is_positive() {
                slope = slope.add(&beta(y));
            } else {
                level = level.add(&alpha(y));
            }
        }
        let at = |u: &Fraction| one.div(&level.add(&slope.mul(u)));
        let beyond = ends.get(number + 1).or(to.as_ref()).map_or_else(Fraction::zero, at);
        mass = mass.add(&at(low).sub(&beyond).div(&slope));
    }
    mass
}
