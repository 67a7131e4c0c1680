//! Drafts of every law on small models, drawn through the same source of choices as the decisions.

use std::cmp::Ordering;

use crate::chance::Choices;
use crate::error::Result;
use crate::growers::{self, DenseRows, Fixed, Grower, Growth, Set};
use crate::mutants::mutate;
use crate::number::Weight;
use crate::proof::golden::Rows;
use crate::tree::TokenTree;
use crate::verify::dense::DenseView;
use crate::verify::law::{Draft, Law};

/// A law and a shape: every node at depth `d` gets `shape[d]` children (fewer where the drafter has
/// fewer tokens of positive probability).
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// How the children are chosen.
    pub law: Law,
    /// Children by depth.
    pub shape: &'static [usize],
}

/// An upper bound of the number of drafts of a case.
pub(super) fn num_drafts(vocab: usize, case: &Case) -> usize {
    if !case.law.is_sampled() && case.law != Law::Unknown {
        return 1;
    }
    let mut nodes = 1_usize;
    let mut drafts = 1_usize;
    for &children in case.shape {
        let sampled = if case.law == Law::TopPlusOne { 1 } else { children };
        for _ in 0..nodes * sampled {
            drafts = drafts.saturating_mul(vocab);
        }
        nodes *= children;
    }
    drafts
}

/// How many tokens of a draft are drawn, at most.
pub(super) fn num_draws(case: &Case) -> usize {
    if !case.law.is_sampled() && case.law != Law::Unknown {
        return 0;
    }
    let mut nodes = 1;
    let mut draws = 0;
    for &children in case.shape {
        draws += nodes * if case.law == Law::TopPlusOne { 1 } else { children };
        nodes *= children;
    }
    draws
}

/// A grown tree whose law has not been declared yet; every field has one entry for each node.
pub(super) struct Grown<W> {
    pub(super) parents: Vec<i64>,
    pub(super) tokens: Vec<i64>,
    pub(super) sampled: Vec<bool>,
    /// The target's and the drafter's rows.
    pub(super) rows: Vec<(Vec<W>, Vec<W>)>,
}

impl<W: Weight> Grown<W> {
    /// What a grower has grown, with the rows of a model.
    fn of(rows: &Rows<W>, growth: &Growth) -> Self {
        let row = |node| {
            let path = growth.path(node);
            (rows.target(&path).to_vec(), rows.drafter(&path).to_vec())
        };
        Self {
            parents: growth.parents().to_vec(),
            tokens: growth.tokens().to_vec(),
            sampled: growth.sampled().to_vec(),
            rows: (0..growth.num_nodes()).map(row).collect(),
        }
    }

    /// The draft under a law, with the view of its rows.
    ///
    /// # Errors
    /// If the tree contradicts the law.
    pub(super) fn declare(self, law: Law) -> Result<(Draft, DenseView<W>)> {
        let flags = matches!(law, Law::TopPlusOne | Law::Mixed).then_some(self.sampled);
        let draft = Draft::new(TokenTree::new(&self.parents)?, self.tokens, law, flags)?;
        let (target, drafter) = self.rows.into_iter().unzip();
        Ok((draft, DenseView { target, drafter }))
    }

    /// Keeps the nodes of a list, with their new numbers.
    pub(super) fn keep(&mut self, nodes: &[usize]) {
        let number = |parent: i64| nodes.iter().position(|&node| node as i64 == parent);
        let parents =
            nodes.iter().map(|&node| number(self.parents[node]).map_or(-1, |at| at as i64));
        self.parents = parents.collect();
        self.tokens = nodes.iter().map(|&node| self.tokens[node]).collect();
        self.sampled = nodes.iter().map(|&node| self.sampled[node]).collect();
        self.rows = nodes.iter().map(|&node| self.rows[node].clone()).collect();
    }

    /// The drafter's probability of each node's path.
    pub(super) fn path_probabilities(&self) -> Vec<W> {
        let mut paths = vec![W::one()];
        for node in 1..self.tokens.len() {
            let parent = self.parents[node] as usize;
            let q = &self.rows[parent].1[self.tokens[node] as usize];
            paths.push(paths[parent].mul(q));
        }
        paths
    }

    /// Prunes the tree to the two nodes whose paths are the likeliest.
    pub(super) fn keep_two_likeliest(&mut self) {
        let paths = self.path_probabilities();
        let mut nodes: Vec<usize> = (1..paths.len()).collect();
        nodes.sort_by(|&a, &b| paths[b].partial_cmp(&paths[a]).unwrap_or(Ordering::Equal));
        nodes.truncate(2);
        nodes.push(0);
        nodes.sort_unstable();
        self.keep(&nodes);
    }
}

/// Grows a draft, drawing at `(node, Draft)`, with the view of its rows.
///
/// # Errors
/// Whatever the source of choices raises.
pub fn draft<W: Weight, C: Choices<W>>(
    rows: &Rows<W>,
    case: &Case,
    choices: &mut C,
) -> Result<(Draft, DenseView<W>)> {
    let mut grown = grow(rows, case, choices)?;
    if case.law == Law::Unknown {
        grown.keep_two_likeliest();
    }
    grown.declare(mutate!("law/iid_claimed_swor", case.law, Law::Swor))
}

/// The tree of [`draft`].
pub(super) fn grow<W: Weight, C: Choices<W>>(
    rows: &Rows<W>,
    case: &Case,
    choices: &mut C,
) -> Result<Grown<W>> {
    let vocab = rows.drafter(&[]).len();
    let (samples, set) = match case.law {
        Law::Deterministic | Law::Coupled => (0, Set::Best),
        Law::TopPlusOne => (1, Set::Best),
        // A set that has nothing to do with the row: one token that depends on the depth.
        Law::Mixed => {
            let sets = (0..case.shape.len()).map(|depth| vec![(depth % vocab) as u32]).collect();
            (usize::MAX, Set::ByDepth(sets))
        }
        // Drawn, and pruned afterwards.
        Law::Chain | Law::Iid | Law::Swor | Law::Unknown => (usize::MAX, Set::Empty),
    };
    let law = if case.law == Law::Unknown { Law::Swor } else { case.law };
    let root = Growth::new(-1, Vec::new());
    let template = growers::by_depth(case.shape)?;
    let mut grower = Fixed::with_set(root, template, law, samples, set);
    DenseRows::grow(&mut grower, choices, |path| rows.drafter(path).to_vec())?;
    Ok(Grown::of(rows, Grower::<W>::growth(&grower)))
}

/// Grows a draft to its end.
#[cfg(test)]
pub(super) fn finish<W: Weight, G: Grower<W>, C: Choices<W>>(
    rows: &Rows<W>,
    mut grower: G,
    choices: &mut C,
) -> Result<Draft> {
    DenseRows::grow(&mut grower, choices, |path| rows.drafter(path).to_vec())?;
    grower.growth().draft(grower.law())
}

/// Both sides' rows after each node of a draft.
#[cfg(test)]
pub(super) fn view<W: Weight>(rows: &Rows<W>, draft: &Draft) -> DenseView<W> {
    let path = |node| -> Vec<u32> {
        draft.tree().path(node).iter().map(|&n| draft.token(n as usize)).collect()
    };
    let paths: Vec<Vec<u32>> = (0..draft.num_nodes()).map(path).collect();
    DenseView {
        target: paths.iter().map(|path| rows.target(path).to_vec()).collect(),
        drafter: paths.iter().map(|path| rows.drafter(path).to_vec()).collect(),
    }
}
