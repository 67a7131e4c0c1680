//! Working memory of a view, kept by its thread from one view to the next.
//!
//! Blocks, lists of up to a row and spread rows are as large for the next draft as they were for the
//! last one, so a thread that verifies one draft after the other allocates them once. Nothing that a
//! view answers depends on what its memory was used for before: what is kept is the answer to a
//! question, under the whole of that question.

use std::cell::Cell;
use std::ops::{Deref, DerefMut, Range};

use crate::shaping::{List, Scratch, Side};
use crate::verify::view::Mix;

/// The sums of the weights of each block of the rows read so far.
#[derive(Debug, Default)]
pub(super) struct RowSums {
    sums: Vec<f64>,
    /// Side, node, and where its sums are.
    places: Vec<(Side, usize, Range<usize>)>,
}

impl RowSums {
    pub(super) fn of(&self, side: Side, node: usize) -> Option<&[f64]> {
        let place = self.places.iter().find(|place| (place.0, place.1) == (side, node))?;
        Some(&self.sums[place.2.clone()])
    }

    pub(super) fn keep(&mut self, side: Side, node: usize, sums: &[f64]) {
        let start = self.sums.len();
        self.sums.extend_from_slice(sums);
        self.places.push((side, node, start..self.sums.len()));
    }

    fn clear(&mut self) {
        self.sums.clear();
        self.places.clear();
    }
}

/// The kept tokens of rows that their shaping has listed, with their weights.
#[derive(Debug, Default)]
pub(super) struct RowLists {
    tokens: Vec<u32>,
    weights: Vec<f32>,
    places: Vec<(Side, usize, Range<usize>)>,
}

impl RowLists {
    pub(super) fn of(&self, side: Side, node: usize) -> Option<(&[u32], &[f32])> {
        let place = self.places.iter().find(|place| (place.0, place.1) == (side, node))?;
        Some((&self.tokens[place.2.clone()], &self.weights[place.2.clone()]))
    }

    pub(super) fn keep(&mut self, side: Side, node: usize, list: &List) {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(&list.tokens);
        self.weights.extend_from_slice(&list.weights);
        self.places.push((side, node, start..self.tokens.len()));
    }

    fn clear(&mut self) {
        self.tokens.clear();
        self.weights.clear();
        self.places.clear();
    }
}

/// The mixture that was asked for last: its weights are not normalised, nor scaled.
#[derive(Debug, Default)]
pub(super) struct Mixture {
    /// Which one it is.
    pub(super) key: Option<(usize, Mix<f64>)>,
    /// The sums of its blocks, where it is read in blocks.
    pub(super) sums: Vec<f64>,
    /// The weights of the listed tokens, where it is a list.
    pub(super) weights: Vec<f64>,
    /// The sum of its weights.
    pub(super) total: f64,
}

/// The kept tokens of the target's row whose mixture was asked for last.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// After which node; none if nothing is listed.
    pub(super) node: Option<usize>,
    /// Whether they are few enough to be listed.
    pub(super) is_listed: bool,
    pub(super) tokens: Vec<u32>,
    pub(super) weights: Vec<f32>,
}

/// What a view writes into.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) scratch: Scratch,
    pub(super) sums: RowSums,
    pub(super) lists: RowLists,
    pub(super) mixture: Mixture,
    pub(super) kept: Kept,
    /// The drafter's mass that was asked for last, with its node and the tokens outside of which it is.
    pub(super) rest: Option<(usize, Vec<u32>, f64)>,
    /// A drafter's row spread over the whole vocabulary, for sub-vocabularies only, and which row it is.
    pub(super) spread: Vec<f64>,
    pub(super) spread_row: Option<usize>,
}

impl Memory {
    /// Drops the answers that were given to another view.
    fn forget(&mut self) {
        self.sums.clear();
        self.lists.clear();
        self.mixture.key = None;
        self.kept.node = None;
        self.rest = None;
        self.spread_row = None;
    }
}

thread_local! {
    static SPARE: Cell<Option<Box<Memory>>> = const { Cell::new(None) };
}

/// Memory that goes back to its thread when it is dropped.
#[derive(Debug)]
pub(super) struct Lent(Option<Box<Memory>>);

impl Lent {
    /// The thread's spare memory, or new memory if a view of this thread has it.
    pub(super) fn new() -> Self {
        let mut memory = SPARE.take().unwrap_or_default();
        memory.forget();
        Self(Some(memory))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // A thread that ends has no place for it any more.
        let _ = SPARE.try_with(|spare| spare.set(self.0.take()));
    }
}

impl Deref for Lent {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        self.0.as_deref().expect("memory is held until it is dropped")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Memory {
        self.0.as_deref_mut().expect("memory is held until it is dropped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_without_answers_and_is_never_lent_twice() {
        let mut first = Lent::new();
        first.spread.resize(1000, 1.0);
        first.mixture.key = Some((1, Mix::target()));
        first.sums.keep(Side::Target, 3, &[1.0, 2.0]);
        assert_eq!(first.sums.of(Side::Target, 3), Some(&[1.0, 2.0][..]));
        assert_eq!(first.sums.of(Side::Drafter, 3), None);
        let at = first.spread.as_ptr();
        let second = Lent::new();
        assert!(second.spread.is_empty());
        drop(second);
        drop(first);
        let again = Lent::new();
        assert_eq!(again.spread.as_ptr(), at);
        assert_eq!(again.mixture.key, None);
        assert_eq!(again.sums.of(Side::Target, 3), None);
    }
}
