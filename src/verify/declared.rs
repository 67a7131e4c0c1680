//! What the drafter's rows say about a draft: whether they fit it, and whether they allow its law.

use crate::error::{Error, Result};
use crate::rows::RawRows;
use crate::rows::simd::{BLOCK, Kernels};
use crate::verify::drafted::LEAST;
use crate::verify::law::{Draft, Law};
use crate::verify::lazy::{DrafterRows, Source};

/// Checks that a draft's rows, if it has some, can be read under a target of `vocab` tokens: that each
/// node with sampled children has its row, over the target's vocabulary or mapped into it.
///
/// # Errors
/// [`Error::ShapeMismatch`] and [`Error::MissingRow`] say what does not fit.
pub fn check_fit(draft: &Draft, drafter: &DrafterRows<'_>, vocab: usize) -> Result<()> {
    let Some((rows, columns)) = extent(drafter.source) else {
        return Ok(());
    };
    let mismatch = |what, found, wanted| Err(Error::ShapeMismatch { what, found, wanted });
    match drafter.vocab {
        None if columns != vocab => {
            let wanted = format!("{vocab} tokens as in the target's rows, or `vocab`");
            return mismatch("drafter rows", format!("{columns} tokens"), wanted);
        }
        Some(pairs) if pairs.len() != columns => {
            let wanted = format!("{columns} tokens, one for each column of the drafter's rows");
            return mismatch("vocab", format!("{} tokens", pairs.len()), wanted);
        }
        Some(pairs) => {
            if let Some(&(token, _)) = pairs.last().filter(|pair| pair.0 as usize >= vocab) {
                let wanted = format!("tokens below the target's {vocab}");
                return mismatch("vocab", format!("token {token}"), wanted);
            }
        }
        None => {}
    }
    sampled(draft).try_for_each(|node| row_above(draft, drafter, node, rows).map(|_| ()))
}

/// Checks a draft against the rows that its tokens are said to come from: each sampled node has its
/// row and a probability there, and the deterministic children of a top-plus-one draft are the most likely.
///
/// Rows of logits are not read: what their shaping keeps is known when a rule asks.
///
/// # Errors
/// [`Error::LawData`] without rows, [`Error::MissingRow`], [`Error::ZeroDraftProbability`], and those of
/// [`check_top`].
pub fn check_drawn(draft: &Draft, drafter: &DrafterRows<'_>) -> Result<()> {
    for node in sampled(draft) {
        let Some((rows, _)) = extent(drafter.source) else {
            let reason = "needs the rows that its tokens were sampled from: pass probs, or logits \
                          and params";
            return Err(Error::LawData { law: draft.law().name(), reason });
        };
        let row = row_above(draft, drafter, node, rows)?;
        if let Source::Probabilities(raw) = drafter.source {
            let token = draft.token(node);
            let q = probability(drafter, &raw, row, token);
            if !(q >= LEAST && q.is_finite()) {
                return Err(Error::ZeroDraftProbability { node, token, found: q.to_string() });
            }
        }
    }
    check_top(draft, drafter)
}

fn sampled(draft: &Draft) -> impl Iterator<Item = usize> + '_ {
    (1..draft.num_nodes()).filter(|&node| draft.is_sampled(node))
}

/// The numbers of rows and columns.
fn extent(source: Source<'_>) -> Option<(usize, usize)> {
    match source {
        Source::None => None,
        Source::Probabilities(raw) => Some((raw.num_rows(), raw.num_cols())),
        Source::Logits(rows) => Some((rows.num_rows(), rows.num_cols())),
    }
}

/// The row that a node's token was drawn from, one of `rows`.
fn row_above(draft: &Draft, drafter: &DrafterRows<'_>, node: usize, rows: usize) -> Result<usize> {
    let parent = draft.tree().parent(node).unwrap_or(0);
    let row = drafter.index.get(parent).copied().unwrap_or(-1);
    let found = usize::try_from(row).ok().filter(|&row| row < rows);
    found.ok_or(Error::MissingRow { node, parent, row })
}

/// `q(token)` in a row as it was given; 0 for a token that has no column.
fn probability(drafter: &DrafterRows<'_>, raw: &RawRows<'_>, row: usize, token: u32) -> f64 {
    let column = drafter.column(token).map(|column| column as usize);
    column.filter(|&column| column < raw.num_cols()).map_or(0.0, |column| raw.value(row, column))
}

/// Checks that the deterministic children of a top-plus-one draft are the most likely tokens.
///
/// Reads the row of each node that has such children, once; among equally likely tokens any choice
/// is right.
///
/// # Errors
/// [`Error::NotTheTop`] names the least likely of the children and a token that is more likely.
fn check_top(draft: &Draft, drafter: &DrafterRows<'_>) -> Result<()> {
    let (Law::TopPlusOne, Source::Probabilities(raw)) = (draft.law(), drafter.source) else {
        return Ok(());
    };
    for node in 0..draft.num_nodes() {
        let row = drafter.index.get(node).and_then(|&row| usize::try_from(row).ok());
        if let Some(row) = row.filter(|&row| row < raw.num_rows()) {
            check_node(draft, drafter, &raw, node, row)?;
        }
    }
    Ok(())
}

fn check_node(
    draft: &Draft,
    drafter: &DrafterRows<'_>,
    raw: &RawRows<'_>,
    node: usize,
    row: usize,
) -> Result<()> {
    let q = |token| probability(drafter, raw, row, token);
    let children = draft.tree().children(node).iter().map(|&child| child as usize);
    let set: Vec<(usize, f64)> = children
        .filter(|&child| !draft.is_sampled(child))
        .map(|child| (child, q(draft.token(child))))
        .collect();
    let Some(&(child, least)) = set.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else {
        return Ok(());
    };
    let mut above = 0;
    let (mut values, mut buffer) = ([0.0; BLOCK], [0.0; BLOCK]);
    for start in raw.blocks() {
        let block = &mut values[..BLOCK.min(raw.num_cols() - start)];
        raw.block_f64(Kernels::best(), row, start, block, &mut buffer);
        above += block.iter().filter(|q| **q > least).count();
    }
    if above <= set.iter().filter(|(_, q)| *q > least).count() {
        return Ok(());
    }
    let is_better = |column: &u32| {
        let token = token_of(drafter, *column);
        let is_in_set = set.iter().any(|&(child, _)| draft.token(child) == token);
        !is_in_set && raw.value(row, *column as usize) > least
    };
    let better =
        (0..raw.num_cols() as u32).find(is_better).map_or(0, |column| token_of(drafter, column));
    Err(Error::NotTheTop {
        node: child,
        token: draft.token(child),
        found: least.to_string(),
        better,
        most: q(better).to_string(),
    })
}

/// The token of a column of the drafter's rows.
fn token_of(drafter: &DrafterRows<'_>, column: u32) -> u32 {
    let pair = drafter.vocab.and_then(|pairs| pairs.iter().find(|pair| pair.1 == column));
    pair.map_or(column, |pair| pair.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::TokenTree;

    const ROW: [f32; 4] = [0.1, 0.4, 0.2, 0.3];

    fn check(tokens: [i64; 2], vocab: Option<&[(u32, u32)]>) -> Result<()> {
        let tree = TokenTree::new(&[-1, 0, 0])?;
        let draft = Draft::new(tree, vec![-1, tokens[0], tokens[1]], Law::TopPlusOne, None)?;
        let source = Source::Probabilities(RawRows::from_f32(&ROW, 4)?);
        check_drawn(&draft, &DrafterRows { source, index: &[0, -1, -1], vocab })
    }

    #[test]
    fn the_first_token_left_out_that_is_likelier_is_named() {
        assert_eq!(check([2, 1], None), Ok(()));
        let found = check([1, 3], None);
        assert!(matches!(found, Err(Error::NotTheTop { node: 2, token: 3, better: 1, .. })));
        let found = check([0, 2], None);
        assert!(matches!(found, Err(Error::NotTheTop { node: 2, token: 2, better: 1, .. })));
    }

    #[test]
    fn a_token_beyond_the_columns_has_probability_0_and_not_the_next_rows() {
        let found = check([1, 5], None);
        assert!(matches!(found, Err(Error::NotTheTop { node: 2, token: 5, better: 0, .. })));
        // A stride: what lies behind the row's four columns belongs to nobody.
        let wide = [0.1, 0.4, 0.2, 0.3, 9.0, 9.0, 9.0, 9.0, 0.25, 0.25, 0.25, 0.25];
        let raw = RawRows::new(crate::rows::Values::F32(&wide), 2, 4, 8).unwrap();
        let tree = TokenTree::new(&[-1, 0, 0]).unwrap();
        let draft = Draft::new(tree, vec![-1, 1, 5], Law::TopPlusOne, None).unwrap();
        let source = Source::Probabilities(raw);
        let rows = DrafterRows { source, index: &[0, -1, -1], vocab: None };
        let found = check_drawn(&draft, &rows);
        assert!(matches!(found, Err(Error::NotTheTop { found, .. }) if found == "0"));
    }

    #[test]
    fn rows_that_do_not_fit_the_draft_are_refused() {
        let tree = TokenTree::new(&[-1, 0, 1]).unwrap();
        let draft = Draft::new(tree, vec![-1, 1, 2], Law::Chain, None).unwrap();
        let two = [ROW, ROW].concat();
        let source = Source::Probabilities(RawRows::from_f32(&two, 4).unwrap());
        let rows = DrafterRows { source, index: &[0, 1, -1], vocab: None };
        assert_eq!(check_fit(&draft, &rows, 4), Ok(()));
        assert!(check_fit(&draft, &rows, 5).is_err());
        for (index, parent) in [(&[0_i64][..], 1), (&[0, 2], 1), (&[-1, 1], 0), (&[i64::MAX, 0], 0)]
        {
            let found = check_fit(&draft, &DrafterRows { index, ..rows }, 4);
            assert!(matches!(found, Err(Error::MissingRow { parent: p, .. }) if p == parent));
        }
        let vocab = [(1, 0), (2, 1), (7, 2), (8, 3)];
        let mapped = |pairs| DrafterRows { vocab: Some(pairs), ..rows };
        assert_eq!(check_fit(&draft, &mapped(&vocab), 9), Ok(()));
        assert!(check_fit(&draft, &mapped(&vocab), 8).is_err());
        assert!(check_fit(&draft, &mapped(&vocab[..3]), 9).is_err());
        assert_eq!(check_fit(&draft, &DrafterRows::NONE, 4), Ok(()));
    }

    #[test]
    fn columns_of_a_sub_vocabulary_are_mapped() {
        let vocab = [(7, 1), (8, 0), (9, 3), (10, 2)];
        assert_eq!(check([9, 7], Some(&vocab)), Ok(()));
        let found = check([10, 9], Some(&vocab));
        assert!(matches!(found, Err(Error::NotTheTop { node: 2, token: 9, better: 7, .. })));
        // A token that the drafter cannot name has probability 0.
        let found = check([9, 3], Some(&vocab));
        assert!(matches!(found, Err(Error::NotTheTop { token: 3, better: 8, .. })));
    }
}
