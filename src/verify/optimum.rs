//! The most that any lossless rule can accept at one level, to show how far a rule is from it.
//!
//! For `n` drafts of one token from `q`, no lossless rule accepts with more probability than
//!
//! ```text
//! alpha* = min over sets H of tokens:  p(H) + 1 - Pr[all drafts lie in H]
//! ```
//!
//! For independent drafts and for drafts without replacement the best `H` is a prefix of the tokens
//! by `q / p` descending. For a top-plus-one draft with the set `S` it is `p(S) + sum over the others
//! of min(p, q / q(not S))`. Source: the transport problem of SpecTr (arXiv 2310.15141) and its dual;
//! Hu et al. (2502.18779).

use crate::error::{Error, Result};
use crate::verify::law::Law;

/// The largest acceptance probability at one node with `n` children drafted from `q` by a law.
///
/// # Errors
/// [`Error::ShapeMismatch`] for rows of different length, [`Error::ParamOutOfRange`] for `n = 0`,
/// [`Error::LawData`] for a law that `q` and `n` do not describe.
pub fn alpha_star(p: &[f64], q: &[f64], n: usize, law: Law) -> Result<f64> {
    if p.len() != q.len() {
        return Err(Error::ShapeMismatch {
            what: "q",
            found: format!("({},)", q.len()),
            wanted: format!("({},) as p", p.len()),
        });
    }
    if n == 0 || (n > 1 && law == Law::Chain) {
        return Err(Error::ParamOutOfRange {
            name: "n",
            value: n.to_string(),
            wanted: if n == 0 { "n >= 1" } else { "n = 1 for law \"chain\"" },
        });
    }
    let support = q.iter().filter(|&&x| x > 0.0).count();
    match law {
        Law::Chain | Law::Iid => Ok(over_prefixes(p, q, &mut Independent { n })),
        Law::Swor if n.min(support) == 1 => Ok(over_prefixes(p, q, &mut Independent { n: 1 })),
        Law::Swor if n.min(support) == 2 => Ok(over_prefixes(p, q, &mut Pairs::default())),
        Law::Swor => Ok(over_prefixes(p, q, &mut Arrivals::new(n.min(support)))),
        Law::Deterministic => Ok(most_likely(q, n).iter().map(|&token| p[token]).sum()),
        Law::TopPlusOne => Ok(top_plus_one(p, q, n)),
        Law::Mixed | Law::Coupled | Law::Unknown => Err(Error::LawData {
            law: law.name(),
            reason: "is not described by q and n; use \"deterministic\", \"chain\", \"iid\", \
                     \"swor\" or \"top_plus_one\"",
        }),
    }
}

/// The probability that all drafts lie in a set which grows token by token.
trait AllInside {
    /// Takes in a token of probability `q`; the set then has the mass `inside` and leaves `outside`.
    fn take(&mut self, q: f64, inside: f64, outside: f64) -> f64;
}

fn over_prefixes(p: &[f64], q: &[f64], law: &mut impl AllInside) -> f64 {
    let mut order: Vec<usize> = (0..q.len()).filter(|&token| q[token] > 0.0).collect();
    order.sort_by(|&a, &b| (q[b] / p[b]).total_cmp(&(q[a] / p[a])));
    // Sums from the far end, so that what is left outside does not come out of a cancellation.
    let mut outside = vec![0.0; order.len() + 1];
    for (index, &token) in order.iter().enumerate().rev() {
        outside[index] = outside[index + 1] + q[token];
    }
    let (mut best, mut target, mut inside) = (1.0_f64, 0.0, 0.0);
    for (index, &token) in order.iter().enumerate() {
        target += p[token];
        inside += q[token];
        let all = law.take(q[token], inside, outside[index + 1]);
        best = best.min(target + 1.0 - all);
    }
    best.max(0.0)
}

/// `n` independent drafts: `q(H)^n`.
struct Independent {
    n: usize,
}

impl AllInside for Independent {
    fn take(&mut self, _q: f64, inside: f64, _outside: f64) -> f64 {
        // Sums of rounded masses end a hair above 1, which a large power would make much of.
        inside.min(1.0).powi(i32::try_from(self.n).unwrap_or(i32::MAX))
    }
}

/// Two drafts without replacement: the sum over pairs of different tokens of H, in either order, of
/// `q(x) q(y) / (1 - q(x))`. A token that comes in adds its own pairs, so that all terms are positive, and
/// `1 - q(x)` is the sum of the others: on a peaked row it would cancel.
#[derive(Default)]
struct Pairs {
    inside: f64,
    odds: f64,
    all: f64,
}

impl AllInside for Pairs {
    fn take(&mut self, q: f64, _inside: f64, outside: f64) -> f64 {
        let odds = q / (self.inside + outside);
        self.all += odds * self.inside + q * self.odds;
        self.odds += odds;
        self.inside += q;
        self.all
    }
}

/// More drafts without replacement: the order of draws is the order of arrivals at rates `q`, so all
/// `n` lie in `H` if `n` tokens of `H` arrive before the first of the others, whose time has the
/// density `s exp(-s t)`, `s` the mass outside.
///
/// The integral runs over `log t` by the trapezoid rule. The integrand is analytic in a strip of half
/// width pi / 2, so a step of 1/4 leaves an error near `exp(-pi^2 / (1/4)) = 7e-18`.
struct Arrivals {
    n: usize,
    times: Vec<f64>,
    /// For each time, the probabilities that 0, 1, .., n - 1 tokens of the set have arrived.
    counts: Vec<f64>,
}

/// The step, and the first and last time as numbers of steps: before `e^-21` less than 1e-18 has
/// arrived twice, and after `e^40` even a mass of 1e-15 has.
const STEP: f64 = 0.25;
const TIMES: std::ops::Range<i32> = -84..160;

impl Arrivals {
    fn new(n: usize) -> Self {
        let times: Vec<f64> = TIMES.map(|step| (f64::from(step) * STEP).exp()).collect();
        let none = (0..n).map(|count| if count == 0 { 1.0 } else { 0.0 });
        let counts = none.cycle().take(n * times.len()).collect();
        Self { n, times, counts }
    }
}

impl AllInside for Arrivals {
    fn take(&mut self, q: f64, _inside: f64, outside: f64) -> f64 {
        let mut all = 0.0;
        for (&time, counts) in self.times.iter().zip(self.counts.chunks_exact_mut(self.n)) {
            let arrived = -(-q * time).exp_m1();
            for count in (1..self.n).rev() {
                counts[count] += arrived * (counts[count - 1] - counts[count]);
            }
            counts[0] *= 1.0 - arrived;
            let enough = 1.0 - counts.iter().sum::<f64>();
            all += outside * time * (-outside * time).exp() * enough * STEP;
        }
        // Nothing is left outside: whatever is drawn lies inside.
        if outside > 0.0 { all } else { 1.0 }
    }
}

/// The `n` most probable tokens, ties to the lower id, those of probability 0 left out.
fn most_likely(q: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..q.len()).filter(|&token| q[token] > 0.0).collect();
    order.sort_by(|&a, &b| q[b].total_cmp(&q[a]));
    order.truncate(n);
    order
}

fn top_plus_one(p: &[f64], q: &[f64], n: usize) -> f64 {
    let mut rest: Vec<bool> = q.iter().map(|&x| x > 0.0).collect();
    let mut accepted = 0.0;
    for token in most_likely(q, n - 1) {
        rest[token] = false;
        accepted += p[token];
    }
    let mass: f64 = (0..q.len()).filter(|&token| rest[token]).map(|token| q[token]).sum();
    let others = (0..q.len()).filter(|&token| rest[token]);
    accepted + others.map(|token| p[token].min(q[token] / mass)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const E: [[f64; 4]; 2] = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]];

    fn close(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-13, "{found}, wanted {wanted}");
    }

    #[test]
    fn two_drafts_from_a_peaked_row_are_as_exact_as_from_any() {
        for tiny in [1e-3, 1e-6, 1e-9, 1e-12, 1e-15] {
            let (second, third) = (1.7 * tiny, 0.6 * tiny);
            let q = [1.0 - (second + third), second, third];
            let p = [0.0, 0.3, 0.7];
            // The best set is {0, 1}; both drafts lie in it with this probability.
            let both = q[0] * q[1] / (q[1] + q[2]) + q[1] * q[0] / (q[0] + q[2]);
            let found = alpha_star(&p, &q, 2, Law::Swor).unwrap();
            assert!((found - (0.3 + 1.0 - both)).abs() < 1e-12, "{tiny}: {found}");
        }
    }

    #[test]
    fn any_number_of_drafts_is_a_number() {
        let row = [0.5, 0.25, 0.25];
        for n in [1_usize << 31, (1 << 32) - 1, 1 << 32, 1 << 62, usize::MAX] {
            for law in [Law::Iid, Law::Swor, Law::TopPlusOne, Law::Deterministic] {
                let best = alpha_star(&row, &row, n, law).unwrap();
                assert!((best - 1.0).abs() < 1e-12, "{n} {law:?}: {best}");
            }
        }
    }

    #[test]
    fn the_specification_s_roots() {
        let e = |n, law| alpha_star(&E[0], &E[1], n, law).unwrap();
        close(e(2, Law::Iid), 79.0 / 100.0);
        close(e(2, Law::Swor), 701.0 / 840.0);
        close(e(2, Law::TopPlusOne), 23.0 / 30.0);
        for law in [Law::Chain, Law::Iid, Law::Swor, Law::TopPlusOne] {
            close(e(1, law), 3.0 / 5.0);
        }
        let (p, q) = ([1.0 / 2.0, 1.0 / 3.0, 1.0 / 6.0], [1.0 / 3.0; 3]);
        let (wide, narrow) = ([0.5, 0.25, 0.125, 0.125], [0.375, 0.375, 0.125, 0.125]);
        for law in [Law::Iid, Law::Swor, Law::TopPlusOne] {
            close(alpha_star(&p, &q, 2, law).unwrap(), 1.0);
            close(alpha_star(&wide, &narrow, 3, law).unwrap(), 1.0);
        }
    }

    #[test]
    fn what_q_and_n_do_not_describe_is_refused() {
        let refused = |n, law| alpha_star(&E[0], &E[1], n, law).unwrap_err().slug();
        assert_eq!(refused(2, Law::Mixed), "law_data");
        assert_eq!(refused(2, Law::Chain), "param_out_of_range");
        assert_eq!(refused(0, Law::Iid), "param_out_of_range");
        assert_eq!(alpha_star(&E[0], &[1.0], 1, Law::Iid).unwrap_err().slug(), "shape_mismatch");
    }

    /// Every ordered draft of `n` tokens with its probability.
    fn drafts(q: &[f64], n: usize, law: Law) -> Vec<(usize, f64)> {
        let mut drafts = vec![(0_usize, 1.0, 1.0)];
        let positive = q.iter().filter(|&&x| x > 0.0).count();
        let draws = if law == Law::Swor { n.min(positive) } else { n };
        for _ in 0..draws {
            let mut longer = Vec::new();
            for &(set, weight, left) in &drafts {
                for (token, &mass) in q.iter().enumerate() {
                    let is_new = set & (1 << token) == 0;
                    if mass > 0.0 && (law == Law::Iid || is_new) {
                        let left_after = if law == Law::Iid { 1.0 } else { left - mass };
                        longer.push((set | 1 << token, weight * mass / left, left_after));
                    }
                }
            }
            drafts = longer;
        }
        drafts.into_iter().map(|(set, weight, _)| (set, weight)).collect()
    }

    fn top_drafts(q: &[f64], n: usize) -> Vec<(usize, f64)> {
        let top = most_likely(q, n - 1).iter().fold(0_usize, |set, &token| set | 1 << token);
        let rest: Vec<usize> =
            (0..q.len()).filter(|&t| q[t] > 0.0 && top & (1 << t) == 0).collect();
        let mass: f64 = rest.iter().map(|&token| q[token]).sum();
        if rest.is_empty() {
            return vec![(top, 1.0)];
        }
        rest.iter().map(|&token| (top | 1 << token, q[token] / mass)).collect()
    }

    fn brute_force(p: &[f64], drafts: &[(usize, f64)]) -> f64 {
        let value = |set: usize| {
            let target: f64 = (0..p.len()).filter(|t| set & (1 << t) != 0).map(|t| p[t]).sum();
            let inside: f64 = drafts.iter().filter(|(d, _)| d & !set == 0).map(|(_, w)| w).sum();
            target + 1.0 - inside
        };
        (0..1 << p.len()).map(value).fold(f64::INFINITY, f64::min)
    }

    fn row(weights: &[u32]) -> Vec<f64> {
        let total: u32 = weights.iter().sum();
        weights.iter().map(|&w| f64::from(w) / f64::from(total)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn prefixes_are_as_good_as_all_sets(
            pairs in proptest::collection::vec((0_u32..7, 0_u32..7), 1..7), n in 1_usize..5,
        ) {
            let (p, q): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
            prop_assume!(p.iter().sum::<u32>() > 0 && q.iter().sum::<u32>() > 0);
            let (p, q) = (row(&p), row(&q));
            for law in [Law::Iid, Law::Swor, Law::TopPlusOne] {
                let all = if law == Law::TopPlusOne { top_drafts(&q, n) } else { drafts(&q, n, law) };
                let (found, wanted) = (alpha_star(&p, &q, n, law).unwrap(), brute_force(&p, &all));
                prop_assert!((found - wanted).abs() < 1e-12, "{law:?}: {found}, wanted {wanted}");
            }
        }
    }
}
