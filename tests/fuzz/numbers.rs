//! Everything else that takes numbers: shapes, budgets, packed arrays, bounds, trees.

use mtp_verify::batch::{Each, Offsets, chains, unpack};
use mtp_verify::chance::rng;
use mtp_verify::growers::{Optimal, allocate, by_depth, merge, paths, stem};
use mtp_verify::rows::history;
use mtp_verify::shaping;
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lossy::Lossy;
use mtp_verify::verify::optimum::alpha_star;

use crate::bits::Bits;
use crate::request::tree;
use crate::rows;
use crate::verdict::outcome;

pub(crate) fn check(bits: &mut Bits) -> &'static str {
    match bits.below(9) {
        0 => optimal(bits),
        1 => shapes(bits),
        2 => budget(bits),
        3 => packed(bits),
        4 => bound(bits),
        5 => trees(bits),
        6 => merged(bits),
        7 => drafts(bits),
        _ => settings(bits),
    }
}

fn optimal(bits: &mut Bits) -> &'static str {
    let rates: Vec<f64> = (0..bits.below(4))
        .map(|_| if bits.one_in(6) { bits.real() } else { bits.unit() / 4.0 })
        .collect();
    let (nodes, depth) = (bits.size(20), bits.size(6));
    let steps = nodes
        .checked_mul(nodes)
        .and_then(|n| n.checked_mul(depth)?.checked_mul(rates.len().max(1)));
    if steps.is_some_and(|steps| (1 << 22..=1 << 31).contains(&steps)) {
        return "legal, but slow"; // Seconds for nothing: the limits lie beyond.
    }
    let table = Optimal::new(&rates, nodes, depth);
    let Ok(table) = &table else {
        return outcome(&table);
    };
    let (n, d) = (bits.size(20), bits.size(6));
    let accepted = *table.accepted(n, d);
    assert!(accepted >= 0.0 && accepted <= d.min(depth) as f64 + 1e-9);
    if let Ok(shape) = table.shape(n, d) {
        assert!(shape.num_nodes() - 1 <= n.min(nodes));
    }
    let times = |bits: &mut Bits| -> Vec<f64> { (0..bits.below(5)).map(|_| bits.real()).collect() };
    outcome(&table.fastest(&times(bits), &times(bits)))
}

fn shapes(bits: &mut Bits) -> &'static str {
    let counts: Vec<usize> = (0..bits.below(4)).map(|_| bits.size(3)).collect();
    let (length, count) = (bits.size(5), bits.size(5));
    let _ = by_depth(&counts);
    if let Ok(tree) = stem(length, &counts) {
        assert!(tree.num_nodes() > length);
    }
    let tree = paths(count, length);
    if let (Ok(tree), true) = (&tree, length > 0) {
        assert_eq!(tree.num_nodes() - 1, count * length);
    }
    outcome(&tree)
}

fn budget(bits: &mut Bits) -> &'static str {
    let scores: Vec<Vec<f64>> = (0..bits.below(4))
        .map(|_| {
            let mut list: Vec<f64> = (0..bits.below(5))
                .map(|_| if bits.one_in(20) { bits.real() } else { bits.unit() })
                .collect();
            list.sort_by(|a, b| b.total_cmp(a));
            list
        })
        .collect();
    let (budget, minimum) = (bits.size(9), bits.size(2));
    let counts = allocate(&scores, budget, minimum);
    if let Ok(counts) = &counts {
        assert!(counts.iter().sum::<usize>() <= budget);
        assert!(counts.iter().zip(&scores).all(|(&n, list)| n <= list.len()));
    }
    outcome(&counts)
}

fn packed(bits: &mut Bits) -> &'static str {
    let any = |bits: &mut Bits| {
        if bits.one_in(6) { bits.extreme() as i64 } else { bits.below(5) as i64 - 1 }
    };
    let list =
        |bits: &mut Bits, most| -> Vec<i64> { (0..bits.below(most)).map(|_| any(bits)).collect() };
    let rows: Vec<Vec<i64>> = (0..bits.below(3)).map(|_| list(bits, 5)).collect();
    let law = bits.pick(&Law::ALL);
    let _ = chains(&rows, &list(bits, 4), &list(bits, 4), law);
    let mut offsets = list(bits, 5);
    if bits.one_in(2) {
        offsets.sort_unstable();
        offsets.insert(0, 0);
    }
    let offsets = Offsets::new(&offsets);
    let Ok(offsets) = &offsets else {
        return outcome(&offsets);
    };
    let total = if bits.one_in(3) { offsets.total().min(40) } else { bits.below(9) };
    let parents: Vec<i64> = (0..total).map(|at| if at == 0 { -1 } else { any(bits) }).collect();
    let tokens: Vec<i64> = (0..total).map(|_| any(bits)).collect();
    let flags: Vec<bool> = (0..total).map(|_| bits.one_in(2)).collect();
    outcome(&unpack(
        offsets,
        &parents,
        &tokens,
        Each::Same(law),
        bits.one_in(2).then_some(&flags[..]),
    ))
}

fn bound(bits: &mut Bits) -> &'static str {
    let vocab = bits.between(1, 12);
    let (p, q) = (rows::probabilities(bits, vocab), rows::probabilities(bits, vocab));
    let q = if bits.one_in(9) { rows::probabilities(bits, vocab + 1) } else { q };
    let best = alpha_star(&p, &q, bits.size(4), bits.pick(&Law::ALL));
    if let Ok(best) = best {
        assert!((-1e-9..=1.0 + 1e-9).contains(&best), "{best}");
    }
    outcome(&best)
}

fn trees(bits: &mut Bits) -> &'static str {
    let parents: Vec<i64> = (0..bits.below(9))
        .map(|node| match (node, bits.one_in(9)) {
            (_, true) => bits.extreme() as i64,
            (0, _) => -1,
            _ => bits.below(node) as i64,
        })
        .collect();
    let _ = TokenTree::chain(bits.size(4));
    let tree = TokenTree::new(&parents);
    if let Ok(tree) = &tree {
        let count = tree.num_nodes();
        assert_eq!(tree.mask().iter().filter(|seen| **seen).count(), {
            (0..count).map(|node| tree.depth(node) + 1).sum::<usize>()
        });
        assert_eq!(tree.next_token().len() + tree.next_sibling().len(), 2 * count);
        let path: Vec<i64> = (0..bits.below(4)).map(|_| bits.size(5) as i64 - 1).collect();
        let _ = tree.check_path(&path);
    }
    outcome(&tree)
}

fn merged(bits: &mut Bits) -> &'static str {
    let drafts: Vec<Draft> = (0..bits.below(4))
        .filter_map(|_| {
            let form = tree(bits, 6);
            let tokens = (0..form.num_nodes()).map(|_| bits.below(4) as i64).collect();
            let law = if bits.one_in(9) { Law::Unknown } else { Law::Deterministic };
            Draft::new(form, tokens, law, None).ok()
        })
        .collect();
    let most = bits.size(9);
    let all: Vec<&Draft> = drafts.iter().collect();
    let merged = merge(&all, most);
    if let Ok(growth) = &merged {
        assert!(growth.num_drafted() <= most);
        growth.draft(Law::Deterministic).unwrap();
    }
    outcome(&merged)
}

fn drafts(bits: &mut Bits) -> &'static str {
    let form = tree(bits, 6);
    let count = if bits.one_in(9) { bits.below(9) } else { form.num_nodes() };
    let tokens = (0..count)
        .map(|_| if bits.one_in(12) { bits.extreme() as i64 } else { bits.below(4) as i64 })
        .collect();
    let flags = (0..count).map(|_| bits.one_in(2)).collect();
    outcome(&Draft::new(form, tokens, bits.pick(&Law::ALL), bits.one_in(2).then_some(flags)))
}

fn settings(bits: &mut Bits) -> &'static str {
    let presets = [shaping::Preset::Transformers, shaping::Preset::Vllm];
    let (preset, top_k) = (bits.pick(&presets), bits.extreme() as i64);
    let params = shaping::Params::new(bits.real(), top_k, bits.real(), bits.real(), preset);
    let penalties = history::Penalties {
        repetition: bits.real(),
        presence: bits.real(),
        frequency: bits.real(),
        bias: (0..bits.below(3)).map(|_| (bits.below(3) as u32, bits.real() as f32)).collect(),
        ..history::Penalties::default()
    };
    let _ = penalties.check();
    let values: Vec<f64> = (0..bits.below(4)).map(|_| bits.real()).collect();
    let name = bits.pick(&["typical", "threshold", "topk", "ensemble", ""]);
    if let Ok(lossy) = Lossy::new(name, &values) {
        assert_eq!(Lossy::new(lossy.name(), &lossy.values()), Ok(lossy));
    }
    let (seed, row) = (bits.extreme(), bits.extreme());
    assert_eq!(rng::derive_seed(seed, 0), seed);
    assert_eq!(rng::derive_seed(seed, row), rng::derive_seed(seed, row));
    outcome(&params)
}
