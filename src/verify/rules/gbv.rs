//! Verify the most promising of several independent paths as one block.
//!
//! # What it does
//! Ranks the tokens after each prefix by how much the target prefers them to the drafter, selects the
//! first of `K` sampled paths in the lexicographic order of ranks, and runs block verification on it
//! against the law that the selected path has.
//! Accepts more than `traversal` on few long paths, and less on many short ones: one path is tried.
//!
//! # Legal laws
//! `iid` if the tree is `K` paths of one length from the root (equal prefixes stay separate nodes);
//! `chain`, where it is block verification. Of paths, number and length are decided before the first draw.
//!
//! # Decision
//! ```text
//! rank after v: tokens by p_v / q_v descending, ties to the lower id
//! sel = the path whose ranks come first;  high = 1, low = 0 at the root
//! at each prefix v of sel, top = high, for t in rank order:
//!     next = top - (high - low) q_v(t)
//!     qsel_v(t) = (top^K - next^K) / (high^K - low^K);  bounds(t) = (top, next);  top = next
//!     (high, low) = bounds(next token of sel)
//! block verification of sel with the rows qsel
//! ```
//!
//! # Why lossless
//! Lay the paths out on `[0, 1]` in rank order, the first on top, each as wide as its probability: a
//! sampled path is a uniform point, and the selected one is the largest of `K`, which is below `x`
//! with probability `x^K`. So `qsel_v` is the law of the selected path's next token given its prefix.
//! It is one path drawn from a known law, for which block verification is lossless. The order of
//! ranks matters for length only.
//!
//! # Cost
//! All of `p` and `q` after each inner node of the selected path, one sort each, and once more where the
//! path is rejected; then block verification. A few rows are held at a time, whatever the tree's size.
//! Selection draws no number. Numbers belong to depths along the selected path.
//!
//! # Numerics
//! Places on `[0, 1]` are sums from the last rank up, and `(x^K - y^K) / (x - y)` is a sum of products, so
//! that the law of the selected path has a relative error of `1e-11` for rows of `2^17` tokens. Ranks
//! decide between tokens of equal `p / q` up to rounding, where either order is as good.
//!
//! # Proof status
//! Enumerated exactly on the golden models by `proof`, two and three paths.
//!
//! # Source
//! Thomas and Pal (arXiv 2602.16961), reconstructed.

use std::cmp::Ordering;

use crate::chance::Choices;
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::number::Weight;
use crate::tree::TokenTree;
use crate::verify::dense::{DenseCells, rest, target_row};
use crate::verify::law::{Draft, Law};
use crate::verify::places::power_sum;
use crate::verify::rules::{is_dead_end, lifted};
use crate::verify::view::{Mix, Outcome, View};

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    let paths = paths(draft)?;
    if paths.len() <= 1 {
        return lifted::decide(draft, view, choices);
    }
    let (path, mut selected) = Selected::select(draft, view, &paths)?;
    let mut tokens = vec![-1];
    tokens.extend(path.iter().map(|&node| draft.tokens()[node as usize]));
    let chain = Draft::new(TokenTree::chain(path.len())?, tokens, Law::Chain, None)?;
    let outcome = lifted::decide(&chain, &mut selected, choices)?;
    Ok(Outcome { path: path[..outcome.path.len()].to_vec(), ..outcome })
}

/// The nodes of each path from below the root down, if the tree is paths of one length.
fn paths(draft: &Draft) -> Result<Vec<Vec<u32>>> {
    let tree = draft.tree();
    let fail = |node, found| {
        let wanted = "paths of one length that part at the root";
        Err(Error::RuleShape { rule: "gbv", wanted, node, found })
    };
    let mut paths: Vec<Vec<u32>> = Vec::new();
    for &head in tree.children(0) {
        let mut path = vec![head];
        let mut last = head as usize;
        while let Some(&child) = tree.children(last).first() {
            if tree.children(last).len() > 1 {
                return fail(last, "has several children");
            }
            path.push(child);
            last = child as usize;
        }
        if paths.first().is_some_and(|first| first.len() != path.len()) {
            return fail(last, "ends a path of another length than the first");
        }
        paths.push(path);
    }
    Ok(paths)
}

/// A node of the selected path as its chain sees it.
#[derive(Clone)]
struct Level<W> {
    /// The node whose rows are read: that of the first path that has this prefix.
    node: usize,
    /// Where the prefix lies on `[0, 1]`.
    low: W,
    width: W,
    /// The next token of the path, and its probability under the selected path's law.
    next: Option<(u32, W)>,
}

/// The rows of the selected path: the target's own, and the law of the path's tokens.
struct Selected<'v, V, W> {
    view: &'v mut V,
    num_paths: usize,
    levels: Vec<Level<W>>,
}

impl<'v, V: View<W>, W: Weight> Selected<'v, V, W> {
    /// Selects a path and returns it with its rows.
    ///
    /// Below a row of the target that is no distribution nothing is selected: the path ends there, which
    /// depends on its prefix alone. The error comes up if the walk stops there.
    fn select(draft: &Draft, view: &'v mut V, paths: &[Vec<u32>]) -> Result<(Vec<u32>, Self)> {
        let mut left: Vec<&[u32]> = paths.iter().map(Vec::as_slice).collect();
        let mut selected = Self { view, num_paths: paths.len(), levels: Vec::new() };
        let mut level = Level { node: 0, low: W::zero(), width: W::one(), next: None };
        for depth in 0..paths[0].len() {
            if depth > 0 && is_dead_end(selected.view, level.node)? {
                break;
            }
            let tokens: Vec<u32> =
                left.iter().map(|path| draft.token(path[depth] as usize)).collect();
            let mut is_ranked = vec![false; tokens.len()];
            let mut best = None;
            selected.rank(&level, |token, bottom, share, law| {
                for (wanted, is_ranked) in tokens.iter().zip(&mut is_ranked) {
                    if *wanted == token {
                        *is_ranked = true;
                        best = Some((token, bottom.clone(), share.clone(), law.clone()));
                    }
                }
            })?;
            let (Some((token, low, width, law)), None) =
                (best, is_ranked.iter().position(|is_ranked| !is_ranked))
            else {
                let place = is_ranked.iter().position(|is_ranked| !is_ranked).unwrap_or(0);
                return Err(Error::ZeroDraftProbability {
                    node: left[place][depth] as usize,
                    token: tokens[place],
                    found: "0".to_owned(),
                });
            };
            level.next = Some((token, law));
            selected.levels.push(level);
            left.retain(|path| draft.token(path[depth] as usize) == token);
            level = Level { node: left[0][depth] as usize, low, width, next: None };
        }
        let path = left[0][..selected.levels.len()].to_vec();
        selected.levels.push(level);
        Ok((path, selected))
    }

    /// Calls `each(token, bottom, share, law)` for every token that can be drafted after a prefix, from
    /// the last rank up: sums only grow, and nothing cancels.
    fn rank(&mut self, level: &Level<W>, mut each: impl FnMut(u32, &W, &W, &W)) -> Result<()> {
        let q = self.view.drafter_row(level.node)?;
        let p = target_row(self.view, level.node)?;
        let k = self.num_paths;
        let scale = power_sum(&level.low.add(&level.width), &level.low, k);
        let mut bottom = level.low.clone();
        for token in ranked(&p, &q).into_iter().rev() {
            let share = level.width.mul(&q[token]);
            let top = bottom.add(&share);
            let law = q[token].mul(&power_sum(&top, &bottom, k)).div(&scale);
            let law = mutate!("gbv/q_not_skewed", law, q[token].clone());
            each(token as u32, &bottom, &share, &law);
            bottom = top;
        }
        Ok(())
    }
}

impl<V: View<W>, W: Weight> View<W> for Selected<'_, V, W> {
    type Mixture<'s>
        = DenseCells<W>
    where
        Self: 's,
        W: 's;

    fn vocab(&self) -> usize {
        self.view.vocab()
    }

    fn check_target(&mut self, node: usize) -> Result<()> {
        self.view.check_target(self.levels[node].node)
    }

    fn target(&mut self, node: usize, token: u32) -> Result<W> {
        self.view.target(self.levels[node].node, token)
    }

    fn drafter(&mut self, node: usize, token: u32) -> Result<W> {
        match &self.levels[node].next {
            Some((next, law)) if *next == token => Ok(law.clone()),
            _ => Ok(self.drafter_row(node)?[token as usize].clone()),
        }
    }

    fn drafter_rest(&mut self, node: usize, without: &[u32]) -> Result<W> {
        if without.is_empty() { Ok(W::one()) } else { Ok(rest(&self.drafter_row(node)?, without)) }
    }

    fn drafter_row(&mut self, node: usize) -> Result<Vec<W>> {
        let level = self.levels[node].clone();
        let mut row = vec![W::zero(); self.view.vocab()];
        self.rank(&level, |token, _, _, law| row[token as usize] = law.clone())?;
        Ok(row)
    }

    fn mixture<'s>(&'s mut self, node: usize, mix: &'s Mix<W>) -> Result<DenseCells<W>> {
        let q = if mix.b.is_positive() { self.drafter_row(node)? } else { Vec::new() };
        let p = target_row(self.view, self.levels[node].node)?;
        Ok(DenseCells::mixed(&p, &q, mix))
    }
}

/// The tokens that can be drafted, by `p / q` descending, equal ones by ascending id.
fn ranked<W: Weight>(p: &[W], q: &[W]) -> Vec<usize> {
    let mut order: Vec<(W, usize)> = (0..q.len())
        .filter(|&token| q[token].is_positive())
        .map(|token| (p[token].div(&q[token]), token))
        .collect();
    order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
    order.into_iter().map(|(_, token)| token).collect()
}
