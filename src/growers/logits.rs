//! Production's rows: a drafter's logits, shaped when a grower asks for something.

use crate::chance::{Cells, Choices, RaceNoise, Site};
use crate::error::{Error, Result};
use crate::growers::DraftRows;
use crate::rows::RawRows;
use crate::rows::simd::BLOCK;
use crate::shaping::{Params, Scratch, ShapedRows, Side};
use crate::verify::law::Draft;
use crate::verify::lazy::{DrafterRows, LazyView};
use crate::verify::view::{Mix, View};

/// What the columns of a sub-vocabulary stand for.
///
/// A head's columns ascend but for a few at their end, and a vocabulary is made for every draft:
/// only the end is sorted.
#[derive(Debug, Clone)]
pub struct Vocabulary {
    /// Token of each column.
    tokens: Vec<u32>,
    /// How many of the first columns ascend.
    ascending: usize,
    /// `(token, column)` of the others, by ascending token.
    others: Vec<(u32, u32)>,
}

impl Vocabulary {
    /// Column `j` stands for `tokens[j]`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if two columns stand for one token.
    pub fn new(tokens: Vec<u32>) -> Result<Self> {
        let falls = |pair: &[u32]| pair[0] >= pair[1];
        let ascending = tokens.windows(2).position(falls).map_or(tokens.len(), |at| at + 1);
        let mut others: Vec<(u32, u32)> = tokens.iter().copied().zip(0..).skip(ascending).collect();
        others.sort_unstable();
        let first = |token| tokens[..ascending].binary_search(&token).ok().map(|at| at as u32);
        let same = others
            .windows(2)
            .find(|pair| pair[0].0 == pair[1].0)
            .map(|pair| (pair[0].1, pair[1].1))
            .or_else(|| others.iter().find_map(|&(token, at)| first(token).map(|one| (one, at))));
        if let Some((one, other)) = same {
            return Err(Error::ShapeMismatch {
                what: "vocab",
                found: format!("token {} at columns {one} and {other}", tokens[one as usize]),
                wanted: "distinct tokens".into(),
            });
        }
        Ok(Self { tokens, ascending, others })
    }

    /// The number of columns.
    pub fn num_columns(&self) -> usize {
        self.tokens.len()
    }

    fn token(&self, column: u32) -> u32 {
        self.tokens[column as usize]
    }

    pub(super) fn column(&self, token: u32) -> Option<u32> {
        if let Ok(at) = self.tokens[..self.ascending].binary_search(&token) {
            return Some(at as u32);
        }
        let at = self.others.binary_search_by_key(&token, |pair| pair.0).ok()?;
        Some(self.others[at].1)
    }
}

/// Logits of the nodes grown so far.
#[derive(Debug)]
pub struct LogitRows<'a> {
    /// The row of each node as a matrix of one row, and its number in what the caller passed.
    rows: Vec<Option<(RawRows<'a>, usize)>>,
    params: Params,
    vocab: Option<&'a Vocabulary>,
    /// A draft of the root alone, for the view of one row.
    root: &'a Draft,
    /// The row read last.
    view: Option<(usize, LazyView<'a>)>,
}

impl<'a> LogitRows<'a> {
    /// No rows yet. `root` is a draft of the root alone.
    pub fn new(root: &'a Draft, params: Params, vocab: Option<&'a Vocabulary>) -> Self {
        Self { rows: Vec::new(), params, vocab, root, view: None }
    }

    /// Gives a node row `row` of a matrix.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there is no such row.
    pub fn set(&mut self, node: usize, matrix: RawRows<'a>, row: usize) -> Result<()> {
        if self.rows.len() <= node {
            self.rows.resize(node + 1, None);
        }
        self.rows[node] = Some((matrix.row(row)?, row));
        Ok(())
    }

    fn token(&self, column: u32) -> u32 {
        self.vocab.map_or(column, |vocab| vocab.token(column))
    }

    fn column(&self, token: u32) -> Option<u32> {
        self.vocab.map_or(Some(token), |vocab| vocab.column(token))
    }

    /// Reads the row after a node; errors name the row as the caller passed it.
    fn read<T>(
        &mut self,
        node: usize,
        read: impl FnOnce(&mut LazyView<'a>, Option<&Vocabulary>) -> Result<T>,
    ) -> Result<T> {
        let Some(&(matrix, row)) = self.rows.get(node).and_then(Option::as_ref) else {
            return Err(Error::MissingRow { node, parent: node, row: -1 });
        };
        let view = match self.view.take() {
            Some((held, view)) if held == node => view,
            _ => {
                let rows = ShapedRows::new(matrix, self.params, Side::Drafter);
                LazyView::new(self.root, rows, DrafterRows::NONE)
            }
        };
        let (_, view) = self.view.insert((node, view));
        read(view, self.vocab).map_err(|error| error.at_row(row))
    }
}

impl DraftRows<f64> for LogitRows<'_> {
    fn probability(&mut self, node: usize, token: u32) -> Result<f64> {
        let Some(column) = self.column(token) else {
            return Ok(0.0);
        };
        self.read(node, |view, _| view.target(0, column))
    }

    fn best(&mut self, node: usize, n: usize) -> Result<Vec<(u32, f64)>> {
        if n == 0 {
            return Ok(Vec::new());
        }
        self.read(node, |view, vocab| {
            let id = |column| vocab.map_or(column, |vocab| vocab.token(column));
            let (rows, shaped, scratch) = view.target_row(0)?;
            let mut best = rows.best(0, &shaped, n, id, scratch);
            for pair in &mut best {
                pair.0 = id(pair.0);
            }
            Ok(best)
        })
    }

    fn draw<C: Choices<f64>>(
        &mut self,
        node: usize,
        without: &[u32],
        site: Site,
        choices: &mut C,
    ) -> Result<Option<u32>> {
        // Tokens outside the rows have no probability there: nothing to leave out.
        let mut removed: Vec<u32> =
            without.iter().filter_map(|&token| self.column(token)).collect();
        removed.sort_unstable();
        removed.dedup();
        let drawn = self.read(node, |view, _| {
            let mix = Mix { removed, ..Mix::target() };
            let mut cells = view.mixture(0, &mix)?;
            if cells.total() > 0.0 { choices.draw(site, &mut cells).map(Some) } else { Ok(None) }
        })?;
        Ok(drawn.map(|column| self.token(column)))
    }

    fn race(&mut self, node: usize, n: usize, noise: &RaceNoise) -> Result<Vec<u32>> {
        self.read(node, |view, vocab| {
            let id = |column| vocab.map_or(column, |vocab| vocab.token(column));
            let (rows, shaped, scratch) = view.target_row(0)?;
            if let Some(column) = shaped.only() {
                return Ok(if n > 0 { vec![id(column)] } else { Vec::new() });
            }
            let mut winners: Vec<(f64, u32)> = Vec::new();
            let mut numbers = [0.0; BLOCK];
            let Scratch { buffers, terms, .. } = scratch;
            for start in (0..rows.num_cols()).step_by(BLOCK) {
                let len = rows.weigh(0, &shaped, start, buffers, terms);
                let token = |column: usize| id((start + column) as u32);
                if vocab.is_none() {
                    (rows.kernels().race_noise)(noise, start as u32 / 2, &mut numbers[..len]);
                } else {
                    // The race is keyed by token, and the columns' tokens are in any order.
                    for (column, number) in numbers[..len].iter_mut().enumerate() {
                        *number = noise.uniform(token(column));
                    }
                }
                for (column, (&v, &weight)) in numbers.iter().zip(&terms[..len]).enumerate() {
                    let weight = f64::from(weight);
                    // -ln(1 - v) >= v, so most tokens lose without a logarithm.
                    let last = winners.last().map_or(f64::INFINITY, |last| last.0);
                    if weight > 0.0 && (winners.len() < n || v <= last * weight) {
                        let entry = (-(-v).ln_1p() / weight, token(column));
                        let at = winners.partition_point(|winner| {
                            winner.0.total_cmp(&entry.0).then(winner.1.cmp(&entry.1)).is_lt()
                        });
                        winners.insert(at, entry);
                        winners.truncate(n);
                    }
                }
            }
            Ok(winners.into_iter().map(|(_, token)| token).collect())
        })
    }
}
