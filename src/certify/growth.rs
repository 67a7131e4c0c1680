//! Drafts of every law on small models, drawn through the same source of choices as the decisions.

use crate::certify::golden::Rows;
use crate::choice::Choices;
use crate::error::Result;
use crate::mutants::mutate;
use crate::num::Weight;
use crate::shape::{self, DenseRows, Fixed, Grower, Growth, Set};
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

/// Grows a draft, drawing at `(node, Draft)`, with the view of its rows.
///
/// # Errors
/// Whatever the source of choices raises.
pub fn draft<W: Weight, C: Choices<W>>(
    rows: &Rows<W>,
    case: &Case,
    choices: &mut C,
) -> Result<(Draft, DenseView<W>)> {
    let vocab = rows.drafter(&[]).len();
    let (samples, set) = match case.law {
        Law::Deterministic | Law::Unknown | Law::Coupled => (0, Set::Best),
        Law::TopPlusOne => (1, Set::Best),
        // A set that has nothing to do with the row: one token that depends on the depth.
        Law::Mixed => {
            let sets = (0..case.shape.len()).map(|depth| vec![(depth % vocab) as u32]).collect();
            (usize::MAX, Set::ByDepth(sets))
        }
        Law::Chain | Law::Iid | Law::Swor => (usize::MAX, Set::Empty),
    };
    let template = shape::by_depth(case.shape)?;
    let root = Growth::new(-1, Vec::new());
    finish(rows, Fixed::with_set(root, template, case.law, samples, set), choices)
}

/// Grows a draft to its end, with the view of its rows.
pub(super) fn finish<W: Weight, G: Grower<W>, C: Choices<W>>(
    rows: &Rows<W>,
    mut grower: G,
    choices: &mut C,
) -> Result<(Draft, DenseView<W>)> {
    DenseRows::grow(&mut grower, choices, |path| rows.drafter(path).to_vec())?;
    let draft = grower.growth().draft(mutate!("law/iid_claimed_swor", grower.law(), Law::Swor))?;
    let view = view(rows, &draft);
    Ok((draft, view))
}

/// Both sides' rows after each node of a draft.
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
