//! Growers: from any limits and rows to a draft that its law's rules take.

use mtp_verify::chance::Philox;
use mtp_verify::error::{Error, Result};
use mtp_verify::growers::{
    Chain, Coupled, Fixed, Grower, Growth, Heap, HeapLimits, Limits, LogitRows, Stochastic, Stop,
    Union, Vocabulary,
};
use mtp_verify::shaping::{ShapedRows, Side};
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lazy::{DrafterRows, Source};
use mtp_verify::verify::{self, Noise};

use crate::bits::Bits;
use crate::request::tree;
use crate::rows::{self, Kind, Matrix};
use crate::verdict::outcome;

/// What a grower is made with.
#[derive(Debug, Clone)]
struct Plan {
    kind: usize,
    sizes: [usize; 5],
    reals: [f64; 2],
    counts: Vec<usize>,
    times: Vec<f64>,
    form: TokenTree,
    /// Tokens for the form, distinct among siblings.
    hits: Vec<i64>,
    law: Law,
    ends: Vec<u32>,
    noise: Noise,
}

/// A grown draft, and the row after each of its nodes.
struct Grown {
    draft: Draft,
    paths: Vec<Vec<u32>>,
}

pub(crate) fn check(bits: &mut Bits) -> &'static str {
    let vocab = if bits.one_in(16) { bits.pick(&[2048, 2050]) } else { bits.between(1, 12) };
    // A sub-vocabulary's columns rise, but for the last two.
    let columns = if vocab > 3 && bits.one_in(3) { bits.between(3, vocab - 1) } else { vocab };
    let mut tokens: Vec<u32> = (0..columns as u32).collect();
    if columns < vocab {
        tokens[columns - 2..].copy_from_slice(&[vocab as u32 - 1, columns as u32 - 2]);
    }
    let map = (columns < vocab).then(|| Vocabulary::new(tokens.clone()).unwrap());
    let params = rows::any_params(bits, columns);
    let is_bad = bits.one_in(6);
    let table: Vec<Vec<f64>> = (0..7)
        .map(|_| {
            if is_bad && bits.one_in(4) {
                rows::bad_logits(bits, columns)
            } else {
                rows::logits(bits, columns)
            }
        })
        .collect();
    let kind = bits.pick(&[Kind::F32, Kind::F16, Kind::Bf16]);
    let matrix = Matrix::new(bits, &table, columns, kind);
    let plan = plan(bits, vocab);
    let root =
        Draft::new(TokenTree::chain(0).unwrap(), vec![-1], Law::Deterministic, None).unwrap();
    let grow = || -> Result<Grown> {
        let mut rows = LogitRows::new(&root, params, map.as_ref());
        grown(&plan, &mut rows, &matrix)
    };
    let (first, again) = (grow(), grow());
    let text = |grown: &Result<Grown>| match grown {
        Ok(grown) => format!("{:?}", grown.draft),
        Err(error) => format!("{error:?}"),
    };
    assert_eq!(text(&first), text(&again), "another draft from the same rows");
    let Ok(Grown { draft, paths }) = first else {
        return outcome(&first);
    };
    assert!(draft.num_nodes() <= plan.sizes[0].max(plan.form.num_nodes()).saturating_add(60));
    // Every drawn token had probability: the draft is one that its law's rules take.
    let index: Vec<i64> = paths.iter().map(|path| row_of(path) as i64).collect();
    let mut pairs: Vec<(u32, u32)> = tokens.into_iter().zip(0..).collect();
    pairs.sort_unstable();
    let pairs = map.as_ref().map(|_| &pairs[..]);
    let source = if draft.law().is_sampled() {
        Source::Logits(ShapedRows::new(matrix.raw(), params, Side::Drafter))
    } else {
        Source::None
    };
    let drafter = DrafterRows { source, index: &index, vocab: pairs };
    let target: Vec<Vec<f64>> = paths.iter().map(|_| rows::logits(bits, vocab)).collect();
    let target = Matrix::new(bits, &target, vocab, Kind::F32);
    let own = rows::params(bits, vocab);
    let noise = Noise { position: plan.noise.position.min(1 << 31), ..plan.noise };
    let verdict = verify::verify(&draft, drafter, target.raw(), own, "auto", None, noise);
    assert!(verdict.is_ok(), "a grown draft was refused: {verdict:?}");
    "ok"
}

fn plan(bits: &mut Bits, vocab: usize) -> Plan {
    let mut form = tree(bits, 10);
    if (0..form.num_nodes()).any(|node| form.children(node).len() > vocab) {
        form = TokenTree::chain(form.num_nodes() - 1).unwrap();
    }
    let mut hits = vec![-1; form.num_nodes()];
    for node in 0..form.num_nodes() {
        for (&child, token) in form.children(node).iter().zip(0..) {
            hits[child as usize] = token;
        }
    }
    let token = |bits: &mut Bits| bits.below(vocab) as u32;
    Plan {
        kind: bits.below(6),
        sizes: std::array::from_fn(|_| bits.size(8)),
        reals: std::array::from_fn(|_| if bits.one_in(2) { 0.0 } else { bits.real() }),
        counts: (0..bits.below(4)).map(|_| bits.size(2)).collect(),
        times: (0..if bits.one_in(3) { bits.below(20) } else { 0 }).map(|_| bits.real()).collect(),
        form,
        hits,
        law: bits.pick(&Law::ALL),
        ends: (0..bits.below(2)).map(|_| token(bits)).collect(),
        noise: Noise {
            seed: bits.next(),
            position: if bits.one_in(6) { bits.extreme() } else { bits.below(99) as u64 },
        },
    }
}

/// The row after a path: any function of it.
fn row_of(path: &[u32]) -> usize {
    path.iter().fold(path.len(), |sum, &token| (sum * 3 + token as usize) % 7) % 7
}

fn grown<'a>(plan: &Plan, rows: &mut LogitRows<'a>, matrix: &'a Matrix) -> Result<Grown> {
    let [a, b, c, d, _] = plan.sizes;
    let growth = Growth::new(-1, plan.ends.clone());
    let (form, noise) = (plan.form.clone(), plan.noise);
    let choices = noise.philox(0)?;
    match plan.kind {
        0 => {
            let stop = Stop { min_top: plan.reals[0], min_path: plan.reals[1] };
            run(Chain::new(growth, a, plan.law != Law::Unknown, stop)?, rows, choices, matrix)
        }
        1 => run(Fixed::new(growth, form, plan.law, b)?, rows, choices, matrix),
        2 => {
            let limits = HeapLimits {
                max_nodes: a,
                max_depth: b,
                max_children: c,
                width: d,
                min_score: plan.reals[0],
                times: plan.times.clone(),
            };
            let mut heap = Heap::new(growth, limits)?;
            drive(&mut heap, rows, choices, matrix)?;
            let (tree, origin) = heap.best(plan.sizes[4]);
            assert!(tree.num_nodes() == origin.len() && tree.num_drafted() <= a.min(plan.sizes[4]));
            assert!(heap.kept_scores().is_sorted_by(|x, y| x >= y));
            finish(&tree, Law::Deterministic)
        }
        3 => {
            let limits =
                Limits { max_nodes: a, max_depth: b, min_value: plan.reals[0], lookahead: c };
            run(Stochastic::new(growth, limits)?, rows, choices, matrix)
        }
        4 => {
            let hits = Draft::new(form, plan.hits.clone(), Law::Deterministic, None)?;
            run(Union::new(growth, hits, plan.counts.clone(), a)?, rows, choices, matrix)
        }
        _ => run(Coupled::new(growth, form, noise)?, rows, choices, matrix),
    }
}

fn run<'a, G: Grower<f64>>(
    mut grower: G,
    rows: &mut LogitRows<'a>,
    choices: Philox,
    matrix: &'a Matrix,
) -> Result<Grown> {
    drive(&mut grower, rows, choices, matrix)?;
    finish(grower.growth(), grower.law())
}

fn drive<'a, G: Grower<f64>>(
    grower: &mut G,
    rows: &mut LogitRows<'a>,
    mut choices: Philox,
    matrix: &'a Matrix,
) -> Result<()> {
    while !grower.frontier().is_empty() && grower.growth().num_nodes() < 60 {
        for node in grower.frontier().to_vec() {
            let path = grower.growth().path(node as usize);
            rows.set(node as usize, matrix.raw(), row_of(&path))?;
        }
        let before = grower.growth().num_nodes();
        grower.extend(rows, &mut choices)?;
        assert!(grower.growth().num_nodes() >= before, "a token was taken back");
    }
    Ok(())
}

fn finish(growth: &Growth, law: Law) -> Result<Grown> {
    let paths = (0..growth.num_nodes()).map(|node| growth.path(node)).collect();
    let draft = match growth.draft(law) {
        // Hits are what they are, and a draft may be asked for at any time.
        Err(error @ (Error::ZeroDraftProbability { .. } | Error::MissingRow { .. })) => {
            panic!("{error}")
        }
        draft => draft?,
    };
    Ok(Grown { draft, paths })
}
