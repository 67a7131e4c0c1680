//! Checks beyond a rule on a golden model: noise, draws, shaping, emission, commits, lazy rows.

use crate::batch::{Addresses, Offsets};
use crate::chance::enumerator::{OutputLaw, enumerate, enumerate_on_grid};
use crate::chance::rng;
use crate::chance::{Choices, Purpose, Site};
use crate::error::{Error, Result};
use crate::kv;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::{MODELS, Rows};
use crate::proof::growth::{self, Case};
use crate::proof::summarise;
use crate::rows::RawRows;
use crate::shaping::weights::{WeightParams, shape};
use crate::shaping::{Params, Preset, ShapedRows, Side};
use crate::tree::TokenTree;
use crate::verify::dense::{DenseCells, DenseView};
use crate::verify::law::{Draft, Law};
use crate::verify::lazy::{DrafterRows, LazyView, Source};
use crate::verify::rules::kseq;
use crate::verify::view::Outcome;
use crate::verify::{self, Core, Noise, Verdict};

type Row = [(i64, i64)];

const HALVES: &Row = &[(1, 2), (1, 2)];
const B0: &Row = &[(1, 2), (1, 3), (1, 6)];
const D0: &Row = &[(1, 2), (1, 4), (1, 8), (1, 8)];

fn fractions(row: &Row) -> Vec<Fraction> {
    row.iter().map(|&(num, den)| Fraction::ratio(num, den)).collect()
}

fn certain(is_right: bool) -> Fraction {
    if is_right { Fraction::zero() } else { Fraction::one() }
}

fn law_of<K: Ord + Clone>(outcomes: Vec<(K, Fraction)>) -> OutputLaw<Fraction, K> {
    let mut law = OutputLaw::empty();
    for (key, weight) in outcomes {
        law.add(key, &weight);
    }
    law
}

fn law_of_row(row: &Row) -> OutputLaw<Fraction, u32> {
    law_of((0..).zip(fractions(row)).collect())
}

// ---- numbers and draws ---------------------------------------------------------------------------

/// A drafted token of target probability 0, with numbers of two bits.
pub(super) fn acceptance_at_zero() -> Result<Fraction> {
    let rows: Rows<Fraction> =
        Rows::new(&[&[(0, 1), (1, 1)]], &[&[(1, 2), (1, 2)]], &WeightParams::neutral());
    let case = Case { law: Law::Chain, shape: &[1] };
    let outcomes = enumerate_on_grid(2, |choices| {
        let (draft, mut view) = growth::draft(&rows, &case, choices)?;
        verify::decide(Core::TopDown, &draft, &mut view, choices)
    })?;
    Ok(summarise(&rows, 2, &outcomes).distance)
}

fn draw_on_grid(bits: u32, cells: &DenseCells<Fraction>, wanted: &Row) -> Result<Fraction> {
    let site = Site::new(0, Purpose::Sample);
    let outcomes = enumerate_on_grid(bits, |choices| choices.draw(site, &mut cells.clone()))?;
    Ok(law_of(outcomes).distance(&law_of_row(wanted)))
}

pub(super) fn draw_at_an_edge() -> Result<Fraction> {
    let row = &[(0, 1), (1, 2), (1, 2)];
    draw_on_grid(2, &DenseCells::new(fractions(row)), row)
}

/// The cells of (1/3, 2/3, 0) cut down to multiples of 1/8 end at 7/8: the last positive one goes on.
pub(super) fn draw_beyond_the_cells() -> Result<Fraction> {
    let cells = DenseCells::rounded(fractions(&[(1, 4), (5, 8), (0, 1)]), Fraction::one());
    draw_on_grid(4, &cells, &[(1, 4), (3, 4), (0, 1)])
}

/// Two sequences that sample from B0 at the same position.
fn two_sequences(seeds: [u64; 2]) -> Result<Fraction> {
    let site = Site::new(0, Purpose::Sample);
    let outcomes = enumerate(|choices| {
        let mut pair = [0; 2];
        for (token, seed) in pair.iter_mut().zip(seeds) {
            choices.set_seed(seed);
            *token = choices.draw(site, &mut DenseCells::new(fractions(B0)))?;
        }
        Ok(pair)
    })?;
    let row = fractions(B0);
    let pairs = (0..3).flat_map(|a| (0..3).map(move |b| [a, b]));
    let wanted = pairs.map(|pair| (pair, row[pair[0] as usize].mul(&row[pair[1] as usize])));
    Ok(law_of(outcomes).distance(&law_of(wanted.collect())))
}

pub(super) fn rows_of_a_batch() -> Result<Fraction> {
    two_sequences([rng::derive_seed(7, 0), rng::derive_seed(7, 1)])
}

pub(super) fn rows_far_apart() -> Result<Fraction> {
    two_sequences([rng::derive_seed(7, 1), rng::derive_seed(7, 1 + (1 << 32))])
}

pub(super) fn seeds_far_apart() -> Result<Fraction> {
    two_sequences([7, 7 + (1 << 32)])
}

/// Two chains of different lengths in one batch, their rows packed: what both emit, jointly.
fn batch_of_two(addresses: &Addresses) -> Result<Fraction> {
    let first = MODELS[1].rows::<Fraction>(&WeightParams::neutral());
    let rows = [first.clone(), first.after(&[1])];
    let shapes: [&[usize]; 2] = [&[1], &[1, 1]];
    let outcomes = enumerate(|choices| {
        let mut drafts = Vec::new();
        let mut packed = Vec::new();
        for (b, (rows, shape)) in rows.iter().zip(shapes).enumerate() {
            choices.set_seed(addresses.seeds[b]);
            choices.set_position(addresses.positions[b]);
            let case = Case { law: Law::Chain, shape };
            let (draft, DenseView { target, drafter }) = growth::draft(rows, &case, choices)?;
            packed.extend(target);
            drafts.push((draft, drafter));
        }
        let offsets = Offsets::of(drafts.iter().map(|(draft, _)| draft.num_nodes()));
        let mut emitted = Vec::new();
        for (b, (draft, drafter)) in drafts.into_iter().enumerate() {
            let Noise { seed, position } = addresses.noise(b);
            choices.set_seed(seed);
            choices.set_position(position);
            let mut view = DenseView { target: packed[offsets.part(b)].to_vec(), drafter };
            emitted.push(verify::decide(Core::Lifted, &draft, &mut view, choices)?.tokens);
        }
        Ok(emitted)
    })?;
    let continued = |emitted: &[Vec<u32>], weight: &Fraction, law: &mut OutputLaw<_, _>| {
        let mut parts = [OutputLaw::empty(), OutputLaw::empty()];
        for (b, part) in parts.iter_mut().enumerate() {
            rows[b].continue_to(shapes[b].len() + 1, &emitted[b], &Fraction::one(), part);
        }
        for (a, p) in parts[0].iter() {
            for (b, q) in parts[1].iter() {
                law.add((a.clone(), b.clone()), &weight.mul(p).mul(q));
            }
        }
    };
    let (mut found, mut wanted) = (OutputLaw::empty(), OutputLaw::empty());
    for (emitted, weight) in &outcomes {
        continued(emitted, weight, &mut found);
    }
    continued(&[Vec::new(), Vec::new()], &Fraction::one(), &mut wanted);
    Ok(found.distance(&wanted))
}

pub(super) fn batch_of_two_seeds() -> Result<Fraction> {
    batch_of_two(&Addresses { seeds: vec![7, 8], positions: vec![3, 3] })
}

pub(super) fn batch_of_two_positions() -> Result<Fraction> {
    batch_of_two(&Addresses { seeds: vec![7, 7], positions: vec![3, 9] })
}

// ---- shaping -------------------------------------------------------------------------------------

fn shaped(row: &Row, wanted: &Row, change: impl FnOnce(&mut WeightParams<Fraction>)) -> Fraction {
    let mut params = WeightParams::neutral();
    change(&mut params);
    let found = law_of((0..).zip(shape(&fractions(row), &params)).collect());
    found.distance(&law_of_row(wanted))
}

const TWO_OF_D0: &Row = &[(2, 3), (1, 3), (0, 1), (0, 1)];

pub(super) fn target_at_half_temperature() -> Fraction {
    let params = WeightParams { inverse_temperature: 2, ..WeightParams::neutral() };
    let rows: Rows<Fraction> = Rows::new(&[B0], &[B0], &params);
    let found = law_of((0..).zip(rows.target(&[]).to_vec()).collect());
    found.distance(&law_of_row(&[(9, 14), (4, 14), (1, 14)]))
}

pub(super) fn top_p() -> Fraction {
    shaped(D0, TWO_OF_D0, |params| params.top_p = Fraction::ratio(7, 10))
}

pub(super) fn temperature_then_top_p() -> Fraction {
    shaped(D0, &[(1, 1)], |params| {
        params.inverse_temperature = 2;
        params.top_p = Fraction::ratio(7, 10);
    })
}

pub(super) fn top_k_with_a_tie() -> Fraction {
    shaped(D0, D0, |params| params.top_k = 3)
}

pub(super) fn top_p_at_a_sum() -> Fraction {
    shaped(D0, &[(1, 1)], |params| params.top_p = Fraction::ratio(1, 2))
}

pub(super) fn min_p() -> Fraction {
    shaped(D0, TWO_OF_D0, |params| params.min_p = Fraction::ratio(3, 10))
}

pub(super) fn top_p_then_min_p() -> Fraction {
    shaped(D0, TWO_OF_D0, |params| {
        params.min_p = Fraction::ratio(3, 10);
        params.top_p = Fraction::ratio(3, 5);
    })
}

/// Greedy decoding of two equal logits, by the entry point of production.
pub(super) fn greedy_tie() -> Result<Fraction> {
    let draft = Draft::new(TokenTree::chain(0)?, vec![-1], Law::Deterministic, None)?;
    let params = Params::new(0.0, 0, 1.0, 0.0, Preset::Transformers)?;
    let logits = RawRows::from_f32(&[0.0, 0.0], 2)?;
    let noise = Noise { seed: 1, position: 0 };
    let verdict = verify::verify(&draft, DrafterRows::NONE, logits, params, "greedy", None, noise)?;
    Ok(certain(verdict.tokens == [0]))
}

// ---- emission and commits ------------------------------------------------------------------------

/// A chain on B with stop token 0, cut behind it, against the target's law cut in the same way.
pub(super) fn stop_token() -> Result<Fraction> {
    let rows = MODELS[1].rows::<Fraction>(&WeightParams::neutral());
    let case = Case { law: Law::Chain, shape: &[1, 1] };
    let outcomes = enumerate(|choices| {
        let (draft, mut view) = growth::draft(&rows, &case, choices)?;
        let Outcome { tokens, path, .. } =
            verify::decide(Core::TopDown, &draft, &mut view, choices)?;
        let mut verdict = Verdict { tokens, path, logprobs: Vec::new(), rule: "token" };
        if let Some(end) = verdict.tokens.iter().position(|&token| token == 0) {
            verdict.cut(end + 1);
        }
        Ok(verdict.tokens)
    })?;
    let mut found = OutputLaw::empty();
    for (tokens, weight) in &outcomes {
        if tokens.contains(&0) {
            found.add(tokens.clone(), weight);
            continue;
        }
        let mut longer = OutputLaw::empty();
        rows.continue_to(3, tokens, weight, &mut longer);
        for (tokens, weight) in longer.iter() {
            found.add(cut(tokens), weight);
        }
    }
    let mut whole = OutputLaw::empty();
    rows.continue_to(3, &[], &Fraction::one(), &mut whole);
    let mut wanted = OutputLaw::empty();
    for (tokens, weight) in whole.iter() {
        wanted.add(cut(tokens), weight);
    }
    Ok(found.distance(&wanted))
}

/// Tokens up to the first stop token 0.
fn cut(tokens: &[u32]) -> Vec<u32> {
    let end = tokens.iter().position(|&token| token == 0).map_or(tokens.len(), |at| at + 1);
    tokens[..end].to_vec()
}

/// The commit of a scattered path on a cache that holds each node's number.
pub(super) fn commit() -> Result<Fraction> {
    let tree = TokenTree::new(&[-1, 0, 0, 1, 2, 2, 4])?;
    let path = [2, 4, 6];
    let plan = kv::commit_plan(&tree, &path, 10)?;
    let mut cache: Vec<i64> = (0..17).map(|slot| slot - 10).collect();
    for &(from, to) in &plan.moves {
        cache[to as usize] = cache[from as usize];
    }
    cache.truncate(plan.length as usize);
    let kept = cache[10..] == [0, 2, 4, 6];
    Ok(certain(kept && plan.state_select == 6))
}

/// K-SEQ on two independent siblings at `rho = 2`, which the bisection would lower.
pub(super) fn sequence_at_two() -> Result<Fraction> {
    let rows = MODELS[4].rows::<Fraction>(&WeightParams::neutral());
    let case = Case { law: Law::Iid, shape: &[2] };
    let outcomes = enumerate(|choices| {
        let (draft, mut view) = growth::draft(&rows, &case, choices)?;
        kseq::decide_at(&draft, &mut view, choices, |_, _, _| Ok(Fraction::ratio(2, 1)))
    })?;
    Ok(summarise(&rows, 2, &outcomes).distance)
}

// ---- degenerate and lazy rows --------------------------------------------------------------------

/// A residual that is empty: the drafter's row, above the target's everywhere, stands for rounding.
pub(super) fn empty_residual() -> Result<Fraction> {
    let draft = Draft::new(TokenTree::chain(1)?, vec![-1, 0], Law::Chain, None)?;
    let half = fractions(&[(1, 2), (1, 2)]);
    let outcomes = enumerate(|choices| {
        let one = fractions(&[(1, 1), (1, 1)]);
        let mut view = DenseView { target: vec![half.clone(); 2], drafter: vec![one; 2] };
        verify::decide(Core::TopDown, &draft, &mut view, choices).map(|outcome| outcome.tokens[0])
    })?;
    Ok(law_of(outcomes).distance(&law_of_row(&[(1, 2), (1, 2)])))
}

/// Block verification where nothing may follow token 0: the law of what is emitted, the dead end
/// included, against reading one row after the other.
pub(super) fn dead_end() -> Result<Fraction> {
    const DEAD: u32 = 9;
    let row =
        |token: u32| if token == 0 { fractions(&[(0, 1), (0, 1)]) } else { fractions(HALVES) };
    let outcomes = enumerate(|choices| {
        let site = |node| Site::new(node, Purpose::Draft);
        let first = choices.draw(site(1), &mut DenseCells::new(fractions(&[(3, 4), (1, 4)])))?;
        let second = choices.draw(site(2), &mut DenseCells::new(fractions(HALVES)))?;
        let tokens = vec![-1, i64::from(first), i64::from(second)];
        let draft = Draft::new(TokenTree::chain(2)?, tokens, Law::Chain, None)?;
        let mut view = DenseView {
            target: vec![fractions(HALVES), row(first), row(second)],
            drafter: vec![fractions(&[(3, 4), (1, 4)]), fractions(HALVES), fractions(HALVES)],
        };
        match verify::decide(Core::Lifted, &draft, &mut view, choices) {
            Ok(outcome) => Ok(outcome.tokens[..2.min(outcome.tokens.len())].to_vec()),
            // The row after the first token is the only one that can be empty before two are out.
            Err(Error::RowEmpty { .. }) if first == 0 => Ok(vec![0, DEAD]),
            Err(Error::RowEmpty { .. }) => Ok(vec![1, 0]),
            Err(error) => Err(error),
        }
    })?;
    let mut found = OutputLaw::empty();
    let half = Fraction::ratio(1, 2);
    for (tokens, weight) in &outcomes {
        match tokens[..] {
            [0] => found.add(vec![0, DEAD], weight),
            [1] => {
                found.add(vec![1, 0], &weight.mul(&half));
                found.add(vec![1, 1], &weight.mul(&half));
            }
            _ => found.add(tokens.clone(), weight),
        }
    }
    let quarter = Fraction::ratio(1, 4);
    let wanted = vec![(vec![0, DEAD], half), (vec![1, 0], quarter.clone()), (vec![1, 1], quarter)];
    Ok(found.distance(&law_of(wanted)))
}

/// How many numbers of two words are told apart: 53 bits of them.
pub(super) fn resolution() -> Fraction {
    certain(rng::uniform(0, 1 << 11) > 0.0)
}

/// A rule over production's lazily read logits, to six digits; `vocab` gives the drafter's columns
/// another order.
fn over_logits(
    model: usize,
    case: Case,
    core: Core,
    vocab: Option<&[(u32, u32)]>,
) -> Result<Fraction> {
    let rows = MODELS[model].rows::<f64>(&WeightParams::neutral());
    let outcomes = enumerate(|choices| {
        let (draft, dense) = growth::draft(&rows, &case, choices)?;
        let cols = rows.target(&[]).len();
        let logits: Vec<f32> = dense.target.concat().iter().map(|p| p.ln() as f32).collect();
        let mut drafted: Vec<f32> = dense.drafter.concat().iter().map(|q| q.ln() as f32).collect();
        if let Some(pairs) = vocab {
            for (row, wanted) in drafted.chunks_mut(cols).zip(&dense.drafter) {
                for &(token, column) in pairs {
                    row[column as usize] = wanted[token as usize].ln() as f32;
                }
            }
        }
        let index: Vec<i64> = (0..draft.num_nodes() as i64).collect();
        let shaped = |values, side| {
            RawRows::from_f32(values, cols).map(|raw| ShapedRows::new(raw, Params::default(), side))
        };
        let source = Source::Logits(shaped(&drafted, Side::Drafter)?);
        let drafter = DrafterRows { source, index: &index, vocab };
        let mut view = LazyView::new(&draft, shaped(&logits, Side::Target)?, drafter);
        verify::decide(core, &draft, &mut view, choices)
    })?;
    let distance = summarise(&rows, case.shape.len() + 1, &outcomes).distance;
    Ok(Fraction::ratio((distance * 1e6).round() as i64, 1_000_000))
}

pub(super) fn lazy_tree() -> Result<Fraction> {
    over_logits(4, Case { law: Law::Mixed, shape: &[3, 1] }, Core::Lifted, None)
}

pub(super) fn lazy_columns() -> Result<Fraction> {
    let reversed = [(0, 3), (1, 2), (2, 1), (3, 0)];
    over_logits(4, Case { law: Law::Chain, shape: &[1] }, Core::TopDown, Some(&reversed))
}
