//! Tables against counting by hand, for every node of random trees' paths.

use super::{Concern, Penalties, Table};
use crate::error::Error;
use proptest::prelude::*;

const VOCAB: usize = 70;

fn tokens(most: usize) -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(prop_oneof![3 => 0_u32..5, 1 => 0..VOCAB as u32], 0..most)
}

fn penalties() -> impl Strategy<Value = Penalties> {
    (
        prop_oneof![Just(1.0), Just(1.5)],
        prop_oneof![Just(0.0), Just(0.25)],
        0_usize..4,
        tokens(4),
        0_usize..12,
    )
        .prop_map(|(repetition, presence, no_repeat_ngram, banned, min_new_tokens)| {
            let bias = vec![(69, -1.0), (2, 0.5)];
            let stop_ids = vec![3, 64];
            let fields = Penalties {
                repetition,
                presence,
                no_repeat_ngram,
                bias,
                banned,
                min_new_tokens,
                stop_ids,
                ..Penalties::default()
            };
            fields.check().unwrap()
        })
}

/// What the definition says of one token after a whole text.
fn by_hand(penalties: &Penalties, text: &[u32], prompt_len: usize, token: u32) -> Concern {
    let output = &text[prompt_len..];
    let n = penalties.no_repeat_ngram;
    let mut with = text.to_vec();
    with.push(token);
    let repeats = n > 0
        && with.len() > n
        && with.windows(n).rev().skip(1).any(|gram| gram == &with[with.len() - n..]);
    let early = output.len() < penalties.min_new_tokens && penalties.stop_ids.contains(&token);
    let counts = output.iter().filter(|&&other| other == token).count() as u32;
    Concern {
        token,
        bias: penalties.bias.iter().find(|pair| pair.0 == token).map_or(0.0, |pair| pair.1),
        seen: penalties.repetition > 1.0 && text.contains(&token),
        count: if penalties.presence > 0.0 { counts } else { 0 },
        banned: repeats || early || penalties.banned.contains(&token),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_node_has_what_its_own_text_gives(
        penalties in penalties(),
        history in tokens(20),
        path in tokens(6),
        share in 0.0_f64..1.0,
    ) {
        let prompt_len = (history.len() as f64 * share) as usize;
        let table = Table::new(&penalties, &history, prompt_len, VOCAB).unwrap();
        for depth in 0..=path.len() {
            let text = [&history[..], &path[..depth]].concat();
            let found = table.concerns(&path[..depth]);
            prop_assert!(found.windows(2).all(|pair| pair[0].token < pair[1].token));
            for token in 0..VOCAB as u32 {
                let wanted = by_hand(&penalties, &text, prompt_len, token);
                let concern = found.iter().find(|concern| concern.token == token);
                let concern = concern.copied().unwrap_or(Concern {
                    token, bias: 0.0, seen: false, count: 0, banned: false,
                });
                prop_assert_eq!(concern, wanted);
            }
        }
    }
}

/// The definition, step by step.
fn penalised(penalties: &Penalties, concern: &Concern, x: f32) -> f32 {
    if concern.banned {
        return f32::NEG_INFINITY;
    }
    let theta = penalties.repetition as f32;
    let mut y = x + concern.bias;
    if concern.seen {
        y = match (y < 0.0, penalties.by_reciprocal) {
            (true, _) => y * theta,
            (false, false) => y / theta,
            (false, true) => y * (1.0 / theta),
        };
    }
    if concern.count > 0 {
        y -= penalties.frequency as f32 * concern.count as f32;
        y -= penalties.presence as f32;
    }
    y
}

proptest! {
    #[test]
    fn numbers_change_a_logit_as_the_definition_does(
        x in prop_oneof![
            3 => -90.0_f32..90.0,
            1 => proptest::sample::select(vec![
                0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, 1e-45,
            ]),
        ],
        (repetition, presence, frequency) in (
            prop_oneof![Just(1.1), 0.1..3.0],
            prop_oneof![Just(0.0), -2.0..2.0],
            prop_oneof![Just(0.0), -2.0..2.0],
        ),
        (bias, seen, count, banned) in (
            prop_oneof![2 => Just(0.0_f32), 2 => -9.0_f32..9.0, 1 => Just(f32::NEG_INFINITY)],
            any::<bool>(), 0_u32..3, proptest::bool::weighted(0.1),
        ),
        by_reciprocal in any::<bool>(),
    ) {
        let penalties =
            Penalties { repetition, presence, frequency, by_reciprocal, ..Penalties::default() };
        let concern = Concern { token: 0, bias, seen, count, banned };
        let (found, wanted) = (penalties.apply(&concern, x), penalised(&penalties, &concern, x));
        prop_assert!(
            found.to_bits() == wanted.to_bits() || found.is_nan() && wanted.is_nan(),
            "{} is not {}", found, wanted
        );
    }
}

#[test]
fn tokens_that_nothing_concerns_are_not_listed() {
    let penalties = Penalties { presence: 0.5, ..Penalties::default() }.check().unwrap();
    let table = Table::new(&penalties, &[1, 2, 3], 2, VOCAB).unwrap();
    let listed = |path: &[u32]| -> Vec<u32> {
        table.concerns(path).iter().map(|concern| concern.token).collect()
    };
    assert_eq!(listed(&[]), [3]);
    assert_eq!(listed(&[60, 3]), [3, 60]);
}

#[test]
fn a_token_has_one_bias() {
    let twice = Penalties { bias: vec![(3, 1.0), (1, 0.5), (3, -1.0)], ..Penalties::default() };
    let found = twice.check();
    assert!(matches!(found, Err(Error::ParamOutOfRange { name: "logit_bias", .. })), "{found:?}");
}

#[test]
fn what_lies_outside_is_named() {
    let banned = Penalties { banned: vec![70], ..Penalties::default() };
    for (penalties, history, prompt_len, name) in [
        (Penalties::default(), vec![1], 2, "prompt_len"),
        (Penalties::default(), vec![70], 0, "history"),
        (banned, vec![], 0, "banned"),
    ] {
        let error = Table::new(&penalties, &history, prompt_len, VOCAB).unwrap_err();
        assert!(matches!(error, Error::ParamOutOfRange { name: found, .. } if found == name));
    }
}
