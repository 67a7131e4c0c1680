//! The definition of shaping over any number type: what production's selection must agree with.
//!
//! It works on weights (exponentiated logits) and sorts whole rows, so it is short enough to be
//! checked by eye against the libraries' own code; the proof shapes its rational rows with it.

use crate::mutants::mutate;
use crate::number::Weight;
use crate::shaping::Preset;

/// Sampling parameters over weights.
#[derive(Debug, Clone)]
pub struct WeightParams<W> {
    /// `1 / temperature`, a whole number so that powers of rationals stay rational.
    pub inverse_temperature: u32,
    /// How many tokens stay, equal ones at the threshold all of them; 0: off.
    pub top_k: usize,
    /// The mass that stays, in (0, 1].
    pub top_p: W,
    /// The least weight relative to the largest.
    pub min_p: W,
    /// The order of the steps.
    pub preset: Preset,
}

impl<W: Weight> WeightParams<W> {
    /// Parameters that change nothing.
    pub fn neutral() -> Self {
        Self {
            inverse_temperature: 1,
            top_k: 0,
            top_p: W::one(),
            min_p: W::zero(),
            preset: Preset::Transformers,
        }
    }
}

/// The shaped, normalised row of `weights`, which must have a positive one.
pub fn shape<W: Weight>(weights: &[W], params: &WeightParams<W>) -> Vec<W> {
    let first = mutate!("shape/temperature_after_top_p", params.inverse_temperature, 1);
    let mut row = temper(weights, first);
    let preset = mutate!("shape/min_p_before_top_p", params.preset, Preset::Vllm);
    match preset {
        Preset::Transformers => {
            top_k(&mut row, params.top_k);
            top_p(&mut row, &params.top_p);
            min_p(&mut row, &params.min_p);
        }
        Preset::Vllm => {
            min_p(&mut row, &params.min_p);
            top_k(&mut row, params.top_k);
            top_p(&mut row, &params.top_p);
        }
    }
    let row =
        mutate!("shape/temperature_after_top_p", row, temper(&row, params.inverse_temperature));
    let total = sum(&row);
    row.iter().map(|weight| weight.div(&total)).collect()
}

/// The weights at a temperature: to the power of its inverse.
fn temper<W: Weight>(weights: &[W], inverse_temperature: u32) -> Vec<W> {
    let power = |weight: &W| (1..inverse_temperature).fold(weight.clone(), |x, _| x.mul(weight));
    weights.iter().map(power).collect()
}

fn sum<W: Weight>(row: &[W]) -> W {
    row.iter().fold(W::zero(), |total, weight| total.add(weight))
}

/// Tokens by descending weight, equal ones by ascending id.
fn ranked<W: Weight>(row: &[W]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap_or(std::cmp::Ordering::Equal));
    order
}

fn top_k<W: Weight>(row: &mut [W], k: usize) {
    if k == 0 || k >= row.len() {
        return;
    }
    let order = ranked(row);
    let threshold = row[order[k - 1]].clone();
    drop_where(row, |weight| *weight < threshold);
    for &token in mutate!("shape/top_k_breaks_ties", &order[..0], &order[k..]) {
        row[token] = W::zero();
    }
}

fn top_p<W: Weight>(row: &mut [W], p: &W) {
    if *p >= W::one() {
        return;
    }
    let goal = sum(row).mul(p);
    let mut before = W::zero();
    for token in ranked(row) {
        let weight = row[token].clone();
        let crossed =
            mutate!("shape/top_p_drops_crossing_token", before >= goal, before.add(&weight) > goal);
        if mutate!("shape/top_p_exact_sum_stays", crossed, before > goal) {
            row[token] = W::zero();
        }
        before = before.add(&weight);
    }
}

fn min_p<W: Weight>(row: &mut [W], p: &W) {
    let largest = row.iter().fold(W::zero(), |max, x| if *x > max { x.clone() } else { max });
    let threshold = mutate!("shape/min_p_absolute", largest, sum(row)).mul(p);
    drop_where(row, |weight| *weight < threshold);
}

fn drop_where<W: Weight>(row: &mut [W], drop: impl Fn(&W) -> bool) {
    for weight in row {
        if drop(weight) {
            *weight = W::zero();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::RawRows;
    use crate::rows::simd::{BLOCK, Window};
    use crate::shaping::{Params, Scratch, ShapedRows, Side};
    use num_rational::BigRational;
    use proptest::prelude::*;

    fn d0() -> Vec<BigRational> {
        [(1, 2), (1, 4), (1, 8), (1, 8)].map(|(n, d)| Weight::ratio(n, d)).to_vec()
    }

    fn shaped(change: impl Fn(&mut WeightParams<BigRational>)) -> Vec<(i64, i64)> {
        let mut params = WeightParams::neutral();
        change(&mut params);
        let row = shape(&d0(), &params);
        row.iter().map(|w| (w.numer().try_into().unwrap(), w.denom().try_into().unwrap())).collect()
    }

    #[test]
    fn the_specification_s_examples() {
        // Ties at top-k stay, the crossing token stays, the two orders differ.
        assert_eq!(shaped(|p| p.top_k = 3), [(1, 2), (1, 4), (1, 8), (1, 8)]);
        assert_eq!(shaped(|p| p.top_p = Weight::ratio(7, 10)), [(2, 3), (1, 3), (0, 1), (0, 1)]);
        assert_eq!(shaped(|p| p.top_p = Weight::ratio(1, 2)), [(1, 1), (0, 1), (0, 1), (0, 1)]);
        let both = |preset| {
            shaped(|p| {
                p.min_p = Weight::ratio(3, 10);
                p.top_p = Weight::ratio(3, 5);
                p.preset = preset;
            })
        };
        assert_eq!(both(Preset::Transformers), [(2, 3), (1, 3), (0, 1), (0, 1)]);
        assert_eq!(both(Preset::Vllm), [(1, 1), (0, 1), (0, 1), (0, 1)]);
    }

    #[derive(Debug, Clone)]
    struct Case {
        logits: Vec<f32>,
        top_k: i64,
        top_p: f64,
        min_p: f64,
        preset: Preset,
        inverse_temperature: u32,
    }

    fn cases() -> impl Strategy<Value = Case> {
        // Multiples of 1/4 make ties common; lengths cross a block boundary.
        let logit = prop_oneof![9 => (-40_i32..8).prop_map(|x| x as f32 / 4.0), 1 => Just(f32::NEG_INFINITY)];
        let sizes = prop_oneof![1_usize..40, BLOCK - 4..BLOCK + 76];
        (
            sizes.prop_flat_map(move |n| proptest::collection::vec(logit.clone(), n)),
            prop_oneof![Just(0_i64), 1_i64..60],
            prop_oneof![Just(1.0), 0.05_f64..1.0],
            prop_oneof![Just(0.0), 0.001_f64..1.0],
            prop_oneof![Just(Preset::Transformers), Just(Preset::Vllm)],
            1_u32..3,
        )
            .prop_map(|(logits, top_k, top_p, min_p, preset, inverse_temperature)| Case {
                logits,
                top_k,
                top_p,
                min_p,
                preset,
                inverse_temperature,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn selection_keeps_what_the_definition_keeps(case in cases()) {
            prop_assume!(case.logits.iter().any(|x| x.is_finite()));
            let temperature = 1.0 / f64::from(case.inverse_temperature);
            let params =
                Params::new(temperature, case.top_k, case.top_p, case.min_p, case.preset).unwrap();
            let raw = RawRows::from_f32(&case.logits, case.logits.len()).unwrap();
            let rows = ShapedRows::new(raw, params, Side::Target);
            let shaped = rows.shape(0, &mut Scratch::default()).unwrap();
            // The same exponentials, so that equal logits are equal weights and sums agree.
            let scale = case.inverse_temperature as f32;
            let max = case.logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let window = Window::around(max * scale);
            let weigh = |&x: &f32| f64::from(window.weight(x * scale, window.floor()));
            let weights: Vec<f64> = case.logits.iter().map(weigh).collect();
            let wanted = shape(&weights, &WeightParams {
                inverse_temperature: 1,
                top_k: case.top_k as usize,
                top_p: case.top_p,
                min_p: case.min_p,
                preset: case.preset,
            });
            for (token, &p) in (0_u32..).zip(&wanted) {
                let found = rows.probability(0, &shaped, token);
                prop_assert!((found - p).abs() <= 1e-12, "token {token}: {found}, wanted {p}");
            }
        }
    }
}
