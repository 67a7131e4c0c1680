//! A model's rows in memory, and a rule run over them as production runs it.

use crate::chance::enumerator;
use crate::error::Result;
use crate::proof::Finding;
use crate::proof::float::formats::{Format, Kind, Matrix};
use crate::proof::float::models::LogModel;
use crate::proof::float::uniforms;
use crate::proof::golden::Rows;
use crate::proof::growth::{self, Case};
use crate::proof::summarise;
use crate::rows::simd::Kernels;
use crate::shaping::weights::WeightParams;
use crate::shaping::{Params, ShapedRows, Side, weights};
use crate::tree::TokenTree;
use crate::verify::law::{Draft, Law};
use crate::verify::lazy::{DrafterRows, LazyView, Source};
use crate::verify::view::View;
use crate::verify::{self, Core};

/// A model in one format, read with the kernels of one instruction set.
pub(super) struct Stage {
    pub(super) format: Format,
    params: Params,
    kernels: &'static Kernels,
    /// `(token, column)` of the drafter's rows, if they are mapped.
    map: Option<Vec<(u32, u32)>>,
    /// Rounded values, by row.
    target: Vec<Vec<f64>>,
    drafter: Vec<Vec<f64>>,
    /// Both sides' rows as they are read.
    pub(super) read: Rows<f64>,
    /// Both sides' rows by the definition, of the rounded values.
    pub(super) exact: Rows<f64>,
}

/// `exp(y) / sum exp(y)` after shaping by the definition.
///
/// The temperature divides in `f32`, as documented: what is rounded there belongs to the input.
fn shaped(logits: &[f64], params: Params) -> Vec<f64> {
    let divisor = params.temperature() as f32;
    let scaled: Vec<f64> = logits.iter().map(|&x| f64::from(x as f32 / divisor)).collect();
    let max = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let row: Vec<f64> = scaled.iter().map(|y| (y - max).exp()).collect();
    let mut row = weights::shape(&row, &over_weights(params));
    // Documented, too: less than this is nothing.
    row.iter_mut().filter(|p| **p < LEAST).for_each(|p| *p = 0.0);
    row
}

/// The steps after the temperature, over weights.
fn over_weights(params: Params) -> WeightParams<f64> {
    let (top_k, top_p, min_p) = params.cuts();
    WeightParams { inverse_temperature: 1, top_k, top_p, min_p, preset: params.preset() }
}

/// The least probability that a row of logits gives.
const LEAST: f64 = 1.0 / (1_u128 << 124) as f64;

fn normalised(row: &[f64]) -> Vec<f64> {
    let total: f64 = row.iter().sum();
    row.iter().map(|weight| weight / total).collect()
}

/// The tokens of the drafter's columns: all, or those that it can draft from the last to the first.
fn columns(rows: &[Vec<f64>], format: Format) -> Vec<usize> {
    let nothing = match format.kind {
        Kind::Logits => f64::NEG_INFINITY,
        Kind::Probabilities => 0.0,
    };
    let all = 0..rows[0].len();
    if !format.is_mapped {
        return all.collect();
    }
    all.rev().filter(|&token| rows.iter().any(|row| row[token] > nothing)).collect()
}

impl Stage {
    /// Rounds a model's rows, and reads them.
    pub(super) fn new(
        model: &LogModel,
        format: Format,
        params: Params,
        kernels: &'static Kernels,
    ) -> Result<Self> {
        let vocab = model.vocab();
        let given: Vec<Vec<f64>> = match format.kind {
            Kind::Logits => model.drafter.clone(),
            Kind::Probabilities => model
                .drafter
                .iter()
                .zip(&model.sums)
                .map(|(row, sum)| shaped(row, params).iter().map(|q| q * sum).collect())
                .collect(),
        };
        let columns = columns(&given, format);
        let map = format.is_mapped.then(|| {
            let mut pairs: Vec<(u32, u32)> = columns.iter().map(|&t| t as u32).zip(0..).collect();
            pairs.sort_unstable();
            pairs
        });
        let narrow: Vec<Vec<f64>> =
            given.iter().map(|row| columns.iter().map(|&token| row[token]).collect()).collect();
        let target = Matrix::of(format.target, &model.target).widened(vocab)?;
        let drafter = Matrix::of(format.drafter, &narrow).widened(columns.len())?;
        let wide = |row: Vec<f64>| {
            let mut wide = vec![0.0; vocab];
            for (&token, q) in columns.iter().zip(row) {
                wide[token] = q;
            }
            wide
        };
        let law = |row: &Vec<f64>| match format.kind {
            Kind::Logits => wide(shaped(row, params)),
            Kind::Probabilities => wide(normalised(row)),
        };
        let exact = Rows {
            target: target.iter().map(|row| shaped(row, params)).collect(),
            drafter: drafter.iter().map(law).collect(),
            offset: 0,
        };
        let nothing = Rows { target: Vec::new(), drafter: Vec::new(), offset: 0 };
        let mut stage =
            Self { format, params, kernels, map, target, drafter, read: nothing, exact };
        stage.read = stage.read_rows(vocab)?;
        Ok(stage)
    }

    /// Every row, token by token, through the view.
    fn read_rows(&self, vocab: usize) -> Result<Rows<f64>> {
        let (mut targets, mut drafters) = (Vec::new(), Vec::new());
        for number in 0..self.target.len() {
            self.look(number, |mut view, node| {
                let tokens = 0..vocab as u32;
                targets.push(tokens.map(|token| view.target(node, token)).collect::<Result<_>>()?);
                drafters.push(view.drafter_row(node)?);
                Ok(())
            })?;
        }
        Ok(Rows { target: targets, drafter: drafters, offset: 0 })
    }

    /// Gives a view in which a node below the root has the rows of a number.
    pub(super) fn look<T>(
        &self,
        number: usize,
        work: impl FnOnce(LazyView<'_>, usize) -> Result<T>,
    ) -> Result<T> {
        let draft = Draft::new(TokenTree::chain(2)?, vec![-1, 0, 0], Law::Chain, None)?;
        let memory = self.memory(&[0, number, number]);
        work(self.view(&draft, &memory)?, 1)
    }

    /// The matrices of a draft.
    fn memory(&self, numbers: &[usize]) -> Memory {
        let rows = |all: &[Vec<f64>]| -> Vec<Vec<f64>> {
            numbers.iter().map(|&number| all[number % all.len()].clone()).collect()
        };
        Memory {
            target: Matrix::of(self.format.target, &rows(&self.target)),
            drafter: Matrix::of(self.format.drafter, &rows(&self.drafter)),
            index: (0..numbers.len() as i64).collect(),
        }
    }

    fn view<'a>(&'a self, draft: &'a Draft, memory: &'a Memory) -> Result<LazyView<'a>> {
        let target = memory.target.rows(self.target[0].len())?;
        let drafter = memory.drafter.rows(self.drafter[0].len())?;
        let shaped = |raw, side| ShapedRows::new(raw, self.params, side).read_with(self.kernels);
        let source = match self.format.kind {
            Kind::Logits => Source::Logits(shaped(drafter, Side::Drafter)),
            Kind::Probabilities => Source::Probabilities(drafter),
        };
        let drafter = DrafterRows { source, index: &memory.index, vocab: self.map.as_deref() };
        Ok(LazyView::new(draft, shaped(target, Side::Target), drafter))
    }

    /// Enumerates one step of a rule, over drafts and all numbers, drafts drawn from `rows`; the law is
    /// compared with that of `rows`.
    pub(super) fn run(&self, rows: &Rows<f64>, case: &Case, core: Core) -> Result<Finding<f64>> {
        let drafts = enumerator::enumerate(|choices| growth::draft(rows, case, choices))?;
        let mut outcomes = Vec::new();
        for ((draft, _), weight) in drafts {
            let number = |node| {
                let path = draft.tree().path(node);
                let tokens: Vec<u32> = path.iter().map(|&n| draft.token(n as usize)).collect();
                rows.number(&tokens)
            };
            let numbers: Vec<usize> = (0..draft.num_nodes()).map(number).collect();
            let memory = self.memory(&numbers);
            let decided = uniforms::enumerate(|choices| {
                // A view of its own for each run: what one run asked must not help another.
                verify::decide(core, &draft, &mut self.view(&draft, &memory)?, choices)
            })?;
            outcomes.extend(decided.into_iter().map(|(outcome, p)| (outcome, p * weight)));
        }
        Ok(summarise(rows, case.shape.len() + 1, &outcomes))
    }
}

/// The rows of one draft.
struct Memory {
    target: Matrix,
    drafter: Matrix,
    index: Vec<i64>,
}
