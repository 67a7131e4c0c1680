//! Small models that nobody chose: random rows with everything in them that makes rows hard.
//!
//! A row is drawn to be ordinary, full of zeros and ties, a point mass, uniform, nearly a point
//! mass, or equal to the other side's. Every model has a number and is the same on every machine.

use crate::chance::rng;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::proof::growth::{self, Case};
use crate::proof::table::takes;
use crate::verify::Core;
use crate::verify::law::Law;

/// Models for each pair of rule and law.
pub(super) const PER_PAIR: u64 = 120;
/// What a nearly certain token outweighs.
const NEARLY_ALL: u64 = 1000;
const MOST_TOKENS: u64 = 4;
const MOST_ROWS: u64 = 3;

const CHAINS: [&[usize]; 3] = [&[1], &[1, 1], &[1, 1, 1]];
const TREES: [&[usize]; 6] = [&[1], &[2], &[1, 1], &[2, 1], &[1, 2], &[3]];

/// Whole numbers from a model's number.
struct Source {
    key: [u32; 2],
    count: u32,
}

impl Source {
    /// One of `0 .. end`.
    fn below(&mut self, end: u64) -> u64 {
        self.count += 1;
        u64::from(rng::philox(self.key, [self.count, 0, 0, 0])[0]) % end
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }

    /// A row as whole numbers, not all of them 0.
    fn weights(&mut self, vocab: u64) -> Vec<u64> {
        let favoured = self.below(vocab);
        let kind = self.below(5);
        (0..vocab)
            .map(|token| match kind {
                0 => u64::from(token == favoured),
                1 => 1,
                2 if token == favoured => NEARLY_ALL,
                2 => self.below(2),
                // Small numbers tie and vanish often.
                3 => self.below(3) + u64::from(token == favoured),
                _ => 1 + self.below(9),
            })
            .collect()
    }

    fn row(&mut self, vocab: u64) -> Vec<Fraction> {
        let weights = self.weights(vocab);
        let total: u64 = weights.iter().sum();
        weights.iter().map(|&weight| Fraction::ratio(weight as i64, total as i64)).collect()
    }
}

/// The model of a number, with a shape on which the rule and the law are quickly enumerated.
pub(super) fn model(number: u64, core: Core, law: Law) -> (Rows<Fraction>, Case) {
    let mut source = Source { key: rng::key(number), count: 0 };
    let vocab = 2 + source.below(MOST_TOKENS - 1);
    let num_rows = 1 + source.below(MOST_ROWS);
    let target: Vec<Vec<Fraction>> = (0..num_rows).map(|_| source.row(vocab)).collect();
    let drafter = target
        .iter()
        .map(|row| if source.below(5) == 0 { row.clone() } else { source.row(vocab) })
        .collect();
    let shapes: &[&[usize]] = if law == Law::Chain { &CHAINS } else { &TREES };
    let shape = source.pick(shapes);
    let is_small = growth::num_drafts(vocab as usize, &Case { law, shape }) <= most_drafts(core);
    let shape = if is_small && takes(core, shape) { shape } else { &[1] };
    (Rows { target, drafter, offset: 0 }, Case { law, shape })
}

/// More drafts than this take too long for so many models.
fn most_drafts(core: Core) -> usize {
    // As in the table: exact bisection is slow.
    if core.bisects() { 9 } else { 64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::run;

    /// The flow of accepted prefixes down a chain: `F(vx)` from `F(v)`, `Q(v)`, `p(x)` and `q(x)`.
    type Flow = fn(&Fraction, &Fraction, &Fraction, &Fraction) -> Fraction;

    /// The mean of emitted tokens is the sum of the flow over all paths.
    fn flow(rows: &Rows<Fraction>, depth: usize, rule: Flow) -> Fraction {
        fn below(
            rows: &Rows<Fraction>,
            path: &mut Vec<u32>,
            (flow, drafted): (&Fraction, &Fraction),
            left: usize,
            rule: Flow,
        ) -> Fraction {
            let mut sum = flow.clone();
            if left == 0 {
                return sum;
            }
            let (p, q) = (rows.target(path).to_vec(), rows.drafter(path).to_vec());
            for token in 0..p.len() {
                let next = rule(flow, drafted, &p[token], &q[token]);
                path.push(token as u32);
                let longer = drafted.mul(&q[token]);
                sum = sum.add(&below(rows, path, (&next, &longer), left - 1, rule));
                path.pop();
            }
            sum
        }
        let one = Fraction::one();
        below(rows, &mut Vec::new(), (&one, &one), depth, rule)
    }

    #[test]
    fn chains_have_the_closed_forms_of_both_rules() {
        for number in 0..300 {
            let (rows, case) = model(number, Core::TopDown, Law::Chain);
            let depth = case.shape.len();
            let token = flow(&rows, depth, |flow, _, p, q| flow.mul(&Weight::min(p, q)));
            // No lossless rule accepts more: a prefix is drafted with Q, and continued with F p.
            let block = flow(&rows, depth, |flow, drafted, p, q| {
                Weight::min(&drafted.mul(q), &flow.mul(p))
            });
            for (core, wanted) in [(Core::TopDown, token), (Core::Lifted, block)] {
                let found = run(&rows, &case, core).unwrap();
                assert_eq!(found.distance, Fraction::zero(), "model {number}, {core:?}");
                assert_eq!(found.expected, wanted, "model {number}, {core:?}");
            }
        }
    }

    #[test]
    fn lifted_is_never_below_topdown_and_topdown_never_below_target_only() {
        for law in [Law::Chain, Law::Iid, Law::Swor, Law::TopPlusOne, Law::Mixed] {
            for number in 0..60 {
                let (rows, case) = model(number, Core::Lifted, law);
                let mean = |core| run(&rows, &case, core).unwrap().expected;
                let means = [Core::TargetOnly, Core::TopDown, Core::Lifted].map(mean);
                assert!(means.is_sorted(), "{law:?}, model {number}: {means:?}");
            }
        }
    }

    #[test]
    fn the_hard_rows_are_among_them() {
        let is = |wanted: fn(&[Fraction], &[Fraction]) -> bool| {
            (0..PER_PAIR).any(|number| {
                let (rows, _) = model(number, Core::Lifted, Law::Swor);
                rows.target.iter().zip(&rows.drafter).any(|(p, q)| wanted(p, q))
            })
        };
        assert!(is(|p, q| p == q));
        assert!(is(|p, _| p.contains(&Fraction::one())));
        assert!(is(|p, q| p.iter().zip(q).any(|(p, q)| !p.is_positive() && q.is_positive())));
        assert!(is(|p, q| p.iter().zip(q).any(|(p, q)| p.is_positive() && !q.is_positive())));
        assert!(is(|_, q| q.iter().any(|q| *q > Fraction::ratio(99, 100) && *q < Fraction::one())));
    }
}
