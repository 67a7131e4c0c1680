//! The smallest model on which a rule is not lossless.
//!
//! Models of two tokens (three for a rule that needs them) come in order of size: one row of each side, then
//! three (the row after a path is number `(length + sum of the tokens) mod 3`, as in the golden models);
//! short drafts before long ones; small denominators before large ones. Of the first size that has any,
//! the largest distance counts, and the first of equal ones.

use super::{Measured, Rule};
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::verify::law::Law;

/// Sizes: the number of rows, and the largest denominator; less for what takes long to enumerate.
fn sizes(rule: &Rule) -> [(usize, i64); 2] {
    match (rule.law, rule.length, rule.sequences) {
        (Law::Chain, None, 1) => [(1, 6), (3, 3)],
        (Law::Chain, None, _) => [(1, 4), (3, 3)],
        _ => [(1, 4), (3, 2)],
    }
}

/// A model on which a rule emits something else than the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterexample {
    /// The target's rows.
    pub target: Vec<Vec<String>>,
    /// The drafter's rows.
    pub drafter: Vec<Vec<String>>,
    /// Children by depth.
    pub shape: &'static [usize],
    /// The tokens, for each sequence, whose probability is furthest off.
    pub tokens: Vec<Vec<u32>>,
    /// With which probability the rule emits them.
    pub emitted: String,
    /// With which probability the target does.
    pub wanted: String,
    /// The total variation of the two laws.
    pub distance: String,
}

/// The smallest counterexample, and how many models were tried.
pub(super) fn smallest(rule: &Rule) -> Result<(Option<Counterexample>, usize)> {
    let mut tried = 0;
    for (num_rows, most) in sizes(rule) {
        for &shape in rule.shapes {
            for den in 2..=most {
                let mut worst: Option<(Rows<Fraction>, Measured)> = None;
                for rows in models(rule.tried_tokens, num_rows, den) {
                    tried += 1;
                    let found = rule.measure(&rows, shape)?;
                    let least =
                        worst.as_ref().map_or_else(Fraction::zero, |(_, w)| w.distance.clone());
                    if found.distance > least {
                        worst = Some((rows, found));
                    }
                }
                if let Some((rows, found)) = worst {
                    return Ok((Some(describe(&rows, shape, &found)), tried));
                }
            }
        }
    }
    Ok((None, tried))
}

/// Every row of `tokens` probabilities of a denominator.
fn rows_of(tokens: usize, den: i64) -> Vec<Vec<Fraction>> {
    let mut rows = vec![(Vec::new(), den)];
    for _ in 1..tokens {
        rows = rows
            .iter()
            .flat_map(|(row, left)| {
                (0..=*left).map(move |num| {
                    let mut longer: Vec<Fraction> = row.clone();
                    longer.push(Fraction::ratio(num, den));
                    (longer, left - num)
                })
            })
            .collect();
    }
    let whole = |(mut row, left): (Vec<Fraction>, i64)| {
        row.push(Fraction::ratio(left, den));
        row
    };
    rows.into_iter().map(whole).collect()
}

/// Every model with rows of so many tokens and probabilities of a denominator.
fn models(tokens: usize, num_rows: usize, den: i64) -> impl Iterator<Item = Rows<Fraction>> {
    let rows = rows_of(tokens, den);
    let values = rows.len();
    (0..values.pow(2 * num_rows as u32)).map(move |number| {
        let digit = |place: usize| rows[number / values.pow(place as u32) % values].clone();
        Rows {
            target: (0..num_rows).map(digit).collect(),
            drafter: (num_rows..2 * num_rows).map(digit).collect(),
            offset: 0,
        }
    })
}

fn describe(rows: &Rows<Fraction>, shape: &'static [usize], found: &Measured) -> Counterexample {
    let (emitted, wanted) = &found.laws;
    let gap = |key: &Vec<Vec<u32>>| emitted.get(key).sub(&wanted.get(key));
    // A string that comes too often: there is one wherever any comes too rarely.
    let (tokens, _) = emitted
        .iter()
        .fold(None::<(&Vec<Vec<u32>>, Fraction)>, |best, (key, _)| match best {
            Some((_, ref largest)) if gap(key) <= *largest => best,
            _ => Some((key, gap(key))),
        })
        .expect("a law has outcomes");
    let text = |rows: &[Vec<Fraction>]| {
        rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect()
    };
    Counterexample {
        target: text(&rows.target),
        drafter: text(&rows.drafter),
        shape,
        tokens: tokens.clone(),
        emitted: emitted.get(tokens).to_string(),
        wanted: wanted.get(tokens).to_string(),
        distance: found.distance.to_string(),
    }
}
