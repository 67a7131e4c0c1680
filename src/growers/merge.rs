//! Several deterministic trees as one, by (parent, token).

use std::collections::BTreeMap;

use crate::error::Result;
use crate::growers::Growth;
use crate::verify::law::Draft;

/// The union of trees below one root: nodes of the first tree in its order, then what each further
/// one adds, up to `max_nodes` nodes below the root. The root's token is the first tree's.
///
/// # Errors
/// [`crate::error::Error::LawData`] if a tree was not made deterministically.
pub fn merge(trees: &[&Draft], max_nodes: usize) -> Result<Growth> {
    let root = trees.first().map_or(-1, |draft| draft.tokens()[0]);
    let mut merged = Growth::new(root, Vec::new());
    let mut known = BTreeMap::new();
    for draft in trees {
        draft.check_deterministic()?;
        let mut number = vec![Some(0)];
        for node in 1..draft.num_nodes() {
            let token = draft.token(node);
            let place =
                draft.tree().parent(node).and_then(|parent| number[parent]).map(|at| (at, token));
            let grown = place.and_then(|place| {
                if let Some(&at) = known.get(&place) {
                    return Some(at);
                }
                let room = merged.num_drafted() < max_nodes;
                room.then(|| merged.push(place.0, token, false))
            });
            if let (Some(place), Some(at)) = (place, grown) {
                known.insert(place, at);
            }
            number.push(grown);
        }
    }
    Ok(merged)
}
