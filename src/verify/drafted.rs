//! The drafter's rows of a draft: where they come from, and what is seen of them.
//!
//! Rows of probabilities are taken as weights: the law that a token was drawn from is its weight divided
//! by the sum of its row, whatever rounding made of that sum. The sum is taken before anything is decided
//! by the row. That it is near 1 is a check against mistakes (logits passed for probabilities, a row
//! never normalised), which are in every row if they are in one; so it is made on the row after the
//! root, which every call reads, and whether a draft is refused never depends on chance.

use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::rows::RawRows;
use crate::rows::simd::{BLOCK, Kernels};
use crate::rows::sums::{fold, sum_listed};
use crate::shaping::{Scratch, Shaped, ShapedRows};
use crate::verify::law::Draft;

/// How far a row of probabilities may be from summing to 1: what 16-bit rounding does to a row.
const SUM_TOLERANCE: f64 = 1e-2;

/// Less than this is no probability: what is left of a row is divided by, and must not overflow. Only
/// `f64` has such numbers.
pub const LEAST: f64 = f64::from_bits((1023 - 900) << 52);

/// Where the drafter's rows come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// The draft has none.
    None,
    /// Probabilities: weights that sum to about 1.
    Probabilities(RawRows<'a>),
    /// Logits, shaped like the target's.
    Logits(ShapedRows<'a>),
}

/// The drafter's rows of a draft.
#[derive(Debug, Clone, Copy)]
pub struct DrafterRows<'a> {
    /// The rows.
    pub source: Source<'a>,
    /// Which row belongs to each node; -1 for none.
    pub index: &'a [i64],
    /// `(token, column)` by ascending token when the rows are over a sub-vocabulary.
    pub vocab: Option<&'a [(u32, u32)]>,
}

/// What is known of a row once it has been read whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drafted {
    /// Its number among the rows.
    row: usize,
    /// How it is shaped, if it is a row of logits.
    shaped: Option<Shaped>,
    /// The sum of its weights.
    pub(super) total: f64,
}

impl Drafted {
    /// The row's number among the rows.
    pub(super) fn row(&self) -> usize {
        self.row
    }
}

impl<'a> DrafterRows<'a> {
    /// The row as values of `f32` that can be read in place, from a column on.
    pub(super) fn block_f32(&self, drafted: &Drafted, start: usize) -> Option<&'a [f32]> {
        match (self.source, self.vocab) {
            (Source::Probabilities(raw), None) => raw.block_f32(drafted.row, start),
            _ => None,
        }
    }
}

impl DrafterRows<'_> {
    /// No rows at all.
    pub const NONE: DrafterRows<'static> =
        DrafterRows { source: Source::None, index: &[], vocab: None };

    fn row(&self, draft: &Draft, node: usize) -> Result<usize> {
        let row = self.index.get(node).copied().unwrap_or(-1);
        usize::try_from(row).map_err(|_| Error::MissingRow {
            node: draft.tree().children(node).first().map_or(0, |&child| child as usize),
            parent: node,
            row,
        })
    }

    /// The columns whose numbers are those of tokens.
    #[cfg(feature = "mutants")]
    fn numbers_as_columns(&self, tokens: &[u32]) -> Vec<u32> {
        tokens.iter().copied().filter(|&token| (token as usize) < self.num_cols()).collect()
    }

    /// The number of columns.
    pub(super) fn num_cols(&self) -> usize {
        match self.source {
            Source::None => 0,
            Source::Probabilities(raw) => raw.num_cols(),
            Source::Logits(rows) => rows.num_cols(),
        }
    }

    /// The column of a token; `None` outside the sub-vocabulary.
    pub(crate) fn column(&self, token: u32) -> Option<u32> {
        match mutate!("lazy/column_is_token", self.vocab, None) {
            None => Some(token),
            Some(pairs) => {
                pairs.binary_search_by_key(&token, |pair| pair.0).ok().map(|at| pairs[at].1)
            }
        }
    }

    /// Reads the row that the children of a node were drawn from; the sums of its blocks stay in
    /// `scratch`, if the pass had them.
    pub(super) fn read(
        &self,
        draft: &Draft,
        node: usize,
        kernels: &Kernels,
        scratch: &mut Scratch,
    ) -> Result<Drafted> {
        let row = self.row(draft, node)?;
        match self.source {
            Source::None => Err(Error::MissingRow { node, parent: node, row: -1 }),
            Source::Logits(rows) => {
                let shaped = rows.shape(row, scratch)?;
                Ok(Drafted { row, shaped: Some(shaped), total: shaped.total() })
            }
            Source::Probabilities(raw) => {
                scratch.sums.clear();
                let mut is_sound = true;
                for start in raw.blocks() {
                    let (sum, has_negative) =
                        self.sum_block(row, None, start, &[], kernels, scratch);
                    is_sound &= !has_negative;
                    scratch.sums.push(sum);
                }
                let total = fold(&scratch.sums);
                if !is_sound || !total.is_finite() || total <= 0.0 {
                    check_values(&raw, row)?;
                    return Err(Error::RowNotNormalised { row, sum: total });
                }
                let is_checked = mutate!("float/sum_checked_at_every_node", node == 0, true);
                if is_checked && (total - 1.0).abs() > SUM_TOLERANCE {
                    return Err(Error::RowNotNormalised { row, sum: total });
                }
                Ok(Drafted {
                    row,
                    shaped: None,
                    total: mutate!("float/sum_taken_for_one", total, 1.0),
                })
            }
        }
    }

    /// The weight of a token in a row that has been read.
    pub(super) fn weight(&self, drafted: &Drafted, token: u32) -> f64 {
        let Some(column) = self.column(token) else {
            return 0.0;
        };
        match (self.source, &drafted.shaped) {
            (Source::Probabilities(raw), _) => {
                let weight = raw.value(drafted.row, column as usize);
                if weight < LEAST { 0.0 } else { weight }
            }
            (Source::Logits(rows), Some(shaped)) => rows.weight(drafted.row, shaped, column),
            _ => 0.0,
        }
    }

    /// Writes the weights of a block of columns into `scratch.taken`; returns how many there are.
    pub(super) fn fill(
        &self,
        drafted: &Drafted,
        start: usize,
        kernels: &Kernels,
        scratch: &mut Scratch,
    ) -> usize {
        let Scratch { buffers, terms, taken, .. } = scratch;
        match (self.source, &drafted.shaped) {
            (Source::Probabilities(raw), _) => {
                let len = BLOCK.min(raw.num_cols() - start);
                raw.block_f64(kernels, drafted.row, start, &mut taken[..len], terms);
                len
            }
            (Source::Logits(rows), Some(shaped)) => {
                let len = rows.weigh(drafted.row, shaped, start, buffers, terms);
                (kernels.widen_f32)(&terms[..len], &mut taken[..len]);
                len
            }
            _ => 0,
        }
    }

    /// The sum of the weights of a block outside some of its columns, and whether one is negative.
    fn sum_block(
        &self,
        row: usize,
        shaped: Option<Shaped>,
        start: usize,
        without: &[u32],
        kernels: &Kernels,
        scratch: &mut Scratch,
    ) -> (f64, bool) {
        let drafted = Drafted { row, shaped, total: 0.0 };
        if without.is_empty() {
            match (self.source, &shaped) {
                (Source::Probabilities(raw), _) if raw.is_narrow() => {
                    let block = raw.block(kernels, row, start, &mut scratch.terms);
                    let total = (kernels.total)(block);
                    return (total.sum, total.has_negative);
                }
                (Source::Logits(rows), Some(shaped)) => {
                    return (rows.sum_block(row, shaped, start, scratch), false);
                }
                _ => {}
            }
        }
        let len = self.fill(&drafted, start, kernels, scratch);
        let taken = &mut scratch.taken[..len];
        for &column in without {
            taken[column as usize - start] = 0.0;
        }
        ((kernels.sum)(taken), taken.iter().any(|&q| q < 0.0))
    }

    /// The sum of a row's weights outside distinct tokens, given the sums of its blocks if there are any.
    pub(super) fn sum_rest(
        &self,
        drafted: &Drafted,
        without: &[u32],
        sums: &[f64],
        kernels: &Kernels,
        scratch: &mut Scratch,
    ) -> f64 {
        let mut columns: Vec<u32> = without.iter().filter_map(|&t| self.column(t)).collect();
        mutate!("float/rest_of_first_sibling", (), columns.truncate(1));
        mutate!("float/rest_by_token", (), columns = self.numbers_as_columns(without));
        columns.sort_unstable();
        if let (Source::Logits(rows), Some(shaped)) = (self.source, &drafted.shaped)
            && shaped.is_truncated()
            && rows.list_kept(drafted.row, shaped, scratch)
        {
            let Scratch { list, sums, .. } = scratch;
            let outside = |at: usize| {
                let is_left = columns.binary_search(&list.tokens[at]).is_err();
                if is_left { f64::from(list.weights[at]) } else { 0.0 }
            };
            return sum_listed(&list.tokens, outside, sums);
        }
        let mut rest = std::mem::take(&mut scratch.sums);
        rest.clear();
        for (block, start) in (0..self.num_cols()).step_by(BLOCK).enumerate() {
            let from = columns.partition_point(|&column| (column as usize) < start);
            let to = columns.partition_point(|&column| (column as usize) < start + BLOCK);
            rest.push(match sums.get(block) {
                Some(&sum) if from == to => sum,
                _ => {
                    let Drafted { row, shaped, .. } = *drafted;
                    self.sum_block(row, shaped, start, &columns[from..to], kernels, scratch).0
                }
            });
        }
        let mass = fold(&rest);
        scratch.sums = rest;
        mass
    }
}

/// Checks that a row of probabilities is a distribution.
///
/// # Errors
/// [`Error::RowNotFinite`] names a NaN, infinite or negative value, [`Error::RowNotNormalised`] the
/// sum.
pub fn check_distribution(raw: &RawRows<'_>, row: usize) -> Result<()> {
    let sum = check_values(raw, row)?;
    if (sum - 1.0).abs() > SUM_TOLERANCE {
        return Err(Error::RowNotNormalised { row, sum });
    }
    Ok(())
}

/// Reads a row of probabilities value by value; returns its sum.
fn check_values(raw: &RawRows<'_>, row: usize) -> Result<f64> {
    let mut sum = 0.0;
    for token in 0..raw.num_cols() {
        let p = raw.value(row, token);
        if !(p >= 0.0 && p.is_finite()) {
            return Err(Error::RowNotFinite {
                side: "drafter",
                row,
                token,
                found: p.to_string(),
                wanted: "probabilities are finite and not negative",
            });
        }
        sum += p;
    }
    Ok(sum)
}
