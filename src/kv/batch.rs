//! What goes into a step of several sequences, and what comes out.

use std::ops::Range;

use super::{CommitPlan, Keys};
use crate::error::{Error, Result};

/// What a sequence begins with, as far as the prefix cache reads it.
#[derive(Debug, Clone, Default)]
pub struct Prompt<'a> {
    /// The tokens of all its entries; without them it shares nothing.
    pub tokens: Option<&'a [u32]>,
    /// What the entries depend on beside their tokens.
    pub keys: Keys,
    /// Entries that may be taken from others at most.
    pub max_cached: Option<usize>,
}

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
        Some(Reservation {
            slots: self.slots[part(&self.offsets, index)?].to_vec(),
            copies: self.copies[part(&self.copy_offsets, index)?].to_vec(),
        })
    }
}

fn part(offsets: &[i64], index: usize) -> Option<Range<usize>> {
    Some(*offsets.get(index)? as usize..*offsets.get(index + 1)? as usize)
}

/// What one sequence keeps of its reservation.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// The sequence.
    pub seq: i64,
    /// The tree whose nodes were written; see [`crate::tree::TokenTree::parents`].
    pub parents: &'a [u32],
    /// The path that is kept below the root.
    pub path: &'a [i64],
    /// The token of each node, read for the prefix cache only; -1 where it is unknown.
    pub tokens: Option<&'a [i64]>,
}

/// The reservations of several sequences as one batch.
impl FromIterator<Reservation> for ReservationBatch {
    fn from_iter<I: IntoIterator<Item = Reservation>>(parts: I) -> Self {
        let (offsets, copy_offsets) = (vec![0], vec![0]);
        let mut batch = Self { offsets, copy_offsets, ..Self::default() };
        for Reservation { slots, copies } in parts {
            batch.slots.extend(slots);
            batch.copies.extend(copies);
            batch.offsets.push(batch.slots.len() as i64);
            batch.copy_offsets.push(batch.copies.len() as i64);
        }
        batch
    }
}

/// The plans of a batch, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitPlanBatch {
    /// `(from, to)` slots in the order in which they may be copied in place.
    pub moves: Vec<(i64, i64)>,
    /// Sequence `b` of the batch has `moves[move_offsets[b]..move_offsets[b + 1]]`.
    pub move_offsets: Vec<i64>,
    /// Blocks that no sequence needs any more.
    pub freed: Vec<i32>,
    /// Sequence `b` of the batch has `freed[freed_offsets[b]..freed_offsets[b + 1]]`.
    pub freed_offsets: Vec<i64>,
    /// Entries of each sequence after the commit.
    pub lengths: Vec<i64>,
    /// The node of each tree whose recurrent state and hidden state are kept.
    pub state_select: Vec<i64>,
}

impl CommitPlanBatch {
    pub(super) fn with_capacity(sequences: usize) -> Self {
        let offsets = || {
            let mut offsets = Vec::with_capacity(sequences + 1);
            offsets.push(0);
            offsets
        };
        Self {
            moves: Vec::with_capacity(sequences),
            move_offsets: offsets(),
            freed: Vec::with_capacity(sequences),
            freed_offsets: offsets(),
            lengths: Vec::with_capacity(sequences),
            state_select: Vec::with_capacity(sequences),
        }
    }

    /// The number of plans.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The plan of one sequence of the batch.
    pub fn get(&self, index: usize) -> Option<CommitPlan> {
        Some(CommitPlan {
            moves: self.moves[part(&self.move_offsets, index)?].to_vec(),
            freed: self.freed[part(&self.freed_offsets, index)?].to_vec(),
            length: *self.lengths.get(index)?,
            state_select: *self.state_select.get(index)?,
        })
    }
}

/// The plans of several sequences as one batch.
impl FromIterator<CommitPlan> for CommitPlanBatch {
    fn from_iter<I: IntoIterator<Item = CommitPlan>>(parts: I) -> Self {
        let mut batch = Self::with_capacity(0);
        for CommitPlan { moves, freed, length, state_select } in parts {
            batch.moves.extend(moves);
            batch.freed.extend(freed);
            batch.move_offsets.push(batch.moves.len() as i64);
            batch.freed_offsets.push(batch.freed.len() as i64);
            batch.lengths.push(length);
            batch.state_select.push(state_select);
        }
        batch
    }
}

/// Refuses a sequence that is named twice.
pub(super) fn check_distinct(seqs: impl Iterator<Item = i64> + Clone) -> Result<()> {
    if seqs.clone().is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
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
