//! What the drafter's rows say about a declared law, beyond the tokens' own probabilities.

use crate::error::{Error, Result};
use crate::rows::RawRows;
use crate::simd::{BLOCK, Kernels};
use crate::verify::law::{Draft, Law};
use crate::verify::lazy::{DrafterRows, Source};

/// Checks that the deterministic children of a top-plus-one draft are the most likely tokens.
///
/// Reads the row of each node that has such children, once; among equally likely tokens any choice
/// is right. Rows of logits are not read: what their shaping keeps is known when a rule asks.
///
/// # Errors
/// [`Error::NotTheTop`] names the least likely of the children and a token that is more likely.
pub fn check_top(draft: &Draft, drafter: &DrafterRows<'_>) -> Result<()> {
    let (Law::TopPlusOne, Source::Probabilities(raw)) = (draft.law(), drafter.source) else {
        return Ok(());
    };
    for node in 0..draft.num_nodes() {
        let row = usize::try_from(drafter.index[node]).unwrap_or(usize::MAX);
        if row < raw.num_rows() {
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
    let q = |token| drafter.column(token).map_or(0.0, |column| raw.value(row, column as usize));
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
        check_top(&draft, &DrafterRows { source, index: &[0, -1, -1], vocab })
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
