//! The smallest model on which a rule is not lossless.
//!
//! Models of two tokens come in order of size: one row of each side, then three (the row after a path is
//! number `(length + sum of the tokens) mod 3`, as in the golden models); short drafts before long
//! ones; small denominators before large ones. Of the first size that has any, the largest distance
//! counts, and the first of equal ones.

use super::{Measured, Rule};
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::verify::law::Law;

/// Sizes: the number of rows, and the largest denominator; less for what takes long to enumerate.
fn sizes(rule: &Rule) -> [(usize, i64); 2] {
    if rule.is_one_step() && rule.law == Law::Chain { [(1, 6), (3, 3)] } else { [(1, 4), (3, 2)] }
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
                for rows in models(num_rows, den) {
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

/// Every model of two tokens with probabilities of a denominator.
fn models(num_rows: usize, den: i64) -> impl Iterator<Item = Rows<Fraction>> {
    let values = den as usize + 1;
    let row = move |num: usize| {
        vec![Fraction::ratio(num as i64, den), Fraction::ratio(den - num as i64, den)]
    };
    (0..values.pow(2 * num_rows as u32)).map(move |number| {
        let digit = |place: usize| row(number / values.pow(place as u32) % values);
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
