//! Small models whose laws are known exactly.

use crate::chance::enumerator::OutputLaw;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::shaping::weights::{WeightParams, shape};

/// Rows of numerators and denominators.
pub(super) type Fractions = &'static [&'static [(i64, i64)]];

/// Rows of a target and of a drafter as fractions; the row after a path of tokens is number
/// `(length + sum of the tokens) mod (number of rows)`.
#[derive(Debug)]
pub struct Model {
    /// The model's letter.
    pub name: &'static str,
    target: Fractions,
    drafter: Fractions,
}

/// The golden models: two tokens; three; rows with zeros; four; a bad draft.
pub static MODELS: [Model; 5] = [
    Model { name: "A", target: &[&[(1, 3), (2, 3)]], drafter: &[&[(2, 3), (1, 3)]] },
    Model {
        name: "B",
        target: &[&[(1, 2), (1, 3), (1, 6)], &[(1, 6), (1, 2), (1, 3)], &[(1, 4), (1, 4), (1, 2)]],
        drafter: &[&[(1, 3), (1, 3), (1, 3)], &[(1, 2), (1, 4), (1, 4)], &[(1, 6), (2, 3), (1, 6)]],
    },
    Model {
        name: "C",
        target: &[&[(0, 1), (1, 2), (1, 2)], &[(3, 4), (1, 4), (0, 1)], &[(1, 1), (0, 1), (0, 1)]],
        drafter: &[&[(1, 2), (1, 2), (0, 1)], &[(1, 4), (0, 1), (3, 4)], &[(1, 3), (1, 3), (1, 3)]],
    },
    Model {
        name: "D",
        target: &[
            &[(1, 2), (1, 4), (1, 8), (1, 8)],
            &[(1, 8), (5, 8), (1, 8), (1, 8)],
            &[(1, 4), (1, 4), (3, 8), (1, 8)],
        ],
        drafter: &[
            &[(3, 8), (3, 8), (1, 8), (1, 8)],
            &[(1, 4), (1, 2), (1, 8), (1, 8)],
            &[(1, 8), (1, 8), (1, 2), (1, 4)],
        ],
    },
    Model {
        name: "E",
        target: &[&[(1, 10), (2, 10), (3, 10), (4, 10)], &[(4, 10), (3, 10), (2, 10), (1, 10)]],
        drafter: &[&[(4, 10), (3, 10), (2, 10), (1, 10)], &[(1, 10), (2, 10), (3, 10), (4, 10)]],
    },
];

impl Model {
    /// The number of tokens.
    pub fn vocab(&self) -> usize {
        self.target[0].len()
    }

    /// The model's rows after shaping both sides.
    pub fn rows<W: Weight>(&self, params: &WeightParams<W>) -> Rows<W> {
        Rows::new(self.target, self.drafter, params)
    }
}

/// Rows of any number type.
#[derive(Debug, Clone)]
pub struct Rows<W> {
    pub(super) target: Vec<Vec<W>>,
    pub(super) drafter: Vec<Vec<W>>,
    /// Length plus sum of the tokens already emitted.
    pub(super) offset: usize,
}

impl<W: Weight> Rows<W> {
    /// Rows of fractions after shaping both sides.
    pub(super) fn new(target: Fractions, drafter: Fractions, params: &WeightParams<W>) -> Self {
        let shaped = |rows: Fractions, params: &WeightParams<W>| {
            rows.iter()
                .map(|row| {
                    let row: Vec<W> = row.iter().map(|&(num, den)| W::ratio(num, den)).collect();
                    shape(&row, params)
                })
                .collect()
        };
        let target = mutate!(
            "shape/draft_only",
            shaped(target, params),
            shaped(target, &WeightParams::neutral())
        );
        Rows { target, drafter: shaped(drafter, params), offset: 0 }
    }

    fn index(&self, path: &[u32], rows: usize) -> usize {
        (self.offset + path.len() + path.iter().map(|&t| t as usize).sum::<usize>()) % rows
    }

    /// The number of the rows after a path, of which both sides have as many.
    pub(super) fn number(&self, path: &[u32]) -> usize {
        self.index(path, self.target.len())
    }

    /// The target's row after a path.
    pub fn target(&self, path: &[u32]) -> &[W] {
        &self.target[self.index(path, self.target.len())]
    }

    /// The drafter's row after a path.
    pub fn drafter(&self, path: &[u32]) -> &[W] {
        &self.drafter[self.index(path, self.drafter.len())]
    }

    /// The rows as seen after some tokens have been emitted.
    #[must_use]
    pub fn after(&self, tokens: &[u32]) -> Self {
        let mut rows = self.clone();
        rows.offset += tokens.len() + tokens.iter().map(|&t| t as usize).sum::<usize>();
        rows
    }

    /// The rows rounded to `f64`.
    pub fn to_f64(&self) -> Rows<f64> {
        let cast = |rows: &[Vec<W>]| -> Vec<Vec<f64>> {
            rows.iter().map(|row| row.iter().map(Weight::to_f64).collect()).collect()
        };
        Rows { target: cast(&self.target), drafter: cast(&self.drafter), offset: self.offset }
    }

    /// Adds every continuation of `tokens` by the target to `length` tokens, with its weight.
    pub fn continue_to(
        &self,
        length: usize,
        tokens: &[u32],
        weight: &W,
        law: &mut OutputLaw<W, Vec<u32>>,
    ) {
        if tokens.len() >= length {
            law.add(tokens.to_vec(), weight);
            return;
        }
        for (token, p) in (0_u32..).zip(self.target(tokens)) {
            if p.is_positive() {
                let mut longer = tokens.to_vec();
                longer.push(token);
                self.continue_to(length, &longer, &weight.mul(p), law);
            }
        }
    }
}
