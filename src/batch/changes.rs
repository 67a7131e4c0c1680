//! The logits that penalties change in the rows of many trees: what verifiers on other devices apply.

use std::ops::Range;

use crate::rows::history::Table;

/// The changes in the rows of many trees, in one list.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changes {
    /// The rows with changes, ascending.
    pub rows: Vec<i32>,
    /// For each change the place of its row among `rows` times the vocabulary, plus its token.
    pub cells: Vec<i64>,
    /// For each change whether the token may not follow.
    pub banned: Vec<bool>,
    /// For each change the numbers of [`crate::rows::history::Change`].
    pub numbers: [Vec<f32>; 6],
}

impl Changes {
    /// Adds what a sequence's table changes in the rows of its tree.
    ///
    /// `parents` and `tokens` are those of all rows, as in [`super::Layout`].
    pub fn push(
        &mut self,
        table: &Table<'_>,
        rows: Range<usize>,
        (parents, tokens): (&[i32], &[i32]),
        vocab: usize,
    ) {
        for row in rows {
            let concerns = table.concerns(&path(parents, tokens, row));
            if concerns.is_empty() {
                continue;
            }
            let first = self.rows.len() * vocab;
            self.rows.push(row as i32);
            for concern in &concerns {
                let change = table.penalties().change(concern);
                self.cells.push((first + concern.token as usize) as i64);
                self.banned.push(change.banned);
                for (column, number) in self.numbers.iter_mut().zip(change.numbers()) {
                    column.push(number);
                }
            }
        }
    }
}

/// The tokens from below the root to a row.
fn path(parents: &[i32], tokens: &[i32], row: usize) -> Vec<u32> {
    let mut path = Vec::new();
    let mut row = row;
    // Parents stand before their children.
    while let Some(parent) = usize::try_from(parents[row]).ok().filter(|&parent| parent < row) {
        path.push(tokens[row] as u32);
        row = parent;
    }
    path.reverse();
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::history::Penalties;

    #[test]
    fn each_row_has_the_changes_of_its_own_path() {
        let penalties = Penalties { presence: 0.5, banned: vec![9], ..Penalties::default() };
        let ngrams = Penalties { no_repeat_ngram: 1, ..Penalties::default() };
        let (one, two) = (
            Table::new(&penalties, &[4], 1, 10).unwrap(),
            Table::new(&ngrams, &[], 0, 10).unwrap(),
        );
        // A root with the child 3, whose child is 3 too; then a root with the child 7.
        let (parents, tokens) = ([-1, 0, 1, -1, 3], [-1, 3, 3, -1, 7]);
        let mut changes = Changes::default();
        changes.push(&one, 0..3, (&parents, &tokens), 10);
        changes.push(&two, 3..5, (&parents, &tokens), 10);
        // Nothing was before the second root: its row is as it is.
        assert_eq!(changes.rows, [0, 1, 2, 4]);
        assert_eq!(changes.cells, [9, 13, 19, 23, 29, 37]);
        assert_eq!(changes.banned, [true, false, true, false, true, true]);
        let [bias, below, above, divisor, frequency, presence] = changes.numbers;
        assert_eq!(presence, [0.0, 0.5, 0.0, 0.5, 0.0, 0.0]);
        assert_eq!([bias, frequency], [[0.0; 6]; 2]);
        assert_eq!([below, above, divisor], [[1.0; 6]; 3]);
    }
}
