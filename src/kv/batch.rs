//! What goes into a step of several sequences, and what comes out.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::tree::TokenTree;

/// Slots of one sequence's next nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The slot of each node.
    pub slots: Vec<i64>,
    /// `(from, to)` slots to be copied before anything is written.
    pub copies: Vec<(i64, i64)>,
}

/// The reservations of a batch, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReservationBatch {
    /// The slots of all nodes.
    pub slots: Vec<i64>,
    /// Sequence `b` of the batch has `slots[offsets[b]..offsets[b + 1]]`.
    pub offsets: Vec<i64>,
    /// `(from, to)` slots to be copied before anything is written.
    pub copies: Vec<(i64, i64)>,
    /// Sequence `b` of the batch has `copies[copy_offsets[b]..copy_offsets[b + 1]]`.
    pub copy_offsets: Vec<i64>,
}

impl ReservationBatch {
    /// The part of one sequence of the batch.
    pub fn get(&self, index: usize) -> Option<Reservation> {
        let part = |offsets: &[i64]| -> Option<Range<usize>> {
            Some(*offsets.get(index)? as usize..*offsets.get(index + 1)? as usize)
        };
        Some(Reservation {
            slots: self.slots[part(&self.offsets)?].to_vec(),
            copies: self.copies[part(&self.copy_offsets)?].to_vec(),
        })
    }
}

/// What one sequence keeps of its reservation.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// The sequence.
    pub seq: i64,
    /// The tree whose nodes were written.
    pub tree: &'a TokenTree,
    /// The path that is kept below the root.
    pub path: &'a [i64],
    /// The token of each node, read for the prefix cache only; -1 where it is unknown.
    pub tokens: Option<&'a [i64]>,
}

/// Refuses a sequence that is named twice.
pub(super) fn check_distinct(seqs: impl Iterator<Item = i64>) -> Result<()> {
    let mut sorted: Vec<i64> = seqs.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        None => Ok(()),
        Some(pair) => Err(Error::DuplicateSequence {
            sequence: pair[0],
            reason: "is named twice in one batch; name each sequence once",
        }),
    }
}
