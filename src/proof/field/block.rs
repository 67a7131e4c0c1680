//! Block verification as vLLM has it (pull request vllm-project/vllm#46781).
//!
//! ```text
//! p_0 = 1,  p_i = min(1, p_{i-1} p(x_i) / q(x_i)),  Z_{i+1} = sum_x (p_i p(x) - q(x))+
//! h_i = Z_{i+1} / (Z_{i+1} + 1 - p_i) for i < L (0 / 0 is 1),  h_L = p_L
//! the largest i with u_i <= h_i is accepted (0 if there is none);  then (p_i p - q)+, or p after L
//! ```
//!
//! `u_i` is a Philox number of the request's seed and the position of the token
//! (`vllm/v1/worker/gpu/spec_decode/rejection_sampler_utils.py`, `tl_rand32(seed, pos)`). The seed stays
//! for the whole request. Block verification reads numbers of tokens that it does not emit; when
//! that position is drafted again, it reads the same numbers again. So the rule is run twice: one step, and
//! several steps with the numbers keyed so.

use super::chain::{self, Key, Noise};
use super::{Rule, Run};
use crate::chance::Purpose;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;

/// How many tokens are followed over several steps.
const LENGTH: usize = 3;

pub(super) static STEP: Rule =
    Rule::chain("vllm_block", "vllm-project/vllm#46781, one step", |rows, shape, choices| {
        let (mut emitted, mut accepted) = (Vec::new(), 0);
        step(rows, shape.len(), &mut Noise::fresh(choices), &mut emitted, &mut accepted)?;
        Ok(Run { emitted: vec![emitted], accepted, fallbacks: 0 })
    });

pub(super) static STEPS: Rule = Rule {
    is_lossless: false,
    shapes: &[&[1], &[1, 1]],
    length: Some(LENGTH),
    ..Rule::chain(
        "vllm_block_steps",
        "vllm-project/vllm#46781, steps whose acceptances are keyed by (seed, position)",
        |rows, shape, choices| {
            let (mut emitted, mut accepted) = (Vec::new(), 0);
            while emitted.len() < LENGTH {
                let root = emitted.len();
                let mut noise = Noise { choices, root, draft: Key::Step, accept: Key::Position };
                step(rows, shape.len(), &mut noise, &mut emitted, &mut accepted)?;
            }
            emitted.truncate(LENGTH);
            Ok(Run { emitted: vec![emitted], accepted, fallbacks: 0 })
        },
    )
};

fn step(
    rows: &Rows<Fraction>,
    length: usize,
    noise: &mut Noise<'_>,
    emitted: &mut Vec<u32>,
    accepted: &mut usize,
) -> Result<()> {
    let one = Fraction::one();
    let root = emitted.len();
    let draft = noise.chain(rows, emitted, length)?;
    let path = [&emitted[..], &draft[..]].concat();
    let mut shares = vec![one.clone()];
    for (depth, &token) in draft.iter().enumerate() {
        let ratio = chain::ratio(rows, &path[..root + depth], token);
        shares.push(Weight::min(&shares[depth].mul(&ratio), &one));
    }
    // From the end: the largest accepted one decides, and nothing else is read from the others.
    let kept = (1..=length).rev().find(|&depth| {
        let share = &shares[depth];
        if depth == length {
            return noise.accept(depth, share, &one);
        }
        let mass = chain::sum(&chain::excess(rows, &path[..root + depth], share, &one));
        let whole = mass.add(&one.sub(share));
        !whole.is_positive() || noise.accept(depth, &mass, &whole)
    });
    let kept = kept.unwrap_or(0);
    emitted.extend(&draft[..kept]);
    *accepted += kept;
    let row = if kept == length {
        rows.target(emitted).to_vec()
    } else {
        chain::excess(rows, emitted, &shares[kept], &one)
    };
    let token = noise.draw(kept, Purpose::Sample, row)?;
    emitted.push(token);
    Ok(())
}
