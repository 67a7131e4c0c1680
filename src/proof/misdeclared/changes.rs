//! What is done to a tree after its tokens were drawn.

use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::proof::growth::Grown;

pub(super) fn nothing(_: &mut Grown<Fraction>, _: &Rows<Fraction>) {}

pub(super) fn merge_duplicates(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let seen = |node: usize| (1..node).any(|other| grown.tokens[other] == grown.tokens[node]);
    let nodes: Vec<usize> = (0..grown.tokens.len()).filter(|&node| !seen(node)).collect();
    grown.keep(&nodes);
}

/// Cuts a chain before the first token (or path) whose drafter's probability is below a bound.
pub(super) fn cut_before(grown: &mut Grown<Fraction>, bound: &Fraction, by_path: bool) {
    let paths = grown.path_probabilities();
    let low = |node: usize| {
        let q = if by_path { paths[node].clone() } else { paths[node].div(&paths[node - 1]) };
        q < *bound
    };
    let end = (1..paths.len()).find(|&node| low(node)).unwrap_or(paths.len());
    grown.keep(&(0..end).collect::<Vec<_>>());
}

/// Cuts a chain before the first token whose own probability is below the mean over all tokens, those that
/// were drawn after it among them.
pub(super) fn cut_below_the_mean(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let own: Vec<Fraction> = (1..grown.tokens.len())
        .map(|node| grown.rows[node - 1].1[grown.tokens[node] as usize].clone())
        .collect();
    let sum = own.iter().fold(Fraction::zero(), |sum, q| sum.add(q));
    let mean = sum.div(&Fraction::ratio(own.len() as i64, 1));
    let end = own.iter().position(|q| *q < mean).unwrap_or(own.len());
    grown.keep(&(0..=end).collect::<Vec<_>>());
}

/// Leaves out every node whose own row is unsure, with what is below it: the row was looked at after the
/// token above it had been drawn.
pub(super) fn stop_one_row_late(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let bound = Fraction::ratio(2, 5);
    let mut kept = vec![0];
    for node in 1..grown.tokens.len() {
        let is_sure = grown.rows[node].1.iter().any(|q| *q >= bound);
        if is_sure && kept.contains(&(grown.parents[node] as usize)) {
            kept.push(node);
        }
    }
    grown.keep(&kept);
}

/// Leaves out the root's second child, and what is below it, where the first one has the token 0.
pub(super) fn narrow_after(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    if grown.tokens[1] != 0 {
        return;
    }
    let mut kept = vec![0, 1];
    for node in 3..grown.tokens.len() {
        if kept[1..].contains(&(grown.parents[node] as usize)) {
            kept.push(node);
        }
    }
    grown.keep(&kept);
}

/// Keeps the first level alone where its first node has the token 0.
pub(super) fn level_by_draws(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    if grown.tokens[1] == 0 {
        let top = (0..grown.tokens.len()).filter(|&node| grown.parents[node] <= 0);
        grown.keep(&top.collect::<Vec<_>>());
    }
}

pub(super) fn drop_forbidden(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let allowed = |node: usize| grown.rows[0].0[grown.tokens[node] as usize] > Fraction::zero();
    let nodes: Vec<usize> = (0..grown.tokens.len()).filter(|&n| n == 0 || allowed(n)).collect();
    grown.keep(&nodes);
}

pub(super) fn sort_by_target(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let mut nodes: Vec<usize> = (1..grown.tokens.len()).collect();
    nodes.sort_by(|&a, &b| {
        let p = |node: usize| &grown.rows[0].0[grown.tokens[node] as usize];
        p(b).cmp(p(a))
    });
    nodes.insert(0, 0);
    grown.keep(&nodes);
}

/// Gives all nodes of a depth the tokens that the first of them got: one draw for each depth, as a
/// drafter makes it whose rows depend on the depth alone.
pub(super) fn share_draws(grown: &mut Grown<Fraction>, rows: &Rows<Fraction>) {
    let count = grown.tokens.len();
    let mut paths: Vec<Vec<u32>> = vec![Vec::new(); count];
    // The children of the first node of each depth, from which the others take theirs.
    let mut drawn: Vec<(usize, Vec<i64>)> = Vec::new();
    for node in 0..count {
        let depth = paths[node].len();
        let children: Vec<usize> =
            (1..count).filter(|&child| grown.parents[child] == node as i64).collect();
        if children.is_empty() {
            continue;
        }
        if drawn.len() <= depth {
            drawn.push((node, children.iter().map(|&child| grown.tokens[child]).collect()));
        }
        for (&child, &token) in children.iter().zip(&drawn[depth].1) {
            grown.tokens[child] = token;
            paths[child] = [&paths[node][..], &[token as u32]].concat();
            // The target's row after another token is another one.
            grown.rows[child].0 = rows.target(&paths[child]).to_vec();
        }
    }
}

pub(super) fn report_untempered(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    for (target, drafter) in &mut grown.rows {
        drafter.clone_from(target);
    }
}
