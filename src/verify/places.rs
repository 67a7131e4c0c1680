//! The places of independent drafts of one token, so that testing the one in front is the best there is.
//!
//! # The problem
//! Of `n` tokens drafted from `q` one is tested against `p`, what is owed. If it has the law `s`, then
//! `min(s, p)` is delivered. A selection can have every law `s` for which no set `H` of tokens is
//! selected more often than it is drafted, `s(H) <= 1 - (1 - q(H))^n`, and a set is drafted as often as
//! its mass says, whichever tokens it holds. With the tokens ordered by `p / q` descending, it is enough
//! that this holds for the beginnings of the order, and the most is delivered by
//!
//! ```text
//! s = min(p, level q),  sum (p - level q)+ = max over beginnings B of p(B) - (1 - (1 - q(B))^n)
//! ```
//!
//! as of all `s <= p` with one sum it is the one whose beginnings have least.
//!
//! # The selection
//! Each draft takes a place among the tokens, by chance and on its own, such that a place is taken as
//! often as its token is drafted; the draft in the first place is selected, of several the first one. In
//! its own place, token `x` is selected with `q(x) lead(x)`: with `y` the mass of `q` from `x` on and `z`
//! that behind `x`,
//!
//! ```text
//! lead = (y^n - z^n) / (y - z) = sum over a + b = n - 1 of y^a z^b
//! ```
//!
//! Where `lead > s / q` a token would be selected too often, where `lead < s / q` too rarely. The first
//! of those and the first of these change places, with the probability that gives the latter what it
//! misses or takes from the former what it has too much, and so on. The sums over beginnings see to it
//! that whoever has too much stands before whoever misses something. A pair with `lead_a > s_a / q_a >=
//! s_b / q_b > lead_b` that has to exchange `t` of selection changes places with the mass `t / (lead_a -
//! lead_b)`, which is at most what each of the two has.
//!
//! # Numerics
//! `y`, `z` and `lead` are sums of positive terms. The masses that change places enter twice, in where a
//! draft goes and in how often it is selected there, so their errors cancel: whatever they are, the
//! selection has the law that it is taken to have. An error of `level`, or of `s`, moves what is tested
//! for, up to the rounding of the sums it came from: `1e-16` for each token, of the whole.
//!
//! # Source
//! The problem: the transport of SpecTr (arXiv 2310.15141); Global Resolution (2511.15898), which solves
//! it as a convex minimisation to a tolerance. The places are a doubly stochastic matrix between two rows
//! of which one majorises the other (Hardy, Littlewood and Polya, Inequalities, 2.19 f.).

use std::cmp::Ordering;

use crate::mutants::mutate;
use crate::number::Weight;

/// A token that can be drafted and of which something is owed.
#[derive(Debug)]
struct Rank<W> {
    token: u32,
    q: W,
    /// What is owed, per `q`.
    ratio: W,
    /// How often its own place is the first one that is taken, per `q`.
    lead: W,
}

/// A place that a draft may take.
#[derive(Debug)]
pub(super) struct Place<W> {
    at: usize,
    share: W,
    /// The share of this place and of those behind it.
    onward: W,
}

/// The tokens of one node in their order, and up to what each is selected.
#[derive(Debug)]
pub(super) struct Places<W> {
    ranks: Vec<Rank<W>>,
    level: W,
}

impl<W: Weight> Places<W> {
    /// The places of `num_drafts` tokens drafted from `q`, where `w p` is owed.
    pub(super) fn new(p: &[W], q: &[W], w: &W, num_drafts: usize) -> Self {
        let mut ranks = Vec::new();
        // Tokens of which nothing is owed are all in the last place.
        let mut behind = W::zero();
        for (token, (p, q)) in (0..).zip(p.iter().zip(q)) {
            if p.is_positive() && q.is_positive() {
                let above = mutate!("global/forgets_w", w.mul(p), p.clone());
                ranks.push(Rank { token, q: q.clone(), ratio: above.div(q), lead: W::zero() });
            } else {
                behind = behind.add(q);
            }
        }
        ranks.sort_unstable_by(|a, b| {
            let descending = b.ratio.partial_cmp(&a.ratio).unwrap_or(Ordering::Equal);
            descending.then(a.token.cmp(&b.token))
        });
        let num_drafts = mutate!("global/one_draft_more", num_drafts, num_drafts + 1);
        for rank in ranks.iter_mut().rev() {
            let from = behind.add(&rank.q);
            rank.lead = power_sum(&from, &behind, num_drafts);
            behind = from;
        }
        let level = level(&ranks);
        Self { ranks, level }
    }

    /// Up to how many times `q` a token is delivered: what is left of it is `(w p - level q)+`.
    pub(super) fn level(&self) -> &W {
        &self.level
    }

    /// Where a token stands.
    pub(super) fn rank(&self, token: u32) -> usize {
        let found = self.ranks.iter().position(|rank| rank.token == token);
        found.unwrap_or(self.ranks.len())
    }

    /// The law of the place of each draft, given where the drafted tokens stand.
    pub(super) fn laws(&self, ranks: &[usize]) -> Vec<Vec<Place<W>>> {
        let mut moved: Vec<Vec<(usize, W)>> = ranks.iter().map(|_| Vec::new()).collect();
        self.exchange(|a, b, mass| {
            for (rank, moved) in ranks.iter().zip(&mut moved) {
                if *rank == a {
                    moved.push((b, mass.clone()));
                } else if *rank == b {
                    moved.push((a, mass.clone()));
                }
            }
        });
        ranks.iter().zip(moved).map(|(&rank, moved)| self.law(rank, moved)).collect()
    }

    /// Calls `each(a, b, mass)` for the places that are exchanged, both ascending.
    fn exchange(&self, mut each: impl FnMut(usize, usize, &W)) {
        let surplus = |rank: &Rank<W>| rank.q.mul(&rank.lead.sub(&self.wish(rank)));
        let mut ahead = 0;
        let mut left = self.ranks.first().map_or(W::zero(), surplus);
        for (at, rank) in self.ranks.iter().enumerate() {
            let mut missing = W::zero().sub(&surplus(rank));
            while missing.is_positive() {
                while ahead < at && !left.is_positive() {
                    ahead += 1;
                    left = surplus(&self.ranks[ahead]);
                }
                if ahead == at {
                    break; // Only by rounding: those ahead have what is missing.
                }
                let amount = missing.min(&left);
                let gap = self.ranks[ahead].lead.sub(&rank.lead);
                each(ahead, at, &amount.div(&gap));
                missing = missing.sub(&amount);
                left = left.sub(&amount);
            }
        }
    }

    /// The places of a token that goes elsewhere with some masses, and else stays.
    fn law(&self, rank: usize, mut moved: Vec<(usize, W)>) -> Vec<Place<W>> {
        let Some(Rank { q, .. }) = self.ranks.get(rank) else {
            return vec![Place { at: rank, share: W::one(), onward: W::one() }];
        };
        let gone = moved.iter().fold(W::zero(), |sum, (_, mass)| sum.add(mass));
        moved.insert(
            moved.partition_point(|&(at, _)| at < rank),
            (rank, q.sub(&gone).positive_part()),
        );
        let total = moved.iter().fold(W::zero(), |sum, (_, mass)| sum.add(mass));
        let mut onward = W::zero();
        let mut law: Vec<Place<W>> = Vec::with_capacity(moved.len());
        for (at, mass) in moved.into_iter().rev() {
            let share = mass.div(&total);
            onward = onward.add(&share);
            law.push(Place { at, share, onward: onward.clone() });
        }
        law.reverse();
        law
    }

    /// How often a token is to be selected, per `q`.
    fn wish(&self, rank: &Rank<W>) -> W {
        rank.ratio.min(&self.level)
    }

    /// With what probability a selected token is delivered, given where it stands and its place's law.
    pub(super) fn delivered(&self, rank: usize, law: &[Place<W>]) -> W {
        let Some(found) = self.ranks.get(rank) else {
            return W::zero();
        };
        let wish = self.wish(found);
        if !wish.is_positive() {
            return W::zero();
        }
        let lead = law
            .iter()
            .fold(W::zero(), |sum, place| sum.add(&place.share.mul(&self.ranks[place.at].lead)));
        let lead = mutate!("global/lead_of_own_place", lead, found.lead.clone());
        if wish >= lead { W::one() } else { wish.div(&lead) }
    }
}

/// The level `c` with `sum (p - c q)+` = what cannot be delivered, by ratios descending.
fn level<W: Weight>(ranks: &[Rank<W>]) -> W {
    let (mut sum, mut missed) = (W::zero(), W::zero());
    for rank in ranks {
        sum = sum.add(&rank.q.mul(&rank.ratio.sub(&rank.lead)));
        missed = missed.max(&sum);
    }
    // As c falls from one ratio to the next, the sum grows by the mass of q before it.
    let (mut before, mut above) = (W::zero(), W::zero());
    for (at, rank) in ranks.iter().enumerate() {
        let next = ranks.get(at + 1).map_or(W::zero(), |next| next.ratio.clone());
        before = before.add(&rank.q);
        let further = above.add(&rank.ratio.sub(&next).mul(&before));
        if further >= missed {
            return rank.ratio.sub(&missed.sub(&above).div(&before)).max(&next);
        }
        above = further;
    }
    W::zero()
}

/// How often each draft is the one in front, given the laws of their places.
pub(super) fn fronts<W: Weight>(laws: &[Vec<Place<W>>]) -> Vec<W> {
    // The share of a draft's places from `at` on.
    let onward = |law: &[Place<W>], at: usize| {
        let from = law.partition_point(|place| place.at < at);
        law.get(from).map_or(W::zero(), |place| place.onward.clone())
    };
    let front = |draft: usize| {
        laws[draft].iter().fold(W::zero(), |sum, place| {
            let others = laws.iter().enumerate().filter(|&(other, _)| other != draft);
            let first = others.fold(place.share.clone(), |product, (other, law)| {
                // Of drafts in one place the first one is in front.
                let is_behind = mutate!("global/ties_counted_twice", other < draft, false);
                product.mul(&onward(law, place.at + usize::from(is_behind)))
            });
            sum.add(&first)
        })
    };
    (0..laws.len()).map(front).collect()
}

/// `(x^k - y^k) / (x - y) = x^(k-1) + x^(k-2) y + ... + y^(k-1)`, without the cancellation.
pub(super) fn power_sum<W: Weight>(x: &W, y: &W, k: usize) -> W {
    let mut sum = W::zero();
    let mut power = W::one();
    for _ in 0..k {
        sum = sum.mul(x).add(&power);
        power = power.mul(y);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::law::Law;
    use crate::verify::optimum::alpha_star;
    use proptest::prelude::*;

    /// A row of weights `2^-e`, and none for `e = 0`: peaked, tied and masked ones are among them.
    fn row(exponents: &[i32]) -> Vec<f64> {
        let weight = |&e: &i32| if e == 0 { 0.0 } else { 2.0_f64.powi(-e) };
        let total: f64 = exponents.iter().map(weight).sum();
        exponents.iter().map(|e| weight(e) / total).collect()
    }

    fn exponents() -> impl Strategy<Value = Vec<(i32, i32)>> {
        let exponent = || prop_oneof![3 => 1..6, 2 => 1..60, 1 => Just(0)];
        proptest::collection::vec((exponent(), exponent()), 1..12)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_selection_has_the_law_that_is_tested_for(
            pairs in exponents(), w in prop_oneof![Just(1.0), 1e-9_f64..1.0], n in 1_usize..7,
        ) {
            let (p, q): (Vec<i32>, Vec<i32>) = pairs.into_iter().unzip();
            prop_assume!(p.iter().any(|&e| e > 0) && q.iter().any(|&e| e > 0));
            let (p, q) = (row(&p), row(&q));
            let places = Places::new(&p, &q, &w, n);
            let count = places.ranks.len();
            let laws = places.laws(&(0..count).collect::<Vec<_>>());
            let mut taken = vec![0.0; count];
            let mut delivered = 0.0;
            for (rank, law) in places.ranks.iter().zip(&laws) {
                prop_assert!((law[0].onward - 1.0).abs() < 1e-12);
                prop_assert!(law.windows(2).all(|pair| pair[0].at < pair[1].at));
                let lead: f64 =
                    law.iter().map(|place| place.share * places.ranks[place.at].lead).sum();
                for place in law {
                    taken[place.at] += rank.q * place.share;
                }
                let found = rank.q * lead * places.delivered(places.rank(rank.token), law);
                let token = rank.token as usize;
                let wanted = (w * p[token]).min(places.level * q[token]);
                prop_assert!((found - wanted).abs() < 4e-15, "{token}: {found}, wanted {wanted}");
                delivered += found;
            }
            // A place is taken as often as its token is drafted.
            for (taken, rank) in taken.iter().zip(&places.ranks) {
                prop_assert!((taken / rank.q - 1.0).abs() < 1e-12, "{taken}, wanted {}", rank.q);
            }
            if w >= 1.0 {
                let most = alpha_star(&p, &q, n, Law::Iid).unwrap();
                prop_assert!((delivered - most).abs() < 1e-14, "{delivered}, at most {most}");
            }
            // One draft is in front, in any mixture of the tokens.
            let drafts: Vec<_> = (0..n).map(|draft| 5 * draft % (count + 1)).collect();
            let fronts = fronts(&places.laws(&drafts));
            prop_assert!((fronts.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{fronts:?}");
        }
    }
}
