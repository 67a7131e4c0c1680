//! What the field's chain rules share: a drafted chain, its rows, and numbers at addresses.

use super::Run;
use crate::chance::enumerator::Enumerator;
use crate::chance::{Choices, Purpose, Site};
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::tree::TokenTree;
use crate::verify::dense::{DenseCells, DenseView};
use crate::verify::law::{Draft, Law};
use crate::verify::{self, Core};

/// What a number depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// The step and the place in its draft: no number is used twice.
    Step,
    /// The position of the token in the sequence: used again when that position is drafted again.
    Position,
}

/// The root of all numbers that are keyed by position; no step stands there.
const EVERY_STEP: u64 = 1 << 20;

/// The numbers of one step of one sequence.
pub(super) struct Noise<'a> {
    pub(super) choices: &'a mut Enumerator<Fraction>,
    /// How many tokens the sequence has.
    pub(super) root: usize,
    /// How the drafter's numbers are keyed.
    pub(super) draft: Key,
    /// How the numbers of acceptances are keyed.
    pub(super) accept: Key,
}

impl<'a> Noise<'a> {
    /// Numbers of the first step, none used twice.
    pub(super) fn fresh(choices: &'a mut Enumerator<Fraction>) -> Self {
        Self { choices, root: 0, draft: Key::Step, accept: Key::Step }
    }

    fn site(&mut self, depth: usize, purpose: Purpose) -> Site {
        let key = match purpose {
            Purpose::Draft => self.draft,
            Purpose::Accept => self.accept,
            Purpose::Sample | Purpose::Gumbel | Purpose::Select => Key::Step,
        };
        match key {
            Key::Step => {
                self.choices.set_position(self.root as u64);
                Site::new(depth, purpose)
            }
            Key::Position => {
                self.choices.set_position(EVERY_STEP);
                Site::new(self.root + depth, purpose)
            }
        }
    }

    /// True with probability `min(1, num / den)`.
    pub(super) fn accept(&mut self, depth: usize, num: &Fraction, den: &Fraction) -> bool {
        let site = self.site(depth, Purpose::Accept);
        self.choices.accept(site, num, den)
    }

    /// A token with probability proportional to its weight.
    pub(super) fn draw(
        &mut self,
        depth: usize,
        purpose: Purpose,
        row: Vec<Fraction>,
    ) -> Result<u32> {
        let site = self.site(depth, purpose);
        self.choices.draw(site, &mut DenseCells::new(row))
    }

    /// A chain of `length` tokens from the drafter, after `before`.
    pub(super) fn chain(
        &mut self,
        rows: &Rows<Fraction>,
        before: &[u32],
        length: usize,
    ) -> Result<Vec<u32>> {
        let mut path = before.to_vec();
        for depth in 1..=length {
            path.push(self.draw(depth, Purpose::Draft, rows.drafter(&path).to_vec())?);
        }
        Ok(path.split_off(before.len()))
    }
}

/// Tokens drafted after `before` as the package's own draft, with the view of its rows.
pub(super) fn declared(
    rows: &Rows<Fraction>,
    before: &[u32],
    tokens: &[u32],
) -> Result<(Draft, DenseView<Fraction>)> {
    let path = [before, tokens].concat();
    let ends = before.len()..=path.len();
    let target = ends.clone().map(|end| rows.target(&path[..end]).to_vec()).collect();
    let drafter = ends.map(|end| rows.drafter(&path[..end]).to_vec()).collect();
    let nodes = std::iter::once(-1).chain(tokens.iter().map(|&token| i64::from(token)));
    let draft = Draft::new(TokenTree::chain(tokens.len())?, nodes.collect(), Law::Chain, None)?;
    Ok((draft, DenseView { target, drafter }))
}

/// Verifies a draft after the tokens of its sequence by a rule that ships.
pub(super) fn verify(
    rows: &Rows<Fraction>,
    before: &[u32],
    draft: &[u32],
    core: Core,
    choices: &mut Enumerator<Fraction>,
) -> Result<Vec<u32>> {
    let (draft, mut view) = declared(rows, before, draft)?;
    choices.set_position(before.len() as u64);
    Ok(verify::decide(core, &draft, &mut view, choices)?.tokens)
}

/// The whole drafts of two sequences.
pub(super) fn drafts(
    rows: &Rows<Fraction>,
    length: usize,
    choices: &mut Enumerator<Fraction>,
) -> Result<Vec<Vec<u32>>> {
    let draft = |seed| {
        choices.set_seed(seed);
        Noise::fresh(choices).chain(rows, &[], length)
    };
    (0..2).map(draft).collect()
}

/// Verifies the first `places` tokens of each sequence's draft, token by token.
pub(super) fn verify_all(
    rows: &Rows<Fraction>,
    drafts: &[Vec<u32>],
    places: &[usize],
    choices: &mut Enumerator<Fraction>,
) -> Result<Run> {
    let mut run = Run::default();
    for (sequence, (draft, &places)) in drafts.iter().zip(places).enumerate() {
        choices.set_seed(sequence as u64);
        let tokens = verify(rows, &[], &draft[..places], Core::TopDown, choices)?;
        run.accepted += tokens.len() - 1;
        run.emitted.push(tokens);
    }
    Ok(run)
}

/// `p(x) / q(x)` of a drafted token, whose `q` is positive.
pub(super) fn ratio(rows: &Rows<Fraction>, path: &[u32], token: u32) -> Fraction {
    let at = token as usize;
    rows.target(path)[at].div(&rows.drafter(path)[at])
}

/// `(a p - b q)+` after a path.
pub(super) fn excess(
    rows: &Rows<Fraction>,
    path: &[u32],
    a: &Fraction,
    b: &Fraction,
) -> Vec<Fraction> {
    let pairs = rows.target(path).iter().zip(rows.drafter(path));
    pairs.map(|(p, q)| a.mul(p).sub(&b.mul(q)).positive_part()).collect()
}

/// `(b q - a p)+` after a path.
pub(super) fn shortfall(
    rows: &Rows<Fraction>,
    path: &[u32],
    a: &Fraction,
    b: &Fraction,
) -> Vec<Fraction> {
    let pairs = rows.target(path).iter().zip(rows.drafter(path));
    pairs.map(|(p, q)| b.mul(q).sub(&a.mul(p)).positive_part()).collect()
}

/// The sum of a row.
pub(super) fn sum(row: &[Fraction]) -> Fraction {
    row.iter().fold(Fraction::zero(), |sum, weight| sum.add(weight))
}
