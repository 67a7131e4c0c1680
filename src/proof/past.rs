//! Rows that depend on their own past: what production finds for each node of a draft, against reading
//! the whole text before each token.

use crate::chance::enumerator::{OutputLaw, enumerate};
use crate::error::Result;
use crate::number::Weight;
use crate::proof::golden::Rows;
use crate::proof::growth::{self, Case};
use crate::rows::history::{Penalties, Table, WeightPenalties};
use crate::shaping::Mask;
use crate::verify::law::Draft;
use crate::verify::{self, Core};

/// What shapes a row by the tokens before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    /// Tokens of the text are squared: logits times two.
    Repetition,
    /// Halved for each time in the output.
    Frequency,
    /// Halved once if in the output.
    Presence,
    /// No pair of tokens comes twice.
    Pairs,
    /// Token 0 is held back before the first token.
    MinNewTokens,
    /// A mask that forbids the token just emitted.
    Mask,
}

impl Setting {
    /// All of them.
    #[cfg(test)]
    const ALL: [Self; 6] = [
        Self::Repetition,
        Self::Frequency,
        Self::Presence,
        Self::Pairs,
        Self::MinNewTokens,
        Self::Mask,
    ];

    /// The text up to the root; its first token is the prompt.
    fn history(self) -> &'static [u32] {
        match self {
            Self::Repetition | Self::Frequency => &[2],
            Self::Pairs => &[0, 1, 0],
            Self::Presence | Self::MinNewTokens | Self::Mask => &[1],
        }
    }

    fn penalties(self) -> Penalties {
        let off = Penalties::default();
        match self {
            Self::Repetition => Penalties { repetition: 2.0, ..off },
            Self::Frequency => Penalties { frequency: 1.0, ..off },
            Self::Presence => Penalties { presence: 1.0, ..off },
            Self::Pairs => Penalties { no_repeat_ngram: 2, ..off },
            Self::MinNewTokens => Penalties { min_new_tokens: 1, stop_ids: vec![0], ..off },
            Self::Mask => off,
        }
    }

    /// The factor of a token after a text, by the definition alone.
    fn factor<W: Weight>(self, text: &[u32], token: u32, weight: &W) -> W {
        let output = &text[PROMPT_LEN..];
        let times = output.iter().filter(|&&other| other == token).count() as u32;
        let half = |power: u32| (0..power).fold(W::one(), |x, _| x.mul(&W::ratio(1, 2)));
        let unless = |is_gone| if is_gone { W::zero() } else { W::one() };
        let last = text[text.len() - 1];
        match self {
            Self::Repetition if text.contains(&token) => weight.clone(),
            Self::Repetition => W::one(),
            Self::Frequency => half(times),
            Self::Presence => half(times.min(1)),
            Self::Pairs => unless(text.windows(2).any(|pair| pair == [last, token])),
            Self::MinNewTokens => unless(output.is_empty() && token == 0),
            Self::Mask => unless(token == last),
        }
    }
}

const PROMPT_LEN: usize = 1;

/// The total variation of one step over rows shaped as production finds their pasts, from the law by
/// definition.
///
/// # Errors
/// Whatever the rule raises.
pub(super) fn distance<W: Weight>(
    rows: &Rows<W>,
    case: &Case,
    core: Core,
    setting: Setting,
) -> Result<W> {
    let outcomes = enumerate(|choices| {
        let (draft, mut view) = growth::draft(rows, case, choices)?;
        view.target = shaped(&draft, &view.target, setting)?;
        verify::decide(core, &draft, &mut view, choices)
    })?;
    let length = case.shape.len() + 1;
    let (mut found, mut wanted) = (OutputLaw::empty(), OutputLaw::empty());
    for (outcome, weight) in outcomes {
        proceed(rows, setting, length, &outcome.tokens, &weight, &mut found);
    }
    proceed(rows, setting, length, &[], &W::one(), &mut wanted);
    Ok(found.distance(&wanted))
}

/// The rows of a draft's nodes, by the table and the mask that production uses.
fn shaped<W: Weight>(draft: &Draft, rows: &[Vec<W>], setting: Setting) -> Result<Vec<Vec<W>>> {
    let (nodes, vocab) = (rows.len(), rows[0].len());
    let paths: Vec<Vec<u32>> = (0..nodes)
        .map(|node| draft.tree().path(node).iter().map(|&n| draft.token(n as usize)).collect())
        .collect();
    let history = setting.history();
    let penalties = setting.penalties();
    let table = Table::new(&penalties, history, PROMPT_LEN, vocab)?;
    let half = W::ratio(1, 2);
    let factors = WeightPenalties { repetition: 2, frequency: half.clone(), presence: W::one() };
    let factors = match setting {
        Setting::Presence => WeightPenalties { frequency: W::one(), presence: half, ..factors },
        _ => factors,
    };
    let last = |path: &Vec<u32>| path.last().copied().unwrap_or(history[history.len() - 1]);
    let words: Vec<i32> = paths.iter().map(|path| !(1 << last(path))).collect();
    let mask = Mask::new(&words, [nodes, 1, 1], (nodes, vocab))?;
    Ok(rows
        .iter()
        .enumerate()
        .map(|(node, row)| {
            let mut row = row.clone();
            for concern in table.concerns(&paths[node]) {
                let weight = &mut row[concern.token as usize];
                *weight = factors.apply(&concern, weight);
            }
            for (token, weight) in (0..).zip(&mut row) {
                if setting == Setting::Mask && !mask.allows(node, token) {
                    *weight = W::zero();
                }
            }
            normalised(&row)
        })
        .collect())
}

fn normalised<W: Weight>(row: &[W]) -> Vec<W> {
    let total = row.iter().fold(W::zero(), |sum, weight| sum.add(weight));
    row.iter().map(|weight| weight.div(&total)).collect()
}

/// Adds every continuation of `tokens` to `length` tokens, each row shaped by the text before it.
fn proceed<W: Weight>(
    rows: &Rows<W>,
    setting: Setting,
    length: usize,
    tokens: &[u32],
    weight: &W,
    law: &mut OutputLaw<W, Vec<u32>>,
) {
    if tokens.len() >= length {
        law.add(tokens.to_vec(), weight);
        return;
    }
    let text = [setting.history(), tokens].concat();
    let edited: Vec<W> = (0..)
        .zip(rows.target(tokens))
        .map(|(token, p)| p.mul(&setting.factor(&text, token, p)))
        .collect();
    for (token, p) in (0_u32..).zip(normalised(&edited)) {
        if p.is_positive() {
            proceed(rows, setting, length, &[tokens, &[token]].concat(), &weight.mul(&p), law);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::fraction::Fraction;
    use crate::proof::golden::MODELS;
    use crate::shaping::weights::WeightParams;
    use crate::verify::law::Law;

    #[test]
    fn every_rule_is_lossless_over_rows_that_depend_on_their_past() {
        let rows = MODELS[1].rows::<Fraction>(&WeightParams::neutral());
        let cases: [(Law, &'static [usize], &[Core]); 4] = [
            (Law::Deterministic, &[2, 1], &[Core::TargetOnly, Core::Coupled]),
            (Law::Chain, &[1, 1], &[Core::TopDown, Core::Lifted]),
            (Law::Swor, &[2, 1], &[Core::TopDown, Core::Lifted]),
            (Law::Iid, &[2], &[Core::TopDown, Core::Lifted]),
        ];
        for (law, shape, cores) in cases {
            for &core in cores {
                for setting in Setting::ALL {
                    let found = distance(&rows, &Case { law, shape }, core, setting).unwrap();
                    assert!(!found.is_positive(), "{law:?} {core:?} {setting:?}: {found}");
                }
            }
        }
    }

    #[test]
    fn weights_are_penalised_as_their_logarithms() {
        let weights = WeightPenalties { repetition: 2, frequency: 0.5, presence: 0.25 };
        let penalties = Penalties {
            repetition: 2.0,
            frequency: 2.0_f64.ln(),
            presence: 4.0_f64.ln(),
            ..Penalties::default()
        };
        let table = Table::new(&penalties, &[0, 1, 1, 2], 1, 4).unwrap();
        for concern in table.concerns(&[2]) {
            let found = weights.apply(&concern, &0.3);
            let wanted = f64::from(penalties.apply(&concern, 0.3_f32.ln())).exp();
            assert!((found - wanted).abs() < 1e-6, "{concern:?}: {found}, wanted {wanted}");
        }
    }
}
