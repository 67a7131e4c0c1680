//! Beam search with `u < p / q`: apple/ml-recurrent-drafter, `recurrent_drafting.py` at d4f4a72.
//!
//! The drafter's beam search gives `k` paths, a function of its rows. Each token of each path is accepted
//! if a number of its own is below `p / q`; the path with the longest accepted beginning is taken, the
//! first of equal ones; the next token comes from `(p - q)+` where it was left, or from `p` at its end. With
//! one level these are the `k` likeliest siblings, each tested against `p / q`. The tokens were not
//! drawn from `q`, so the test does not make up for `q`. The repository's issue 6 says so.

use super::chain::{self, Noise};
use super::{Rule, Run};
use crate::chance::Purpose;
use crate::chance::enumerator::Enumerator;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::verify::law::Law;

pub(super) static BEAMS: Rule = Rule {
    name: "beam_siblings",
    source: "apple/ml-recurrent-drafter at d4f4a72 and its issue 6",
    is_claimed_lossless: true,
    is_lossless: false,
    law: Law::Deterministic,
    shapes: &[&[1], &[2], &[1, 1]],
    sequences: 1,
    length: None,
    tried_tokens: 2,
    run: beams,
};

/// The likeliest paths by the drafter, found level by level; ties to the lower tokens.
fn search(rows: &Rows<Fraction>, width: usize, length: usize) -> Vec<Vec<u32>> {
    let mut paths = vec![(Vec::new(), Fraction::one())];
    for _ in 0..length {
        let mut longer = Vec::new();
        for (path, weight) in &paths {
            for (token, q) in (0_u32..).zip(rows.drafter(path)).filter(|(_, q)| q.is_positive()) {
                longer.push(([&path[..], &[token]].concat(), weight.mul(q)));
            }
        }
        longer.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("fractions have an order"));
        longer.truncate(width);
        paths = longer;
    }
    paths.into_iter().map(|(path, _)| path).collect()
}

fn beams(
    rows: &Rows<Fraction>,
    shape: &'static [usize],
    choices: &mut Enumerator<Fraction>,
) -> Result<Run> {
    let length = shape.len();
    let mut noise = Noise::fresh(choices);
    let (mut kept, mut taken) = (0, Vec::new());
    for (number, path) in search(rows, shape[0], length).into_iter().enumerate() {
        let accepted = (0..length).take_while(|&depth| {
            let token = path[depth] as usize;
            let (p, q) = (rows.target(&path[..depth]), rows.drafter(&path[..depth]));
            noise.accept(number * length + depth, &p[token], &q[token])
        });
        let accepted = accepted.count();
        if number == 0 || accepted > kept {
            (kept, taken) = (accepted, path);
        }
    }
    let mut emitted = taken[..kept].to_vec();
    let one = Fraction::one();
    let row = if kept == length {
        rows.target(&emitted).to_vec()
    } else {
        chain::excess(rows, &emitted, &one, &one)
    };
    emitted.push(noise.draw(0, Purpose::Sample, row)?);
    Ok(Run { emitted: vec![emitted], accepted: kept, fallbacks: 0 })
}
