//! What is done to the target's raw rows before they are shaped, each row when it is first read.
//!
//! Penalties touch few tokens, so a row keeps a short list of changed logits and is patched block by
//! block as it streams; a mask is applied to each block in the same way. Only functions of the caller's own get
//! whole rows, and leave whole rows.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::history::{Concern, Table};
use crate::rows::simd::{BLOCK, Kernels};
use crate::rows::{Buffer, RawRows};
use crate::tree::TokenTree;

/// Allowed tokens: bit `t % 32` of word `t / 32` of a node's row.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    words: &'a [i32],
    stride: usize,
}

impl<'a> Mask<'a> {
    /// A mask of `rows` rows of `width` words, `stride` words apart.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] unless it has a row for each node and a bit for each token.
    pub fn new(
        words: &'a [i32],
        [rows, width, stride]: [usize; 3],
        (nodes, vocab): (usize, usize),
    ) -> Result<Self> {
        let needed = rows
            .checked_sub(1)
            .map_or(Some(0), |above| above.checked_mul(stride)?.checked_add(width));
        let holds = needed.is_some_and(|needed| needed <= words.len());
        if rows == nodes && width == vocab.div_ceil(32) && holds {
            return Ok(Self { words, stride });
        }
        Err(Error::ShapeMismatch {
            what: "bitmask",
            found: format!("({rows}, {width})"),
            wanted: format!("({nodes}, {}), 32 tokens a word", vocab.div_ceil(32)),
        })
    }

    /// The words of a node from a multiple of 32 tokens on.
    fn words(&self, node: usize, start: usize) -> &'a [i32] {
        let node = mutate!("history/mask_of_root", node, 0);
        &self.words[node * self.stride + start / 32..]
    }

    /// Whether a token may follow a node.
    pub(crate) fn allows(&self, node: usize, token: u32) -> bool {
        self.words(node, token as usize)[0] >> (token % 32) & 1 == 1
    }

    /// Takes the tokens that are not allowed out of a block.
    fn lay_over(&self, node: usize, start: usize, values: &mut [f32]) {
        for (chunk, &word) in values.chunks_mut(32).zip(self.words(node, start)) {
            if word == -1 {
                continue;
            }
            for (bit, value) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn is_full(&self, node: usize, start: usize, len: usize) -> bool {
        self.words(node, start).iter().take(len.div_ceil(32)).all(|&word| word == -1)
    }
}

/// A caller's function over rows.
pub trait Processor: Sync {
    /// Changes the rows of all nodes of one depth, one after the other in `rows`. Depths come in
    /// order, from the root to the deepest that is read.
    ///
    /// # Errors
    /// Whatever it says.
    fn process(&self, nodes: &[usize], rows: &mut [f32]) -> Result<()>;
}

/// A row that has been read.
#[derive(Debug)]
enum Row {
    /// The logits that differ from the raw ones, by ascending token.
    Patch(Vec<(u32, f32)>),
    /// All logits.
    Whole(Vec<f32>),
}

/// Everything that is done to the raw rows of one drafted tree.
pub struct Edits<'a> {
    tree: &'a TokenTree,
    tokens: Vec<u32>,
    table: Option<Table<'a>>,
    mask: Option<Mask<'a>>,
    processor: Option<&'a dyn Processor>,
    rows: Vec<OnceLock<Row>>,
}

impl std::fmt::Debug for Edits<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edits").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl<'a> Edits<'a> {
    /// Edits of the rows of a tree whose nodes carry `tokens`; the root's is not looked at.
    pub fn new(
        tree: &'a TokenTree,
        tokens: Vec<u32>,
        table: Option<Table<'a>>,
        mask: Option<Mask<'a>>,
        processor: Option<&'a dyn Processor>,
    ) -> Self {
        let rows = (0..tree.num_nodes()).map(|_| OnceLock::new()).collect();
        Self { tree, tokens, table, mask, processor, rows }
    }

    /// Whether rows stay as they are.
    pub fn is_empty(&self) -> bool {
        self.table.is_none() && self.mask.is_none() && self.processor.is_none()
    }

    /// Makes a row ready to be read.
    pub(super) fn prepare(&self, raw: &RawRows<'_>, kernels: &Kernels, node: usize) -> Result<()> {
        if self.rows[node].get().is_some() {
            return Ok(());
        }
        let Some(processor) = self.processor else {
            self.row(raw, node);
            return Ok(());
        };
        // A processor that keeps state stands at a node only after it was called with its parent.
        for place in std::iter::once(0).chain(self.tree.path(node).iter().map(|&n| n as usize)) {
            if self.rows[place].get().is_none() {
                self.process_level(raw, kernels, processor, self.tree.depth(place))?;
            }
        }
        Ok(())
    }

    /// Processes all nodes of one depth together: their histories have one length.
    fn process_level(
        &self,
        raw: &RawRows<'_>,
        kernels: &Kernels,
        processor: &dyn Processor,
        depth: usize,
    ) -> Result<()> {
        let level: Vec<usize> =
            (0..self.rows.len()).filter(|&node| self.tree.depth(node) == depth).collect();
        let mut values = vec![0.0; level.len() * raw.num_cols()];
        for (&node, row) in level.iter().zip(values.chunks_mut(raw.num_cols())) {
            let patch = self.patch(raw, node);
            for start in raw.blocks() {
                let mut buffer: Buffer = [0.0; BLOCK];
                let block = self.read(&patch, raw, kernels, node, start, &mut buffer);
                row[start..start + block.len()].copy_from_slice(block);
            }
        }
        processor.process(&level, &mut values)?;
        for (&node, row) in level.iter().zip(values.chunks_mut(raw.num_cols())) {
            if let Some(mask) = self.mask {
                mask.lay_over(node, 0, row);
            }
            self.rows[node].get_or_init(|| Row::Whole(row.to_vec()));
        }
        Ok(())
    }

    fn row(&self, raw: &RawRows<'_>, node: usize) -> &Row {
        self.rows[node].get_or_init(|| self.patch(raw, node))
    }

    fn patch(&self, raw: &RawRows<'_>, node: usize) -> Row {
        let Some(table) = &self.table else {
            return Row::Patch(Vec::new());
        };
        let path: Vec<u32> =
            self.tree.path(node).iter().map(|&n| self.tokens[n as usize]).collect();
        let change = |concern: &Concern| {
            let x = raw.value(node, concern.token as usize) as f32;
            (concern.token, table.penalties().apply(concern, x))
        };
        Row::Patch(table.concerns(&path).iter().map(change).collect())
    }

    /// A block of a prepared row (through `buffer` where it is not the raw one).
    pub(super) fn block<'s>(
        &'s self,
        raw: &'s RawRows<'_>,
        kernels: &Kernels,
        node: usize,
        start: usize,
        buffer: &'s mut Buffer,
    ) -> &'s [f32] {
        self.read(self.row(raw, node), raw, kernels, node, start, buffer)
    }

    fn read<'s>(
        &self,
        row: &'s Row,
        raw: &'s RawRows<'_>,
        kernels: &Kernels,
        node: usize,
        start: usize,
        buffer: &'s mut Buffer,
    ) -> &'s [f32] {
        let len = BLOCK.min(raw.num_cols() - start);
        let patch = match row {
            Row::Whole(values) => return &values[start..start + len],
            Row::Patch(patch) => patch,
        };
        let from = patch.partition_point(|pair| (pair.0 as usize) < start);
        let count = patch[from..].partition_point(|pair| (pair.0 as usize) < start + len);
        let is_open = self.mask.is_none_or(|mask| mask.is_full(node, start, len));
        if count == 0 && is_open {
            return raw.block(kernels, node, start, buffer);
        }
        match raw.block_f32(node, start) {
            Some(values) => buffer[..len].copy_from_slice(values),
            None => {
                raw.block(kernels, node, start, buffer);
            }
        }
        for &(token, value) in &patch[from..from + count] {
            buffer[token as usize - start] = value;
        }
        if let (false, Some(mask)) = (is_open, self.mask) {
            mask.lay_over(node, start, &mut buffer[..len]);
        }
        &buffer[..len]
    }

    /// One logit of a prepared row.
    pub(super) fn value(&self, raw: &RawRows<'_>, node: usize, token: u32) -> f64 {
        let patch = match self.row(raw, node) {
            Row::Whole(values) => return f64::from(values[token as usize]),
            Row::Patch(patch) => patch,
        };
        if self.mask.is_some_and(|mask| !mask.allows(node, token)) {
            return f64::NEG_INFINITY;
        }
        match patch.binary_search_by_key(&token, |pair| pair.0) {
            Ok(at) => f64::from(patch[at].1),
            Err(_) => raw.value(node, token as usize),
        }
    }
}
