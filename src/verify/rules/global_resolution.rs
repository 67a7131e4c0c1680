//! Select one token of each level's independent drafts as well as any rule can, and verify the path.
//!
//! # What it does
//! At each level, selects one of the drafted tokens such that as much of the target's row is delivered
//! as any lossless rule can deliver there, and runs block verification on the path of selected tokens
//! against the law that they have. All nodes that carry the selected token stay, and their children are
//! the drafts of the next level. At one level no lossless rule accepts more; on a chain it is block
//! verification.
//!
//! # Legal laws
//! `iid`. Nodes with equal paths need equal rows: those of the first one are read. How many
//! siblings there are is decided before the first of them is drawn.
//!
//! # Decision
//! ```text
//! live = {root};  w = 1
//! while nodes of live have n > 0 children, and w > 0:
//!     v = the first node of live
//!     select a child (see `places`): token x comes with probability s(x)
//!     level of v = that of `places` for w p_v;  min(s, w p_v) = min(level q_v, w p_v)
//!     w_x = min(1, w p_v(x) / s(x));  live = the children with token x;  w = w_x
//! from the last v up:
//!     m = sum (w p_v - level q_v)+;  w = m / (m + 1 - w)             # at a leaf w stays
//!     with probability w (at the root always): emit the path of v and y ~ (w p_v - level q_v)+, stop
//! ```
//!
//! # Why lossless
//! The drafts below a node are independent draws from `q_v` whatever was selected above, so the selected
//! token has the law `s` given all that was seen before: the path is one path drawn from a known law,
//! for which block verification is lossless (see `lifted`). The law may depend on how many drafts there
//! are and on `w`, which are known before the level's tokens. Which `s` it is matters for length only.
//!
//! # Cost
//! All of `p` and `q` after each node of the selected path that has children, and a sort of the tokens
//! that both have, in 48 bytes for each token of one level; one number for each level and one for each
//! node on the way back.
//!
//! # Numerics
//! See `places`: the law `s` of the selected token has a relative error of `1e-11` for rows of `2^17`
//! tokens, and what is tested for at most `1e-16` a token of the whole; then as for `lifted`.
//!
//! # Proof status
//! Enumerated exactly on the golden models by `proof`, and compared with a flow over sets of tokens.
//!
//! # Source
//! The selection: Global Resolution, Thomas and Pal (arXiv 2511.15898), solved in closed form; the
//! levels: block verification, Sun et al. (2403.10444).

use crate::chance::{Cells, Choices, Purpose, Site};
use crate::error::{Error, Result};
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::dense::{DenseCells, target_row};
use crate::verify::law::Draft;
use crate::verify::places::{Places, fronts};
use crate::verify::residual::draw_from;
use crate::verify::rules::is_dead_end;
use crate::verify::view::{Mix, Outcome, View};

/// A node of the selected path, delivered with probability `w`.
struct Visit<W> {
    node: usize,
    w: W,
    /// How much of `q` the children take of `p`; none at a leaf.
    taken: Option<W>,
}

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    for Visit { node, mut w, taken } in descend(draft, view, choices)?.into_iter().rev() {
        let mut mix = Mix::target();
        if let Some(taken) = taken {
            mix.b = mutate!("global/residual_is_p", taken, W::zero());
            let owed = w.mul(&view.mixture(node, &mix)?.total());
            let left =
                if owed.is_positive() { owed.div(&owed.add(&W::one().sub(&w))) } else { W::zero() };
            w = mutate!("global/h_is_w", left, w);
        }
        if node == 0 || choices.accept(Site::new(node, Purpose::Accept), &w, &W::one()) {
            let (token, fallbacks) = draw_from(view, choices, node, &mix)?;
            return Ok(Outcome::stop_at(draft, node, token, fallbacks));
        }
    }
    unreachable!("the root always stops")
}

/// Selects a path from the root down, as far as it is delivered at all.
fn descend<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Vec<Visit<W>>> {
    let (mut live, mut w, mut visits) = (vec![0], W::one(), Vec::new());
    while w.is_positive() {
        let node = live[0];
        let below = live.iter().flat_map(|&parent| draft.tree().children(parent));
        let children: Vec<usize> = below.map(|&child| child as usize).collect();
        if children.is_empty() || (node > 0 && is_dead_end(view, node)?) {
            visits.push(Visit { node, w, taken: None });
            break;
        }
        let q = view.drafter_row(node)?;
        if let Some(&child) = children.iter().find(|&&c| !q[draft.token(c) as usize].is_positive())
        {
            let (token, found) = (draft.token(child), "0".to_owned());
            return Err(Error::ZeroDraftProbability { node: child, token, found });
        }
        let places = Places::new(&target_row(view, node)?, &q, &w, children.len());
        let ranks: Vec<usize> = children.iter().map(|&c| places.rank(draft.token(c))).collect();
        let laws = places.laws(&ranks);
        let mut cells = DenseCells::new(fronts(&laws));
        let front = choices.draw(Site::new(node, Purpose::Select), &mut cells)? as usize;
        visits.push(Visit { node, taken: Some(places.level().div(&w)), w });
        w = places.delivered(ranks[front], &laws[front]);
        let token = draft.token(children[front]);
        live = children.into_iter().filter(|&child| draft.token(child) == token).collect();
    }
    Ok(visits)
}
