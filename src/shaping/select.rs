//! Finds the cuts of top-k, top-p and min-p by selection; no row is ever sorted.

use std::ops::Range;

use crate::error::Result;
use crate::mutants::mutate;
use crate::rows::simd::BLOCK;
use crate::rows::sums::{fold, sum_listed};
use crate::shaping::measure::canonical;
use crate::shaping::scratch::List;
use crate::shaping::{Preset, Scratch, Shaped, ShapedRows};

/// Up to so many kept tokens are listed; rows with more are read block by block.
pub(crate) const MANY: usize = 8192;

/// Up to this `k`, top-k lists its candidates; above, it selects in a copy of the row.
const SMALL_K: usize = 4096;

/// Candidates beyond twice as many as were kept last, before the bound of top-k rises again.
const SLACK: usize = 64;

/// Up to so many tokens, top-p lists all from its cut up: that is quicker than to sum them in the row.
const FEW: f64 = 4096.0;

/// Values that are taken from each block as a sample of the row, so many neighbours at a time.
const SAMPLE: usize = 32;
const NEIGHBOURS: usize = 4;

/// What the sample says of a mass is off by less than so many of its standard deviations.
const SIGMAS: f64 = 3.0;

/// The sample is counted in so many cells, so many to a nat, from the largest value that a row can have
/// down; what lies deeper is in the last.
const CELLS: usize = 1024;
const CELLS_PER_NAT: f32 = 32.0;

/// Nats by which top-p looks deeper where its cut is not between the logits that the sample names.
const DEEPER: f32 = 2.0;

impl ShapedRows<'_> {
    /// The shape of a row of which top-k, top-p or min-p may leave something out.
    pub(super) fn truncate(&self, row: usize, scratch: &mut Scratch) -> Result<Shaped> {
        let k = self.params.top_k;
        let is_small = (1..self.num_cols().min(SMALL_K + 1)).contains(&k);
        let k = mutate!("float/top_k_one_more", k, (k + 1).min(self.num_cols() - 1));
        let (mut shaped, max, mut mass) =
            if is_small { self.cut_list(row, k, scratch)? } else { self.cut_row(row, scratch)? };
        if self.params.preset == Preset::Transformers && self.raise_to_min_p(&mut shaped, max) {
            mass = None;
        }
        let total = mass.unwrap_or_else(|| self.total_kept(row, &shaped, scratch));
        let (window, factor) = canonical(shaped.window, total);
        shaped.window = window;
        shaped.total = total * factor;
        shaped.is_truncated = true;
        raise(&mut shaped, mutate!("float/cut_below_the_window", window.floor(), f32::MIN));
        scratch.sums.clear();
        self.keep(&shaped, &mut scratch.kept);
        Ok(shaped)
    }

    /// The first steps of shaping, up to top-p, where top-k leaves few tokens: they are listed. Returns
    /// the row's maximum, and the kept mass.
    fn cut_list(
        &self,
        row: usize,
        k: usize,
        scratch: &mut Scratch,
    ) -> Result<(Shaped, f32, Option<f64>)> {
        let (max, kth) = self.list_top(row, k, scratch)?;
        let mut shaped = Shaped::around(max);
        let (max, kth) = (max - shaped.origin, kth - shaped.origin);
        let Scratch { list, sums, .. } = scratch;
        for y in &mut list.values {
            *y -= shaped.origin;
        }
        raise(&mut shaped, kth);
        if self.params.preset == Preset::Vllm {
            self.raise_to_min_p(&mut shaped, max);
        }
        self.keep(&shaped, list);
        scratch.kept.clone_from(list);
        let mut kept = mass(list, sums);
        if self.params.top_p < 1.0 {
            let goal = self.params.top_p * kept;
            kept = self
                .cut_at(goal, 0.0, kth..max.next_up(), true, &mut shaped, scratch)
                .unwrap_or(kept);
        }
        Ok((shaped, max, Some(kept)))
    }

    /// The same for any row, block by block; there may be no kept mass known at the end.
    fn cut_row(&self, row: usize, scratch: &mut Scratch) -> Result<(Shaped, f32, Option<f64>)> {
        let params = &self.params;
        if params.top_k == 0 && params.min_p <= 0.0 {
            let mut shaped = self.sum_whole(row, scratch)?;
            let all = shaped.total;
            let kept = self.nucleus(row, &mut shaped, all, scratch);
            return Ok((shaped, 0.0, Some(kept)));
        }
        let max = self.max(row, scratch)?;
        let mut shaped = Shaped::around(max);
        let max = max - shaped.origin;
        if params.preset == Preset::Vllm {
            self.raise_to_min_p(&mut shaped, max);
        }
        if (1..self.num_cols()).contains(&params.top_k) {
            let cut = self.kth_largest(row, shaped.origin, scratch);
            raise(&mut shaped, cut);
        }
        if params.top_p >= 1.0 {
            return Ok((shaped, max, None));
        }
        let all = self.total_kept(row, &shaped, scratch);
        let kept = self.nucleus(row, &mut shaped, all, scratch);
        Ok((shaped, max, Some(kept)))
    }

    /// min-p keeps `exp(y - max) >= min_p`: a cut that depends on the maximum alone. Returns whether it
    /// is above the cut so far.
    fn raise_to_min_p(&self, shaped: &mut Shaped, max: f32) -> bool {
        if self.params.min_p <= 0.0 {
            return false;
        }
        let cut = f64::from(max) + self.params.min_p.ln();
        let cut = mutate!("float/min_p_rounded_down", round_up(cut), round_up(cut).next_down());
        let rises = cut > shaped.cut;
        raise(shaped, cut);
        rises
    }

    /// Reduces a list to the kept tokens, and weighs them.
    pub(super) fn keep(&self, shaped: &Shaped, list: &mut List) {
        list.retain(|y, token| shaped.keeps(y, token));
        list.weigh(self.kernels, &shaped.window, shaped.cut);
    }

    /// The sum of the weights of the kept tokens.
    fn total_kept(&self, row: usize, shaped: &Shaped, scratch: &mut Scratch) -> f64 {
        if scratch.kept.len() > 0 {
            let Scratch { kept, sums, .. } = scratch;
            self.keep(shaped, kept);
            return mass(kept, sums);
        }
        if self.list_kept(row, shaped, scratch) {
            return mass(&scratch.list, &mut scratch.sums);
        }
        self.sum_blocks(row, shaped, scratch)
    }

    /// The same block by block.
    fn sum_blocks(&self, row: usize, shaped: &Shaped, scratch: &mut Scratch) -> f64 {
        let blocks = self.raw.blocks();
        let sums: Vec<f64> =
            blocks.map(|start| self.sum_block(row, shaped, start, scratch)).collect();
        fold(&sums)
    }

    /// Lists the tokens that are not below the `k`-th largest; returns the largest scaled logit and the
    /// `k`-th, counting equal ones each (the least finite one if there are fewer).
    fn list_top(&self, row: usize, k: usize, scratch: &mut Scratch) -> Result<(f32, f32)> {
        let Scratch { buffers, places, list, values: sorted, .. } = scratch;
        list.clear();
        // Values from the bound on are candidates; when there are enough, it rises to the k-th of them.
        let mut bound = f32::MIN;
        let mut limit = 2 * k + SLACK;
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, 0.0, buffers);
            let count = self.kernels.gather(values, bound, places);
            list.extend(start, values, &places[..count]);
            if list.len() >= limit {
                bound = kth(&list.values, k, sorted);
                list.retain(|y, _| y.is_nan() || y >= bound);
                limit = 2 * list.len() + SLACK;
            }
        }
        if list.values.iter().any(|y| y.is_nan()) {
            return Err(self.not_finite(row));
        }
        let max = list.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.check_max(row, max)?;
        Ok((max, kth(&list.values, k.min(list.len()), sorted)))
    }

    /// The `k`-th largest of a row's values, for a large `k`.
    fn kth_largest(&self, row: usize, origin: f32, scratch: &mut Scratch) -> f32 {
        let Scratch { buffers, values: sorted, .. } = scratch;
        sorted.clear();
        sorted.reserve_exact(self.num_cols());
        for start in self.raw.blocks() {
            sorted.extend_from_slice(self.scaled(row, start, origin, buffers));
        }
        select_kth(sorted, self.params.top_k)
    }

    /// top-p over what is kept so far, whose mass is `all`; returns the mass that stays.
    ///
    /// The cut is looked for where a sample of the row says that it is, and in ever larger parts of the
    /// row if it is not there.
    fn nucleus(&self, row: usize, shaped: &mut Shaped, all: f64, scratch: &mut Scratch) -> f64 {
        let goal = self.params.top_p * all;
        let mut part = self.bracket(row, shaped, all - goal, scratch);
        loop {
            let above = self.split(row, shaped, part.clone(), scratch);
            let is_last = part.start <= shaped.cut && part.end == f32::INFINITY;
            if above < goal || is_last {
                scratch.list.weigh(self.kernels, &shaped.window, shaped.cut);
                if part.end == f32::INFINITY && scratch.list.len() <= MANY {
                    scratch.kept.clone_from(&scratch.list);
                }
                if let Some(kept) = self.cut_at(goal, above, part.clone(), is_last, shaped, scratch)
                {
                    return kept;
                }
                scratch.kept.clear();
            }
            let is_bracket = part.end < f32::INFINITY;
            let deeper = if is_bracket { part.start - DEEPER } else { shaped.cut };
            part = deeper.max(shaped.cut)..f32::INFINITY;
        }
    }

    /// Two scaled logits between which top-p's cut probably lies, if tokens of the mass `spare` are left
    /// out: below the first, a sample of the row surely has less than that, and below the second more. The
    /// second is infinite where few tokens are above the first.
    fn bracket(
        &self,
        row: usize,
        shaped: &Shaped,
        spare: f64,
        scratch: &mut Scratch,
    ) -> Range<f32> {
        let Scratch { buffers, terms, .. } = scratch;
        // No weight is above the sum of all, which is below 4.
        let top = ((f64::from(shaped.window.exponent()) + 2.0) * std::f64::consts::LN_2) as f32;
        let (mut counts, mut taken, divisor) = ([0_u32; CELLS], 0, self.divisor());
        for start in self.raw.blocks() {
            let values = self.block(row, start, &mut buffers[0]);
            // Neighbours come with one access to memory.
            let groups = values.as_chunks::<NEIGHBOURS>().0.iter();
            for group in groups.step_by(values.len().div_ceil(SAMPLE)) {
                let depths = group.map(|x| (top - (x / divisor - shaped.origin)) * CELLS_PER_NAT);
                for depth in depths.map(|depth| depth.clamp(0.0, (CELLS - 1) as f32) as u32) {
                    counts[depth as usize] += 1;
                }
                taken += NEIGHBOURS as u32;
            }
        }
        let share = self.num_cols() as f64 / f64::from(taken.max(1));
        let edges: [f32; CELLS] = std::array::from_fn(|depth| top - depth as f32 / CELLS_PER_NAT);
        let weights = &mut terms[..CELLS];
        (self.kernels.weigh)(&edges, &shaped.window, shaped.cut, weights);
        let (mut sum, mut squares) = (0.0, 0.0);
        let (mut low, mut num_left) = (shaped.cut, f64::from(taken));
        let mut num_above = num_left;
        for depth in (0..CELLS).rev() {
            let (count, weight) = (f64::from(counts[depth]), f64::from(weights[depth]));
            sum += count * weight;
            squares += count * weight * weight;
            num_left -= count;
            let (over, error) = (share * sum - spare, SIGMAS * share);
            // Neither is worth a square root.
            let is_sure = over * over >= error * error * squares;
            if is_sure && over >= 0.0 {
                return low..if share * num_above <= FEW { f32::INFINITY } else { edges[depth] };
            }
            if is_sure {
                (low, num_above) = (edges[depth].max(shaped.cut), num_left);
            }
        }
        low..f32::INFINITY
    }

    /// Lists the tokens whose scaled logit lies in a range, ascending, and returns the mass above it.
    fn split(&self, row: usize, shaped: &Shaped, part: Range<f32>, scratch: &mut Scratch) -> f64 {
        let Scratch { buffers, values: some, places, list, terms, .. } = scratch;
        list.clear();
        some.resize(BLOCK, 0.0);
        let mut above = 0.0;
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, shaped.origin, buffers);
            if part.end < f32::INFINITY {
                // Few are above: only these are exponentiated.
                let count = (self.kernels.take_from)(values, part.end, some);
                above += self.kernels.sum_exp(&some[..count], &shaped.window, part.end, terms);
            }
            let count = (self.kernels.gather_between)(values, part.start, part.end, places);
            list.extend(start, values, &places[..count]);
        }
        above
    }

    /// Keeps the largest tokens of the list while the mass before them is below `goal`, of equal ones the
    /// lowest first, and sets the cut behind the last; returns the mass up to there. `before` is the mass
    /// of the tokens above those of the list, whose values lie in `part`.
    ///
    /// None if the list ends before the goal is reached, unless that `is_last`, and all of it is kept.
    ///
    /// The crossing token is found by eight bits of [`key`] at a time, from the highest in which keys can
    /// differ: the mass of each value of these bits, from the top down, says in which the goal is crossed.
    fn cut_at(
        &self,
        goal: f64,
        mut before: f64,
        part: Range<f32>,
        is_last: bool,
        shaped: &mut Shaped,
        scratch: &mut Scratch,
    ) -> Option<f64> {
        let Scratch { list, places, .. } = scratch;
        let (mut base, mut last) = (key(part.start), key(part.end));
        if part.end == f32::INFINITY {
            // Nothing is known of the largest: the first bits would tell little.
            last = list.values.iter().map(|&y| key(y)).max().unwrap_or(base);
        }
        let mut shift = (u32::BITS - (last - base).leading_zeros()).saturating_sub(8);
        let mut is_first = true;
        loop {
            let mut masses = [0.0; 256];
            let mut counts = [0_u32; 256];
            for (&y, &weight) in list.values.iter().zip(&list.weights) {
                let digit = ((key(y) - base) >> shift) as usize;
                masses[digit] += f64::from(weight);
                counts[digit] += 1;
            }
            let (mut crossing, mut is_reached) = (None, false);
            for value in (0..256).rev().filter(|&value| counts[value] > 0) {
                if let Some(above) = crossing.replace(value) {
                    before += masses[above];
                }
                is_reached = before + masses[value] >= goal;
                if is_reached {
                    break;
                }
            }
            if is_first && !is_reached && !is_last {
                return None;
            }
            is_first = false;
            let Some(crossing) = crossing else {
                return Some(before);
            };
            base += (crossing as u32) << shift;
            let end = base.saturating_add(1 << shift).min(key(f32::INFINITY));
            list.retain_between(self.kernels, unkey(base)..unkey(end), places);
            if shift == 0 {
                break;
            }
            shift = shift.saturating_sub(8);
        }
        // What is left are equal values, by ascending token; at least one of them is kept.
        let mut kept = 0;
        let open =
            |before: f64| mutate!("float/top_p_goes_on_at_the_goal", before < goal, before <= goal);
        while kept < list.len() && (open(before) || kept == 0) {
            before += f64::from(list.weights[kept]);
            kept += 1;
        }
        shaped.cut = list.values[0];
        let all = mutate!("float/ties_all_kept", list.len(), kept);
        shaped.tie_end = if kept < all { list.tokens[kept - 1] + 1 } else { u32::MAX };
        mutate!("float/one_tie_more", (), shaped.tie_end = shaped.tie_end.saturating_add(1));
        Some(before)
    }

    /// Lists the tokens whose scaled logit is not below the cut, ascending; false if there are more than
    /// [`MANY`], which are then not all listed.
    pub(super) fn gather(&self, row: usize, shaped: &Shaped, scratch: &mut Scratch) -> bool {
        let Scratch { buffers, places, list, .. } = scratch;
        list.clear();
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, shaped.origin, buffers);
            let count = self.kernels.gather(values, shaped.cut, places);
            if list.len() + count > MANY {
                return false;
            }
            list.extend(start, values, &places[..count]);
        }
        true
    }
}

/// The `k`-th largest of some values, counting equal ones each; `0 < k <= len`.
fn kth(values: &[f32], k: usize, sorted: &mut Vec<f32>) -> f32 {
    sorted.clear();
    sorted.extend_from_slice(values);
    select_kth(sorted, k)
}

/// The same; changes the order of the values.
fn select_kth(values: &mut [f32], k: usize) -> f32 {
    *values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

fn mass(list: &List, sums: &mut Vec<f64>) -> f64 {
    sum_listed(&list.tokens, |at| f64::from(list.weights[at]), sums)
}

/// Bits whose order is that of the values; 0 and -0 are the same logit.
fn key(y: f32) -> u32 {
    let bits = (y + 0.0).to_bits();
    bits ^ (((bits as i32) >> 31) as u32 | 0x8000_0000)
}

/// The value of a [`key`].
fn unkey(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 0x8000_0000 } else { !key })
}

fn raise(shaped: &mut Shaped, cut: f32) {
    if cut > shaped.cut {
        shaped.cut = cut;
        shaped.tie_end = u32::MAX;
    }
}

/// The smallest `f32` that is not below `x`.
fn round_up(x: f64) -> f32 {
    let near = x as f32;
    if f64::from(near) < x { near.next_up() } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::RawRows;
    use crate::shaping::{Params, Side};
    use proptest::prelude::*;

    /// Rows of every kind that selection treats differently: few large tokens over a tail, a broad
    /// bulk, ties everywhere, one value, tokens masked out, and places that top-p's sample takes and that
    /// are not like the others.
    fn row() -> impl Strategy<Value = Vec<f32>> {
        let is_in_sample = |token| token % (NEIGHBOURS * BLOCK / SAMPLE) < NEIGHBOURS;
        let len = prop_oneof![1_usize..80, BLOCK - 3..BLOCK + 3, 3 * BLOCK..5 * BLOCK];
        (len, 0_u32..8, any::<u64>()).prop_map(move |(len, kind, seed)| {
            let mut state = seed | 1;
            let mut uniform = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1 << 24) as f32
            };
            let mut row: Vec<f32> = (0..len)
                .map(|token| match kind {
                    0 => -8.0 * uniform(),
                    1 => 9.0 * (uniform() + uniform() + uniform() - 1.5),
                    2 => (8.0 * uniform()).floor(),
                    3 => 1.5,
                    4 if uniform() < 0.9 => f32::NEG_INFINITY,
                    4 => 20.0 * uniform() + 3e6,
                    5 if is_in_sample(token) => uniform(),
                    6 if !is_in_sample(token) => uniform(),
                    5 | 6 => -4.0 - uniform(),
                    _ => -30.0 * uniform() * uniform(),
                })
                .collect();
            row[len / 2] = if kind == 3 { 1.5 } else { 5.0 };
            row[len / 3] += 12.0 * uniform();
            row
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn cuts_are_those_of_a_sort(
            logits in row(),
            top_p in prop_oneof![Just(1.0), 0.05_f64..0.9999],
            top_k in prop_oneof![Just(0_usize), 1_usize..60, 60_usize..9000],
        ) {
            let params = Params::new(1.0, top_k as i64, top_p, 0.0, Preset::Transformers).unwrap();
            let raw = RawRows::from_f32(&logits, logits.len()).unwrap();
            let rows = ShapedRows::new(raw, params, Side::Target);
            let shaped = rows.shape(0, &mut Scratch::default()).unwrap();
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut order: Vec<usize> = (0..logits.len()).filter(|&t| logits[t] > f32::MIN).collect();
            order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap());
            if (1..order.len()).contains(&top_k) {
                let kth = logits[order[top_k - 1]];
                order.retain(|&token| logits[token] >= kth);
            }
            let weight = |token: usize| f64::from(logits[token] - max).exp();
            let all: f64 = order.iter().map(|&token| weight(token)).sum();
            let mut before = 0.0;
            for token in order {
                let is_kept = rows.probability(0, &shaped, token as u32) > 0.0;
                let share = before / all;
                // Sums in another order, of other exponentials: nothing is said about a near tie.
                if top_p >= 1.0 || (share - top_p).abs() > 1e-5 {
                    let wanted = (top_p >= 1.0 || share < top_p) && weight(token) > 1e-36;
                    prop_assert_eq!(is_kept, wanted, "token {}, share {}", token, share);
                }
                before += weight(token);
            }
        }
    }
}
