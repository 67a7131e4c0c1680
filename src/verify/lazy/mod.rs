//! Production's view: rows are shaped and summed only when a rule asks for them.
//!
//! Each row is read whole once, when something is first asked about it: that gives what every later
//! question divides by. Everything that is kept is the answer to one question, under the whole of it, and
//! is computed from the rows alone; so an answer does not depend on what was asked before.

mod cells;

use crate::error::Result;
use crate::mutants::mutate;
use crate::rows::simd::BLOCK;
use crate::rows::sums::{fold, sum_listed};
use crate::shaping::{Scratch, Shaped, ShapedRows, Side};
use crate::verify::drafted::Drafted;
use crate::verify::law::Draft;
use crate::verify::memory::{Lent, Memory};
use crate::verify::view::{Mix, View};

pub use crate::verify::drafted::{DrafterRows, LEAST, Source, check_distribution};
pub use cells::LazyCells;

/// The rows of one draft, read on demand.
#[derive(Debug)]
pub struct LazyView<'a> {
    draft: &'a Draft,
    target: ShapedRows<'a>,
    drafter: DrafterRows<'a>,
    shaped: Vec<Option<Shaped>>,
    drafted: Vec<Option<Drafted>>,
    memory: Lent,
}

impl<'a> LazyView<'a> {
    /// The view of a draft's rows; nothing is read yet.
    pub fn new(draft: &'a Draft, target: ShapedRows<'a>, drafter: DrafterRows<'a>) -> Self {
        let num_drafted = match drafter.source {
            Source::None => 0,
            Source::Logits(_) | Source::Probabilities(_) => draft.num_nodes(),
        };
        Self {
            draft,
            target,
            drafter,
            shaped: vec![None; draft.num_nodes()],
            drafted: vec![None; num_drafted],
            memory: Lent::new(),
        }
    }

    fn shaped(&mut self, node: usize) -> Result<Shaped> {
        if let Some(shaped) = self.shaped[node] {
            return Ok(shaped);
        }
        let Memory { scratch, sums, lists, .. } = &mut *self.memory;
        let shaped = self.target.shape(node, scratch)?;
        if !scratch.sums.is_empty() {
            sums.keep(Side::Target, node, &scratch.sums);
        }
        if !scratch.kept.tokens.is_empty() {
            lists.keep(Side::Target, node, &scratch.kept);
        }
        self.shaped[node] = Some(shaped);
        Ok(shaped)
    }

    /// What reads the target's row after `node` beyond what a rule asks for.
    pub(crate) fn target_row(
        &mut self,
        node: usize,
    ) -> Result<(ShapedRows<'a>, Shaped, &mut Scratch)> {
        let shaped = self.shaped(node)?;
        Ok((self.target, shaped, &mut self.memory.scratch))
    }

    /// The drafter's row after `node`, read whole.
    fn drafted(&mut self, node: usize) -> Result<Option<Drafted>> {
        let Some(&known) = self.drafted.get(node) else {
            return Ok(None);
        };
        if known.is_some() {
            return Ok(known);
        }
        let Memory { scratch, sums, .. } = &mut *self.memory;
        let drafted = self.drafter.read(self.draft, node, self.target.kernels(), scratch)?;
        if !scratch.sums.is_empty() {
            sums.keep(Side::Drafter, node, &scratch.sums);
        }
        self.drafted[node] = Some(drafted);
        Ok(Some(drafted))
    }

    /// The natural logarithm of `p(token)` after `node`.
    ///
    /// # Errors
    /// If the row is not a distribution.
    pub fn log_probability(&mut self, node: usize, token: u32) -> Result<f64> {
        let shaped = self.shaped(node)?;
        self.target.log_probability(node, &shaped, token)
    }
}

/// A mixture with its rows resolved.
///
/// Its weights are computed as `max(u - factor v [not in set], floor u) [not in removed]` with the weights
/// `u` and `v` of target and drafter; `unit` times that is what the mixture says.
struct Parts<'s> {
    node: usize,
    target: Shaped,
    drafter: Option<Drafted>,
    mix: &'s Mix<f64>,
    factor: f64,
    unit: f64,
    form: Form,
}

/// In which form a mixture is read.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// One token has all the mass.
    Only(u32),
    /// Few tokens are kept: they are listed.
    List,
    /// Block by block.
    Blocks,
}

impl<'a> View<f64> for LazyView<'a> {
    type Mixture<'s>
        = LazyCells<'s, 'a>
    where
        Self: 's;

    fn vocab(&self) -> usize {
        self.target.num_cols()
    }

    fn check_target(&mut self, node: usize) -> Result<()> {
        self.shaped(node).map(|_| ())
    }

    fn target(&mut self, node: usize, token: u32) -> Result<f64> {
        let shaped = self.shaped(node)?;
        Ok(self.target.probability(node, &shaped, token))
    }

    fn drafter(&mut self, node: usize, token: u32) -> Result<f64> {
        let drafted = self.drafted(node)?;
        Ok(drafted.map_or(0.0, |row| self.drafter.weight(&row, token) / row.total))
    }

    fn drafter_rest(&mut self, node: usize, without: &[u32]) -> Result<f64> {
        if without.is_empty() {
            return Ok(1.0);
        }
        let Some(drafted) = self.drafted(node)? else {
            return Ok(1.0);
        };
        let kernels = self.target.kernels();
        let Memory { scratch, sums, rest, .. } = &mut *self.memory;
        if let Some((of, tokens, mass)) = rest
            && *of == node
            && mutate!("float/rest_of_another_question", tokens == without, true)
        {
            return Ok(*mass);
        }
        let sums = sums.of(Side::Drafter, node).unwrap_or_default();
        let sum = self.drafter.sum_rest(&drafted, without, sums, kernels, scratch);
        let mass = mutate!("float/rest_not_normalised", sum / drafted.total, sum);
        let mass = mutate!(
            "float/rest_is_one_minus_the_taken",
            mass,
            1.0 - without.iter().map(|&t| self.drafter.weight(&drafted, t)).sum::<f64>()
                / drafted.total
        );
        *rest = Some((node, without.to_vec(), mass));
        Ok(mass)
    }

    fn drafter_row(&mut self, node: usize) -> Result<Vec<f64>> {
        let mut row = vec![0.0; self.vocab()];
        if let Some(drafted) = self.drafted(node)? {
            for (block, start) in row.chunks_mut(BLOCK).zip((0..).step_by(BLOCK)) {
                self.take(&drafted, start);
                for (q, &weight) in block.iter_mut().zip(&self.memory.scratch.taken) {
                    *q = if weight < LEAST { 0.0 } else { weight / drafted.total };
                }
            }
        }
        Ok(row)
    }

    fn mixture<'s>(&'s mut self, node: usize, mix: &'s Mix<f64>) -> Result<LazyCells<'s, 'a>> {
        let target = self.shaped(node)?;
        let drafter = if mix.b > 0.0 { self.drafted(node)? } else { None };
        let unit = mix.scale / target.total();
        let factor = drafter.map_or(0.0, |row| mix.b * (target.total() / row.total));
        let factor = mutate!("float/factor_without_totals", factor, mix.b);
        let form = self.form(node, &target, mix);
        let parts = Parts { node, target, drafter, mix, factor, unit, form };
        match form {
            Form::Only(_) => {}
            Form::List => self.weigh_list(&parts),
            Form::Blocks => self.sum_blocks(&parts),
        }
        Ok(LazyCells { view: self, parts })
    }
}

impl LazyView<'_> {
    /// The form in which a mixture is read; lists the target's tokens where that is it.
    fn form(&mut self, node: usize, target: &Shaped, mix: &Mix<f64>) -> Form {
        let is_pure = mix.b <= 0.0 && mix.removed.is_empty();
        if let Some(only) = target.only().filter(|_| is_pure) {
            return Form::Only(only);
        }
        if !target.is_truncated() {
            return Form::Blocks;
        }
        let Memory { scratch, kept, lists, .. } = &mut *self.memory;
        if mutate!("float/list_of_another_node", kept.node != Some(node), kept.node.is_none()) {
            if let Some((tokens, weights)) = lists.of(Side::Target, node) {
                kept.is_listed = true;
                kept.tokens.clear();
                kept.tokens.extend_from_slice(tokens);
                kept.weights.clear();
                kept.weights.extend_from_slice(weights);
            } else {
                kept.is_listed = self.target.list_kept(node, target, scratch);
                std::mem::swap(&mut kept.tokens, &mut scratch.list.tokens);
                std::mem::swap(&mut kept.weights, &mut scratch.list.weights);
            }
            kept.node = Some(node);
        }
        if kept.is_listed { Form::List } else { Form::Blocks }
    }

    /// Computes the weights of a mixture over the listed tokens.
    fn weigh_list(&mut self, parts: &Parts<'_>) {
        let Memory { mixture, kept, .. } = &mut *self.memory;
        if mixture.key.as_ref().is_some_and(|key| key.0 == parts.node && key.1 == *parts.mix) {
            return;
        }
        mixture.key = None;
        mixture.weights.clear();
        for (&token, &weight) in kept.tokens.iter().zip(&kept.weights) {
            let taken = match &parts.drafter {
                Some(drafted) if !parts.mix.set.contains(&token) => {
                    self.drafter.weight(drafted, token)
                }
                _ => 0.0,
            };
            mixture.weights.push(parts.weight(token, f64::from(weight), taken));
        }
        mixture.total = sum_listed(&kept.tokens, |at| mixture.weights[at], &mut mixture.sums);
        mixture.key = Some((parts.node, parts.mix.clone()));
    }

    /// Makes sure that the sums of blocks are those of a mixture.
    ///
    /// Blocks that a token removed since then does not lie in have the sums that they had.
    fn sum_blocks(&mut self, parts: &Parts<'_>) {
        let Parts { node, mix, .. } = *parts;
        let mut known = 0;
        let mut is_known = false;
        if let Some((of, last)) = self.memory.mixture.key.take() {
            known = last.removed.len();
            let extends = mix.removed.starts_with(&last.removed);
            let is_same = extends && Mix { removed: mix.removed.clone(), ..last } == *mix;
            is_known = of == node && mutate!("lazy/sums_of_another_mixture", is_same, true);
        }
        if !is_known {
            self.memory.mixture.sums.clear();
            if parts.drafter.is_none() {
                self.keep_target_sums(node, &parts.target);
            }
        }
        let newly_removed = if is_known { mix.removed.get(known..) } else { None };
        let newly_removed = newly_removed.unwrap_or_default();
        for (block, start) in (0..self.target.num_cols()).step_by(BLOCK).enumerate() {
            let len = BLOCK.min(self.target.num_cols() - start);
            let is_touched = inside(newly_removed, start, len).next().is_some();
            let is_touched = mutate!("float/removal_not_summed", is_touched, false);
            if is_known && !is_touched {
                continue;
            }
            let sum = self.sum_of_block(parts, block, start, len);
            let sums = &mut self.memory.mixture.sums;
            if is_known { sums[block] = sum } else { sums.push(sum) }
        }
        let mixture = &mut self.memory.mixture;
        mixture.total = fold(&mixture.sums);
        mixture.key = Some((node, mix.clone()));
    }

    /// Computes the sums of the blocks of the target's row, if its shaping did not leave them.
    fn keep_target_sums(&mut self, node: usize, shaped: &Shaped) {
        let Memory { scratch, sums, .. } = &mut *self.memory;
        if sums.of(Side::Target, node).is_none() {
            let starts = (0..self.target.num_cols()).step_by(BLOCK);
            let all: Vec<f64> =
                starts.map(|start| self.target.sum_block(node, shaped, start, scratch)).collect();
            sums.keep(Side::Target, node, &all);
        }
    }

    /// The sum of a mixture's weights in a block.
    fn sum_of_block(&mut self, parts: &Parts<'_>, block: usize, start: usize, len: usize) -> f64 {
        if parts.drafter.is_none() && inside(&parts.mix.removed, start, len).next().is_none() {
            let sums = self.memory.sums.of(Side::Target, parts.node);
            return sums.map_or(0.0, |sums| sums[block]);
        }
        let len = self.fill(parts, start);
        (self.target.kernels().sum)(&self.memory.scratch.weights[..len])
    }

    /// Writes the weights of a mixture in a block; returns how many there are.
    fn fill(&mut self, parts: &Parts<'_>, start: usize) -> usize {
        let Parts { node, ref target, ref drafter, mix, .. } = *parts;
        let kernels = self.target.kernels();
        let factor = mutate!("lazy/factor_forgotten", parts.factor, 1.0);
        let set = mutate!("lazy/set_not_left_out", &mix.set[..], &[]);
        let is_apart = inside(set, start, BLOCK).next().is_some();
        let narrow = drafter.as_ref().and_then(|drafted| self.drafter.block_f32(drafted, start));
        let narrow = narrow.filter(|_| !is_apart);
        if let (Some(drafted), None) = (drafter, narrow) {
            self.take(drafted, start);
        }
        let Scratch { buffers, terms, weights, taken, .. } = &mut self.memory.scratch;
        let len = self.target.weigh(node, target, start, buffers, terms);
        let (terms, weights, taken) = (&terms[..len], &mut weights[..len], &mut taken[..len]);
        if let Some(narrow) = narrow {
            (kernels.subtract_narrow)(terms, narrow, factor, weights);
        } else if drafter.is_some() {
            for token in inside(set, start, len) {
                taken[token] = 0.0;
            }
            (kernels.subtract)(terms, taken, factor, weights);
        } else {
            (kernels.widen_f32)(terms, weights);
        }
        if drafter.is_some() && mix.floor > 0.0 {
            for (weight, &whole) in weights.iter_mut().zip(terms) {
                *weight = weight.max(mix.floor * f64::from(whole));
            }
        }
        let removed = mutate!("lazy/removed_token_stays", &mix.removed[..], &[]);
        for token in inside(removed, start, len) {
            weights[token] = 0.0;
        }
        len
    }

    /// Writes the drafter's weights of a block of tokens into `scratch.taken`.
    fn take(&mut self, drafted: &Drafted, start: usize) {
        let kernels = self.target.kernels();
        let Memory { scratch, spread, spread_row, .. } = &mut *self.memory;
        let Some(pairs) = self.drafter.vocab else {
            self.drafter.fill(drafted, start, kernels, scratch);
            return;
        };
        let is_spread = *spread_row == Some(drafted.row());
        if !mutate!("float/spread_of_another_row", is_spread, spread_row.is_some()) {
            spread.clear();
            spread.resize(self.target.num_cols(), 0.0);
            for &(token, _) in pairs {
                spread[token as usize] = self.drafter.weight(drafted, token);
            }
            *spread_row = Some(drafted.row());
        }
        let len = BLOCK.min(spread.len() - start);
        scratch.taken[..len].copy_from_slice(&spread[start..start + len]);
    }
}

/// The places in a block of the tokens that lie in it.
fn inside(tokens: &[u32], start: usize, len: usize) -> impl Iterator<Item = usize> + '_ {
    tokens.iter().filter_map(move |&t| (t as usize).checked_sub(start)).filter(move |&t| t < len)
}

impl Parts<'_> {
    /// The weight of a token, given those of target and drafter (0 in the set).
    fn weight(&self, token: u32, whole: f64, taken: f64) -> f64 {
        let is_removed = self.mix.removed.contains(&token);
        if mutate!("float/removed_token_listed", is_removed, false) {
            return 0.0;
        }
        let left = (-self.factor).mul_add(taken, whole);
        f64::max(if left > 0.0 { left } else { 0.0 }, self.mix.floor * whole)
    }
}
