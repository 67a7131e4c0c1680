//! A shape decided beforehand, filled level by level.
//!
//! # Law
//! The one asked for: `iid`, `swor`, `chain` (all children drawn), `top_plus_one` and `mixed` (some
//! drawn, then a set), `deterministic` (the most probable tokens).
//!
//! # Why lossless
//! The template is known before any draw, so growth is append-only. A node whose
//! row has too few tokens gets fewer children; the template's branches for the others are left out.
//!
//! # Source
//! SpecInfer (arXiv 2305.09781), Sequoia (2402.12374), Hu et al. (2502.18779); a template with
//! disjoint paths gives the independent paths of SpecTr (2310.15141).

use crate::chance::Choices;
use crate::error::{Error, Result};
use crate::growers::{DraftRows, Grower, Growth};
use crate::number::Weight;
use crate::tree::TokenTree;
use crate::verify::law::Law;

/// The children of a node that are not drawn.
#[derive(Debug, Clone)]
pub enum Set {
    /// None.
    Empty,
    /// The most probable tokens of the row, as many as the template's children that are not drawn.
    Best,
    /// Given tokens, by the depth of the parent.
    ByDepth(Vec<Vec<u32>>),
}

/// A tree of a given shape.
#[derive(Debug, Clone)]
pub struct Fixed {
    growth: Growth,
    template: TokenTree,
    /// The template's node of each node grown.
    slots: Vec<u32>,
    law: Law,
    /// The most children of a node that are drawn.
    samples: usize,
    set: Set,
}

impl Fixed {
    /// A tree of the shape of `template`; `samples` says how many children of a node are drawn under
    /// the law `mixed`, the others being its most probable tokens.
    ///
    /// # Errors
    /// [`Error::LawShape`] where the template has a form that the law cannot have,
    /// [`Error::LawData`] for a law that no fixed shape has.
    pub fn new(growth: Growth, template: TokenTree, law: Law, samples: usize) -> Result<Self> {
        let (samples, set) = match law {
            Law::Chain | Law::Iid | Law::Swor => (usize::MAX, Set::Empty),
            Law::TopPlusOne => (1, Set::Best),
            Law::Mixed => (samples, Set::Best),
            Law::Deterministic => (0, Set::Best),
            Law::Coupled | Law::Unknown => {
                let reason = "is not a law of fixed shapes; use the coupled grower, or declare what \
                              was grown when the draft is made";
                return Err(Error::LawData { law: law.name(), reason });
            }
        };
        if law == Law::Chain && !template.is_chain() {
            let reason = "is one path; use \"swor\" or \"iid\" for shapes with siblings";
            return Err(Error::LawShape { node: 0, law: law.name(), reason });
        }
        Ok(Self::with_set(growth, template, law, samples, set))
    }

    /// A tree whose set of children that are not drawn is given.
    pub(crate) fn with_set(
        mut growth: Growth,
        template: TokenTree,
        law: Law,
        samples: usize,
        set: Set,
    ) -> Self {
        growth.want((template.num_nodes() > 1).then_some(0));
        Self { growth, template, slots: vec![0], law, samples, set }
    }
}

impl<W: Weight> Grower<W> for Fixed {
    fn growth(&self) -> &Growth {
        &self.growth
    }

    fn law(&self) -> Law {
        self.law
    }

    fn extend<R: DraftRows<W>, C: Choices<W>>(
        &mut self,
        rows: &mut R,
        choices: &mut C,
    ) -> Result<()> {
        let level = self.growth.num_nodes();
        for node in self.growth.frontier().to_vec() {
            let node = node as usize;
            let slots = self.template.children(self.slots[node] as usize);
            let set = match &self.set {
                Set::Empty => Vec::new(),
                Set::Best => {
                    let best = rows.best(node, slots.len().saturating_sub(self.samples))?;
                    best.into_iter().map(|(token, _)| token).collect()
                }
                Set::ByDepth(sets) => {
                    sets.get(self.growth.depth(node)).cloned().unwrap_or_default()
                }
            };
            let draws = self.samples.min(slots.len().saturating_sub(set.len()));
            let replace = self.law == Law::Iid;
            self.growth.children(node, draws, &set, replace, rows, choices)?;
            let grown = self.growth.num_nodes() - self.slots.len();
            self.slots.extend(&slots[..grown]);
        }
        let inner = |&node: &usize| !self.template.children(self.slots[node] as usize).is_empty();
        let next: Vec<usize> = (level..self.growth.num_nodes()).filter(inner).collect();
        self.growth.want(next);
        Ok(())
    }
}
