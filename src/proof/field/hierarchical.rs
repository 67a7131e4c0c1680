//! Hierarchical speculative decoding (Zhou et al., arXiv 2601.05724).
//!
//! The draft is scanned from its end: the prefix of `t` tokens is accepted with `h_t`, and the token
//! after the accepted prefix comes from a residual. With the joint probabilities `P_t` and `Q_t` of the
//! first `t` tokens under target and drafter and `r_t = P_t / Q_t`:
//!
//! ```text
//! naive (algorithm 1)    excess = sum_x (P_t p(x) - Q_t q(x))+, short = sum_x (Q_t q(x) - P_t p(x))+
//!                        h_t = excess / max(excess, short) for t < L,  h_L = min(r_L, 1)
//!                        every token up to L is drawn from the residual: L - t more target rows
//! capped (algorithm 2)   c_t = r_t / max(1, r_1 .. r_t): excess and short of c_t p against q
//!                        h_t = excess / short for t < L,  h_L = min(r_L / max(1, r_1 .. r_{L-1}), 1)
//!                        one token from the residual
//! released               as capped, but h_L = min(r_L, 1): the authors' repository,
//!                        ZhouYuxuanYX/Hierarchical-Speculative-Decoding at b8575e2,
//!                        transformers/generation/utils.py with `clever`
//! ```
//!
//! `0 / 0` is 1: both sums vanish where `p = q`, and then the prefix is not left.

use super::chain::{self, Noise};
use super::{Rule, Run};
use crate::chance::Purpose;
use crate::chance::enumerator::Enumerator;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;

pub(super) static NAIVE: Rule =
    Rule::chain("hsd_naive", "arXiv 2601.05724, algorithm 1", |rows, shape, choices| {
        scan(rows, shape.len(), Variant::Naive, choices)
    });

pub(super) static CAPPED: Rule =
    Rule::chain("hsd", "arXiv 2601.05724, algorithm 2", |rows, shape, choices| {
        scan(rows, shape.len(), Variant::Capped, choices)
    });

pub(super) static RELEASED: Rule = Rule {
    is_lossless: false,
    ..Rule::chain(
        "hsd_released",
        "the repository of arXiv 2601.05724 at b8575e2",
        |rows, shape, choices| scan(rows, shape.len(), Variant::Released, choices),
    )
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Naive,
    Capped,
    Released,
}

/// The weights of the target's and the drafter's row after a prefix of joint ratio `ratios[t]`.
fn weights(variant: Variant, ratios: &[Fraction], drafted: &Fraction) -> (Fraction, Fraction) {
    let last = ratios.last().expect("the empty prefix has the ratio 1");
    if variant == Variant::Naive {
        return (last.mul(drafted), drafted.clone());
    }
    (last.div(&largest(ratios)), Fraction::one())
}

/// The largest ratio of all prefixes; the first is that of the empty one, 1.
fn largest(ratios: &[Fraction]) -> Fraction {
    ratios.iter().fold(Fraction::one(), |largest, ratio| Weight::max(&largest, ratio))
}

fn scan(
    rows: &Rows<Fraction>,
    length: usize,
    variant: Variant,
    choices: &mut Enumerator<Fraction>,
) -> Result<Run> {
    let mut noise = Noise::fresh(choices);
    let draft = noise.chain(rows, &[], length)?;
    let (mut ratios, mut drafted) = (vec![Fraction::one()], vec![Fraction::one()]);
    for (depth, &token) in draft.iter().enumerate() {
        let path = &draft[..depth];
        ratios.push(ratios[depth].mul(&chain::ratio(rows, path, token)));
        drafted.push(drafted[depth].mul(&rows.drafter(path)[token as usize]));
    }
    let cap = match variant {
        Variant::Capped => largest(&ratios[..length]),
        Variant::Naive | Variant::Released => Fraction::one(),
    };
    let mut kept = length;
    if !noise.accept(length, &ratios[length], &cap) {
        kept = (1..length)
            .rev()
            .find(|&depth| {
                let (a, b) = weights(variant, &ratios[..=depth], &drafted[depth]);
                let excess = chain::sum(&chain::excess(rows, &draft[..depth], &a, &b));
                let short = chain::sum(&chain::shortfall(rows, &draft[..depth], &a, &b));
                // Both sums are 0 where the rows are equal.
                excess >= short || noise.accept(depth, &excess, &short)
            })
            .unwrap_or(0);
    }
    let mut emitted = draft[..kept].to_vec();
    if kept == length {
        emitted.push(noise.draw(kept, Purpose::Sample, rows.target(&emitted).to_vec())?);
        return Ok(Run { emitted: vec![emitted], accepted: kept, fallbacks: 0 });
    }
    ratios.truncate(kept + 1);
    let mut joint = drafted[kept].clone();
    let mut fallbacks = 0;
    loop {
        let (a, b) = weights(variant, &ratios, &joint);
        let mut residual = chain::excess(rows, &emitted, &a, &b);
        if !chain::sum(&residual).is_positive() {
            residual = rows.target(&emitted).to_vec();
            fallbacks += 1;
        }
        let token = noise.draw(emitted.len(), Purpose::Sample, residual)?;
        let q = rows.drafter(&emitted)[token as usize].clone();
        let p = rows.target(&emitted)[token as usize].clone();
        emitted.push(token);
        if variant != Variant::Naive || emitted.len() == length {
            return Ok(Run { emitted: vec![emitted], accepted: kept, fallbacks });
        }
        if !q.is_positive() {
            // What the drafter cannot draw is left to the target altogether.
            while emitted.len() < length {
                let row = rows.target(&emitted).to_vec();
                emitted.push(noise.draw(emitted.len(), Purpose::Sample, row)?);
            }
            return Ok(Run { emitted: vec![emitted], accepted: kept, fallbacks });
        }
        let last = ratios.last().expect("the ratio of the prefix").mul(&p.div(&q));
        ratios.push(last);
        joint = joint.mul(&q);
    }
}
