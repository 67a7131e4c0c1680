//! The most probable tokens of a shaped row, without sorting it.

use std::cmp::Ordering;

use crate::shaping::{Scratch, Shaped, ShapedRows};

/// Candidates beyond twice as many as wanted before the bound rises: few, so that it rises early.
const SLACK: usize = 64;

impl ShapedRows<'_> {
    /// The `n` most probable kept tokens of a row with their probabilities, the most probable first,
    /// equal ones by ascending `id`: the token itself, or what a sub-vocabulary's column stands for.
    pub fn best(
        &self,
        row: usize,
        shaped: &Shaped,
        n: usize,
        id: impl Fn(u32) -> u32,
        scratch: &mut Scratch,
    ) -> Vec<(u32, f64)> {
        if n == 0 {
            return Vec::new();
        }
        let Scratch { buffers, places, ranked, .. } = scratch;
        ranked.clear();
        let rank = |list: &mut Vec<(f32, u32)>| {
            list.sort_unstable_by(|a, b| {
                b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(id(a.1).cmp(&id(b.1)))
            });
            list.truncate(n);
        };
        // Logits from `bound` on are candidates; when there are enough, it rises to the n-th.
        let capacity = n.saturating_mul(2).saturating_add(SLACK);
        let mut bound = shaped.cut;
        for start in self.raw.blocks() {
            let values = self.scaled(row, start, shaped.origin, buffers);
            let count = self.kernels.gather(values, bound, places);
            for &place in &places[..count] {
                let (y, column) = (values[place as usize], start as u32 + place);
                if y < bound || !shaped.keeps(y, column) {
                    continue;
                }
                ranked.push((y, column));
                if ranked.len() == capacity {
                    rank(ranked);
                    bound = ranked.last().map_or(bound, |last| last.0);
                }
            }
        }
        rank(ranked);
        let best =
            ranked.iter().map(|&(_, column)| (column, self.probability(row, shaped, column)));
        best.filter(|pair| pair.1 > 0.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::rows::RawRows;
    use crate::shaping::{Params, Preset, Scratch, ShapedRows, Side};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_best_are_those_of_a_sort(
            logits in proptest::collection::vec((-20_i32..8).prop_map(|x| x as f32 / 4.0), 1..2200),
            n in 0_usize..70,
            top_p in prop_oneof![Just(1.0), 0.2_f64..1.0],
            reversed: bool,
        ) {
            let params = Params::new(1.0, 0, top_p, 0.0, Preset::Transformers).unwrap();
            let raw = RawRows::from_f32(&logits, logits.len()).unwrap();
            let rows = ShapedRows::new(raw, params, Side::Drafter);
            let mut scratch = Scratch::default();
            let shaped = rows.shape(0, &mut scratch).unwrap();
            let id = |column: u32| if reversed { u32::MAX - column } else { column };
            let mut wanted: Vec<(u32, f64)> = (0..logits.len() as u32)
                .map(|token| (token, rows.probability(0, &shaped, token)))
                .filter(|pair| pair.1 > 0.0)
                .collect();
            wanted.sort_by(|a, b| b.1.total_cmp(&a.1).then(id(a.0).cmp(&id(b.0))));
            wanted.truncate(n);
            prop_assert_eq!(rows.best(0, &shaped, n, id, &mut scratch), wanted);
        }
    }
}
