//! Places of one forward that the drafts of two sequences share: the joint law of both outputs.
//!
//! Scores are survivals `a_j` as in [`super::adaptive`] unless said otherwise.
//!
//! ```text
//! ranked            two places go to the largest a_j of both sequences, of equal ones to the first
//!                   sequence's (vllm-project/vllm#47808, adaptive_verification.py)
//! deepest first     the same, but of equal ones to the deepest: torch.topk promises no order of equals
//! by draws          the same, ranked by the drafter's probability of each drawn path
//! batch             DSpark's algorithm 1 over both: take the largest a_j while (2 + sum of a) S(places)
//!                   grows; stop at the first that does not let it grow
//! batch, unstopped  the same without the stop: the number of places at which it is largest
//! ```
//!
//! `S` is the measured rate of steps, here 1, 0.73, 0.59, 0.51, 0.45 for 0 to 4 drafted tokens.

use std::cmp::Ordering;

use super::adaptive::survival;
use super::chain;
use super::stops::own;
use super::{Rule, Run};
use crate::chance::enumerator::Enumerator;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;

/// The rate of steps over two sequences with 0, 1, .. drafted tokens.
const CURVE: [(i64, i64); 5] = [(1, 1), (73, 100), (59, 100), (51, 100), (9, 20)];
/// The places that two sequences share.
const PLACES: usize = 2;

const fn shared(name: &'static str, source: &'static str, run: super::Step) -> Rule {
    Rule { shapes: &[&[1], &[1, 1]], sequences: 2, ..Rule::chain(name, source, run) }
}

const fn biased(name: &'static str, source: &'static str, run: super::Step) -> Rule {
    Rule { is_claimed_lossless: false, is_lossless: false, ..shared(name, source, run) }
}

pub(super) static RANKED: Rule =
    shared("adaptive_ranked", "vllm-project/vllm#47808, two sequences", |rows, shape, choices| {
        step(rows, shape, choices, survival_of, |slots| {
            slots.sort_by(Slot::by_score);
            PLACES
        })
    });

pub(super) static DEEPEST_FIRST: Rule = biased(
    "adaptive_ranked_deepest_first",
    "vllm-project/vllm#47808, equals in another order",
    |rows, shape, choices| {
        step(rows, shape, choices, survival_of, |slots| {
            slots.sort_by(|a, b| a.by_score(b).then(b.depth.cmp(&a.depth)));
            PLACES
        })
    },
);

pub(super) static BY_DRAWS: Rule = biased(
    "ranked_by_draws",
    "places by the probability of the drawn paths",
    |rows, shape, choices| {
        step(rows, shape, choices, path_of, |slots| {
            slots.sort_by(Slot::by_score);
            PLACES
        })
    },
);

pub(super) static BATCH: Rule = shared(
    "dspark_batch",
    "arXiv 2607.05147, algorithm 1, two sequences",
    |rows, shape, choices| {
        step(rows, shape, choices, survival_of, |slots| {
            slots.sort_by(Slot::by_score);
            rates(slots).windows(2).take_while(|pair| pair[1] > pair[0]).count()
        })
    },
);

pub(super) static BATCH_UNSTOPPED: Rule = biased(
    "dspark_batch_unstopped",
    "arXiv 2607.05147, appendix A, two sequences",
    |rows, shape, choices| {
        step(rows, shape, choices, survival_of, |slots| {
            slots.sort_by(Slot::by_score);
            let rates = rates(slots);
            (0..rates.len()).fold(0, |best, at| if rates[at] > rates[best] { at } else { best })
        })
    },
);

/// A place of a drafted token.
struct Slot {
    score: Fraction,
    sequence: usize,
    depth: usize,
}

impl Slot {
    /// Large scores first.
    fn by_score(&self, other: &Self) -> Ordering {
        other.score.cmp(&self.score)
    }
}

fn survival_of(rows: &Rows<Fraction>, draft: &[u32]) -> Vec<Fraction> {
    survival(rows, &[], draft)
}

/// The drafter's probability of each prefix as it was drawn.
fn path_of(rows: &Rows<Fraction>, draft: &[u32]) -> Vec<Fraction> {
    let mut product = Fraction::one();
    let longer = |q: Fraction| {
        product = product.mul(&q);
        product.clone()
    };
    own(rows, draft).into_iter().map(longer).collect()
}

/// The mean rate of tokens with the first 0, 1, .. slots.
fn rates(slots: &[Slot]) -> Vec<Fraction> {
    let mut tokens = Fraction::ratio(2, 1);
    let mut all = Vec::with_capacity(slots.len() + 1);
    for (places, &(num, den)) in CURVE.iter().take(slots.len() + 1).enumerate() {
        if places > 0 {
            tokens = tokens.add(&slots[places - 1].score);
        }
        all.push(tokens.mul(&Fraction::ratio(num, den)));
    }
    all
}

/// One step of two sequences: all slots are scored, ordered, and the first ones taken.
fn step(
    rows: &Rows<Fraction>,
    shape: &[usize],
    choices: &mut Enumerator<Fraction>,
    score: fn(&Rows<Fraction>, &[u32]) -> Vec<Fraction>,
    take: impl Fn(&mut [Slot]) -> usize,
) -> Result<Run> {
    let drafts = chain::drafts(rows, shape.len(), choices)?;
    let mut slots: Vec<Slot> = Vec::new();
    for (sequence, draft) in drafts.iter().enumerate() {
        let scores = score(rows, draft).into_iter().enumerate();
        slots.extend(scores.map(|(depth, score)| Slot { score, sequence, depth }));
    }
    let taken = take(&mut slots);
    // The sorts keep the order of equals: the first sequence's, the higher one's.
    let places =
        [0, 1].map(|own| slots[..taken].iter().filter(|slot| slot.sequence == own).count());
    chain::verify_all(rows, &drafts, &places, choices)
}
