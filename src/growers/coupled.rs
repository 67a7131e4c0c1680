//! Children that are likely to win the verifier's own race.
//!
//! # Law
//! `coupled`: to be verified by the rule `coupled` under the same seed (or by rules that read no
//! drafter's rows and use other noise).
//!
//! # Decision
//! ```text
//! children of a node at depth d: the n smallest E_t(x) / q(x), t = root position + 1 + d
//! ```
//! where `E_t` are the exponential variates by which the rule `coupled` picks the token at `t`. The
//! first child agrees with the target with probability `sum_j 1 / sum_i max(p_i / p_j, q_i / q_j)`.
//!
//! # Source
//! Gumbel coupling, Daliri et al. (arXiv 2408.07978); list form, 2506.05632.

use crate::chance::{Choices, RaceNoise};
use crate::error::Result;
use crate::growers::{DraftRows, Grower, Growth};
use crate::number::Weight;
use crate::tree::TokenTree;
use crate::verify::Noise;
use crate::verify::law::Law;

/// A tree of a given shape, ranked by the race.
#[derive(Debug, Clone)]
pub struct Coupled {
    growth: Growth,
    template: TokenTree,
    slots: Vec<u32>,
    noise: Noise,
}

impl Coupled {
    /// A tree of the shape of `template` below the root at `noise.position`.
    ///
    /// # Errors
    /// [`crate::error::Error::Overflow`] if a position does not fit the noise address.
    pub fn new(mut growth: Growth, template: TokenTree, noise: Noise) -> Result<Self> {
        noise.philox(template.num_nodes())?;
        growth.want((template.num_nodes() > 1).then_some(0));
        Ok(Self { growth, template, slots: vec![0], noise })
    }
}

impl<W: Weight> Grower<W> for Coupled {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        Law::Coupled
    }

    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        _choices: &mut C,
    ) -> Result<()> {
        let mut next = Vec::new();
        for node in self.growth.frontier().to_vec() {
            let node = node as usize;
            let slots = self.template.children(self.slots[node] as usize);
            let emitted = self.noise.position as u32 + 1 + self.growth.depth(node) as u32;
            let race = RaceNoise::new(self.noise.seed, emitted);
            for (token, &slot) in rows.race(node, slots.len(), &race)?.into_iter().zip(slots) {
                let child = self.growth.push(node, token, false);
                self.slots.push(slot);
                if !self.template.children(slot as usize).is_empty() {
                    next.push(child);
                }
            }
        }
        self.growth.want(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::{Cells, NoChoices};
    use crate::growers::{DenseRows, by_depth};
    use crate::verify::dense::DenseCells;
    use num_rational::BigRational;

    type R = BigRational;

    fn r(num: i64, den: i64) -> R {
        <R as Weight>::ratio(num, den)
    }

    const ROUNDS: u64 = 40_000;

    /// The probability that the `n` best of the drafter's race hold the target's winner, n = 1 and 2.
    fn match_probability(p: &[R], q: &[R]) -> [R; 2] {
        let larger = |a: R, b: R| if a > b { a } else { b };
        let zero = || r(0, 1);
        let (mut one, mut two) = (zero(), zero());
        for j in 0..p.len() {
            let ratio = |i: usize| (p[i].clone() / p[j].clone(), q[i].clone() / q[j].clone());
            let sum = (0..p.len()).fold(zero(), |sum, i| sum + larger(ratio(i).0, ratio(i).1));
            one += r(1, 1) / sum;
            for i in (0..p.len()).filter(|&i| i != j) {
                let s = (0..p.len())
                    .filter(|&k| k != i && k != j)
                    .fold(zero(), |sum, k| sum + larger(ratio(k).0, ratio(k).1));
                let part = |ratio: R| r(1, 1) / (r(1, 1) + ratio + s.clone());
                two += larger(part(ratio(i).0) - part(ratio(i).1), zero());
            }
        }
        [one.clone(), one + two]
    }

    #[test]
    fn coupled_children_match_as_often_as_the_formula_says() {
        let row = |list: &[(i64, i64)]| list.iter().map(|&(n, d)| r(n, d)).collect::<Vec<R>>();
        let cases = [
            (row(&[(1, 3), (2, 3)]), row(&[(2, 3), (1, 3)]), [r(2, 3), r(1, 1)]),
            (row(&[(1, 2), (1, 3), (1, 6)]), row(&[(1, 3); 3]), [r(11, 14), r(163, 168)]),
            (
                row(&[(1, 2), (1, 4), (1, 8), (1, 8)]),
                row(&[(3, 8), (3, 8), (1, 8), (1, 8)]),
                [r(61, 72), r(1589, 1612)],
            ),
            (
                row(&[(1, 10), (2, 10), (3, 10), (4, 10)]),
                row(&[(4, 10), (3, 10), (2, 10), (1, 10)]),
                [r(19, 35), r(163, 210)],
            ),
        ];
        for (p, q, wanted) in cases {
            assert_eq!(match_probability(&p, &q), wanted);
            let float = |row: &[R]| row.iter().map(Weight::to_f64).collect::<Vec<f64>>();
            let (p, q) = (float(&p), float(&q));
            let mut hits = [0_u64; 2];
            for position in 0..ROUNDS {
                let noise = Noise { seed: 3, position };
                let winner = DenseCells::new(p.clone())
                    .race(&RaceNoise::new(3, position as u32 + 1))
                    .unwrap();
                let mut grower =
                    Coupled::new(Growth::new(-1, Vec::new()), by_depth(&[2]).unwrap(), noise)
                        .unwrap();
                DenseRows::<f64>::grow(&mut grower, &mut NoChoices, |_| q.clone()).unwrap();
                let children = &Grower::<f64>::growth(&grower).tokens()[1..];
                for n in 0..2 {
                    hits[n] += u64::from(children[..=n].contains(&i64::from(winner)));
                }
            }
            for (hits, wanted) in hits.into_iter().zip(wanted) {
                // Hoeffding: beyond 0.02 with probability below 2 exp(-2 * 40000 * 0.02^2) = 3e-14.
                let found = hits as f64 / ROUNDS as f64;
                assert!((found - wanted.to_f64()).abs() < 0.02, "{found}, wanted {wanted}");
            }
        }
    }
}
