//! The law of the first emitted token, over every draft of one level and every choice of the rule.
//!
//! The proof does this over rationals and golden rows; here the rows are what models give, and the code is
//! what ships: shaped rows in floats. What is enumerated is exact up to the rounding of sums.

use mtp_verify::chance::enumerator::{Enumerator, enumerate};
use mtp_verify::shaping::{Scratch, ShapedRows, Side};
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lazy::{DrafterRows, LEAST, LazyView, Source};
use mtp_verify::verify::{RULES, decide, resolve};

use crate::bits::Bits;
use crate::rows::{self, Kind, Matrix};

/// The total variation that rounding may cause.
const BOUND: f64 = 1e-6;

/// Children of the root with the probability that the drafter makes them.
struct Way {
    children: Vec<(u32, bool)>,
    weight: f64,
}

pub(crate) fn check(bits: &mut Bits) -> &'static str {
    let vocab = bits.between(2, 4);
    let laws = [Law::Chain, Law::Iid, Law::Swor, Law::TopPlusOne, Law::Mixed];
    let law = bits.pick(&laws);
    let params = rows::params(bits, vocab);
    let target: Vec<Vec<f64>> = (0..5).map(|_| rows::logits(bits, vocab)).collect();
    let kind = bits.pick(&[Kind::F32, Kind::Bf16]);
    let target = Matrix::new(bits, &target, vocab, kind);
    let given = if bits.one_in(2) {
        let row = [rows::logits(bits, vocab)];
        (Matrix::new(bits, &row, vocab, Kind::F32), true)
    } else {
        let row = [rows::probabilities(bits, vocab)];
        (rows::distribution(bits, &row, vocab, 1e-3), false)
    };
    let (matrix, is_logits) = &given;
    let source = if *is_logits {
        Source::Logits(ShapedRows::new(matrix.raw(), params, Side::Drafter))
    } else {
        Source::Probabilities(matrix.raw())
    };
    let mut q: Vec<f64> = (0..vocab as u32)
        .map(|token| match source {
            Source::Logits(rows) => {
                let shaped = rows.shape(0, &mut Scratch::default()).unwrap();
                rows.probability(0, &shaped, token)
            }
            // Less than that is no probability.
            _ => Some(matrix.raw().value(0, token as usize)).filter(|&q| q >= LEAST).unwrap_or(0.0),
        })
        .collect();
    let total: f64 = q.iter().sum();
    for q in &mut q {
        *q /= total;
    }

    let names: Vec<&str> = RULES
        .iter()
        .filter(|rule| rule.laws.contains(&law) && rule.name != "greedy")
        .map(|rule| rule.name)
        .collect();
    let (core, rule) = resolve(bits.pick(&names), law).unwrap();
    let mut emitted = vec![0.0; vocab];
    for Way { children, weight } in ways(bits, law, &q) {
        let parents: Vec<i64> = std::iter::once(-1).chain(children.iter().map(|_| 0)).collect();
        let tokens = std::iter::once(-1).chain(children.iter().map(|pair| i64::from(pair.0)));
        let flags = std::iter::once(false).chain(children.iter().map(|pair| pair.1)).collect();
        let flags = matches!(law, Law::TopPlusOne | Law::Mixed).then_some(flags);
        let tree = TokenTree::new(&parents).unwrap();
        let draft = Draft::new(tree, tokens.collect(), law, flags).unwrap();
        let logits = target.raw().part(0..draft.num_nodes()).unwrap();
        let shaped_rows = ShapedRows::new(logits, params, Side::Target);
        let drafter = DrafterRows { source, index: &[0, -1, -1, -1, -1], vocab: None };
        let runs = enumerate(|choices: &mut Enumerator<f64>| {
            let mut view = LazyView::new(&draft, shaped_rows, drafter);
            Ok(decide(core, &draft, &mut view, choices)?.tokens[0])
        });
        for (token, share) in runs.unwrap() {
            emitted[token as usize] += weight * share;
        }
    }
    let shaped_rows = ShapedRows::new(target.raw(), params, Side::Target);
    let shaped = shaped_rows.shape(0, &mut Scratch::default()).unwrap();
    let p = (0..vocab as u32).map(|token| shaped_rows.probability(0, &shaped, token));
    let distance = p.zip(&emitted).map(|(p, emitted)| (p - emitted).abs()).sum::<f64>() / 2.0;
    assert!(distance < BOUND, "{rule} on {}: {distance:e} from the target, q = {q:?}", law.name());
    rule
}

/// All drafts of one level that a law can make from a row; the set of a mixed one is drawn here.
fn ways(bits: &mut Bits, law: Law, q: &[f64]) -> Vec<Way> {
    let mut order: Vec<u32> = (0..q.len() as u32).collect();
    if law == Law::TopPlusOne {
        order.sort_by(|&a, &b| q[b as usize].total_cmp(&q[a as usize]));
    } else {
        order.rotate_left(bits.below(q.len()));
    }
    let set = match law {
        Law::TopPlusOne | Law::Mixed => order[..bits.between(0, q.len() - 1)].to_vec(),
        _ => Vec::new(),
    };
    let draws = match law {
        Law::Chain | Law::TopPlusOne => 1,
        _ => bits.between(1, 3),
    };
    let mut all = vec![Way { children: Vec::new(), weight: 1.0 }];
    for _ in 0..draws {
        all = all.into_iter().flat_map(|way| drawn(way, law, q, &set)).collect();
    }
    for way in &mut all {
        way.children.extend(set.iter().map(|&token| (token, false)));
    }
    all.retain(|way| way.weight > 0.0);
    all
}

/// A draft with one more child, drawn from what its law leaves of the row.
fn drawn(way: Way, law: Law, q: &[f64], set: &[u32]) -> Vec<Way> {
    let is_taken = |token: &u32| {
        let before = way.children.iter().any(|pair| pair.0 == *token);
        set.contains(token) || law != Law::Iid && before
    };
    let left: Vec<u32> = (0..q.len() as u32).filter(|token| !is_taken(token)).collect();
    // Added up: one minus the others would lose the digits that this is about.
    let mass: f64 = left.iter().map(|&token| q[token as usize]).sum();
    if mass <= 0.0 {
        return vec![way];
    }
    let with = |&token: &u32| {
        let mut children = way.children.clone();
        children.push((token, true));
        Way { children, weight: way.weight * (q[token as usize] / mass) }
    };
    left.iter().filter(|&&token| q[token as usize] > 0.0).map(with).collect()
}
