//! KV-cache bookkeeping: which entries a commit keeps, and where they go. It knows no probabilities.
//!
//! [`commit_plan`] serves contiguous caches, [`BlockTable`] paged ones. A step over a paged cache:
//!
//! 1. [`BlockTable::reserve_batch`] gives each sequence slots for its nodes; carry out its copies.
//! 2. The forward writes the entry of node `i` into the reservation's slot `i`.
//! 3. [`BlockTable::commit_batch`] keeps the paths; carry out its moves before the next write.
//!
//! A model with layers of several windows has a table for each of them.

mod batch;
mod integrity;
mod keys;
mod numbers;
mod pool;
mod prefix;
mod sequence;
mod state;
mod table;

pub use batch::{Commit, CommitPlanBatch, Prompt, Reservation, ReservationBatch};
pub use keys::{Item, Keys};
pub use table::BlockTable;

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::tree::TokenTree;

/// What a commit does to a cache; a plan, not an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitPlan {
    /// `(from, to)` slots in the order in which they may be copied in place.
    pub moves: Vec<(i64, i64)>,
    /// Blocks that no sequence needs any more; empty for contiguous caches.
    pub freed: Vec<i32>,
    /// Entries of the sequence after the commit.
    pub length: i64,
    /// The node whose recurrent state and hidden state are kept: the path's last, or the root.
    pub state_select: i64,
}

/// The plan for a contiguous cache in which entries `start, start + 1, ...` hold nodes `0, 1, ...`.
///
/// The root's entry and those of `path` stay, so the length becomes `start + 1 + path.len()`. A
/// path's `j`-th node (from 1) has number at least `j`, hence copying in path order never writes
/// over an entry that is still to be read.
///
/// # Errors
/// [`Error::NotAPath`] if `path` does not lead from the root downwards; [`Error::ParamOutOfRange`] if
/// `start` is negative; [`Error::Overflow`] if the slots do not fit an `i64`.
pub fn commit_plan(tree: &TokenTree, path: &[i64], start: i64) -> Result<CommitPlan> {
    tree.check_path(path)?;
    if start < 0 {
        return Err(Error::ParamOutOfRange {
            name: "start",
            value: start.to_string(),
            wanted: "start >= 0",
        });
    }
    if start.checked_add(tree.num_nodes() as i64).is_none() {
        return Err(Error::Overflow {
            what: "start",
            found: start as u64,
            limit: (i64::MAX - tree.num_nodes() as i64) as u64,
        });
    }
    let scattered: Vec<_> = moves(path, |node| start + node as i64).collect();
    Ok(CommitPlan {
        moves: mutate!("commit/moves_reversed", scattered, scattered.into_iter().rev().collect()),
        freed: Vec::new(),
        length: start + mutate!("commit/bonus_counted", 1, 2) + path.len() as i64,
        state_select: mutate!("commit/state_of_first_node", state_select(path), path[0]),
    })
}

/// Numbers that one call may list: slots, copies, the blocks of a sequence, cells of a block table. More of
/// them are no step of a decoder, and no memory is asked for.
const MOST_LISTED: usize = 1 << 24;

fn check_listed(what: &'static str, count: usize) -> Result<()> {
    if count <= MOST_LISTED {
        return Ok(());
    }
    Err(Error::Overflow { what, found: count as u64, limit: MOST_LISTED as u64 })
}

/// From where to where the entries of a checked path go; `slot` says where a node's entry lies.
fn moves(path: &[i64], slot: impl Fn(usize) -> i64) -> impl Iterator<Item = (i64, i64)> {
    (1..)
        .zip(path)
        .map(|(to, &from)| (from as usize, to))
        .filter(|(from, to)| from != to)
        .map(move |(from, to)| (slot(from), slot(to)))
}

fn state_select(path: &[i64]) -> i64 {
    path.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_path_moves_nothing() {
        let tree = TokenTree::chain(4).unwrap();
        let plan = commit_plan(&tree, &[1, 2], 10).unwrap();
        assert_eq!(plan, CommitPlan { moves: vec![], freed: vec![], length: 13, state_select: 2 });
        assert_eq!(commit_plan(&tree, &[], 10).unwrap().length, 11);
    }

    #[test]
    fn scattered_nodes_move_to_the_front() {
        let tree = TokenTree::new(&[-1, 0, 0, 1, 2, 2]).unwrap();
        let plan = commit_plan(&tree, &[2, 5], 100).unwrap();
        assert_eq!(plan.moves, [(102, 101), (105, 102)]);
        assert_eq!((plan.length, plan.state_select), (103, 5));
    }

    #[test]
    fn bad_input_is_refused() {
        let tree = TokenTree::chain(2).unwrap();
        assert!(commit_plan(&tree, &[2], 0).is_err());
        assert!(commit_plan(&tree, &[1], -1).is_err());
        assert!(commit_plan(&tree, &[1], i64::MAX - 1).is_err());
    }
}
