//! The lazy view: the same question has the same answer, whatever was asked before.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use mtp_verify::chance::{Cells, RaceNoise};
use mtp_verify::rows::RawRows;
use mtp_verify::shaping::{Params, Preset, ShapedRows, Side};
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lazy::{DrafterRows, LazyView, Source};
use mtp_verify::verify::view::{Mix, View};
use mtp_verify::verify::{RULES, expected_accepted, resolve};
use proptest::prelude::*;

/// What a rule may ask of a view.
#[derive(Debug, Clone)]
enum Question {
    Target(usize, u32),
    Drafter(usize, u32),
    Rest(usize, Vec<u32>),
    Total(usize, Mix<f64>),
    Weight(usize, Mix<f64>, u32),
    Locate(usize, Mix<f64>, f64),
    Race(usize, Mix<f64>),
    LogProbability(usize, u32),
}

impl Question {
    /// The answer's bits; an error as text.
    fn ask(&self, view: &mut LazyView<'_>) -> Result<u64, String> {
        let answer = match self {
            Self::Target(node, token) => view.target(*node, *token).map(f64::to_bits),
            Self::Drafter(node, token) => view.drafter(*node, *token).map(f64::to_bits),
            Self::Rest(node, without) => view.drafter_rest(*node, without).map(f64::to_bits),
            Self::Total(node, mix) => view.mixture(*node, mix).map(|cells| cells.total().to_bits()),
            Self::Weight(node, mix, token) => view
                .mixture(*node, mix)
                .and_then(|mut cells| cells.weight(*token))
                .map(f64::to_bits),
            Self::Locate(node, mix, u) => view.mixture(*node, mix).and_then(|mut cells| {
                let point = u * cells.total();
                cells.locate(&point).map(u64::from)
            }),
            Self::Race(node, mix) => view
                .mixture(*node, mix)
                .and_then(|mut cells| cells.race(&RaceNoise::new(3, 5)).map(u64::from)),
            Self::LogProbability(node, token) => {
                view.log_probability(*node, *token).map(f64::to_bits)
            }
        };
        answer.map_err(|error| error.to_string())
    }
}

/// A row's logits: ordinary, peaked, tied, masked or flat.
fn row(vocab: usize) -> impl Strategy<Value = Vec<f32>> {
    let spread = prop_oneof![Just(1.0_f32), Just(8.0), Just(40.0), Just(0.0)];
    (proptest::collection::vec((-9_i32..9, 0_u32..8), vocab), spread).prop_map(|(row, spread)| {
        let value = |(x, kind): (i32, u32)| if kind == 0 { f32::NEG_INFINITY } else { x as f32 };
        let mut row: Vec<f32> = row.into_iter().map(|x| value(x) * spread.max(0.125)).collect();
        row[0] = 0.5 * spread;
        row
    })
}

fn question(nodes: usize, vocab: u32) -> impl Strategy<Value = Question> {
    let node = 0..nodes;
    let token = 0..vocab;
    let tokens = || proptest::collection::btree_set(0..vocab, 0..3);
    let mix = (prop_oneof![Just(0.0), Just(1.0), 0.01_f64..9.0], 0.0_f64..0.5, tokens(), tokens());
    let mix = mix.prop_map(|(b, floor, set, removed)| Mix {
        b,
        floor: if floor < 0.3 { 0.0 } else { floor },
        scale: 1.0,
        set: set.into_iter().collect(),
        removed: removed.into_iter().collect(),
    });
    let without = tokens().prop_map(|tokens| tokens.into_iter().collect::<Vec<u32>>());
    prop_oneof![
        (node.clone(), token.clone()).prop_map(|(n, t)| Question::Target(n, t)),
        (node.clone(), token.clone()).prop_map(|(n, t)| Question::Drafter(n, t)),
        (node.clone(), without).prop_map(|(n, w)| Question::Rest(n, w)),
        (node.clone(), mix.clone()).prop_map(|(n, m)| Question::Total(n, m)),
        (node.clone(), mix.clone(), token.clone()).prop_map(|(n, m, t)| Question::Weight(n, m, t)),
        (node.clone(), mix.clone(), 0.0_f64..1.0).prop_map(|(n, m, u)| Question::Locate(n, m, u)),
        (node.clone(), mix).prop_map(|(n, m)| Question::Race(n, m)),
        (node, token).prop_map(|(n, t)| Question::LogProbability(n, t)),
    ]
}

fn params() -> impl Strategy<Value = Params> {
    let top_k = prop_oneof![2 => Just(0_i64), 1 => 1_i64..6];
    let top_p = prop_oneof![2 => Just(1.0), 1 => 0.2_f64..1.0];
    let min_p = prop_oneof![2 => Just(0.0), 1 => 0.01_f64..0.5];
    (prop_oneof![Just(1.0), Just(0.2), Just(1.3)], top_k, top_p, min_p)
        .prop_map(|(t, k, p, m)| Params::new(t, k, p, m, Preset::Transformers).unwrap())
}

/// A tree's rows of logits for target and drafter.
#[derive(Debug, Clone)]
struct Case {
    target: Vec<f32>,
    drafter: Vec<f32>,
    vocab: usize,
    nodes: usize,
    params: Params,
    as_probabilities: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    // Two blocks and a bit, or a handful of tokens.
    let vocab = prop_oneof![4 => 2_usize..9, 1 => Just(4100_usize)];
    (vocab, 1_usize..5).prop_flat_map(|(vocab, nodes)| {
        let rows = || proptest::collection::vec(row(vocab), nodes).prop_map(|rows| rows.concat());
        (rows(), rows(), params(), any::<bool>()).prop_map(
            move |(target, drafter, params, as_probabilities)| Case {
                target,
                drafter,
                vocab,
                nodes,
                params,
                as_probabilities,
            },
        )
    })
}

impl Case {
    /// The drafter's rows as probabilities, where they are asked for.
    fn drafted(&self) -> Vec<f32> {
        if !self.as_probabilities {
            return self.drafter.clone();
        }
        let softmax = |row: &[f32]| -> Vec<f32> {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = row.iter().map(|x| (x - max).exp()).collect();
            let total: f32 = weights.iter().sum();
            weights.iter().map(|w| w / total).collect()
        };
        self.drafter.chunks(self.vocab).flat_map(softmax).collect()
    }

    fn view<'a>(&'a self, draft: &'a Draft, drafted: &'a [f32], index: &'a [i64]) -> LazyView<'a> {
        LazyView::new(draft, self.rows(&self.target, Side::Target), self.source(drafted, index))
    }

    fn rows<'a>(&self, values: &'a [f32], side: Side) -> ShapedRows<'a> {
        ShapedRows::new(RawRows::from_f32(values, self.vocab).unwrap(), self.params, side)
    }

    fn source<'a>(&self, drafted: &'a [f32], index: &'a [i64]) -> DrafterRows<'a> {
        let source = if self.as_probabilities {
            Source::Probabilities(RawRows::from_f32(drafted, self.vocab).unwrap())
        } else {
            Source::Logits(self.rows(drafted, Side::Drafter))
        };
        DrafterRows { source, index, vocab: None }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn answers_do_not_depend_on_what_was_asked_before(
        (case, questions) in cases().prop_flat_map(|case| {
            let question = question(case.nodes, case.vocab.min(2060) as u32);
            (Just(case), proptest::collection::vec(question, 1..24))
        })
    ) {
        let drafted = case.drafted();
        let index: Vec<i64> = (0..case.nodes as i64).collect();
        let tree = TokenTree::chain(case.nodes - 1).unwrap();
        let tokens = (0..case.nodes).map(|node| if node == 0 { -1 } else { 0 }).collect();
        let draft = Draft::new(tree, tokens, Law::Chain, None).unwrap();
        let mut asked = case.view(&draft, &drafted, &index);
        for question in &questions {
            let found = question.ask(&mut asked);
            let alone = question.ask(&mut case.view(&draft, &drafted, &index));
            prop_assert_eq!(found, alone, "{:?}", question);
        }
    }

    #[test]
    fn the_mean_of_accepted_tokens_is_found_on_every_row(
        case in cases(),
        parents in proptest::collection::vec(any::<proptest::sample::Index>(), 4),
        tokens in proptest::collection::vec(any::<proptest::sample::Index>(), 4),
        rule in 0..RULES.len(),
        law in proptest::sample::select(vec![Law::Swor, Law::Iid, Law::TopPlusOne, Law::Deterministic]),
    ) {
        let drafted = case.drafted();
        let mut above = vec![-1];
        above.extend((1..case.nodes).map(|node| parents[node - 1].index(node) as i64));
        let mut words = vec![-1];
        words.extend((1..case.nodes).map(|node| tokens[node - 1].index(case.vocab) as i64));
        let Ok(draft) = Draft::new(TokenTree::new(&above).unwrap(), words, law, None) else {
            return Ok(()); // Siblings of one token.
        };
        let rule = RULES[rule].name;
        if rule == "greedy" || rule == "gbv" || resolve(rule, law).is_err() {
            return Ok(());
        }
        let index: Vec<i64> = (0..case.nodes as i64).collect();
        let target = case.rows(&case.target, Side::Target);
        match expected_accepted(&draft, case.source(&drafted, &index), target, rule) {
            Ok(mean) => prop_assert!((0.0..=case.nodes as f64).contains(&mean), "{}", mean),
            // A token that its row does not draft.
            Err(error) => prop_assert_eq!(error.slug(), "zero_draft_probability"),
        }
    }
}
