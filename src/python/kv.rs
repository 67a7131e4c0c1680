//! `BlockTable`: bookkeeping of paged caches for whole batches.

#![allow(clippy::doc_markdown)] // The comments on the class and its methods are Python docstrings.

use std::sync::Mutex;

use numpy::ndarray::{Array2, ArrayViewMut2};
use numpy::{Ix2, PyArray, PyArray1};
use pyo3::prelude::*;
use pyo3::types::PyType;

use crate::error::{Error, Result};
use crate::kv::{self, Commit};

use super::batch::{Drafts, Verdicts};
use super::buffer::{fill, give, writable};
use super::errors::internal;
use super::gate::{enter, hold, locked};
use super::numbers::{count, integer, integers, size};
use super::plans::{CommitPlan, CommitPlanBatch, Reservation, ReservationBatch};
use super::prompt::Prompt;
use super::types::TokenTree;

/// Sequences as lists of blocks from one fixed pool: the bookkeeping of a paged KV cache.
///
/// Entry i of a sequence lies in slot `blocks[i // block_size] * block_size + i % block_size`. Blocks
/// are shared by forks, and with `prefix_cache` by equal beginnings; a sequence never sees what
/// another one writes. A refused call changes nothing. One call at a time: threads wait for each
/// other.
///
/// A step reserves a slot for each node of a tree, the root included; makes the reservation's copies;
/// writes the nodes; commits the accepted path; makes the plan's moves before anything else is
/// written.
///
/// Args:
///     num_blocks: Blocks of the pool, at least 1.
///     block_size: Slots of a block, at least 1.
///     prefix_cache: Whether full blocks of known tokens are found again by later sequences. What is
///         free and still known is given up last, the longest unused first.
///     window: Entries that a token sees, its own included, at least 1; None for all. What the root of a
///         committed tree saw nothing of is given back. A model with layers of several kinds has a
///         table for each of them; see `add_sequence` of this module.
///
/// Raises:
///     ParamsError: A size is out of range.
///
/// Example:
///     >>> table = BlockTable(num_blocks=8, block_size=4)
///     >>> table.add_sequence(7, length=3)
///     0
///     >>> table.reserve(7, 4).slots.tolist()
///     [3, 4, 5, 6]
///     >>> plan = table.commit(7, TokenTree([-1, 0, 0, 2]), path=[2, 3])
///     >>> plan.moves.tolist(), plan.length
///     ([[5, 4], [6, 5]], 6)
#[pyclass(frozen, module = "mtp_verify.verifier.kv")]
pub(super) struct BlockTable(Mutex<kv::BlockTable>);

#[pymethods]
impl BlockTable {
    #[new]
    #[pyo3(signature = (num_blocks, block_size, prefix_cache=false, window=None))]
    fn new(
        num_blocks: &Bound<'_, PyAny>,
        block_size: &Bound<'_, PyAny>,
        prefix_cache: bool,
        window: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        hold(|| {
            let (num_blocks, block_size) =
                (count(num_blocks, "num_blocks")?, count(block_size, "block_size")?);
            let window = window.map(|window| count(window, "window")).transpose()?;
            let table = kv::BlockTable::new(num_blocks, block_size, prefix_cache, window);
            table.map(|table| Self(Mutex::new(table))).map_err(PyErr::from)
        })
    }

    /// Add a sequence of `length` entries.
    ///
    /// Args:
    ///     seq: Its number, any int64 that is not in the table.
    ///     length: Its entries, >= 0. The last token of a prompt has none: it is the first root.
    ///     tokens: int (length,), the tokens of the entries; read for the prefix cache only. Without
    ///         them the sequence takes no part in it.
    ///     keys: What all its entries depend on beside tokens, by name: `{"adapter": "sql", "salt":
    ///         "tenant 7"}`. Only sequences with the same keys share blocks. They hold for good: what
    ///         continues under others is released, and added anew.
    ///     items: Of other inputs than tokens, such as images, (start, stop, key) each, in order and
    ///         without overlap: the entries from `start` to `stop - 1` stand for it, and `key` is a
    ///         digest of what it is. Blocks from its start on are shared where the items before their
    ///         ends are the same.
    ///     max_cached: Entries that may be taken from others at most; None for all.
    ///
    /// Returns:
    ///     How many of the entries are computed already, a multiple of the block size. The caller
    ///     writes the others before the sequence's next commit, which makes them known to others. With
    ///     a window only those that the next token sees are there.
    ///
    /// Raises:
    ///     CacheError: The sequence is in the table already.
    ///     OutOfBlocksError: More blocks are needed than are free.
    ///     DraftError: There are more or fewer tokens than entries.
    ///     ParamsError: An item is empty, out of order or outside of the sequence.
    #[pyo3(signature = (seq, length, tokens=None, *, keys=None, items=None, max_cached=None))]
    #[allow(clippy::too_many_arguments)] // Who it is, and what the prefix cache reads.
    fn add_sequence(
        &self,
        py: Python<'_>,
        seq: &Bound<'_, PyAny>,
        length: &Bound<'_, PyAny>,
        tokens: Option<&Bound<'_, PyAny>>,
        keys: Option<&Bound<'_, PyAny>>,
        items: Option<&Bound<'_, PyAny>>,
        max_cached: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        hold(|| {
            let (seq, length) = (integer(seq, "seq")?, count(length, "length")?);
            let prompt = Prompt::of(tokens, keys, items, max_cached)?;
            enter(py, || prompt.with(|prompt| locked(&self.0).add_sequence(seq, length, prompt)))
        })
    }

    /// Return how many entries `add_sequence` would find computed already; nothing changes.
    ///
    /// Args:
    ///     tokens: int (length,), the tokens of the entries.
    ///     keys: As for `add_sequence`.
    ///     items: As for `add_sequence`.
    ///     max_cached: As for `add_sequence`.
    ///
    /// Raises:
    ///     ParamsError: An item is empty, out of order or outside of the sequence.
    #[pyo3(signature = (tokens, *, keys=None, items=None, max_cached=None))]
    fn num_cached(
        &self,
        py: Python<'_>,
        tokens: &Bound<'_, PyAny>,
        keys: Option<&Bound<'_, PyAny>>,
        items: Option<&Bound<'_, PyAny>>,
        max_cached: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        hold(|| {
            let prompt = Prompt::of(Some(tokens), keys, items, max_cached)?;
            enter(py, || prompt.with(|prompt| locked(&self.0).num_cached(&prompt)))
        })
    }

    /// Forget all cached prefixes, as after a change of the model's weights.
    ///
    /// Sequences in the table keep their blocks and go on; what they hold, and what they add, is shared
    /// with no sequence that is added later. Nothing has to be released first.
    ///
    /// Returns:
    ///     How many blocks were known.
    fn reset_prefix_cache(&self, py: Python<'_>) -> PyResult<usize> {
        hold(|| enter(py, || Ok(locked(&self.0).reset_prefix_cache())))
    }

    /// Add `child` with all entries of `parent`, sharing its blocks.
    ///
    /// Raises:
    ///     CacheError: The parent is not in the table or has an open reservation, or the child is in
    ///         the table already.
    fn fork(
        &self,
        py: Python<'_>,
        parent: &Bound<'_, PyAny>,
        child: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        hold(|| {
            let (parent, child) = (integer(parent, "parent")?, integer(child, "child")?);
            enter(py, || locked(&self.0).fork(parent, child))
        })
    }

    /// Reserve slots for the next `n` nodes of a sequence, root included.
    ///
    /// Returns:
    ///     The reservation: `slots` int64 (n,) and `copies` int64 (M, 2), which are to be made before
    ///     anything is written: the sequence's own copy of a block that it shares.
    ///
    /// Raises:
    ///     CacheError: The sequence is not in the table, or has an open reservation.
    ///     OutOfBlocksError: More blocks are needed than are free.
    ///     ParamsError: `n` is 0 or negative, or the length would overflow.
    fn reserve(
        &self,
        py: Python<'_>,
        seq: &Bound<'_, PyAny>,
        n: &Bound<'_, PyAny>,
    ) -> PyResult<Reservation> {
        hold(|| {
            let (seq, n) = (integer(seq, "seq")?, count(n, "n")?);
            enter(py, || locked(&self.0).reserve(seq, n)).map(Reservation)
        })
    }

    /// Reserve slots for the next nodes of several sequences: for all of them or for none.
    ///
    /// Args:
    ///     seqs: int (B,), distinct.
    ///     counts: int (B,), the nodes of each, root included.
    ///
    /// Raises:
    ///     CacheError, OutOfBlocksError, ParamsError: As for `reserve`, or a sequence named twice.
    ///     DraftError: `seqs` and `counts` differ in length.
    fn reserve_batch(
        &self,
        py: Python<'_>,
        seqs: &Bound<'_, PyAny>,
        counts: &Bound<'_, PyAny>,
    ) -> PyResult<ReservationBatch> {
        hold(|| {
            let (seqs, counts) = (integers(seqs, "seqs")?, integers(counts, "counts")?);
            enter(py, || {
                check_len("counts", counts.len(), seqs.len())?;
                let pair = |(&seq, &n)| match size("counts", n) {
                    Ok(n) => Ok((seq, n)),
                    Err(error) => Err(error.in_sequence(seq)),
                };
                let wanted = seqs.iter().zip(&counts).map(pair).collect::<Result<Vec<_>>>()?;
                locked(&self.0).reserve_batch(&wanted)
            })
            .map(ReservationBatch)
        })
    }

    /// Keep the root and the path of a tree whose nodes were written into the open reservation.
    ///
    /// Args:
    ///     seq: The sequence.
    ///     tree: The tree; as many nodes as slots were reserved.
    ///     path: int (A,), the verdict's path (cut where the decoder cut it).
    ///     tokens: int (N+1,), the token of each node as in `Draft.tokens`; read for the prefix cache
    ///         only. From a token of -1 on, or without tokens, nothing more is made known to others.
    ///
    /// Returns:
    ///     The plan. Make its moves, in order, before anything else is written: an entry may have to
    ///     come out of a block that is already free.
    ///
    /// Raises:
    ///     CacheError: The sequence is not in the table or has no open reservation, the tree has
    ///         another number of nodes, or the path is not one of the tree.
    ///     DraftError: There are more or fewer tokens than nodes.
    #[pyo3(signature = (seq, tree, path, tokens=None))]
    fn commit(
        &self,
        py: Python<'_>,
        seq: &Bound<'_, PyAny>,
        tree: &Bound<'_, TokenTree>,
        path: &Bound<'_, PyAny>,
        tokens: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<CommitPlan> {
        hold(|| {
            let (seq, path) = (integer(seq, "seq")?, integers(path, "path")?);
            let tokens = tokens.map(|tokens| integers(tokens, "tokens")).transpose()?;
            let parents = tree.get().0.parents();
            let commit = Commit { seq, parents, path: &path, tokens: tokens.as_deref() };
            enter(py, || locked(&self.0).commit(commit)).map(CommitPlan)
        })
    }

    /// Keep what the verdicts accepted: of all sequences or of none.
    ///
    /// Args:
    ///     seqs: int (B,), distinct.
    ///     drafts: B drafts or a `DraftBatch`: their trees and tokens.
    ///     verdicts: B verdicts or a `VerdictBatch`: their paths.
    ///
    /// Returns:
    ///     The plans. Make their moves, in order, before anything else is written.
    ///
    /// Raises:
    ///     CacheError, DraftError: As for `commit`, or a sequence named twice.
    fn commit_batch(
        &self,
        py: Python<'_>,
        seqs: &Bound<'_, PyAny>,
        drafts: &Bound<'_, PyAny>,
        verdicts: &Bound<'_, PyAny>,
    ) -> PyResult<CommitPlanBatch> {
        hold(|| {
            let seqs = integers(seqs, "seqs")?;
            let (drafts, verdicts) = (Drafts::of(drafts)?, Verdicts::of(verdicts)?);
            check_len("drafts", drafts.len(), seqs.len())
                .and_then(|()| check_len("verdicts", verdicts.len(), seqs.len()))?;
            let commit = |(sequence, &seq): (usize, &i64)| {
                let (parents, tokens) = drafts.nodes(sequence);
                Commit { seq, parents, path: verdicts.path(sequence), tokens: Some(tokens) }
            };
            let commits: Vec<Commit<'_>> = seqs.iter().enumerate().map(commit).collect();
            enter(py, || locked(&self.0).commit_batch(&commits)).map(CommitPlanBatch)
        })
    }

    /// Drop an open reservation, and all entries from `length` on.
    ///
    /// With a window: to any length from where the last commit began, or to 0.
    ///
    /// Returns:
    ///     int32 ids of the blocks that are free now.
    ///
    /// Raises:
    ///     CacheError: The sequence is not in the table.
    ///     ParamsError: The sequence is shorter, or the window of that length is given back already.
    fn rollback<'py>(
        &self,
        py: Python<'py>,
        seq: &Bound<'py, PyAny>,
        length: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        hold(|| {
            let (seq, length) = (integer(seq, "seq")?, count(length, "length")?);
            let freed = enter(py, || locked(&self.0).rollback(seq, length))?;
            Ok(PyArray1::from_vec(py, freed))
        })
    }

    /// Remove a sequence, with or without an open reservation.
    ///
    /// Returns:
    ///     int32 ids of the blocks that are free now.
    ///
    /// Raises:
    ///     CacheError: The sequence is not in the table.
    fn release<'py>(
        &self,
        py: Python<'py>,
        seq: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        hold(|| {
            let seq = integer(seq, "seq")?;
            let freed = enter(py, || locked(&self.0).release(seq))?;
            Ok(PyArray1::from_vec(py, freed))
        })
    }

    /// Return the blocks of each sequence; block i holds its entries from `i * block_size` on.
    ///
    /// Args:
    ///     seqs: int (B,).
    ///     out: int32 (B, at least M), NumPy or a torch tensor on the host; written and returned.
    ///
    /// Returns:
    ///     int32 (B, M), padded with -1; slots reserved are included. With a window -1 also stands for
    ///     blocks in front that are given back.
    ///
    /// Raises:
    ///     CacheError: A sequence is not in the table.
    ///     DraftError: `out` has another shape or dtype, or cannot be written.
    #[pyo3(signature = (seqs, *, out=None))]
    fn block_table<'py>(
        &self,
        py: Python<'py>,
        seqs: &Bound<'py, PyAny>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        hold(|| {
            let seqs = integers(seqs, "seqs")?;
            let fill_rows = |mut rows: ArrayViewMut2<'_, i32>, lists: &[&[i32]]| {
                rows.outer_iter_mut().zip(lists).for_each(|(row, blocks)| fill(row, blocks));
            };
            let widest =
                |lists: &[&[i32]]| lists.iter().map(|blocks| blocks.len()).max().unwrap_or(0);
            if let Some(out) = out {
                let mut buffer = writable::<i32, Ix2>(&out, "int32 (B, M)")?;
                let rows = buffer.as_array_mut();
                enter(py, || {
                    let table = locked(&self.0);
                    let lists = table.block_lists(&seqs)?;
                    let (height, width) = (lists.len(), widest(&lists));
                    if rows.nrows() != height || rows.ncols() < width {
                        return Err(Error::ShapeMismatch {
                            what: "out",
                            found: format!("({}, {})", rows.nrows(), rows.ncols()),
                            wanted: format!("({height}, at least {width})"),
                        });
                    }
                    fill_rows(rows, &lists);
                    Ok(())
                })?;
                return Ok(out);
            }
            let rows = enter(py, || {
                let table = locked(&self.0);
                let lists = table.block_lists(&seqs)?;
                let mut rows = Array2::zeros((lists.len(), widest(&lists)));
                fill_rows(rows.view_mut(), &lists);
                Ok(rows)
            })?;
            Ok(PyArray::from_owned_array(py, rows).into_any())
        })
    }

    /// Return the slots of the open reservations, in node order.
    ///
    /// Args:
    ///     seqs: int (B,).
    ///     out: int64 (at least sum n,), NumPy or a torch tensor on the host; written, padded with -1,
    ///         and returned as the slots.
    ///
    /// Returns:
    ///     Slots int64 (sum n,), and offsets int64 (B+1,): where each sequence's begin.
    ///
    /// Raises:
    ///     CacheError: A sequence is not in the table, or has no open reservation.
    ///     DraftError: `out` has another shape or dtype, or cannot be written.
    #[pyo3(signature = (seqs, *, out=None))]
    fn slot_mapping<'py>(
        &self,
        py: Python<'py>,
        seqs: &Bound<'py, PyAny>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyArray1<i64>>)> {
        hold(|| {
            let seqs = integers(seqs, "seqs")?;
            let (slots, offsets) = enter(py, || locked(&self.0).slot_mapping(&seqs))?;
            let wanted = format!("(at least {},)", slots.len());
            let slots = give(py, slots, out, |len, wanted| len >= wanted, wanted)?;
            Ok((slots, PyArray1::from_vec(py, offsets)))
        })
    }

    /// Return the committed entries of each sequence.
    ///
    /// Args:
    ///     seqs: int (B,).
    ///     out: int64 (B,), NumPy or a torch tensor on the host; written and returned.
    ///
    /// Returns:
    ///     int64 (B,); slots reserved are not included.
    ///
    /// Raises:
    ///     CacheError: A sequence is not in the table.
    ///     DraftError: `out` has another shape or dtype, or cannot be written.
    #[pyo3(signature = (seqs, *, out=None))]
    fn lengths<'py>(
        &self,
        py: Python<'py>,
        seqs: &Bound<'py, PyAny>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        hold(|| {
            let seqs = integers(seqs, "seqs")?;
            let lengths = enter(py, || locked(&self.0).lengths(&seqs))?;
            give(py, lengths, out, |len, wanted| len == wanted, format!("({},)", seqs.len()))
        })
    }

    /// Recompute everything from scratch, in time proportional to the pool.
    ///
    /// Raises:
    ///     InternalError: Something does not hold; a defect of this package.
    fn check_integrity(&self, py: Python<'_>) -> PyResult<()> {
        hold(|| {
            let found = enter(py, || Ok(locked(&self.0).check_integrity()))?;
            found.map_err(|wrong| internal(&wrong))
        })
    }

    /// Blocks that no sequence holds, those that the prefix cache still knows included.
    #[getter]
    fn num_free(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(locked(&self.0).num_free()))
    }

    /// All blocks of the pool.
    #[getter]
    fn num_blocks(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(locked(&self.0).num_blocks()))
    }

    /// Entries that a token sees, its own included; None for all.
    #[getter]
    fn window(&self, py: Python<'_>) -> PyResult<Option<usize>> {
        enter(py, || Ok(locked(&self.0).window()))
    }

    /// The slots of a block.
    #[getter]
    fn block_size(&self, py: Python<'_>) -> PyResult<usize> {
        enter(py, || Ok(locked(&self.0).block_size()))
    }

    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, Self>) -> PyResult<bool> {
        hold(|| {
            let other = other.get();
            enter(py, || {
                // One lock at a time: two threads may compare the same two tables.
                let other = locked(&other.0).clone();
                Ok(*locked(&self.0) == other)
            })
        })
    }

    #[allow(clippy::type_complexity)] // The constructor's arguments, and the state.
    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(
        Bound<'py, PyType>,
        (usize, usize, bool, Option<usize>),
        Bound<'py, PyArray1<i64>>,
    )> {
        hold(|| {
            let table = slf.get();
            let (sizes, state) = enter(slf.py(), || {
                let table = locked(&table.0);
                let (num_blocks, size) = (table.num_blocks(), table.block_size());
                let sizes = (num_blocks, size, table.has_prefix_cache(), table.window());
                Ok((sizes, table.state()))
            })?;
            Ok((slf.get_type(), sizes, PyArray1::from_vec(slf.py(), state)))
        })
    }

    /// Set a state that pickling a table of these sizes gave; for pickle and copy.
    ///
    /// Raises:
    ///     CacheError: No sequence of calls leads there. The table is then as it was.
    fn __setstate__(&self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        hold(|| {
            let numbers = integers(state, "state")?;
            enter(state.py(), || {
                let mut table = locked(&self.0);
                *table = table.restored(&numbers)?;
                Ok(())
            })
        })
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        enter(py, || {
            let table = locked(&self.0);
            let (all, free, size) = (table.num_blocks(), table.num_free(), table.block_size());
            Ok(format!("BlockTable({free} of {all} blocks of {size} free)"))
        })
    }
}

fn check_len(what: &'static str, found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        what,
        found: format!("({found},)"),
        wanted: format!("({wanted},), one for each sequence"),
    })
}

/// Adds the classes to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Reservation>()?;
    m.add_class::<ReservationBatch>()?;
    m.add_class::<CommitPlanBatch>()?;
    m.add_class::<BlockTable>()
}
