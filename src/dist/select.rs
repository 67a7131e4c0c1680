//! Finds the cuts of top-k, top-p and min-p by selection; no row is ever sorted whole.

use std::cmp::Ordering;

use crate::dist::{Preset, Scratch, Shaped, ShapedRows};
use crate::simd::{self, BLOCK};

/// Steps per nat and number of the buckets in which top-p gathers mass below the maximum: they span
/// 32 nats, and what lies lower shares the last one.
const RESOLUTION: f32 = 64.0;
const BUCKETS: usize = 2048;

/// Tokens within so many nats of the maximum are tried first for top-p; the rows of language models
/// have few of them, and these hold most of the mass.
const NEAR: f32 = 8.0;

/// More tokens than this are not ranked.
const MANY: usize = 8192;

/// Values looked at one by one after a hit.
const CROWD: usize = 32;

/// Up to this `k`, top-k keeps a small list of candidates; above, it selects in a copy of the row.
const SMALL_K: usize = 4096;

impl ShapedRows<'_> {
    /// The shape of a row whose maximum is known.
    pub(super) fn truncate(&self, row: usize, max: f32, scratch: &mut Scratch) -> Shaped {
        let params = &self.params;
        let cut = max + simd::EXP_FLOOR;
        let mut whole = Shaped { origin: max, total: 0.0, cut, tie_end: u32::MAX, greedy: false };
        let shaped = &mut whole;
        // min-p keeps exp(y - max) >= min_p: a cut that depends on the maximum alone.
        let min_p_cut = if params.min_p > 0.0 {
            round_up(f64::from(shaped.origin) + params.min_p.ln())
        } else {
            f32::NEG_INFINITY
        };
        if params.preset == Preset::Vllm {
            raise(shaped, min_p_cut);
        }
        let small_k = params.top_k > 0 && params.top_k < self.num_cols();
        if small_k {
            let cut = self.kth_largest(row, params.top_k, scratch);
            raise(shaped, cut);
        }
        let mut kept = None;
        if params.top_p < 1.0 {
            kept = Some(self.nucleus(row, shaped, scratch));
        }
        if params.preset == Preset::Transformers && min_p_cut > shaped.cut {
            raise(shaped, min_p_cut);
            kept = None;
        }
        shaped.total = kept.unwrap_or_else(|| self.total(row, shaped, scratch));
        whole
    }

    /// The sum over the kept tokens; leaves the sums of the blocks in `scratch`.
    fn total(&self, row: usize, shaped: &Shaped, scratch: &mut Scratch) -> f64 {
        let Scratch { buffers, weights, sums, .. } = scratch;
        for start in self.raw.blocks() {
            sums.push(if shaped.tie_end == u32::MAX {
                let values = self.scaled(row, start, buffers);
                (self.kernels.sum_exp)(values, shaped.origin, shaped.cut)
            } else {
                let len = self.weigh(row, shaped, start, 1.0, buffers, weights);
                (self.kernels.sum)(&weights[..len])
            });
        }
        sums.total()
    }

    /// The `k`-th largest scaled logit of a row, counting equal ones each; `0 < k < V`.
    fn kth_largest(&self, row: usize, k: usize, scratch: &mut Scratch) -> f32 {
        let descending = |a: &f32, b: &f32| b.total_cmp(a);
        let Scratch { buffers, values: best, .. } = scratch;
        best.clear();
        if k > SMALL_K {
            best.reserve_exact(self.num_cols());
            for start in self.raw.blocks() {
                best.extend_from_slice(self.scaled(row, start, buffers));
            }
            return *best.select_nth_unstable_by(k - 1, descending).1;
        }
        // Values above `bound` are candidates; when there are enough, `bound` rises to the k-th.
        let capacity = 2 * k + BLOCK;
        let mut bound = f32::NEG_INFINITY;
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, buffers);
            let mut at = (self.kernels.first_above)(values, bound, 0);
            while at < values.len() {
                best.push(values[at]);
                if best.len() == capacity {
                    bound = *best.select_nth_unstable_by(k - 1, descending).1;
                    best.truncate(k);
                }
                at = (self.kernels.first_above)(values, bound, at + 1);
            }
        }
        if best.len() < k {
            return f32::NEG_INFINITY; // Fewer than k logits are above -inf: no cut.
        }
        *best.select_nth_unstable_by(k - 1, descending).1
    }

    /// top-p, among the tokens near the maximum if these few hold enough mass; returns the sum over
    /// the kept tokens.
    fn nucleus(&self, row: usize, shaped: &mut Shaped, scratch: &mut Scratch) -> f64 {
        let p = self.params.top_p;
        let floor = shaped.cut.max(shaped.origin - NEAR);
        let is_complete = self.gather_above(row, floor, scratch);
        let near: f64 = scratch.ranked.iter().map(|&(y, _)| weight(y, shaped)).sum();
        let goal = if is_complete && floor <= shaped.cut {
            p * near // These are all the tokens that are left.
        } else {
            let goal = p * self.total(row, shaped, scratch);
            scratch.sums.forget();
            goal
        };
        if is_complete && near >= goal {
            rank(&mut scratch.ranked);
            return cut_after(&scratch.ranked, 0.0, goal, shaped);
        }
        self.nucleus_of_many(row, goal, shaped, scratch)
    }

    /// Lists the tokens that are not below `floor`; false if there are too many of them.
    fn gather_above(&self, row: usize, floor: f32, scratch: &mut Scratch) -> bool {
        let Scratch { buffers, ranked, .. } = scratch;
        ranked.clear();
        let below = floor.next_down();
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, buffers);
            let mut at = 0;
            loop {
                at = (self.kernels.first_above)(values, below, at);
                // Hits come in crowds: the next few values are looked at one by one.
                let stop = values.len().min(at + CROWD);
                if at == stop {
                    break;
                }
                if ranked.len() + CROWD > MANY {
                    return false;
                }
                let hits = (at..stop).filter(|&i| values[i] > below);
                ranked.extend(hits.map(|i| (values[i], (start + i) as u32)));
                at = stop;
            }
        }
        true
    }

    /// top-p over a whole row: mass by distance below the maximum, then one bucket is ranked.
    fn nucleus_of_many(
        &self,
        row: usize,
        goal: f64,
        shaped: &mut Shaped,
        scratch: &mut Scratch,
    ) -> f64 {
        let Scratch { buffers, weights, ranked, mass, steps, .. } = scratch;
        mass.clear();
        mass.resize(BUCKETS, 0.0);
        steps.resize(BLOCK, 0);
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, buffers);
            let len = values.len();
            (self.kernels.weigh)(values, shaped.origin, shaped.cut, 1.0, &mut weights[..len]);
            let steps = &mut steps[..len];
            (self.kernels.buckets)(values, shaped.origin, RESOLUTION, BUCKETS as u32, steps);
            for (&step, &weight) in steps.iter().zip(&weights[..len]) {
                mass[step as usize] += weight;
            }
        }
        let mut before = 0.0;
        let mut crossing = 0;
        while crossing + 1 < BUCKETS && before + mass[crossing] < goal {
            before += mass[crossing];
            crossing += 1;
        }
        ranked.clear();
        // A flat row may share one bucket; growing step by step would hold it twice.
        ranked.reserve_exact(self.num_cols());
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, buffers);
            let steps = &mut steps[..values.len()];
            (self.kernels.buckets)(values, shaped.origin, RESOLUTION, BUCKETS as u32, steps);
            for (at, &step) in steps.iter().enumerate() {
                if step as usize == crossing && values[at] >= shaped.cut {
                    ranked.push((values[at], (start + at) as u32));
                }
            }
        }
        rank(ranked);
        cut_after(ranked, before, goal, shaped)
    }
}

fn weight(y: f32, shaped: &Shaped) -> f64 {
    f64::from(simd::exp(y - shaped.origin))
}

/// Largest first, equal ones by ascending token.
fn rank(list: &mut [(f32, u32)]) {
    list.sort_unstable_by(|a, b| {
        // partial_cmp: 0 and -0 are the same logit, and rows with NaN have been refused.
        b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
    });
}

/// Keeps a ranked token while the mass before it is below `goal`, and sets the cut behind the last;
/// returns the mass up to there.
fn cut_after(ranked: &[(f32, u32)], mut before: f64, goal: f64, shaped: &mut Shaped) -> f64 {
    let mut kept = 0;
    while kept < ranked.len() && (before < goal || kept == 0) {
        before += weight(ranked[kept].0, shaped);
        kept += 1;
    }
    if let Some(&(cut, token)) = kept.checked_sub(1).and_then(|last| ranked.get(last)) {
        shaped.cut = cut;
        // Ranked, so the next one is not above the cut: it ties if it is not below.
        let tied = ranked.get(kept).is_some_and(|next| next.0 >= cut);
        shaped.tie_end = if tied { token + 1 } else { u32::MAX };
    }
    before
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
