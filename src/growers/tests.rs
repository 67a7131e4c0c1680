//! Growers against exhaustive search, the rules' own draws, and the specification's figures.

use super::*;
use crate::chance::{Cells, Philox};
use crate::rows::RawRows;
use crate::shaping::{Params, Preset};
use crate::tree::TokenTree;
use crate::verify::dense::DenseCells;
use crate::verify::law::Draft;
use crate::verify::{self, Noise};

fn root() -> Growth {
    Growth::new(7, Vec::new())
}

fn params(top_k: i64) -> Params {
    Params::new(1.0, top_k, 1.0, 0.0, Preset::Transformers).unwrap()
}

fn root_draft() -> Draft {
    Draft::new(TokenTree::chain(0).unwrap(), vec![-1], Law::Deterministic, None).unwrap()
}

/// Logits after a path: any function of it, with ties.
fn logits(path: &[u32], vocab: usize) -> Vec<f32> {
    let seed = path.iter().fold(5_u32, |state, &token| {
        (state ^ (token + 1)).wrapping_mul(0x9E37_79B1).rotate_left(13)
    });
    (0..vocab as u32)
        .map(|token| {
            let word = (seed ^ token.wrapping_mul(0x85EB_CA6B)).wrapping_mul(0xC2B2_AE35);
            (word >> 27) as f32 / 6.0
        })
        .collect()
}

/// Grows to the end from logits as production does, and returns every row.
fn grow_logits<G: Grower<f64>>(
    grower: &mut G,
    noise: Noise,
    vocab: Option<&Vocabulary>,
    params: Params,
    row: impl Fn(&[u32]) -> Vec<f32>,
) -> Vec<Option<Vec<f32>>> {
    let root = root_draft();
    let mut held: Vec<Option<Vec<f32>>> = Vec::new();
    let mut choices = noise.philox(64).unwrap();
    while !grower.frontier().is_empty() {
        for &node in grower.frontier() {
            held.resize(held.len().max(node as usize + 1), None);
            held[node as usize] = Some(row(&grower.growth().path(node as usize)));
        }
        let mut rows = LogitRows::new(&root, params, vocab);
        for (node, values) in held.iter().enumerate() {
            if let Some(values) = values {
                rows.set(node, RawRows::from_f32(values, values.len()).unwrap(), 0).unwrap();
            }
        }
        grower.extend(&mut rows, &mut choices).unwrap();
    }
    held
}

const NOISE: Noise = Noise { seed: 11, position: 4 };

fn softmax(logits: &[f32]) -> Vec<f64> {
    let total: f64 = logits.iter().map(|&y| f64::from(y).exp()).sum();
    logits.iter().map(|&y| f64::from(y).exp() / total).collect()
}

#[test]
fn a_chain_is_what_draw_draws() {
    let mut chain = Chain::new(root(), 5, true, Stop::never()).unwrap();
    let held = grow_logits(&mut chain, NOISE, None, params(0), |path| logits(path, 2000));
    assert_eq!((chain.growth().num_drafted(), chain.law()), (5, Law::Chain));
    for node in 1..=5 {
        let row = held[node - 1].as_ref().unwrap();
        let raw = RawRows::from_f32(row, row.len()).unwrap();
        let drawn = verify::draw(raw, params(0), NOISE, node as u32).unwrap();
        assert_eq!(chain.growth().tokens()[node], i64::from(drawn));
    }
}

#[test]
fn chains_end_at_end_tokens_and_before_unsure_rows() {
    // Token 2 is certain, token 1 ends the sequence.
    let sure =
        |path: &[u32]| if path.len() == 2 { vec![0.0, 9.0, 0.0] } else { vec![0.0, 0.0, 9.0] };
    let greedy = |growth, stop| {
        let mut chain = Chain::new(growth, 9, false, stop).unwrap();
        grow_logits(&mut chain, NOISE, None, params(0), sure);
        chain.growth().tokens()[1..].to_vec()
    };
    assert_eq!(greedy(root(), Stop { min_top: 0.0, min_path: 0.9985 }), [2, 2, 1, 2, 2, 2, 2]);
    assert_eq!(greedy(Growth::new(0, vec![1]), Stop::never()), [2, 2, 1]);
    assert_eq!(greedy(root(), Stop { min_top: 0.9999, min_path: 0.0 }), [0_i64; 0]);
    let none = Chain::<f64>::new(root(), 0, true, Stop::never()).unwrap();
    assert!(none.frontier().is_empty());
}

#[test]
fn fixed_shapes_have_the_children_that_their_laws_say() {
    let template = by_depth(&[3, 2]).unwrap();
    for law in [Law::Deterministic, Law::Iid, Law::Swor, Law::TopPlusOne, Law::Mixed] {
        let mut grower = Fixed::new(root(), template.clone(), law, 2).unwrap();
        let held = grow_logits(&mut grower, NOISE, None, params(0), |path| logits(path, 50));
        let growth = Grower::<f64>::growth(&grower);
        let draft = growth.draft(law).unwrap();
        assert_eq!(draft.tree(), &template);
        for (node, row) in held.iter().enumerate().take(4) {
            let mut left = softmax(row.as_ref().unwrap());
            let children = draft.tree().children(node);
            let flags: Vec<bool> = children.iter().map(|&c| draft.is_sampled(c as usize)).collect();
            let sampled = match law {
                Law::Deterministic => 0,
                Law::TopPlusOne => 1,
                Law::Mixed => 2,
                _ => children.len(),
            };
            assert_eq!(flags.iter().filter(|&&flag| flag).count(), sampled.min(children.len()));
            // What was not drawn are the most probable tokens, in order.
            let mut order: Vec<u32> = (0..50).collect();
            order.sort_by(|&a, &b| left[b as usize].total_cmp(&left[a as usize]));
            let forced: Vec<u32> = draft.forced(node).collect();
            assert_eq!(forced, order[..forced.len()]);
            for token in forced {
                left[token as usize] = 0.0;
            }
            // What was drawn is the inverse cumulative law of what is left, at its own address.
            for &child in children.iter().filter(|&&c| draft.is_sampled(c as usize)) {
                let site = Site::new(child as usize, crate::chance::Purpose::Draft);
                let mut cells = DenseCells::new(left.clone());
                let point = Philox::new(11, 4).uniform(site) * cells.total();
                let token = draft.token(child as usize);
                assert_eq!(cells.locate(&point).unwrap(), token);
                if law != Law::Iid {
                    left[token as usize] = 0.0;
                }
            }
        }
    }
}

#[test]
fn rows_with_few_tokens_give_few_children() {
    // Two kept tokens, three or more children wanted; a vocabulary smaller than the fan-out.
    for (vocab, top_k) in [(50, 2), (2, 0)] {
        let row = |path: &[u32]| -> Vec<f32> {
            let mut row = logits(path, vocab);
            row[1] = 9.0;
            row[0] = 8.0;
            row
        };
        for law in [Law::Deterministic, Law::Swor, Law::TopPlusOne, Law::Mixed] {
            let mut grower = Fixed::new(root(), by_depth(&[4, 3]).unwrap(), law, 2).unwrap();
            grow_logits(&mut grower, NOISE, None, params(top_k), row);
            let draft = Grower::<f64>::growth(&grower).draft(law).unwrap();
            assert_eq!(draft.num_nodes(), 7, "{law:?}");
            assert_eq!(draft.tree().children(0).len(), 2);
        }
        let mut iid = Fixed::new(root(), paths(4, 2).unwrap(), Law::Iid, 0).unwrap();
        grow_logits(&mut iid, NOISE, None, params(top_k), row);
        assert_eq!(Grower::<f64>::growth(&iid).num_drafted(), 8);
        let mut coupled = Coupled::new(root(), by_depth(&[4]).unwrap(), NOISE).unwrap();
        grow_logits(&mut coupled, NOISE, None, params(top_k), row);
        assert_eq!(Grower::<f64>::growth(&coupled).num_drafted(), 2);
        let limits = Limits { max_nodes: 9, max_depth: 1, min_value: 0.0, lookahead: 1 };
        let mut dynamic = Stochastic::new(root(), limits).unwrap();
        grow_logits(&mut dynamic, NOISE, None, params(top_k), row);
        assert_eq!(dynamic.growth().num_drafted(), 2);
    }
}

#[test]
fn sub_vocabularies_are_mapped() {
    // Column j stands for token 10 - 2 j: ties go to the lower token, the higher column.
    let vocab = Vocabulary::new(vec![10, 8, 6, 4]).unwrap();
    let row = |_: &[u32]| vec![0.0, 1.0, 1.0, 2.0];
    let mut best = Fixed::new(root(), by_depth(&[3]).unwrap(), Law::Deterministic, 0).unwrap();
    grow_logits(&mut best, NOISE, Some(&vocab), params(0), row);
    assert_eq!(Grower::<f64>::growth(&best).tokens(), [7, 4, 6, 8]);
    let mut swor = Fixed::new(root(), by_depth(&[9]).unwrap(), Law::Swor, 0).unwrap();
    grow_logits(&mut swor, NOISE, Some(&vocab), params(0), row);
    let mut drawn = Grower::<f64>::growth(&swor).tokens()[1..].to_vec();
    drawn.sort_unstable();
    assert_eq!(drawn, [4, 6, 8, 10]);
    // Hits outside the sub-vocabulary have no probability there, and stand beside what is drawn.
    let hits =
        Draft::new(TokenTree::chain(1).unwrap(), vec![7, 5], Law::Deterministic, None).unwrap();
    let mut union = Union::new(root(), hits, vec![4], 9).unwrap();
    grow_logits(&mut union, NOISE, Some(&vocab), params(0), row);
    assert_eq!(Grower::<f64>::growth(&union).sampled(), [false, true, true, true, true, false]);
    // The race is keyed by token: the same winners as over the whole vocabulary.
    let mut coupled = Coupled::new(root(), by_depth(&[4]).unwrap(), NOISE).unwrap();
    let mut whole = coupled.clone();
    grow_logits(&mut coupled, NOISE, Some(&vocab), params(0), row);
    let spread = |_: &[u32]| -> Vec<f32> {
        let mut wide = vec![f32::NEG_INFINITY; 12];
        for (token, y) in [(10, 0.0), (8, 1.0), (6, 1.0), (4, 2.0)] {
            wide[token] = y;
        }
        wide
    };
    grow_logits(&mut whole, NOISE, None, params(0), spread);
    let tokens = |grower: &Coupled| Grower::<f64>::growth(grower).tokens().to_vec();
    assert_eq!(tokens(&coupled), tokens(&whole));
}

#[test]
fn a_vocabulary_finds_tokens_in_any_order() {
    for tokens in
        [vec![], vec![4], vec![2, 5, 9], vec![9, 5, 2], vec![2, 5, 9, 7, 3], vec![1, 0, 2]]
    {
        let vocab = Vocabulary::new(tokens.clone()).unwrap();
        for token in 0..11 {
            let at = tokens.iter().position(|&other| other == token).map(|at| at as u32);
            assert_eq!(vocab.column(token), at, "token {token} of {tokens:?}");
        }
    }
    let fault = |tokens: &[u32]| match Vocabulary::new(tokens.to_vec()) {
        Err(Error::ShapeMismatch { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(&[3, 3]), "token 3 at columns 0 and 1");
    assert_eq!(fault(&[2, 5, 7, 4, 5]), "token 5 at columns 1 and 4");
    assert_eq!(fault(&[2, 5, 3, 4, 3]), "token 3 at columns 2 and 4");
}

/// The scores of all paths of at most `depth` tokens, by token path.
fn all_scores(depth: usize, vocab: usize, most: usize) -> Vec<f64> {
    let mut level = vec![(Vec::new(), 1.0)];
    let mut scores = Vec::new();
    for _ in 0..depth {
        let mut next = Vec::new();
        for (path, score) in level {
            let mut q: Vec<(u32, f64)> = (0..).zip(softmax(&logits(&path, vocab))).collect();
            q.sort_by(|a, b| b.1.total_cmp(&a.1));
            for (token, q) in q.into_iter().take(most) {
                let mut longer: Vec<u32> = path.clone();
                longer.push(token);
                next.push((longer, score * q));
            }
        }
        scores.extend(next.iter().map(|pair| pair.1));
        level = next;
    }
    scores.sort_by(|a, b| b.total_cmp(a));
    scores
}

fn limits(max_nodes: usize) -> HeapLimits {
    HeapLimits {
        max_nodes,
        max_depth: 4,
        max_children: usize::MAX,
        width: usize::MAX,
        min_score: 0.0,
        times: Vec::new(),
    }
}

#[test]
fn the_heap_keeps_the_best_nodes_of_all() {
    let every = all_scores(4, 6, 6);
    for max_nodes in [0, 1, 2, 5, 12, 40] {
        let mut heap = Heap::new(root(), limits(max_nodes)).unwrap();
        grow_logits(&mut heap, NOISE, None, params(0), |path| logits(path, 6));
        let found = heap.kept_scores();
        assert_eq!(found.len(), max_nodes);
        for (a, b) in found.iter().zip(&every) {
            assert!((a - b).abs() < 1e-6, "{found:?}");
        }
        let (tree, origin) = heap.best(max_nodes);
        assert!(tree.draft(Law::Deterministic).is_ok());
        assert_eq!(origin.len(), max_nodes + 1);
        let (cut, _) = heap.best(max_nodes / 2);
        assert_eq!(cut.tokens(), &tree.tokens()[..=max_nodes / 2]);
    }
}

#[test]
fn heap_limits_are_kept() {
    let grow = |limits: HeapLimits| {
        let mut heap = Heap::new(Growth::new(0, vec![3]), limits).unwrap();
        grow_logits(&mut heap, NOISE, None, params(0), |path| logits(path, 6));
        heap
    };
    let tree = |heap: &Heap| heap.best(usize::MAX).0.draft(Law::Deterministic).unwrap();
    let narrow = tree(&grow(HeapLimits { max_children: 2, width: 1, ..limits(9) }));
    assert_eq!(narrow.num_nodes(), 9);
    let inner = (0..9).filter(|&node| !narrow.tree().children(node).is_empty());
    assert!(inner.map(|node| narrow.tree().depth(node)).eq(0..4));
    let wide = tree(&grow(limits(60)));
    assert!((0..61).all(|node| wide.token(node) != 3 || wide.tree().children(node).is_empty()));
    let sure = grow(HeapLimits { min_score: 0.2, ..limits(60) });
    assert!(sure.kept_scores().iter().all(|&score| score >= 0.2));
    assert!(Heap::new(root(), HeapLimits { times: vec![1.0, f64::NAN], ..limits(3) }).is_err());
    assert!(Heap::new(root(), HeapLimits { width: 0, ..limits(3) }).is_err());
}

#[test]
fn the_cost_stop_finds_the_best_rate() {
    let every = all_scores(4, 6, 6);
    for slope in [0.001, 0.02, 0.1, 0.3, 2.0] {
        let times: Vec<f64> = (0..=40).map(|n| 1.0 + slope * f64::from(n).powf(1.2)).collect();
        let rate = |n: usize| (1.0 + every[..n].iter().sum::<f64>()) / times[n];
        let best = (0..=40).max_by(|&a, &b| rate(a).total_cmp(&rate(b))).unwrap();
        let mut heap =
            Heap::new(root(), HeapLimits { times: times.clone(), ..limits(40) }).unwrap();
        grow_logits(&mut heap, NOISE, None, params(0), |path| logits(path, 6));
        assert_eq!(heap.kept_scores().len(), best, "{slope}");
    }
}

#[test]
fn lookahead_saves_passes_and_changes_nothing() {
    let grow = |lookahead| {
        let limits = Limits { max_nodes: 12, max_depth: 4, min_value: 0.01, lookahead };
        let mut grower = Stochastic::new(root(), limits).unwrap();
        grow_logits(&mut grower, NOISE, None, params(0), |path| logits(path, 30));
        let growth = grower.growth();
        assert!((1..growth.num_nodes()).all(|node| growth.depth(node) <= 4));
        assert!(growth.draft(Law::Swor).is_ok());
        (growth.parents().to_vec(), growth.tokens().to_vec())
    };
    let alone = grow(1);
    assert_eq!(alone.0.len(), 13);
    assert_eq!(grow(4), alone);
    assert_eq!(grow(100), alone);
}

#[test]
fn unions_hold_every_hit_and_keep_the_budget() {
    let hits = Draft::new(
        TokenTree::new(&[-1, 0, 1, 0]).unwrap(),
        vec![7, 3, 3, 5],
        Law::Deterministic,
        None,
    )
    .unwrap();
    for (counts, max_nodes, wanted) in
        [(vec![1, 1], 100, 7), (vec![1, 1], 5, 5), (vec![9], 4, 4), (vec![], 9, 3), (vec![2], 2, 3)]
    {
        let mut union = Union::new(root(), hits.clone(), counts, max_nodes).unwrap();
        grow_logits(&mut union, NOISE, None, params(0), |path| logits(path, 30));
        let growth = Grower::<f64>::growth(&union);
        assert_eq!(growth.num_drafted(), wanted);
        let paths: Vec<Vec<u32>> = (0..growth.num_nodes()).map(|node| growth.path(node)).collect();
        for hit in [&[3][..], &[3, 3], &[5]] {
            assert!(paths.iter().any(|path| path == hit));
        }
        assert!(growth.draft(Law::Mixed).is_ok());
    }
}

#[test]
fn deterministic_trees_merge_by_parent_and_token() {
    let tree = |parents: &[i64], tokens: &[i64]| {
        Draft::new(TokenTree::new(parents).unwrap(), tokens.to_vec(), Law::Deterministic, None)
            .unwrap()
    };
    let (a, b) = (tree(&[-1, 0, 1], &[7, 1, 2]), tree(&[-1, 0, 1, 0, 2], &[7, 1, 3, 4, 5]));
    let merged = merge(&[&a, &b], 9).unwrap();
    assert_eq!(merged.parents(), [-1, 0, 1, 1, 0, 3]);
    assert_eq!(merged.tokens(), [7, 1, 2, 3, 4, 5]);
    assert_eq!(merge(&[&a, &b], 3).unwrap().tokens(), [7, 1, 2, 3]);
    let drawn = Draft::new(TokenTree::chain(1).unwrap(), vec![7, 1], Law::Chain, None).unwrap();
    assert!(merge(&[&a, &drawn], 9).is_err());
}

#[test]
fn shapes_by_name() {
    let parents = |tree: TokenTree| -> Vec<i64> {
        (0..tree.num_nodes()).map(|n| tree.parent(n).map_or(-1, |p| p as i64)).collect()
    };
    assert_eq!(parents(by_depth(&[2, 1]).unwrap()), [-1, 0, 0, 1, 2]);
    assert_eq!(parents(stem(2, &[2]).unwrap()), [-1, 0, 1, 2, 2]);
    assert_eq!(parents(paths(2, 2).unwrap()), [-1, 0, 0, 1, 2]);
    assert_eq!(parents(by_depth(&[]).unwrap()), [-1]);
    assert!(by_depth(&[1000, 1000]).is_err());
    assert!(stem(1 << 20, &[]).is_err());
    let bush = by_depth(&[2]).unwrap();
    assert!(Fixed::new(root(), bush.clone(), Law::Chain, 0).is_err());
    assert!(Fixed::new(root(), bush, Law::Unknown, 0).is_err());
}

#[test]
fn rows_that_are_no_distribution_are_named() {
    let bad = [0.0, 1.0, f32::NAN];
    let root_only = root_draft();
    let matrix = [0.0_f32, 1.0, 2.0, bad[0], bad[1], bad[2]];
    let raw = RawRows::from_f32(&matrix, 3).unwrap();
    let mut rows = LogitRows::new(&root_only, params(0), None);
    rows.set(0, raw, 1).unwrap();
    let mut chain = Chain::new(root(), 2, true, Stop::never()).unwrap();
    let error = chain.extend(&mut rows, &mut NOISE.philox(2).unwrap()).unwrap_err();
    assert_eq!((error.slug(), error.row()), ("row_not_finite", Some(1)));
    assert!(rows.set(0, raw, 2).is_err());
}
