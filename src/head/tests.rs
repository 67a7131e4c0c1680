use std::sync::Arc;

use proptest::prelude::*;

use super::{Block, Inputs, Module, Norm, Product, Segment};
use crate::attention::{Heads, Memory, Rows};
use crate::error::Error;

/// A reproducible number in -1..1.
fn noise(seed: u64, index: usize) -> f32 {
    let mixed = (seed.wrapping_mul(0x9e37_79b9) ^ index as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((mixed >> 40) as f32 / (1 << 23) as f32) - 1.0
}

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|index| noise(seed, index)).collect()
}

fn product(outputs: usize, inputs: usize, seed: u64) -> Product {
    let weights = numbers(seed, outputs * inputs);
    Product::new(outputs, inputs, None, |row, out| {
        out.copy_from_slice(&weights[row * inputs..][..inputs]);
    })
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A weight is off by half of a 127th of its row's largest at most.
    #[test]
    fn products_are_as_close_as_eight_bits_allow(
        outputs in 1..150_usize, inputs in 1..90_usize, count in 1..10_usize, has_bias: bool, seed: u64
    ) {
        let (weights, rows) = (numbers(seed, outputs * inputs), numbers(!seed, count * inputs));
        let bias = has_bias.then(|| numbers(seed ^ 5, outputs));
        let made = Product::new(outputs, inputs, bias.clone(), |row, out| {
            out.copy_from_slice(&weights[row * inputs..][..inputs]);
        }).unwrap();
        let mut found = vec![f32::NAN; count * outputs];
        made.multiply(&rows, &mut found, 3);
        for (row, found) in rows.chunks_exact(inputs).zip(found.chunks_exact(outputs)) {
            for (output, &found) in found.iter().enumerate() {
                let weights = &weights[output * inputs..][..inputs];
                let largest = weights.iter().fold(0.0_f32, |most, w| most.max(w.abs()));
                let sum: f64 = row.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
                let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[output]));
                let reach: f32 = row.iter().map(|x| x.abs()).sum();
                let bound = f64::from(reach * largest) * (0.5 / 127.0 + 1e-5) + 1e-6;
                prop_assert!((f64::from(found) - sum - bias).abs() <= bound, "{found} {sum}");
            }
        }
        // Outputs that came later are no others; they may stand beside further columns.
        let (early, first) = (outputs.div_ceil(2), 3);
        let part = |from: usize| {
            let weights = &weights;
            move |row: usize, out: &mut [f32]| {
                out.copy_from_slice(&weights[(from + row) * inputs..][..inputs]);
            }
        };
        if !has_bias {
            let mut grown = Product::new(early, inputs, None, part(0)).unwrap();
            grown.extend(outputs - early, part(early)).unwrap();
            let mut wide = vec![7.0; count * (outputs + 5)];
            grown.multiply_into(&rows, &mut wide, outputs + 5, first, 1);
            for (wide, found) in wide.chunks_exact(outputs + 5).zip(found.chunks_exact(outputs)) {
                prop_assert_eq!(&wide[first..first + outputs], found);
                prop_assert!(wide[..first].iter().chain(&wide[first + outputs..]).all(|x| x.to_bits() == 7.0_f32.to_bits()));
            }
        }
        // Alone a row has the bits that it has beside others.
        let mut alone = vec![0.0; outputs];
        let last = (count - 1) * inputs;
        made.multiply(&rows[last..], &mut alone, 1);
        prop_assert_eq!(&alone, &found[(count - 1) * outputs..]);
    }

    /// Rows of two sequences, one of them a tree that is run in two steps, have the bits that each has alone.
    #[test]
    fn a_row_has_the_same_bits_in_any_company(past in 0..40_usize, seed: u64) {
        let module = module(seed);
        let tree = [vec![0], vec![1], vec![0, 2], vec![0, 3], vec![0, 2, 4]];
        let chain = [vec![0]];
        let (mut first, mut second) = (Kept::new(seed, past), Kept::new(!seed, 7));
        let root = first.run(&module, &[(0, &tree[..2], 10)], &mut []);
        prop_assert_eq!(root.len(), 2 * WIDTH);
        let mut twin = first.clone();
        let together = first.run(&module, &[(2, &tree[2..], 20)], &mut [(&mut second, &chain, 30)]);
        // Node 2 alone, then 3 and 4.
        let mut parts = twin.run(&module, &[(2, &tree[2..3], 20)], &mut []);
        parts.extend(twin.run(&module, &[(3, &tree[3..], 21)], &mut []));
        prop_assert_eq!(&together[..3 * WIDTH], &parts);
        let alone = Kept::new(!seed, 7).run(&module, &[(0, &chain, 30)], &mut []);
        prop_assert_eq!(&together[3 * WIDTH..], &alone);
        prop_assert_eq!((first.keys, first.values), (twin.keys, twin.values));
        // So many that several threads run them.
        let mut many: Vec<Kept> = (1..10).map(|number| Kept::new(seed ^ number, past)).collect();
        let mut others = many.iter_mut().map(|kept| (kept, &chain, 30)).collect::<Vec<_>>();
        let all = Kept::new(!seed, 7).run(&module, &[(0, &chain, 30)], &mut others);
        prop_assert_eq!(&all[..WIDTH], &alone);
        for (number, (own, kept)) in (1..10).zip(all[WIDTH..].chunks_exact(WIDTH).zip(&many)) {
            let mut twin = Kept::new(seed ^ number, past);
            prop_assert_eq!(own, &twin.run(&module, &[(0, &chain, 30)], &mut [])[..]);
            prop_assert_eq!((&kept.keys, &kept.values), (&twin.keys, &twin.values));
        }
    }
}

const WIDTH: usize = 12;
const HEADS: Heads = Heads { queries: 4, kept: 2, dim: 4 };
const CAPACITY: usize = 50;

fn norm(width: usize, seed: u64) -> Norm {
    Norm { weight: numbers(seed, width), eps: 1e-5 }
}

fn block(inputs: usize, seed: u64) -> Block {
    Block {
        heads: HEADS,
        input_norm: None,
        joined: Arc::new(product(HEADS.width(), inputs, seed)),
        head_norms: Some([norm(HEADS.dim, seed ^ 1), norm(HEADS.dim, seed ^ 2)]),
        mixed: Arc::new(product(WIDTH, HEADS.queries * HEADS.dim, seed ^ 3)),
        norm: norm(WIDTH, seed ^ 4),
        gated: Arc::new(product(2 * 20, WIDTH, seed ^ 5)),
        down: Arc::new(product(WIDTH, 20, seed ^ 6)),
    }
}

/// EAGLE-3's form: no fusion, both parts side by side.
fn module(seed: u64) -> Module {
    Module {
        embed_norm: Some(norm(WIDTH, seed ^ 7)),
        hidden_norm: Some(norm(WIDTH, seed ^ 8)),
        is_embed_first: true,
        fusion: None,
        is_stream_normed: false,
        blocks: vec![Arc::new(block(2 * WIDTH, seed))],
        norm: Some(norm(WIDTH, seed ^ 9)),
        is_normed_next: false,
    }
}

/// A sequence's keys and values, of one block.
#[derive(Clone)]
struct Kept {
    past: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Nodes before, the paths of the rows, and the seed of the first row's input.
type Asked<'a> = (usize, &'a [Vec<usize>], u64);

impl Kept {
    fn new(seed: u64, past: usize) -> Self {
        let size = HEADS.kept * CAPACITY * HEADS.dim;
        Self { past, keys: numbers(seed ^ 0xb, size), values: numbers(seed ^ 0xc, size) }
    }

    /// What the rows hand on. A row's input depends on its number from the given seed on.
    fn run(
        &mut self,
        module: &Module,
        mine: &[Asked<'_>; 1],
        others: &mut [(&mut Self, &[Vec<usize>; 1], u64)],
    ) -> Vec<f32> {
        let [(held, paths, from)] = *mine;
        let mut rows = vec![Rows::behind(self.past, held, paths).unwrap()];
        let mut seeds: Vec<u64> = (0..paths.len() as u64).map(|row| from + row).collect();
        for (kept, paths, from) in others.iter() {
            rows.push(Rows::behind(kept.past, 0, *paths).unwrap());
            seeds.push(*from);
        }
        let all = [self].into_iter().chain(others.iter_mut().map(|(kept, ..)| &mut **kept));
        let mut segments: Vec<Segment<'_, f32>> = all
            .zip(&rows)
            .map(|(kept, rows)| Segment {
                rows,
                memories: vec![[
                    Memory { cells: &mut kept.keys, capacity: CAPACITY },
                    Memory { cells: &mut kept.values, capacity: CAPACITY },
                ]],
            })
            .collect();
        let given = |part: u64, width: usize| -> Vec<f32> {
            seeds.iter().flat_map(|&seed| numbers(seed * 8 + part, width)).collect()
        };
        let (hidden, embeds) = (given(0, WIDTH), given(1, WIDTH));
        let (cos, sin) = (given(2, HEADS.dim), given(3, HEADS.dim));
        let inputs = Inputs { hidden: &hidden, embeds: &embeds, cos: &cos, sin: &sin };
        let (normed, next) = module.run(inputs, &mut segments).unwrap();
        assert!(normed.iter().chain(&next).all(|x| x.is_finite()));
        next
    }
}

#[test]
fn a_weight_that_is_not_finite_spoils_its_output_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let made = Product::new(3, 2, None, |row, out| {
            out.copy_from_slice(&[1.0, if row == 1 { bad } else { -0.5 }]);
        });
        let mut found = [0.0; 3];
        made.unwrap().multiply(&[2.0, 4.0], &mut found, 1);
        assert!(found[1].is_nan());
        assert!((found[0] - 0.0).abs() < 0.02 && (found[2] - 0.0).abs() < 0.02, "{found:?}");
    }
}

#[test]
fn rows_of_zeros_and_tiny_weights_are_products_too() {
    let rows = [[0.0, 0.0], [1e-40, -1e-40], [f32::MAX, -f32::MAX]];
    let made = Product::new(3, 2, None, |row, out| out.copy_from_slice(&rows[row])).unwrap();
    let mut found = [f32::NAN; 3];
    made.multiply(&[0.5, 0.25], &mut found, 1);
    assert!(found[0] == 0.0 && found[1].abs() < 1e-39 && found[2].is_finite(), "{found:?}");
}

#[test]
fn matrices_that_cannot_be_are_refused() {
    let make = |outputs, inputs, bias| Product::new(outputs, inputs, bias, |_, _| ()).map(|_| ());
    assert!(matches!(make(0, 3, None), Err(Error::ShapeMismatch { what: "weight", .. })));
    assert!(matches!(make(3, 0, None), Err(Error::ShapeMismatch { what: "weight", .. })));
    assert!(matches!(make(3, 1, Some(vec![0.0; 2])), Err(Error::ShapeMismatch { .. })));
    assert!(matches!(make(1 << 30, 1 << 30, None), Err(Error::Overflow { what: "weight", .. })));
    let mut made = Product::new(2, 1, Some(vec![0.0; 2]), |_, _| ()).unwrap();
    assert!(matches!(made.extend(1, |_, _| ()), Err(Error::ShapeMismatch { what: "weight", .. })));
    let mut made = product(2, 1 << 20, 1);
    assert!(matches!(made.extend(usize::MAX, |_, _| ()), Err(Error::Overflow { .. })));
    assert_eq!(made.outputs(), 2);
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let refuse = |change: &dyn Fn(&mut Module), wanted: &str| {
        let mut made = module(3);
        change(&mut made);
        match made.check() {
            Err(Error::ShapeMismatch { what, .. }) => assert_eq!(what, wanted),
            other => panic!("{wanted}: {other:?}"),
        }
    };
    module(3).check().unwrap();
    refuse(&|made| made.blocks.clear(), "blocks");
    refuse(&|made| made.embed_norm = Some(norm(5, 1)), "embed_norm");
    refuse(&|made| made.hidden_norm = Some(norm(5, 1)), "hidden_norm");
    refuse(&|made| made.norm = Some(norm(5, 1)), "norm");
    refuse(&|made| made.fusion = Some(Arc::new(product(WIDTH, WIDTH, 1))), "fusion");
    refuse(&|made| made.fusion = Some(Arc::new(product(WIDTH, 2 * WIDTH, 1))), "joined");
    for (what, change) in [
        ("input_norm", (|own| own.input_norm = Some(norm(5, 1))) as fn(&mut Block)),
        ("joined", |own| own.joined = Arc::new(product(HEADS.width(), 5, 1))),
        ("head_norms", |own| own.head_norms = Some([norm(4, 1), norm(5, 1)])),
        ("mixed", |own| own.mixed = Arc::new(product(WIDTH, 5, 1))),
        ("gated", |own| own.gated = Arc::new(product(7, WIDTH, 1))),
        ("down", |own| own.down = Arc::new(product(WIDTH, 7, 1))),
    ] {
        let changed = |made: &mut Module| {
            let mut own = block(2 * WIDTH, 3);
            change(&mut own);
            made.blocks = vec![Arc::new(own)];
        };
        refuse(&changed, what);
    }
}

#[test]
fn rows_that_do_not_fit_are_named() {
    let made = module(3);
    let rows = Rows::behind(2, 0, &[vec![0]]).unwrap();
    let mut kept = Kept::new(1, 2);
    let numbers = [0.0; 2 * WIDTH];
    let whole = Inputs {
        hidden: &numbers[..WIDTH],
        embeds: &numbers[..WIDTH],
        cos: &numbers[..HEADS.dim],
        sin: &numbers[..HEADS.dim],
    };
    for (what, inputs) in [
        ("hidden", Inputs { hidden: &numbers, ..whole }),
        ("embeds", Inputs { embeds: &numbers, ..whole }),
        ("cos", Inputs { cos: &numbers, ..whole }),
        ("sin", Inputs { sin: &numbers, ..whole }),
        ("memories", whole),
    ] {
        let memories = [
            Memory { cells: &mut kept.keys, capacity: CAPACITY },
            Memory { cells: &mut kept.values, capacity: CAPACITY },
        ];
        let memories = if what == "memories" { Vec::new() } else { vec![memories] };
        match made.run(inputs, &mut [Segment { rows: &rows, memories }]) {
            Err(Error::ShapeMismatch { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(kept.keys, Kept::new(1, 2).keys);
}

#[test]
fn paths_are_checked() {
    for (held, paths) in [
        (0, vec![]),
        (0, vec![vec![]]),
        (0, vec![vec![1]]),
        (2, vec![vec![1, 0, 2]]),
        (2, vec![vec![0, 2], vec![2]]),
        (4096, vec![vec![4096]]),
        (usize::MAX, vec![vec![0]]),
    ] {
        let made = Rows::behind(3, held, &paths);
        assert!(matches!(made, Err(Error::ParamOutOfRange { name: "paths", .. })), "{paths:?}");
    }
}
