//! Production's view: rows are shaped and summed only when a rule asks for them.
//!
//! Each row is read whole once, when something is first asked about it: that gives what every later
//! question divides by. Everything that is kept is the answer to one question, under the whole of it, and
//! is computed from the rows alone; so an answer does not depend on what was asked before.

use crate::choice::{Cells, RaceNoise};
use crate::dist::{Scratch, Shaped, ShapedRows, Side};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::simd::BLOCK;
use crate::verify::drafted::Drafted;
use crate::verify::law::Draft;
use crate::verify::memory::{Lent, Memory};
use crate::verify::view::{Mix, View};

pub use crate::verify::drafted::{DrafterRows, Source, check_distribution};

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
        let Memory { scratch, sums, .. } = &mut *self.memory;
        let shaped = self.target.shape(node, scratch)?;
        if !scratch.sums.is_empty() {
            sums.keep(Side::Target, node, &scratch.sums);
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

/// A mixture of a node's rows; its weights have been summed.
pub struct LazyCells<'s, 'a> {
    view: &'s mut LazyView<'a>,
    parts: Parts<'s>,
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
            && tokens == without
        {
            return Ok(*mass);
        }
        let sums = sums.of(Side::Drafter, node).unwrap_or_default();
        let mass = self.drafter.sum_rest(&drafted, without, sums, kernels, scratch) / drafted.total;
        *rest = Some((node, without.to_vec(), mass));
        Ok(mass)
    }

    fn drafter_row(&mut self, node: usize) -> Result<Vec<f64>> {
        (0..self.vocab() as u32).map(|token| self.drafter(node, token)).collect()
    }

    fn mixture<'s>(&'s mut self, node: usize, mix: &'s Mix<f64>) -> Result<LazyCells<'s, 'a>> {
        let target = self.shaped(node)?;
        let drafter = if mix.b > 0.0 { self.drafted(node)? } else { None };
        let unit = mix.scale / target.total();
        let factor = drafter.map_or(0.0, |row| mix.b * (target.total() / row.total));
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
        let Memory { scratch, kept, .. } = &mut *self.memory;
        if kept.node != Some(node) {
            kept.is_listed = self.target.list_kept(node, target, scratch);
            std::mem::swap(&mut kept.tokens, &mut scratch.list.tokens);
            std::mem::swap(&mut kept.weights, &mut scratch.list.weights);
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
        mixture.total = mixture.weights.iter().sum();
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
            if is_known && !is_touched {
                continue;
            }
            let sum = self.sum_of_block(parts, block, start, len);
            let sums = &mut self.memory.mixture.sums;
            if is_known { sums[block] = sum } else { sums.push(sum) }
        }
        let mixture = &mut self.memory.mixture;
        mixture.total = mixture.sums.iter().sum();
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
        if *spread_row != Some(drafted.row()) {
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
        if self.mix.removed.contains(&token) {
            return 0.0;
        }
        let left = (-self.factor).mul_add(taken, whole);
        f64::max(if left > 0.0 { left } else { 0.0 }, self.mix.floor * whole)
    }
}

impl LazyCells<'_, '_> {
    /// Calls `each` with every token of positive weight and its weight, ascending, until it says stop.
    ///
    /// Of a mixture in blocks it begins with block `from`.
    fn scan(&mut self, from: usize, mut each: impl FnMut(u32, f64) -> bool) {
        match self.parts.form {
            Form::Only(token) => {
                each(token, 1.0);
            }
            Form::List => {
                let Memory { kept, mixture, .. } = &*self.view.memory;
                for (&token, &weight) in kept.tokens.iter().zip(&mixture.weights) {
                    if weight > 0.0 && each(token, weight) {
                        return;
                    }
                }
            }
            Form::Blocks => {
                for start in (0..self.view.target.num_cols()).step_by(BLOCK).skip(from) {
                    let len = self.view.fill(&self.parts, start);
                    let weights = &self.view.memory.scratch.weights[..len];
                    for (token, &weight) in (start as u32..).zip(weights) {
                        if weight > 0.0 && each(token, weight) {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// The block in which a point lies, and the sum of those before it; the last one of positive sum if
    /// rounding put the point beyond the others.
    fn find_block(&self, point: f64) -> (usize, f64) {
        let (mut found, mut before) = ((0, 0.0), 0.0);
        for (block, &sum) in self.view.memory.mixture.sums.iter().enumerate() {
            if sum > 0.0 {
                found = (block, before);
                before += sum;
                if point < before {
                    break;
                }
            }
        }
        found
    }
}

impl Cells<f64> for LazyCells<'_, '_> {
    fn total(&self) -> f64 {
        match self.parts.form {
            Form::Only(_) => self.parts.mix.scale,
            Form::List | Form::Blocks => self.view.memory.mixture.total * self.parts.unit,
        }
    }

    fn weight(&mut self, token: u32) -> Result<f64> {
        let parts = &self.parts;
        let whole = self.view.target.weight(parts.node, &parts.target, token);
        let taken = match &parts.drafter {
            Some(drafted) if !parts.mix.set.contains(&token) => {
                self.view.drafter.weight(drafted, token)
            }
            _ => 0.0,
        };
        Ok(parts.weight(token, whole, taken) * parts.unit)
    }

    fn locate(&mut self, point: &f64) -> Result<u32> {
        let point = point / self.parts.unit;
        let (block, mut before) = match self.parts.form {
            Form::Blocks => self.find_block(point),
            Form::Only(_) | Form::List => (0, 0.0),
        };
        let end = match self.parts.form {
            Form::Blocks => (block + 1) * BLOCK,
            Form::Only(_) | Form::List => usize::MAX,
        };
        let mut found = None;
        self.scan(block, |token, weight| {
            if found.is_some() && token as usize >= end {
                return true;
            }
            before += weight;
            found = Some(token);
            point < before || token as usize >= end
        });
        if found.is_none() {
            // The last block may have a sum (below 2^-100) and no token above the row's cut.
            self.scan(0, |token, _| {
                found = Some(token);
                false
            });
        }
        found.ok_or_else(|| changed(self.parts.node))
    }

    fn visit(&mut self, each: &mut dyn FnMut(u32, &f64)) -> Result<()> {
        let unit = self.parts.unit;
        self.scan(0, |token, weight| {
            each(token, &(weight * unit));
            false
        });
        Ok(())
    }

    fn race(&mut self, noise: &RaceNoise) -> Result<u32> {
        let mut race = Race { earliest: f64::INFINITY, winner: None };
        match self.parts.form {
            Form::Only(token) => return Ok(token),
            Form::List => self.scan(0, |token, weight| {
                race.enter(token, noise.uniform(token), weight);
                false
            }),
            Form::Blocks => {
                let mut numbers = [0.0; BLOCK];
                for start in (0..self.view.target.num_cols()).step_by(BLOCK) {
                    let len = self.view.fill(&self.parts, start);
                    let numbers = &mut numbers[..len];
                    (self.view.target.kernels().race_noise)(noise, start as u32 / 2, numbers);
                    let weights = &self.view.memory.scratch.weights[..len];
                    for (token, (&v, &weight)) in (start as u32..).zip(numbers.iter().zip(weights))
                    {
                        race.enter(token, v, weight);
                    }
                }
            }
        }
        race.winner.ok_or_else(|| changed(self.parts.node))
    }
}

/// The exponential race of a row's tokens.
struct Race {
    earliest: f64,
    winner: Option<u32>,
}

impl Race {
    /// Lets a token take part, with its number in `[0, 1)` and its weight.
    fn enter(&mut self, token: u32, v: f64, weight: f64) {
        // -ln(1 - v) >= v, so most tokens lose without a logarithm.
        if v < self.earliest * weight || (self.winner.is_none() && weight > 0.0) {
            let time = -(-v).ln_1p() / weight;
            if time < self.earliest {
                self.earliest = time;
                self.winner = Some(token);
            }
        }
    }
}

/// The error of a row whose weights are gone when they are read again.
fn changed(node: usize) -> Error {
    Error::RowChanged { side: "target", row: node }
}
