//! Working memory of a view, kept by its thread from one view to the next.
//!
//! Blocks, lists of up to a row and spread rows are as large for the next draft as they were for the
//! last one, so a thread that verifies one draft after the other allocates them once. Nothing that a
//! view answers depends on what its memory was used for before.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

use crate::dist::Scratch;

/// The sums of the blocks of one mixture, so that a draw finds its block without another pass.
#[derive(Debug, Default)]
pub(super) struct BlockSums {
    /// The mixture that the sums belong to: node, factors, number of removed tokens.
    pub(super) key: Option<(usize, [u64; 3], usize)>,
    pub(super) sums: Vec<f64>,
    pub(super) total: f64,
}

/// What a view writes into.
#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) scratch: Scratch,
    pub(super) sums: BlockSums,
    /// A drafter's row spread over the whole vocabulary, for sub-vocabularies only.
    pub(super) spread: Vec<f64>,
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
        memory.scratch.forget();
        memory.sums.key = None;
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
    fn memory_comes_back_and_is_never_lent_twice() {
        let mut first = Lent::new();
        first.spread.resize(1000, 1.0);
        first.sums.key = Some((1, [2; 3], 3));
        let at = first.spread.as_ptr();
        let second = Lent::new();
        assert!(second.spread.is_empty());
        drop(second);
        drop(first);
        let again = Lent::new();
        assert_eq!(again.spread.as_ptr(), at);
        assert_eq!(again.sums.key, None);
    }
}
