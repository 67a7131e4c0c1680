//! A level of a draft head on the host: one module over a few rows, in one call.
//!
//! What a level takes is reading its weights, and, run by operators, calling them. Here weights are rounded
//! to eight bits and what they multiply to sixteen ([`Product`]); all else is in `f32`. What a head drafts
//! may change by that, as it may with any other head; what is emitted does not.
//!
//! A row's results have the same bits whichever rows it comes with.

mod product;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use crate::attention::{Cell, Heads, Memory, Rows};
use crate::batch::threads;
use crate::error::{Error, Result};
use crate::rows::simd::Kernels;
pub use product::Product;

/// Rows that are worth a thread: as many as a kernel multiplies together.
const ROWS_OF_A_THREAD: usize = 4;

/// `x / rms(x) * weight`.
#[derive(Debug)]
pub struct Norm {
    /// By column.
    pub weight: Vec<f32>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Norm {
    /// Normalises rows as long as the weight, in place.
    fn apply(&self, rows: &mut [f32]) {
        let (kernels, width) = (Kernels::best(), self.weight.len());
        for row in rows.chunks_exact_mut(width) {
            let mut squares = [0.0];
            (kernels.dots)(row, row, width, 1, &mut squares);
            let scale = 1.0 / (squares[0] / width as f32 + self.eps).sqrt();
            for (x, &weight) in row.iter_mut().zip(&self.weight) {
                *x *= scale * weight;
            }
        }
    }

    fn applied(&self, rows: &[f32]) -> Vec<f32> {
        let mut rows = rows.to_vec();
        self.apply(&mut rows);
        rows
    }
}

/// A transformer block of Llama's form.
#[derive(Debug)]
pub struct Block {
    /// Of its attention.
    pub heads: Heads,
    /// Before attention, if there is one.
    pub input_norm: Option<Norm>,
    /// Queries, keys and values side by side.
    pub joined: Arc<Product>,
    /// Of each head of queries, and of keys.
    pub head_norms: Option<[Norm; 2]>,
    /// Behind attention.
    pub mixed: Arc<Product>,
    /// Before the perceptron.
    pub norm: Norm,
    /// Its gate, and what is gated, side by side.
    pub gated: Arc<Product>,
    /// Behind it.
    pub down: Arc<Product>,
}

/// A module: a hidden state and an embedding become the next level's hidden state.
#[derive(Debug)]
pub struct Module {
    /// Of embeddings.
    pub embed_norm: Option<Norm>,
    /// Of hidden states.
    pub hidden_norm: Option<Norm>,
    /// Whether embeddings stand before hidden states where both are joined.
    pub is_embed_first: bool,
    /// Of both, joined. Without it the first block reads them side by side, and its stream is the hidden
    /// state (EAGLE-3).
    pub fusion: Option<Arc<Product>>,
    /// Whether that stream is normalised.
    pub is_stream_normed: bool,
    /// One or more.
    pub blocks: Vec<Arc<Block>>,
    /// Of what output heads read.
    pub norm: Option<Norm>,
    /// Whether the next level reads what output heads do.
    pub is_normed_next: bool,
}

/// Rows of one sequence, and by block its keys and values, which are sequence 0 of their memories.
#[derive(Debug)]
pub struct Segment<'a, T> {
    /// What they see.
    pub rows: &'a Rows,
    /// Keys and values of each block.
    pub memories: Vec<[Memory<'a, T>; 2]>,
}

/// What the rows of a call are given, (rows, width) each.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a, T> {
    /// Hidden states.
    pub hidden: &'a [T],
    /// Embeddings.
    pub embeds: &'a [T],
    /// As [`Rows::attend`] takes them.
    pub cos: &'a [T],
    /// As [`Rows::attend`] takes them.
    pub sin: &'a [T],
}

impl Block {
    fn run<T: Cell>(
        &self,
        number: usize,
        x: &[f32],
        (cos, sin): (&[T], &[T]),
        segments: &mut [Segment<'_, T>],
        stream: &mut [f32],
        threads: usize,
    ) -> Result<()> {
        let Heads { queries, kept, dim } = self.heads;
        let count = x.len() / self.joined.inputs();
        let mut joined = vec![0.0; count * self.heads.width()];
        match &self.input_norm {
            Some(norm) => self.joined.multiply(&norm.applied(x), &mut joined, threads),
            None => self.joined.multiply(x, &mut joined, threads),
        }
        if let Some([of_queries, of_keys]) = &self.head_norms {
            for row in joined.chunks_exact_mut(self.heads.width()) {
                let (queries, rest) = row.split_at_mut(queries * dim);
                of_queries.apply(queries);
                of_keys.apply(&mut rest[..kept * dim]);
            }
        }
        let mut given = vec![T::ZERO; joined.len()];
        T::narrow(&joined, &mut given);
        let mut seen = vec![T::ZERO; count * queries * dim];
        let (mut first, width) = (0, self.heads.width());
        for segment in segments {
            let rows = first..first + segment.rows.count();
            first = rows.end;
            let [keys, values] = &mut segment.memories[number];
            let turn = rows.start * dim..rows.end * dim;
            segment.rows.attend(
                self.heads,
                &given[rows.start * width..rows.end * width],
                (&cos[turn.clone()], &sin[turn]),
                0,
                keys,
                values,
                &mut seen[rows.start * queries * dim..rows.end * queries * dim],
            )?;
        }
        let mut wide = vec![0.0; seen.len()];
        T::widen(&seen, &mut wide);
        let mut update = vec![0.0; stream.len()];
        self.mixed.multiply(&wide, &mut update, threads);
        add(stream, &update);
        let mut gated = vec![0.0; count * self.gated.outputs()];
        self.gated.multiply(&self.norm.applied(stream), &mut gated, threads);
        let half = self.gated.outputs() / 2;
        let inner: Vec<f32> = gated
            .chunks_exact(2 * half)
            .flat_map(|row| row[..half].iter().zip(&row[half..]).map(|(&gate, &x)| silu(gate) * x))
            .collect();
        self.down.multiply(&inner, &mut update, threads);
        add(stream, &update);
        Ok(())
    }

    /// The sizes that do not fit together, by name.
    fn misfit(&self, inputs: usize, width: usize) -> Option<&'static str> {
        let Heads { queries, dim, .. } = self.heads;
        let is_off = |norm: &Option<Norm>, width| {
            norm.as_ref().is_some_and(|norm| norm.weight.len() != width)
        };
        let [of_queries, of_keys] = match &self.head_norms {
            Some([one, other]) => [one.weight.len(), other.weight.len()],
            None => [dim; 2],
        };
        let checks = [
            ("input_norm", is_off(&self.input_norm, inputs)),
            (
                "joined",
                self.joined.inputs() != inputs || self.joined.outputs() != self.heads.width(),
            ),
            ("head_norms", of_queries != dim || of_keys != dim),
            (
                "mixed",
                self.mixed.inputs() != queries.saturating_mul(dim) || self.mixed.outputs() != width,
            ),
            ("norm", self.norm.weight.len() != width),
            ("gated", self.gated.inputs() != width || !self.gated.outputs().is_multiple_of(2)),
            (
                "down",
                2 * self.down.inputs() != self.gated.outputs() || self.down.outputs() != width,
            ),
        ];
        checks.into_iter().find_map(|(name, is_off)| is_off.then_some(name))
    }
}

impl Module {
    /// Numbers of a hidden state.
    pub fn width(&self) -> usize {
        self.blocks.first().map_or(0, |block| block.norm.weight.len())
    }

    /// Numbers of a rotary position.
    fn dim(&self) -> usize {
        self.blocks.first().map_or(0, |block| block.heads.dim)
    }

    /// Checks that its parts fit together.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] names the first that does not.
    pub fn check(&self) -> Result<()> {
        let width = self.width();
        let misfit = |what, block: usize| Error::ShapeMismatch {
            what,
            found: format!("another size in block {block}"),
            wanted: format!("sizes that fit a width of {width}"),
        };
        if self.blocks.is_empty() {
            return Err(misfit("blocks", 0));
        }
        for (what, norm) in [
            ("embed_norm", &self.embed_norm),
            ("hidden_norm", &self.hidden_norm),
            ("norm", &self.norm),
        ] {
            if norm.as_ref().is_some_and(|norm| norm.weight.len() != width) {
                return Err(misfit(what, 0));
            }
        }
        if let Some(fusion) = &self.fusion
            && (fusion.inputs(), fusion.outputs()) != (2 * width, width)
        {
            return Err(misfit("fusion", 0));
        }
        for (number, block) in self.blocks.iter().enumerate() {
            let inputs = if self.fusion.is_none() && number == 0 { 2 * width } else { width };
            if let Some(what) = block.misfit(inputs, width) {
                return Err(misfit(what, number));
            }
        }
        Ok(())
    }

    /// Runs rows of several sequences, one after the other; returns what output heads read, and the next
    /// level's hidden states, (rows, width) each. Keys and values are kept.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if sizes do not fit; some of the first block's may have been kept then.
    pub fn run<T: Cell>(
        &self,
        inputs: Inputs<'_, T>,
        segments: &mut [Segment<'_, T>],
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let count: usize = segments.iter().map(|segment| segment.rows.count()).sum();
        self.check_inputs(&inputs, segments, count)?;
        let threads = threads::num_threads();
        let share = count.div_ceil(threads).max(ROWS_OF_A_THREAD);
        // A thread runs whole sequences through the module: it waits for others once.
        let mut parts = Vec::new();
        let (mut left, mut first) = (segments, 0);
        while !left.is_empty() {
            let (mut rows, mut taken) = (0, 0);
            while rows < share && taken < left.len() {
                rows += left[taken].rows.count();
                taken += 1;
            }
            let (mine, others) = left.split_at_mut(taken);
            parts.push(Mutex::new((self.part(&inputs, first, rows), mine)));
            (left, first) = (others, first + rows);
        }
        let threads_of_each = if parts.len() > 1 { 1 } else { threads };
        let found = threads::map(&parts, threads, |part| {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let (inputs, segments) = &mut *part;
            self.run_part(*inputs, segments, threads_of_each)
        });
        let (mut normed, mut next) = (Vec::new(), Vec::new());
        for part in found {
            let (own, handed) = part?;
            normed.extend(own);
            next.extend(handed);
        }
        Ok((normed, next))
    }

    /// The inputs of `count` rows from `first` on.
    fn part<'a, T>(&self, inputs: &Inputs<'a, T>, first: usize, count: usize) -> Inputs<'a, T> {
        let cut = |cells: &'a [T], width: usize| &cells[first * width..(first + count) * width];
        let (width, dim) = (self.width(), self.dim());
        Inputs {
            hidden: cut(inputs.hidden, width),
            embeds: cut(inputs.embeds, width),
            cos: cut(inputs.cos, dim),
            sin: cut(inputs.sin, dim),
        }
    }

    fn run_part<T: Cell>(
        &self,
        inputs: Inputs<'_, T>,
        segments: &mut [Segment<'_, T>],
        threads: usize,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let width = self.width();
        let widen = |cells: &[T]| {
            let mut wide = vec![0.0; cells.len()];
            T::widen(cells, &mut wide);
            wide
        };
        let (mut embeds, hidden) = (widen(inputs.embeds), widen(inputs.hidden));
        if let Some(norm) = &self.embed_norm {
            norm.apply(&mut embeds);
        }
        let normed = self.hidden_norm.as_ref().map(|norm| norm.applied(&hidden));
        let normed = normed.as_ref().unwrap_or(&hidden);
        let (one, two) = if self.is_embed_first { (&embeds, normed) } else { (normed, &embeds) };
        let both: Vec<f32> = one
            .chunks_exact(width)
            .zip(two.chunks_exact(width))
            .flat_map(|(one, two)| one.iter().chain(two))
            .copied()
            .collect();
        let (mut x, mut stream) = match &self.fusion {
            Some(fusion) => {
                let mut fused = vec![0.0; inputs.hidden.len()];
                fusion.multiply(&both, &mut fused, threads);
                (fused.clone(), fused)
            }
            None => (both, if self.is_stream_normed { normed.clone() } else { hidden.clone() }),
        };
        let turn = (inputs.cos, inputs.sin);
        for (number, block) in self.blocks.iter().enumerate() {
            block.run(number, &x, turn, segments, &mut stream, threads)?;
            x.clone_from(&stream);
        }
        let normed =
            self.norm.as_ref().map_or_else(|| stream.clone(), |norm| norm.applied(&stream));
        let next = if self.is_normed_next { normed.clone() } else { stream };
        Ok((normed, next))
    }

    fn check_inputs<T>(
        &self,
        inputs: &Inputs<'_, T>,
        segments: &[Segment<'_, T>],
        count: usize,
    ) -> Result<()> {
        let width = self.width();
        let dim = self.dim();
        for (what, found, wanted) in [
            ("hidden", inputs.hidden.len(), count * width),
            ("embeds", inputs.embeds.len(), count * width),
            ("cos", inputs.cos.len(), count * dim),
            ("sin", inputs.sin.len(), count * dim),
        ] {
            if found != wanted {
                let (found, wanted) = (format!("{found} numbers"), format!("{wanted}"));
                return Err(Error::ShapeMismatch { what, found, wanted });
            }
        }
        for segment in segments {
            if segment.memories.len() != self.blocks.len() {
                return Err(Error::ShapeMismatch {
                    what: "memories",
                    found: format!("{}", segment.memories.len()),
                    wanted: format!("{}, one for each block", self.blocks.len()),
                });
            }
        }
        Ok(())
    }
}

fn add(stream: &mut [f32], update: &[f32]) {
    for (x, &update) in stream.iter_mut().zip(update) {
        *x += update;
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
