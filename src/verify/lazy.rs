//! Production's view: rows are shaped and summed only when a rule asks for them.

use crate::choice::{Cells, RaceNoise, nothing_left};
use crate::dist::{Scratch, Shaped, ShapedRows};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::RawRows;
use crate::simd::{BLOCK, Kernels};
use crate::verify::law::Draft;
use crate::verify::memory::{Lent, Memory};
use crate::verify::view::{Mix, View};

/// Where the drafter's rows come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The draft has none.
    None,
    /// Probabilities, used as given.
    Probabilities(RawRows<'a>),
    /// Logits, shaped like the target's.
    Logits(ShapedRows<'a>),
}

/// The drafter's rows of a draft.
#[derive(Debug, Clone, Copy)]
pub struct DrafterRows<'a> {
    /// The rows.
    pub source: Source<'a>,
    /// Which row belongs to each node; -1 for none.
    pub index: &'a [i64],
    /// `(token, column)` by ascending token when the rows are over a sub-vocabulary.
    pub vocab: Option<&'a [(u32, u32)]>,
}

impl DrafterRows<'_> {
    /// No rows at all.
    pub const NONE: DrafterRows<'static> =
        DrafterRows { source: Source::None, index: &[], vocab: None };

    fn row(&self, draft: &Draft, node: usize) -> Result<usize> {
        let row = self.index.get(node).copied().unwrap_or(-1);
        usize::try_from(row).map_err(|_| Error::MissingRow {
            node: draft.tree().children(node).first().map_or(0, |&child| child as usize),
            parent: node,
            row,
        })
    }

    /// The column of a token; `None` outside the sub-vocabulary.
    pub(crate) fn column(&self, token: u32) -> Option<u32> {
        match mutate!("lazy/column_is_token", self.vocab, None) {
            None => Some(token),
            Some(pairs) => {
                pairs.binary_search_by_key(&token, |pair| pair.0).ok().map(|at| pairs[at].1)
            }
        }
    }
}

/// The rows of one draft, read on demand.
#[derive(Debug)]
pub struct LazyView<'a> {
    draft: &'a Draft,
    target: ShapedRows<'a>,
    drafter: DrafterRows<'a>,
    shaped_target: Vec<Option<Shaped>>,
    shaped_drafter: Vec<Option<Shaped>>,
    memory: Lent,
    /// The drafter's row that `memory.spread` holds.
    spread_row: Option<usize>,
}

impl<'a> LazyView<'a> {
    /// The view of a draft's rows; nothing is read yet.
    pub fn new(draft: &'a Draft, target: ShapedRows<'a>, drafter: DrafterRows<'a>) -> Self {
        let drafter_rows = match drafter.source {
            Source::Logits(_) => draft.num_nodes(),
            Source::None | Source::Probabilities(_) => 0,
        };
        Self {
            draft,
            target,
            drafter,
            shaped_target: vec![None; draft.num_nodes()],
            shaped_drafter: vec![None; drafter_rows],
            memory: Lent::new(),
            spread_row: None,
        }
    }

    fn shaped_target(&mut self, node: usize) -> Result<Shaped> {
        if let Some(shaped) = self.shaped_target[node] {
            return Ok(shaped);
        }
        let shaped = self.target.shape(node, &mut self.memory.scratch)?;
        self.shaped_target[node] = Some(shaped);
        Ok(shaped)
    }

    /// What reads the target's row after `node` beyond what a rule asks for.
    pub(crate) fn target_row(
        &mut self,
        node: usize,
    ) -> Result<(ShapedRows<'a>, Shaped, &mut Scratch)> {
        let shaped = self.shaped_target(node)?;
        Ok((self.target, shaped, &mut self.memory.scratch))
    }

    /// The shape of the drafter's row after `node`, when the drafter's rows are logits.
    fn shaped_drafter(&mut self, rows: &ShapedRows<'a>, node: usize, row: usize) -> Result<Shaped> {
        if let Some(shaped) = self.shaped_drafter[node] {
            return Ok(shaped);
        }
        let shaped = rows.shape(row, &mut self.memory.scratch)?;
        self.shaped_drafter[node] = Some(shaped);
        Ok(shaped)
    }

    /// The natural logarithm of `p(token)` after `node`.
    ///
    /// # Errors
    /// If the row is not a distribution.
    pub fn log_probability(&mut self, node: usize, token: u32) -> Result<f64> {
        let shaped = self.shaped_target(node)?;
        Ok(self.target.log_probability(node, &shaped, token))
    }

    /// Spreads a sub-vocabulary row over all tokens, in ascending columns of the given blocks.
    fn spread(&mut self, row: usize, shaped: Option<Shaped>) {
        let Some(pairs) = self.drafter.vocab else {
            return;
        };
        if self.spread_row == Some(row) {
            return;
        }
        let spread = &mut self.memory.spread;
        spread.clear();
        spread.resize(self.target.num_cols(), 0.0);
        for &(token, column) in pairs {
            spread[token as usize] = match (self.drafter.source, shaped) {
                (Source::Logits(rows), Some(shaped)) => rows.probability(row, &shaped, column),
                (Source::Probabilities(raw), _) => raw.value(row, column as usize),
                _ => 0.0,
            };
        }
        self.spread_row = Some(row);
    }

    /// Makes sure that the sums belong to `mix` at `node`.
    fn sum_blocks(&mut self, parts: &Parts<'_>) -> Result<()> {
        let Mix { a, b, floor, removed } = parts.mix;
        let key = (parts.node, [a.to_bits(), b.to_bits(), floor.to_bits()], removed.len());
        let key = mutate!("lazy/sums_of_another_mixture", key, (parts.node, [0; 3], 0));
        let Memory { scratch, sums, .. } = &mut *self.memory;
        if sums.key == Some(key) {
            return Ok(());
        }
        sums.key = None;
        sums.sums.clear();
        sums.total = 0.0;
        let pure = parts.drafter.is_none() && parts.mix.removed.is_empty();
        let Parts { node, target, mix, .. } = parts;
        if pure && self.target.sums_of_last(*node, target, mix.a, scratch, &mut sums.sums) {
            sums.total = sums.sums.iter().sum();
            sums.key = Some(key);
            return Ok(());
        }
        let mut drafted = Some(0.0);
        for start in (0..self.target.num_cols()).step_by(BLOCK) {
            let block = self.sum_block(parts, start).unwrap_or_else(|| self.fill(parts, start));
            let sums = &mut self.memory.sums;
            sums.sums.push(block.sum);
            sums.total += block.sum;
            drafted = drafted.zip(block.drafted).map(|(sum, block)| sum + block);
        }
        self.check_drafter(parts, drafted)?;
        self.memory.sums.key = Some(key);
        Ok(())
    }

    /// A row of probabilities has just been read whole: it must be a distribution.
    fn check_drafter(&self, parts: &Parts<'_>, sum: Option<f64>) -> Result<()> {
        match (parts.drafter, self.drafter.source, sum) {
            (Some((row, _)), Source::Probabilities(raw), sum)
                if !sum.is_some_and(|sum| (sum - 1.0).abs() <= SUM_TOLERANCE) =>
            {
                check_distribution(&raw, row)
            }
            _ => Ok(()),
        }
    }

    /// The sums of a block in the common case: the drafter's rows are `f32` probabilities, and no
    /// single token of the block is treated apart.
    fn sum_block(&mut self, parts: &Parts<'_>, start: usize) -> Option<Block> {
        let (Some((row, _)), Source::Probabilities(raw), None) =
            (parts.drafter, self.drafter.source, self.drafter.vocab)
        else {
            return None;
        };
        let taken = raw.block_f32(row, start)?;
        let mut apart = parts.set.iter().chain(&parts.mix.removed);
        if parts.mix.floor > 0.0
            || apart.any(|&t| (start..start + taken.len()).contains(&(t as usize)))
        {
            return None;
        }
        let factors = (parts.mix.a, parts.mix.b);
        let buffers = &mut self.memory.scratch.buffers;
        let seen = self.target.left(parts.node, &parts.target, start, factors, taken, buffers)?;
        let drafted = (!seen.has_negative).then_some(seen.taken);
        Some(Block { len: taken.len(), sum: seen.left, drafted })
    }

    /// Writes a block of the mixture's weights.
    fn fill(&mut self, parts: &Parts<'_>, start: usize) -> Block {
        let Memory { scratch, spread, .. } = &mut *self.memory;
        let Scratch { buffers, weights, taken, .. } = scratch;
        let kernels = Kernels::best();
        let len = self.target.probabilities(
            parts.node,
            &parts.target,
            start,
            parts.mix.a,
            buffers,
            weights,
        );
        let weights = &mut weights[..len];
        let mut block = Block { len, sum: 0.0, drafted: Some(0.0) };
        let mut touched = parts.drafter.is_none();
        if let Some((row, shaped)) = parts.drafter {
            match (self.drafter.source, self.drafter.vocab, shaped) {
                (_, Some(_), _) => taken[..len].copy_from_slice(&spread[start..start + len]),
                (Source::Logits(rows), None, Some(shaped)) => {
                    rows.probabilities(row, &shaped, start, 1.0, buffers, taken);
                }
                (Source::Probabilities(raw), None, _) => {
                    raw.block_f64(kernels, row, start, &mut taken[..len], &mut buffers[0]);
                }
                _ => taken[..len].fill(0.0),
            }
            let mut forced = 0.0;
            for token in inside(mutate!("lazy/set_not_left_out", parts.set, &[]), start, len) {
                forced += taken[token];
                taken[token] = 0.0;
            }
            let b = mutate!("lazy/factor_forgotten", parts.mix.b, 1.0);
            let seen = (kernels.subtract)(weights, &taken[..len], b);
            block.sum = seen.left;
            block.drafted = (!seen.has_negative).then_some(seen.taken + forced);
            let floor = parts.mix.floor;
            if floor > 0.0 {
                self.target.probabilities(parts.node, &parts.target, start, floor, buffers, taken);
                for (weight, &least) in weights.iter_mut().zip(&*taken) {
                    *weight = weight.max(least);
                }
                touched = true;
            }
        }
        let removed = mutate!("lazy/removed_token_stays", &parts.mix.removed[..], &[]);
        for token in inside(removed, start, len) {
            weights[token] = 0.0;
            touched = true;
        }
        if touched {
            block.sum = (kernels.sum)(weights);
        }
        block
    }
}

/// What filling a block tells.
struct Block {
    len: usize,
    /// The sum of the mixture's weights.
    sum: f64,
    /// The sum of the drafter's probabilities; `None` if one of them is negative.
    drafted: Option<f64>,
}

/// How far a row of probabilities may be from summing to 1.
const SUM_TOLERANCE: f64 = 1e-3;

/// The places in a block of the tokens that lie in it.
fn inside(tokens: &[u32], start: usize, len: usize) -> impl Iterator<Item = usize> + '_ {
    tokens.iter().filter_map(move |&t| (t as usize).checked_sub(start)).filter(move |&t| t < len)
}

/// Reads a row of probabilities value by value and checks that it is a distribution.
///
/// # Errors
/// [`Error::RowNotFinite`] names a NaN, infinite or negative value, [`Error::RowNotNormalised`] the
/// sum.
pub fn check_distribution(raw: &RawRows<'_>, row: usize) -> Result<()> {
    let mut sum = 0.0;
    for token in 0..raw.num_cols() {
        let p = raw.value(row, token);
        if !(p >= 0.0 && p.is_finite()) {
            return Err(Error::RowNotFinite {
                side: "drafter",
                row,
                token,
                found: p.to_string(),
                wanted: "probabilities are finite and not negative",
            });
        }
        sum += p;
    }
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(Error::RowNotNormalised { row, sum });
    }
    Ok(())
}

/// A mixture with its rows resolved.
struct Parts<'s> {
    node: usize,
    target: Shaped,
    drafter: Option<(usize, Option<Shaped>)>,
    mix: &'s Mix<f64>,
    set: &'s [u32],
}

/// A mixture of a node's rows; its blocks have been summed.
pub struct LazyCells<'s, 'a> {
    view: &'s mut LazyView<'a>,
    parts: Parts<'s>,
}

impl<'a> View<f64> for LazyView<'a> {
    type Mixture<'s>
        = LazyCells<'s, 'a>
    where
        Self: 's;

    fn target(&mut self, node: usize, token: u32) -> Result<f64> {
        let shaped = self.shaped_target(node)?;
        Ok(self.target.probability(node, &shaped, token))
    }

    fn drafter(&mut self, node: usize, token: u32) -> Result<f64> {
        let row = self.drafter.row(self.draft, node)?;
        let Some(column) = self.drafter.column(token) else {
            return Ok(0.0);
        };
        match self.drafter.source {
            Source::None => Ok(0.0),
            Source::Probabilities(raw) => Ok(raw.value(row, column as usize)),
            Source::Logits(rows) => {
                let shaped = self.shaped_drafter(&rows, node, row)?;
                Ok(rows.probability(row, &shaped, column))
            }
        }
    }

    fn drafter_row(&mut self, node: usize) -> Result<Vec<f64>> {
        let row = self.drafter.row(self.draft, node)?;
        if let Source::Probabilities(raw) = self.drafter.source {
            check_distribution(&raw, row)?;
        }
        let tokens = 0..self.target.num_cols() as u32;
        tokens.map(|token| View::drafter(self, node, token)).collect()
    }

    fn mixture<'s>(
        &'s mut self,
        node: usize,
        mix: &'s Mix<f64>,
        set: &'s [u32],
    ) -> Result<LazyCells<'s, 'a>> {
        let target = self.shaped_target(node)?;
        let mut drafter = None;
        if mix.b > 0.0 {
            let row = self.drafter.row(self.draft, node)?;
            let shaped = match self.drafter.source {
                Source::Logits(rows) => Some(self.shaped_drafter(&rows, node, row)?),
                Source::None | Source::Probabilities(_) => None,
            };
            self.spread(row, shaped);
            drafter = Some((row, shaped));
        }
        let parts = Parts { node, target, drafter, mix, set };
        // A one-hot row that nothing is taken from needs no sum.
        if !parts.is_one_hot() {
            self.sum_blocks(&parts)?;
        }
        Ok(LazyCells { view: self, parts })
    }
}

impl Parts<'_> {
    fn is_one_hot(&self) -> bool {
        self.target.only().is_some() && self.drafter.is_none() && self.mix.removed.is_empty()
    }
}

impl LazyCells<'_, '_> {
    /// Calls `each` with every block's start and weights.
    fn scan(&mut self, mut each: impl FnMut(usize, &[f64])) {
        for start in (0..self.view.target.num_cols()).step_by(BLOCK) {
            let block = self.view.fill(&self.parts, start);
            each(start, &self.view.memory.scratch.weights[..block.len]);
        }
    }
}

impl Cells<f64> for LazyCells<'_, '_> {
    fn total(&self) -> f64 {
        if self.parts.is_one_hot() { self.parts.mix.a } else { self.view.memory.sums.total }
    }

    fn weight(&mut self, token: u32) -> Result<f64> {
        let Parts { node, mix, set, .. } = self.parts;
        if mix.removed.contains(&token) {
            return Ok(0.0);
        }
        let p = self.view.target(node, token)?;
        if self.parts.drafter.is_none() || set.contains(&token) {
            return Ok(mix.a * p);
        }
        Ok(f64::max(mix.a * p - mix.b * self.view.drafter(node, token)?, mix.floor * p))
    }

    fn locate(&mut self, point: &f64) -> Result<u32> {
        if let Some(token) = self.parts.target.only().filter(|_| self.parts.is_one_hot()) {
            return Ok(token);
        }
        // The last block of positive sum holds the point if rounding put it beyond the others.
        let mut before = 0.0;
        let mut block = None;
        for (index, &sum) in self.view.memory.sums.sums.iter().enumerate() {
            if sum > 0.0 {
                block = Some((index, before));
                before += sum;
                if *point < before {
                    break;
                }
            }
        }
        let (index, mut before) = block.ok_or_else(nothing_left)?;
        let start = index * BLOCK;
        let block = self.view.fill(&self.parts, start);
        let mut last = None;
        for (token, &weight) in self.view.memory.scratch.weights[..block.len].iter().enumerate() {
            if weight > 0.0 {
                before += weight;
                last = Some((start + token) as u32);
                if *point < before {
                    break;
                }
            }
        }
        last.ok_or_else(nothing_left)
    }

    fn visit(&mut self, each: &mut dyn FnMut(u32, &f64)) -> Result<()> {
        self.scan(|start, weights| {
            for (token, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                each((start + token) as u32, weight);
            }
        });
        Ok(())
    }

    fn race(&mut self, noise: &RaceNoise) -> Result<u32> {
        if let Some(token) = self.parts.target.only().filter(|_| self.parts.is_one_hot()) {
            return Ok(token);
        }
        let mut earliest = f64::INFINITY;
        let mut winner = None;
        let mut numbers = [0.0; BLOCK];
        self.scan(|start, weights| {
            let numbers = &mut numbers[..weights.len()];
            (Kernels::best().race_noise)(noise, start as u32 / 2, numbers);
            for (token, (&v, &weight)) in numbers.iter().zip(weights).enumerate() {
                // -ln(1 - v) >= v, so most tokens lose without a logarithm.
                if v < earliest * weight || (winner.is_none() && weight > 0.0) {
                    let time = -(-v).ln_1p() / weight;
                    if time < earliest {
                        earliest = time;
                        winner = Some((start + token) as u32);
                    }
                }
            }
        });
        winner.ok_or_else(nothing_left)
    }
}
