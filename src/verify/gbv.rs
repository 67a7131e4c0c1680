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
//! `chain`, where it is block verification.
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
//! All of `p` and `q` after each inner node of the selected path, one sort each; then block
//! verification. Selection draws no number. Numbers belong to depths along the selected path.
//!
//! # Proof status
//! Enumerated exactly on the golden models by `certify`, two and three paths.
//!
//! # Source
//! Thomas and Pal (arXiv 2602.16961), reconstructed.

use std::cmp::Ordering;

use crate::choice::{Cells, Choices};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::num::Weight;
use crate::tree::TokenTree;
use crate::verify::dense::DenseView;
use crate::verify::law::{Draft, Law};
use crate::verify::lifted;
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
    let (path, mut rows) = select(draft, view, &paths)?;
    let mut tokens = vec![-1];
    tokens.extend(path.iter().map(|&node| draft.tokens()[node as usize]));
    let chain = Draft::new(TokenTree::chain(path.len())?, tokens, Law::Chain, None)?;
    let outcome = lifted::decide(&chain, &mut rows, choices)?;
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

/// The selected path, with the target's rows along it and the law of its tokens.
///
/// Paths that share a prefix share its rows; those of the first path that has it are read.
fn select<W: Weight, V: View<W>>(
    draft: &Draft,
    view: &mut V,
    paths: &[Vec<u32>],
) -> Result<(Vec<u32>, DenseView<W>)> {
    let mut left: Vec<&[u32]> = paths.iter().map(Vec::as_slice).collect();
    let mut rows = DenseView { target: Vec::new(), drafter: Vec::new() };
    let (mut low, mut width) = (W::zero(), W::one());
    let mut node = 0;
    for depth in 0..paths[0].len() {
        let q = view.drafter_row(node)?;
        let p = target_row(view, node, q.len())?;
        for path in &left {
            let token = draft.token(path[depth] as usize);
            let q = &q[token as usize];
            if !q.is_positive() {
                let found = q.to_f64().to_string();
                return Err(Error::ZeroDraftProbability {
                    node: path[depth] as usize,
                    token,
                    found,
                });
            }
        }
        let mut best = None;
        let scale = power_sum(&low.add(&width), &low, paths.len());
        let mut selected = vec![W::zero(); q.len()];
        let mut bottom = low.clone();
        // From the worst token up, so that sums only grow and nothing cancels.
        for token in ranked(&p, &q).into_iter().rev() {
            let share = width.mul(&q[token]);
            let top = bottom.add(&share);
            selected[token] = q[token].mul(&power_sum(&top, &bottom, paths.len())).div(&scale);
            if left.iter().any(|path| draft.token(path[depth] as usize) as usize == token) {
                best = Some((token, bottom, share));
            }
            bottom = top;
        }
        let Some((token, from, share)) = best else {
            unreachable!("every token with q > 0 has a rank");
        };
        (low, width) = (from, share);
        rows.target.push(p);
        rows.drafter.push(mutate!("gbv/q_not_skewed", selected, q));
        left.retain(|path| draft.token(path[depth] as usize) as usize == token);
        node = left[0][depth] as usize;
    }
    let vocab = rows.drafter[0].len();
    rows.target.push(target_row(view, node, vocab)?);
    Ok((left[0].to_vec(), rows))
}

fn target_row<W: Weight, V: View<W>>(view: &mut V, node: usize, vocab: usize) -> Result<Vec<W>> {
    let mut row = vec![W::zero(); vocab];
    let mix = Mix::target();
    for (token, weight) in view.mixture(node, &mix, &[])?.list()? {
        row[token as usize] = weight;
    }
    Ok(row)
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

/// `(x^k - y^k) / (x - y) = x^(k-1) + x^(k-2) y + ... + y^(k-1)`, without the cancellation.
fn power_sum<W: Weight>(x: &W, y: &W, k: usize) -> W {
    let mut sum = W::zero();
    let mut power = W::one();
    for _ in 0..k {
        sum = sum.mul(x).add(&power);
        power = power.mul(y);
    }
    sum
}
