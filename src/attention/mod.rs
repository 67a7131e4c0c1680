//! Attention of the rows of a step over their sequences' entries, on the host.
//!
//! A row is a node of a tree that stands behind its sequence's past. It sees the past, its ancestors and
//! itself, in this order, and every sum of its goes along this order: its bits depend on what it sees and
//! on nothing else, not on the rows beside it, not on their number, not on how much memory there is. So a
//! token has the same logits whichever draft it was verified with. Only what is seen is read.

mod cell;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::batch::threads;
use crate::error::{Error, Result};
use crate::rows::simd::{BLOCK, Kernels, exp::Window, prefetch};
pub use cell::Cell;

/// Entries that are widened together: their keys, or values, stay in L1.
const TILE: usize = 32;

/// Scores that are kept at a time.
const MOST_SCORES: usize = 1 << 16;

/// Rows that a sequence may have.
const MOST_ROWS: usize = 4096;

/// Multiplications of the scores from which on more threads pay: those of the products before still
/// spin.
const LEAST_FOR_THREADS: usize = 1 << 25;

/// The heads of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries: a multiple of `kept`.
    pub queries: usize,
    /// Heads of keys and of values.
    pub kept: usize,
    /// Numbers of a head, even.
    pub dim: usize,
}

impl Heads {
    /// Numbers of a row's queries, keys and values; the largest `usize` where it would be more.
    pub fn width(&self) -> usize {
        self.queries.saturating_add(self.kept.saturating_mul(2)).saturating_mul(self.dim)
    }

    fn group(&self) -> usize {
        self.queries / self.kept
    }
}

/// Where a sequence's rows are, and what they see beside its past.
#[derive(Debug, Clone)]
struct Sequence {
    rows: Range<usize>,
    past: usize,
    /// Nodes of the tree that were kept before; the rows' own come behind them.
    held: usize,
    /// Of each row: its ancestors' numbers in the tree and its own, ascending, as runs.
    paths: Vec<Vec<Range<usize>>>,
}

impl Sequence {
    /// Its entries, those of its rows included.
    fn entries(&self) -> usize {
        self.past + self.held + self.rows.len()
    }
}

/// Ascending numbers as runs.
fn runs(numbers: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => runs.push(number..number + 1),
        }
    }
    runs
}

/// The rows of one step, the same for all layers.
#[derive(Debug, Clone)]
pub struct Rows {
    sequences: Vec<Sequence>,
    count: usize,
}

/// The keys, or the values, of one layer: (sequences, heads, `capacity`, dim) without gaps.
#[derive(Debug)]
pub struct Memory<'a, T> {
    /// The entries.
    pub cells: &'a mut [T],
    /// Entries that each sequence has room for.
    pub capacity: usize,
}

impl Rows {
    /// Rows of `counts[i]` nodes behind `pasts[i]` entries, one sequence after the other.
    ///
    /// `sees(i, node, other)` tells whether a node of sequence `i` sees another, earlier one.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there are not as many pasts as counts, [`Error::ParamOutOfRange`] for a
    /// sequence without rows.
    pub fn new(
        pasts: &[usize],
        counts: &[usize],
        sees: impl Fn(usize, usize, usize) -> bool,
    ) -> Result<Self> {
        if pasts.len() != counts.len() {
            let (found, wanted) = (format!("{} counts", counts.len()), format!("{}", pasts.len()));
            return Err(Error::ShapeMismatch { what: "counts", found, wanted });
        }
        let mut rows = Self { sequences: Vec::with_capacity(pasts.len()), count: 0 };
        for (number, (&past, &count)) in pasts.iter().zip(counts).enumerate() {
            if !(1..=MOST_ROWS).contains(&count) {
                let value = format!("{count} of sequence {number}");
                return Err(Error::ParamOutOfRange { name: "counts", value, wanted: "1 to 4096" });
            }
            let path =
                |node| runs((0..node).filter(|&other| sees(number, node, other)).chain([node]));
            let paths = (0..count).map(path).collect();
            let first = rows.count;
            rows.count += count;
            rows.sequences.push(Sequence { rows: first..rows.count, past, held: 0, paths });
        }
        Ok(rows)
    }

    /// Rows of one sequence behind `held` nodes of their tree, which earlier steps kept.
    ///
    /// `paths[i]` are the nodes that row `i` sees, ascending; the last one is its own, `held + i`.
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] for a path that is not so, and for no rows or too many.
    pub fn behind(past: usize, held: usize, paths: &[Vec<usize>]) -> Result<Self> {
        let count = paths.len();
        if !(1..=MOST_ROWS).contains(&held.saturating_add(count)) || count == 0 {
            let value = format!("{count} behind {held}");
            return Err(Error::ParamOutOfRange {
                name: "paths",
                value,
                wanted: "1 to 4096 in all",
            });
        }
        for (row, path) in paths.iter().enumerate() {
            if path.last() != Some(&(held + row)) || !path.is_sorted_by(|one, other| one < other) {
                let value = format!("{path:?} of row {row}");
                let wanted = "ascending nodes, the row's own last";
                return Err(Error::ParamOutOfRange { name: "paths", value, wanted });
            }
        }
        let paths = paths.iter().map(|path| runs(path.iter().copied())).collect();
        Ok(Self { sequences: vec![Sequence { rows: 0..count, past, held, paths }], count })
    }

    /// All rows.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Sequences.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// The capacity that a memory needs.
    pub fn entries(&self) -> usize {
        self.sequences.iter().map(Sequence::entries).max().unwrap_or(0)
    }

    /// Turns queries and keys to their positions, keeps keys and values, and attends.
    ///
    /// `given` is (rows, [`Heads::width`]): a row's heads of queries, of keys and of values. `cos` and
    /// `sin` are (rows, dim), the sines of the first half negated. Sequence `i` has place `first + i` in
    /// the memories. `out` becomes (rows, queries, dim). A row that sees NaN, or a score that is not
    /// finite, becomes NaN.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if sizes do not fit; nothing has changed then.
    #[allow(clippy::too_many_arguments)]
    pub fn attend<T: Cell>(
        &self,
        heads: Heads,
        given: &[T],
        (cos, sin): (&[T], &[T]),
        first: usize,
        keys: &mut Memory<'_, T>,
        values: &mut Memory<'_, T>,
        out: &mut [T],
    ) -> Result<()> {
        self.check(heads, [given.len(), cos.len(), sin.len(), out.len()], first, keys, values)?;
        let queries = self.keep(heads, given, (cos, sin), first, keys, values);
        let (dim, group) = (heads.dim, heads.group());
        let parts: Vec<(&Sequence, usize, usize)> = (0..heads.kept)
            .flat_map(|head| {
                let places = self.sequences.iter().enumerate();
                places.map(move |(number, one)| (one, (first + number) * heads.kept + head, head))
            })
            .collect();
        let work: usize = self.sequences.iter().map(|one| one.rows.len() * one.past).sum();
        let threads =
            if work * heads.queries * dim < LEAST_FOR_THREADS { 1 } else { threads::num_threads() };
        let (keys, values) = (&*keys, &*values);
        let mixed = threads::map(&parts, threads, |&(one, place, head)| {
            let own = |memory: &Memory<'_, T>| {
                place * memory.capacity * dim..(place + 1) * memory.capacity * dim
            };
            let rows = one.rows.start * heads.queries * dim..one.rows.end * heads.queries * dim;
            let part = Part {
                one,
                group,
                dim,
                queries: &queries[rows],
                step: heads.queries * dim,
                from: head * group * dim,
                keys: &keys.cells[own(keys)],
                values: &values.cells[own(values)],
            };
            part.attend()
        });
        for (&(one, _, head), mixed) in parts.iter().zip(&mixed) {
            for (row, mixed) in one.rows.clone().zip(mixed.chunks_exact(group * dim)) {
                T::narrow(
                    mixed,
                    &mut out[(row * heads.kept + head) * group * dim..][..group * dim],
                );
            }
        }
        Ok(())
    }

    fn check<T>(
        &self,
        heads: Heads,
        [given, cos, sin, out]: [usize; 4],
        first: usize,
        keys: &Memory<'_, T>,
        values: &Memory<'_, T>,
    ) -> Result<()> {
        let Heads { queries, kept, dim } = heads;
        let fits = |what, found: usize, wanted: usize| {
            if found == wanted {
                return Ok(());
            }
            let (found, wanted) = (format!("{found} numbers"), format!("{wanted}"));
            Err(Error::ShapeMismatch { what, found, wanted })
        };
        if kept == 0 || queries == 0 || !queries.is_multiple_of(kept) || dim == 0 || dim % 2 == 1 {
            return Err(Error::ShapeMismatch {
                what: "heads",
                found: format!("{queries} of queries, {kept} of keys, {dim} numbers each"),
                wanted: "as many queries for each key, and an even size".into(),
            });
        }
        fits("given", given, self.count.saturating_mul(heads.width()))?;
        fits("cos", cos, self.count.saturating_mul(dim))?;
        fits("sin", sin, self.count.saturating_mul(dim))?;
        fits("out", out, self.count.saturating_mul(queries).saturating_mul(dim))?;
        for (what, memory) in [("keys", keys), ("values", values)] {
            let places = memory.cells.len() / (kept * memory.capacity * dim).max(1);
            if memory.capacity < self.entries()
                || first.saturating_add(self.sequences.len()) > places
            {
                let (sequences, entries) = (self.sequences.len(), self.entries());
                return Err(Error::ShapeMismatch {
                    what,
                    found: format!("{places} sequences of {} entries", memory.capacity),
                    wanted: format!("{sequences} of {entries} or more from place {first} on"),
                });
            }
        }
        Ok(())
    }

    /// Keeps the rows' keys and values; returns their queries, (rows, queries, dim), scaled.
    fn keep<T: Cell>(
        &self,
        heads: Heads,
        given: &[T],
        (cos, sin): (&[T], &[T]),
        first: usize,
        keys: &mut Memory<'_, T>,
        values: &mut Memory<'_, T>,
    ) -> Vec<f32> {
        let Heads { queries, kept, dim } = heads;
        let kernels = Kernels::best();
        let scale = 1.0 / (dim as f32).sqrt();
        let mut scaled = vec![0.0; self.count * queries * dim];
        let (mut wide, mut turned) = (vec![0.0; (queries + kept) * dim], vec![0.0; dim]);
        let (mut wide_cos, mut wide_sin) = (vec![0.0; dim], vec![0.0; dim]);
        for (number, one) in self.sequences.iter().enumerate() {
            for (node, row) in one.rows.clone().enumerate() {
                let given = &given[row * heads.width()..(row + 1) * heads.width()];
                let (turning, kept_as_they_are) = given.split_at((queries + kept) * dim);
                T::widen(turning, &mut wide);
                T::widen(&cos[row * dim..(row + 1) * dim], &mut wide_cos);
                T::widen(&sin[row * dim..(row + 1) * dim], &mut wide_sin);
                let place = |head: usize, capacity: usize| {
                    (((first + number) * kept + head) * capacity + one.past + one.held + node) * dim
                };
                for (head, wide) in wide.chunks_exact(dim).enumerate() {
                    (kernels.turn)(wide, &wide_cos, &wide_sin, T::FORMAT, &mut turned);
                    if let Some(head) = head.checked_sub(queries) {
                        let place = place(head, keys.capacity);
                        T::narrow(&turned, &mut keys.cells[place..place + dim]);
                    } else {
                        let scaled = &mut scaled[(row * queries + head) * dim..][..dim];
                        for (scaled, &x) in scaled.iter_mut().zip(&turned) {
                            *scaled = x * scale;
                        }
                    }
                }
                for (head, own) in kept_as_they_are.chunks_exact(dim).enumerate() {
                    let place = place(head, values.capacity);
                    values.cells[place..place + dim].copy_from_slice(own);
                }
            }
        }
        scaled
    }
}

/// One head of keys of one sequence, and the queries that share it.
struct Part<'a, T> {
    one: &'a Sequence,
    group: usize,
    dim: usize,
    /// Of the sequence's rows, `step` apart; this head's begin at `from`.
    queries: &'a [f32],
    step: usize,
    from: usize,
    keys: &'a [T],
    values: &'a [T],
}

impl<T: Cell> Part<'_, T> {
    /// What the queries see, (rows, group, dim).
    fn attend(&self) -> Vec<f32> {
        let (one, width) = (self.one, self.group * self.dim);
        let mut out = vec![0.0; one.rows.len() * width];
        let seen = one.entries();
        let at_once = (MOST_SCORES / (self.group * seen)).clamp(1, one.rows.len());
        let mut scores = vec![0.0; at_once * self.group * seen];
        let mut tile = vec![0.0; TILE.max(one.held + one.rows.len()) * self.dim];
        for (chunk, out) in out.chunks_mut(at_once * width).enumerate() {
            let first = chunk * at_once;
            let nodes = first..first + out.len() / width;
            let queries: Vec<f32> = nodes
                .clone()
                .flat_map(|node| &self.queries[node * self.step + self.from..][..width])
                .copied()
                .collect();
            let scores = &mut scores[..nodes.len() * self.group * seen];
            self.score(&queries, nodes.clone(), seen, scores, &mut tile);
            let sums = self.weigh(nodes.clone(), seen, scores);
            self.mix(nodes, seen, scores, out, &mut tile);
            for (out, sum) in out.chunks_exact_mut(self.dim).zip(sums) {
                for x in out {
                    *x /= sum;
                }
            }
        }
        out
    }

    /// Widens entries of the past, a tile at a time.
    fn tiles(&self, cells: &[T], tile: &mut [f32], mut work: impl FnMut(usize, &[f32])) {
        for from in (0..self.one.past).step_by(TILE) {
            let to = self.one.past.min(from + TILE);
            let tile = &mut tile[..(to - from) * self.dim];
            prefetch(&cells[to * self.dim..(self.one.past.min(to + TILE)) * self.dim]);
            T::widen(&cells[from * self.dim..to * self.dim], tile);
            work(from, tile);
        }
    }

    /// Widens the tree's entries up to the `end`-th row's.
    fn tree<'a>(&self, cells: &[T], end: usize, tile: &'a mut [f32]) -> &'a [f32] {
        let end = self.one.held + end;
        let (past, tile) = (self.one.past * self.dim, &mut tile[..end * self.dim]);
        T::widen(&cells[past..past + tile.len()], tile);
        tile
    }

    /// Runs of a node's path: the place of the first among what it sees, and the nodes.
    fn runs(&self, node: usize, mut work: impl FnMut(usize, &Range<usize>)) {
        let mut place = self.one.past;
        for run in &self.one.paths[node] {
            work(place, run);
            place += run.len();
        }
    }

    /// How many entries a node sees.
    fn num_seen(&self, node: usize) -> usize {
        self.one.past + self.one.paths[node].iter().map(Range::len).sum::<usize>()
    }

    fn score(
        &self,
        queries: &[f32],
        nodes: Range<usize>,
        seen: usize,
        scores: &mut [f32],
        tile: &mut [f32],
    ) {
        let (kernels, dim, group) = (Kernels::best(), self.dim, self.group);
        self.tiles(self.keys, tile, |from, keys| {
            (kernels.dots)(queries, keys, dim, seen, &mut scores[from..]);
        });
        let fresh = self.tree(self.keys, nodes.end, tile);
        let rows = queries.chunks_exact(group * dim).zip(scores.chunks_exact_mut(group * seen));
        for (node, (queries, scores)) in nodes.zip(rows) {
            self.runs(node, |place, run| {
                let keys = &fresh[run.start * dim..run.end * dim];
                (kernels.dots)(queries, keys, dim, seen, &mut scores[place..]);
            });
        }
    }

    /// Makes scores weights; returns their sums.
    fn weigh(&self, nodes: Range<usize>, seen: usize, scores: &mut [f32]) -> Vec<f32> {
        let kernels = Kernels::best();
        let mut sums = Vec::with_capacity(nodes.len() * self.group);
        let (window, mut below) = (Window::new(0), [0.0; BLOCK]);
        for (number, scores) in scores.chunks_exact_mut(seen).enumerate() {
            let scores = &mut scores[..self.num_seen(nodes.start + number / self.group)];
            let found = (kernels.scan)(scores);
            if found.has_nan || !found.max.is_finite() {
                scores.fill(0.0);
                sums.push(f32::NAN);
                continue;
            }
            let mut sum = 0.0;
            for scores in scores.chunks_mut(BLOCK) {
                let below = &mut below[..scores.len()];
                for (below, &score) in below.iter_mut().zip(&*scores) {
                    *below = score - found.max;
                }
                (kernels.weigh)(below, &window, window.floor(), scores);
                sum += (kernels.sum_narrow)(scores);
            }
            sums.push(sum as f32);
        }
        sums
    }

    fn mix(
        &self,
        nodes: Range<usize>,
        seen: usize,
        weights: &[f32],
        out: &mut [f32],
        tile: &mut [f32],
    ) {
        let (kernels, dim, group) = (Kernels::best(), self.dim, self.group);
        self.tiles(self.values, tile, |from, values| {
            (kernels.mix)(&weights[from..], seen, values, dim, out);
        });
        let fresh = self.tree(self.values, nodes.end, tile);
        let rows = weights.chunks_exact(group * seen).zip(out.chunks_exact_mut(group * dim));
        for (node, (weights, out)) in nodes.zip(rows) {
            self.runs(node, |place, run| {
                let values = &fresh[run.start * dim..run.end * dim];
                (kernels.mix)(&weights[place..], seen, values, dim, out);
            });
        }
    }
}
