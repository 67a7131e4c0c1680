//! The mean number of accepted tokens of one draft, by the decision code itself.

use crate::chance::enumerator::{Enumerator, enumerate};
use crate::chance::{Cells, Choices, Purpose, Site};
use crate::error::{Error, Result};
use crate::number::Weight;
use crate::verify::law::{Draft, Law};
use crate::verify::view::{Outcome, View};
use crate::verify::{Core, decide};

/// The mean of the number of accepted tokens over the verifier's noise, the draft held fixed.
///
/// The core runs once for each way in which its answers can go. A draw is told apart only as far as
/// the walk is: the children that it may lead to, and any other token. So there are at most as many
/// runs as places to stop, whatever the vocabulary.
///
/// # Errors
/// Whatever the rule raises; [`Error::LawData`] for the coupled rule on a coupled draft.
pub fn expected<W: Weight, V: View<W>>(core: Core, draft: &Draft, view: &mut V) -> Result<W> {
    let core = enumerable(core, draft)?;
    let runs = enumerate(|choices| {
        let mut lumped = Lumped { choices, draft, core };
        let Outcome { path, .. } = decide(core, draft, view, &mut lumped)?;
        match choices.strayed() {
            None => Ok(path.len()),
            Some(Site { node, purpose }) => {
                let (node, is_test) = (node as usize, purpose == Purpose::Accept);
                // A node is tested against the row after its parent.
                let above = draft.tree().parent(node).filter(|_| is_test);
                Err(Error::RowChanged { side: "target", row: above.unwrap_or(node) })
            }
        }
    })?;
    let mean = |sum: W, (accepted, weight): (usize, W)| {
        sum.add(&weight.mul(&W::ratio(accepted as i64, 1)))
    };
    Ok(runs.into_iter().fold(W::zero(), mean))
}

/// The core whose branches are those of `core` over all noise.
///
/// # Errors
/// [`Error::LawData`] for the coupled rule on a coupled draft, whose tokens tell about the noise.
pub(super) fn enumerable(core: Core, draft: &Draft) -> Result<Core> {
    match core {
        Core::Coupled if draft.law() == Law::Coupled => Err(Error::LawData {
            law: draft.law().name(),
            reason: "shares the verifier's noise, so its tokens tell what rule \"coupled\" draws; \
                     ask for rule=\"target_only\"",
        }),
        // A race has the law of its row, and other drafts do not know its noise.
        Core::Coupled => Ok(Core::TargetOnly),
        core => Ok(core),
    }
}

/// The token of every draw that leads to no child; no draft has it, as vocabularies end below it.
const OTHER: u32 = u32::MAX;

/// The enumerator, with draws lumped by the child that the walk goes on to.
struct Lumped<'a, W> {
    choices: &'a mut Enumerator<W>,
    draft: &'a Draft,
    core: Core,
}

impl<W: Weight> Lumped<'_, W> {
    /// Whether a draw of the child's token moves the walk to the child.
    fn follows(&self, child: usize) -> bool {
        self.core.follows_draws(self.draft.is_sampled(child))
    }
}

impl<W: Weight> Choices<W> for Lumped<'_, W> {
    fn accept(&mut self, site: Site, num: &W, den: &W) -> bool {
        self.choices.accept(site, num, den)
    }

    fn draw(&mut self, site: Site, cells: &mut dyn Cells<W>) -> Result<u32> {
        if site.purpose == Purpose::Select {
            return self.choices.draw(site, cells);
        }
        let children = self.draft.tree().children(site.node as usize);
        let mut tokens: Vec<u32> = children
            .iter()
            .filter(|&&child| self.follows(child as usize))
            .map(|&child| self.draft.token(child as usize))
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        let total = cells.total();
        let mut edges = vec![W::zero()];
        let mut sum = W::zero();
        for &token in &tokens {
            sum = sum.add(&cells.weight(token)?);
            edges.push(sum.div(&total).min(&W::one()));
        }
        edges.push(W::one());
        tokens.push(OTHER);
        Ok(tokens[self.choices.cut(site, &edges)])
    }

    fn race(&mut self, depth: usize, _cells: &mut dyn Cells<W>) -> Result<u32> {
        unreachable!("the race at depth {depth} has the law of a draw, and is asked for as one");
    }
}
