use half::bf16;
use proptest::prelude::*;

use super::{Cell, Heads, Memory, Rows};
use crate::error::Error;

/// A reproducible number in -1..1.
fn noise(seed: u64, index: usize) -> f32 {
    let mixed = (seed.wrapping_mul(0x9e37_79b9) ^ index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) as f32 / (1 << 23) as f32) - 1.0
}

/// What one step needs, with random contents.
struct Step<T> {
    heads: Heads,
    pasts: Vec<usize>,
    counts: Vec<usize>,
    seed: u64,
    capacity: usize,
    given: Vec<T>,
    cos: Vec<T>,
    sin: Vec<T>,
    keys: Vec<T>,
    values: Vec<T>,
}

/// Whether a node sees another one: a random tree's parents decide, the same for all sequences.
fn sees(seed: u64, node: usize, other: usize) -> bool {
    let mut node = node;
    while node > other {
        node = (noise(seed, 7000 + node).abs() * node as f32) as usize;
    }
    node == other
}

impl<T: Cell> Step<T> {
    fn new(heads: Heads, pasts: &[usize], counts: &[usize], seed: u64) -> Self {
        let rows: usize = counts.iter().sum();
        let capacity = 3 + pasts.iter().zip(counts).map(|(a, b)| a + b).max().unwrap_or(0);
        let make = |from: usize, len: usize| -> Vec<T> {
            let wide: Vec<f32> = (0..len).map(|i| noise(seed, from * 1_000_003 + i)).collect();
            let mut cells = vec![T::ZERO; len];
            T::narrow(&wide, &mut cells);
            cells
        };
        let size = pasts.len() * heads.kept * capacity * heads.dim;
        Self {
            heads,
            pasts: pasts.to_vec(),
            counts: counts.to_vec(),
            seed,
            capacity,
            given: make(1, rows * heads.width()),
            cos: make(2, rows * heads.dim),
            sin: make(3, rows * heads.dim),
            keys: make(4, size),
            values: make(5, size),
        }
    }

    fn rows(&self) -> Rows {
        Rows::new(&self.pasts, &self.counts, |_, node, other| sees(self.seed, node, other)).unwrap()
    }

    fn run(&mut self) -> Vec<T> {
        let rows = self.rows();
        let mut out = vec![T::ZERO; rows.count() * self.heads.queries * self.heads.dim];
        let mut keys = Memory { cells: &mut self.keys[..], capacity: self.capacity };
        let mut values = Memory { cells: &mut self.values[..], capacity: self.capacity };
        let turn = (&self.cos[..], &self.sin[..]);
        rows.attend(self.heads, &self.given, turn, 0, &mut keys, &mut values, &mut out).unwrap();
        out
    }

    /// What the step's definition gives, in `f64`, over the keys and values that are kept now.
    fn expected(&self) -> Vec<f64> {
        let Heads { queries, kept, dim } = self.heads;
        let wide = |cells: &[T]| -> Vec<f64> {
            let mut wide = vec![0.0; cells.len()];
            T::widen(cells, &mut wide);
            wide.into_iter().map(f64::from).collect()
        };
        let (given, cos, sin) = (wide(&self.given), wide(&self.cos), wide(&self.sin));
        let (keys, values) = (wide(&self.keys), wide(&self.values));
        let mut out = Vec::new();
        let mut row = 0;
        for (number, (&past, &count)) in self.pasts.iter().zip(&self.counts).enumerate() {
            for node in 0..count {
                for head in 0..queries {
                    let own = &given[row * self.heads.width() + head * dim..][..dim];
                    let turned: Vec<f64> = (0..dim)
                        .map(|i| {
                            let other = own[(i + dim / 2) % dim];
                            own[i] * cos[row * dim + i] + other * sin[row * dim + i]
                        })
                        .collect();
                    let place = (number * kept + head / (queries / kept)) * self.capacity;
                    let tree = (0..=node).filter(|&other| sees(self.seed, node, other));
                    let seen: Vec<usize> =
                        (0..past).chain(tree.map(|other| past + other)).collect();
                    let score = |&entry: &usize| {
                        let key = &keys[(place + entry) * dim..][..dim];
                        let product: f64 = turned.iter().zip(key).map(|(x, y)| x * y).sum();
                        (product / (dim as f64).sqrt()).exp()
                    };
                    let weights: Vec<f64> = seen.iter().map(score).collect();
                    let total: f64 = weights.iter().sum();
                    for column in 0..dim {
                        let value = |&entry: &usize| values[(place + entry) * dim + column];
                        let mixed = weights.iter().zip(&seen).map(|(w, entry)| w * value(entry));
                        out.push(mixed.sum::<f64>() / total);
                    }
                }
                row += 1;
            }
        }
        out
    }
}

fn check<T: Cell>(heads: Heads, pasts: &[usize], counts: &[usize], seed: u64, tolerance: f64) {
    let mut step = Step::<T>::new(heads, pasts, counts, seed);
    let out = step.run();
    let mut wide = vec![0.0; out.len()];
    T::widen(&out, &mut wide);
    for (found, wanted) in wide.iter().zip(step.expected()) {
        assert!((f64::from(*found) - wanted).abs() < tolerance, "{found} {wanted}");
    }
}

fn heads() -> impl Strategy<Value = Heads> {
    (1..3_usize, 1..4_usize, prop_oneof![Just(2), Just(16), Just(34), Just(64)])
        .prop_map(|(kept, group, dim)| Heads { queries: kept * group, kept, dim })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rows_see_what_the_definition_says(
        heads in heads(), shape in proptest::collection::vec((0..150_usize, 1..9_usize), 1..4), seed: u64
    ) {
        let (pasts, counts): (Vec<_>, Vec<_>) = shape.into_iter().unzip();
        check::<f32>(heads, &pasts, &counts, seed, 1e-5);
        check::<bf16>(heads, &pasts, &counts, seed, 0.03);
        check::<half::f16>(heads, &pasts, &counts, seed, 0.004);
    }

    /// A tree's rows, one after the other along the paths to them, have the bits that they have together.
    #[test]
    fn a_row_has_the_same_bits_in_any_company(past in 0..150_usize, count in 2..12_usize, seed: u64) {
        let heads = Heads { queries: 6, kept: 2, dim: 64 };
        let mut step = Step::<bf16>::new(heads, &[past], &[count], seed);
        let together = step.run();
        for node in 0..count {
            let path: Vec<usize> = (0..=node).filter(|&other| sees(seed, node, other)).collect();
            // The path's entries are committed, but for the last one, and that is run alone.
            let mut alone = Step::<bf16>::new(heads, &[past + path.len() - 1], &[1], seed);
            let size = heads.kept * alone.capacity * heads.dim;
            let (mut keys, mut values) = (vec![bf16::ZERO; size], vec![bf16::ZERO; size]);
            for head in 0..heads.kept {
                for (place, entry) in (0..past).chain(path.iter().map(|&n| past + n)).enumerate() {
                    let from = (head * step.capacity + entry) * heads.dim;
                    let to = (head * alone.capacity + place) * heads.dim;
                    keys[to..to + heads.dim].copy_from_slice(&step.keys[from..from + heads.dim]);
                    values[to..to + heads.dim].copy_from_slice(&step.values[from..from + heads.dim]);
                }
            }
            (alone.keys, alone.values) = (keys, values);
            let (width, dim) = (heads.width(), heads.dim);
            alone.given = step.given[node * width..(node + 1) * width].to_vec();
            alone.cos = step.cos[node * dim..(node + 1) * dim].to_vec();
            alone.sin = step.sin[node * dim..(node + 1) * dim].to_vec();
            let row = heads.queries * dim;
            assert_eq!(alone.run(), &together[node * row..(node + 1) * row], "node {node}");
        }
    }
}

#[test]
fn many_rows_are_scored_in_parts_and_by_several_threads() {
    let heads = Heads { queries: 4, kept: 2, dim: 16 };
    check::<f32>(heads, &[0, 700], &[300, 120], 5, 1e-5);
    check::<f32>(Heads { queries: 9, kept: 3, dim: 64 }, &[2500], &[30], 6, 1e-5);
}

#[test]
fn what_is_not_a_number_stays_with_the_rows_that_see_it() {
    let heads = Heads { queries: 2, kept: 1, dim: 16 };
    let clean = Step::<f32>::new(heads, &[4, 4], &[2, 1], 3).run();
    for bad in [f32::NAN, f32::INFINITY] {
        // Node 1 of the first sequence.
        let mut step = Step::<f32>::new(heads, &[4, 4], &[2, 1], 3);
        step.given[heads.width()] = bad;
        let out = step.run();
        let row = heads.queries * heads.dim;
        assert!(out[row..row + heads.dim].iter().all(|x| x.is_nan()));
        assert_eq!(out[..row], clean[..row]);
        assert_eq!(out[2 * row..], clean[2 * row..]);
        // An entry that no row sees: behind the last one.
        let mut step = Step::<f32>::new(heads, &[4, 4], &[2, 1], 3);
        for entry in [6, step.capacity + 5] {
            step.keys[entry * heads.dim] = bad;
            step.values[entry * heads.dim] = bad;
        }
        assert_eq!(step.run(), clean);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    assert!(matches!(Rows::new(&[1], &[1, 1], |_, _, _| true), Err(Error::ShapeMismatch { .. })));
    for count in [0, 4097] {
        let made = Rows::new(&[1, 1], &[1, count], |_, _, _| true);
        assert!(matches!(made, Err(Error::ParamOutOfRange { name: "counts", .. })));
    }
    let heads = Heads { queries: 2, kept: 1, dim: 4 };
    let refuse = |heads: Heads, change: &dyn Fn(&mut Step<f32>), first: usize, what: &str| {
        let mut step = Step::<f32>::new(Heads { queries: 2, kept: 1, dim: 4 }, &[3], &[2], 1);
        change(&mut step);
        let before = (step.keys.clone(), step.values.clone());
        let mut out = vec![0.0; 16];
        let mut keys = Memory { cells: &mut step.keys[..], capacity: step.capacity };
        let mut values = Memory { cells: &mut step.values[..], capacity: step.capacity };
        let rows = Rows::new(&step.pasts, &step.counts, |_, _, _| true).unwrap();
        let turn = (&step.cos[..], &step.sin[..]);
        let error = rows.attend(heads, &step.given, turn, first, &mut keys, &mut values, &mut out);
        match error {
            Err(Error::ShapeMismatch { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(before, (step.keys, step.values));
        assert!(out.iter().all(|&x| x == 0.0));
    };
    refuse(heads, &|step| step.given.truncate(5), 0, "given");
    refuse(heads, &|step| step.cos.truncate(5), 0, "cos");
    refuse(heads, &|step| step.sin.truncate(5), 0, "sin");
    refuse(heads, &|step| step.keys.truncate(5), 0, "keys");
    refuse(heads, &|step| step.values.truncate(5), 0, "values");
    refuse(heads, &|step| step.capacity = 4, 0, "keys");
    refuse(heads, &|_| (), 1, "keys");
    refuse(heads, &|_| (), usize::MAX, "keys");
    for odd in [
        Heads { queries: 3, kept: 2, dim: 4 },
        Heads { dim: 3, ..heads },
        Heads { kept: 0, ..heads },
    ] {
        refuse(odd, &|_| (), 0, "heads");
    }
}
