//! Drafts of every law on small models, drawn through the same source of choices as the decisions.

use crate::certify::golden::Rows;
use crate::choice::{Choices, Purpose, Site};
use crate::error::Result;
use crate::mutants::mutate;
use crate::num::Weight;
use crate::tree::TokenTree;
use crate::verify::dense::{DenseCells, DenseView};
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
    if !case.law.is_sampled() {
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

/// A grown tree whose law has not been declared yet; every field has one entry for each node.
pub(super) struct Grown<W> {
    pub(super) parents: Vec<i64>,
    pub(super) tokens: Vec<i64>,
    pub(super) sampled: Vec<bool>,
    paths: Vec<Vec<u32>>,
    /// The target's and the drafter's rows.
    pub(super) rows: Vec<(Vec<W>, Vec<W>)>,
}

impl<W: Weight> Grown<W> {
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

    fn push(&mut self, rows: &Rows<W>, parent: usize, token: u32, sampled: bool) {
        let mut path = self.paths[parent].clone();
        path.push(token);
        self.parents.push(parent as i64);
        self.tokens.push(i64::from(token));
        self.sampled.push(sampled);
        self.rows.push((rows.target(&path).to_vec(), rows.drafter(&path).to_vec()));
        self.paths.push(path);
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
    grow(rows, case, choices)?.declare(mutate!("law/iid_claimed_swor", case.law, Law::Swor))
}

/// The tree of [`draft`].
pub(super) fn grow<W: Weight, C: Choices<W>>(
    rows: &Rows<W>,
    case: &Case,
    choices: &mut C,
) -> Result<Grown<W>> {
    let mut growing = Grown {
        parents: vec![-1],
        tokens: vec![-1],
        sampled: vec![false],
        paths: vec![Vec::new()],
        rows: vec![(rows.target(&[]).to_vec(), rows.drafter(&[]).to_vec())],
    };
    let mut level = 0..1;
    for (depth, &children) in case.shape.iter().enumerate() {
        let next = growing.parents.len();
        for parent in level {
            grow_children(rows, case, depth, parent, children, &mut growing, choices)?;
        }
        level = next..growing.parents.len();
    }
    Ok(growing)
}

fn grow_children<W: Weight, C: Choices<W>>(
    rows: &Rows<W>,
    case: &Case,
    depth: usize,
    parent: usize,
    children: usize,
    growing: &mut Grown<W>,
    choices: &mut C,
) -> Result<()> {
    let row = rows.drafter(&growing.paths[parent]).to_vec();
    let best = ranked(&row);
    let set: Vec<u32> = match case.law {
        Law::Deterministic | Law::Unknown | Law::Coupled => {
            best.into_iter().take(children).collect()
        }
        Law::TopPlusOne => best.into_iter().take(children - 1).collect(),
        // A set that has nothing to do with the row: one token that depends on the depth.
        Law::Mixed => vec![(depth % row.len()) as u32],
        Law::Chain | Law::Iid | Law::Swor => Vec::new(),
    };
    let samples = if case.law.is_sampled() { children - set.len().min(children) } else { 0 };
    let samples = if case.law == Law::TopPlusOne { 1 } else { samples };
    let mut left = row;
    for &token in &set {
        left[token as usize] = W::zero();
    }
    for _ in 0..samples {
        if !left.iter().any(Weight::is_positive) {
            break;
        }
        let site = Site::new(growing.parents.len(), Purpose::Draft);
        let token = choices.draw(site, &mut DenseCells::new(left.clone()))?;
        growing.push(rows, parent, token, true);
        if case.law != Law::Iid {
            left[token as usize] = W::zero();
        }
    }
    for token in set {
        growing.push(rows, parent, token, false);
    }
    Ok(())
}

/// Tokens of positive probability, most likely first, equal ones by ascending id.
fn ranked<W: Weight>(row: &[W]) -> Vec<u32> {
    let mut order: Vec<u32> =
        (0..row.len() as u32).filter(|&t| row[t as usize].is_positive()).collect();
    order.sort_by(|&a, &b| {
        row[b as usize].partial_cmp(&row[a as usize]).unwrap_or(std::cmp::Ordering::Equal)
    });
    order
}
