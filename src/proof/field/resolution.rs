//! Global Resolution (Thomas and Pal, arXiv 2511.15898): optimal transport for independent drafts.
//!
//! For `n` independent drafts of one token, the largest probability of emitting one of them is a flow:
//! token `i` has the capacity `p(i)`, a set of drafted tokens the probability of being drafted, and `i`
//! is joined to the sets that hold it. With a largest flow `S`, the drafted set `w` emits its token `i`
//! with probability `S(i, w) / Pr(w)`, and otherwise a token of `p(i) - sum over w of S(i, w)`.
//!
//! The paper finds the flow by a convex minimisation whose solution is a softmax, to a tolerance `tau`,
//! and bounds the deviation of the law by `15 tau` in L1. Here the flow is found exactly, by augmenting
//! paths; the value is the same, and no tolerance is left.
//!
//! The rule has one level. On trees it is walked from the root down, as in `SpecTr` (arXiv 2310.15141):
//! all nodes that hold the accepted token stay, and their children are the drafts of the next level.

use std::collections::{BTreeMap, VecDeque};

use super::chain::{self, Noise};
use super::{Rule, Run};
use crate::chance::Purpose;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::growth::{self, Case};
use crate::verify::law::Law;

pub(super) static GLOBAL: Rule = Rule {
    name: "global_resolution",
    source: "arXiv 2511.15898, its flow solved exactly",
    is_claimed_lossless: true,
    is_lossless: true,
    law: Law::Iid,
    shapes: &[&[2], &[2, 1]],
    sequences: 1,
    length: None,
    tried_tokens: 2,
    run: |rows, shape, choices| {
        let (draft, _) = growth::draft(rows, &Case { law: Law::Iid, shape }, choices)?;
        let mut noise = Noise::fresh(choices);
        let (mut live, mut emitted) = (vec![0], Vec::new());
        loop {
            let children: Vec<usize> = live
                .iter()
                .flat_map(|&node| draft.tree().children(node).iter().map(|&c| c as usize))
                .collect();
            let tokens: Vec<u32> = children.iter().map(|&child| draft.token(child)).collect();
            let depth = emitted.len();
            let plan = Plan::new(rows.target(&emitted), rows.drafter(&emitted), children.len());
            let choice = noise.draw(depth, Purpose::Accept, plan.cells(&tokens))?;
            if choice as usize == plan.rest.len() {
                emitted.push(noise.draw(depth, Purpose::Sample, plan.rest)?);
                return Ok(Run { emitted: vec![emitted], accepted: depth, fallbacks: 0 });
            }
            emitted.push(choice);
            live = children.into_iter().filter(|&child| draft.token(child) == choice).collect();
        }
    },
};

/// A largest flow from tokens to drafted sets, written as bits.
pub(super) struct Plan {
    /// The flow from a token to a set.
    flow: BTreeMap<(usize, usize), Fraction>,
    /// The probability of each set.
    sets: BTreeMap<usize, Fraction>,
    /// What the flow leaves of the target's row.
    pub(super) rest: Vec<Fraction>,
}

impl Plan {
    pub(super) fn new(p: &[Fraction], q: &[Fraction], drafts: usize) -> Self {
        let sets = drafted_sets(q, drafts);
        let mut plan = Self { flow: BTreeMap::new(), sets: sets.clone(), rest: p.to_vec() };
        let mut room = sets;
        while let Some(path) = plan.augmenting_path(&room) {
            plan.push(&path, &mut room);
        }
        plan
    }

    /// The weight of each token given the drafted ones, and last that of emitting none of them.
    fn cells(&self, tokens: &[u32]) -> Vec<Fraction> {
        let set = tokens.iter().fold(0, |set, &token| set | 1 << token);
        let zero = Fraction::zero;
        let weight = |token| self.flow.get(&(token, set)).cloned().unwrap_or_else(zero);
        let mut cells: Vec<Fraction> = (0..self.rest.len()).map(weight).collect();
        let whole = self.sets.get(&set).cloned().unwrap_or_else(Fraction::one);
        cells.push(whole.sub(&chain::sum(&cells)));
        cells
    }

    /// Tokens and sets in turn, from a token with something left to a set with room.
    fn augmenting_path(&self, room: &BTreeMap<usize, Fraction>) -> Option<Vec<usize>> {
        let start = (0..self.rest.len()).filter(|&token| self.rest[token].is_positive());
        let mut queue: VecDeque<Vec<usize>> = start.map(|token| vec![token]).collect();
        let mut seen = Vec::new();
        while let Some(path) = queue.pop_front() {
            let token = path[path.len() - 1];
            for (&set, left) in room.iter().filter(|(set, _)| **set & (1 << token) != 0) {
                if seen.contains(&set) {
                    continue;
                }
                seen.push(set);
                let longer = [&path[..], &[set]].concat();
                if left.is_positive() {
                    return Some(longer);
                }
                let back = self.flow.iter().filter(|((_, to), s)| *to == set && s.is_positive());
                queue.extend(back.map(|((from, _), _)| [&longer[..], &[*from]].concat()));
            }
        }
        None
    }

    fn push(&mut self, path: &[usize], room: &mut BTreeMap<usize, Fraction>) {
        let last = path[path.len() - 1];
        let zero = Fraction::zero;
        // Flow from sets back to tokens is what can be taken back.
        let backs = path.windows(2).skip(1).step_by(2).map(|pair| (pair[1], pair[0]));
        let amount = backs
            .clone()
            .map(|edge| self.flow[&edge].clone())
            .fold(Weight::min(&self.rest[path[0]], &room[&last]), |least, flow| {
                Weight::min(&least, &flow)
            });
        for edge in path.windows(2).step_by(2).map(|pair| (pair[0], pair[1])) {
            let flow = self.flow.entry(edge).or_insert_with(zero);
            *flow = flow.add(&amount);
        }
        for edge in backs {
            self.flow.insert(edge, self.flow[&edge].sub(&amount));
        }
        self.rest[path[0]] = self.rest[path[0]].sub(&amount);
        room.insert(last, room[&last].sub(&amount));
    }
}

/// The probability of each set of tokens that `drafts` independent draws can give.
fn drafted_sets(q: &[Fraction], drafts: usize) -> BTreeMap<usize, Fraction> {
    let mut sets = BTreeMap::from([(0, Fraction::one())]);
    for _ in 0..drafts {
        let mut next = BTreeMap::new();
        for (set, weight) in &sets {
            for (token, share) in q.iter().enumerate().filter(|(_, share)| share.is_positive()) {
                let slot = next.entry(set | 1 << token).or_insert_with(Fraction::zero);
                *slot = slot.add(&weight.mul(share));
            }
        }
        sets = next;
    }
    sets
}
