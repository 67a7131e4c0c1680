//! Carry the probability that a path was delivered down the tree, and decide from the leaves up.
//!
//! # What it does
//! Block verification on a chain, traversal verification on sampled trees, lifted Hu where a
//! deterministic set follows the sampled children. Never below `topdown` in expected tokens, and
//! optimal among all lossless rules on a chain.
//!
//! # Legal laws
//! `chain`, `iid`, `swor`, `top_plus_one`, `mixed`.
//!
//! # Decision
//! ```text
//! visit(v, w):                                       # w(root) = 1
//!     r = p_v
//!     for each child c of v in node order, while w > 0:
//!         w_c = min(1, w r(x_c) / q_c(x_c));  if w_c > 0 and visit(c, w_c) stops: stop
//!         m = sum (w r - q_c)+;  r = (w r - q_c)+ / m;  w = m / (m + 1 - w)
//!     with probability w: emit the path of v and a draw from r, stop
//! ```
//! On a chain this reads: `w_i = min(1, w_{i-1} p / q)`, `h_i = m_i / (m_i + 1 - w_i)`; the longest
//! prefix with `u_i < h_i` is kept.
//!
//! # Why lossless
//! `visit(v, w)` stops below or at `v` with probability exactly `w`, and what it emits after `v` has
//! the target's law. Induction: child `c`, drawn from `q_c`, delivers mass
//! `q_c min(1, w r / q_c) = min(q_c, w r)`; `(w r - q_c)+` with sum `m` is left to deliver, and nothing
//! has been delivered yet with probability `m + 1 - w`. The root has `w = 1`, so it always stops.
//!
//! # Cost
//! `p` and `q` along the first path down, then one sum over the rows for each rejected child.
//!
//! # Numerics
//! `w_c` and `m` have a relative error of `1e-13` each. `1 - w` is exact to `2^-53`, and `m + (1 - w)` is a
//! sum of two numbers that are not negative; where both are small, `w` is near 1 and `m` near 0 only if
//! the node is delivered almost surely, and the absolute error `1e-16` of `w` is what reaches the output.
//! Nothing is decided by a difference of sums. As for `topdown`, the law of a step is off by at most
//! `1e-12` and the draw at its end, given the rows as they are read.
//!
//! # Proof status
//! Enumerated exactly on the golden models by `proof`.
//!
//! # Source
//! Block verification, Sun et al. (arXiv 2403.10444); traversal verification (2505.12398); the
//! sibling scheme of Hu et al. (2502.18779).

use crate::chance::{Choices, Purpose, Site};
use crate::error::Result;
use crate::mutants::mutate;
use crate::number::Weight;
use crate::verify::law::Draft;
use crate::verify::residual::Residual;
use crate::verify::rules::is_dead_end;
use crate::verify::view::{Outcome, View};

struct Frame<W> {
    node: usize,
    w: W,
    residual: Residual<W>,
    tested: usize,
}

impl<W: Weight> Frame<W> {
    /// A node that was delivered with probability `w`.
    ///
    /// Its row is read here before it is accepted: see [`is_dead_end`].
    fn new<V: View<W>>(draft: &Draft, view: &mut V, node: usize, w: W) -> Result<Self> {
        let mut tested = 0;
        let children = draft.tree().children(node).len();
        if node > 0 && children > 0 && is_dead_end(view, node)? {
            tested = mutate!("lift/unreadable_row_raises", children, 0);
        }
        Ok(Self { node, w, residual: Residual::start(draft, node), tested })
    }
}

pub(crate) fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    let mut stack = vec![Frame::new(draft, view, 0, W::one())?];
    loop {
        let Some(frame) = stack.last_mut() else {
            unreachable!("the root always stops");
        };
        let children = draft.tree().children(frame.node);
        if frame.tested < children.len() && frame.w.is_positive() {
            let child = children[frame.tested] as usize;
            frame.tested += 1;
            let above = mutate!("lift/forget_w", frame.w.clone(), W::one());
            let above = mutate!("lift/leaf_token_ratio", above, draft.one_at_leaf(child, above));
            let above = mutate!(
                "block/last_test_uncapped",
                above,
                uncapped_at_leaf(draft, view, child, above)?
            );
            let (num, den) = frame.residual.ratio(draft, view, child, &above)?;
            let capped = mutate!("lift/no_min1", num >= den, false);
            let w = if capped { W::one() } else { num.div(&den) };
            if w.is_positive() {
                stack.push(Frame::new(draft, view, child, w)?);
            } else if mutate!("lift/hopeless_child_not_taken_out", true, false) {
                reject(draft, view, &mut stack, choices)?;
            }
            continue;
        }
        if accepts(frame, choices) {
            let (token, fallbacks) = frame.residual.draw(view, choices)?;
            return Ok(Outcome::stop_at(draft, frame.node, token, fallbacks));
        }
        stack.pop();
        reject(draft, view, &mut stack, choices)?;
    }
}

/// Whether the walk stops at a node, given the probability with which it must.
fn accepts<W: Weight, C: Choices<W>>(frame: &Frame<W>, choices: &mut C) -> bool {
    // The root stops by construction; rounding must not turn that into a test.
    frame.node == 0 || choices.accept(Site::new(frame.node, Purpose::Accept), &frame.w, &W::one())
}

/// Takes the rejection of the child tested last into the residual and the delivery probability of
/// the node on top of the stack.
///
/// The delivery probability only falls (`m <= w`, so `m / (m + 1 - w) <= w`). After the last child a
/// node whose number is not below `w` is therefore rejected whatever `m` is, and its rows need not
/// be summed; the same number decides again below if it is.
fn reject<W: Weight, V: View<W>, C: Choices<W>>(
    draft: &Draft,
    view: &mut V,
    stack: &mut Vec<Frame<W>>,
    choices: &mut C,
) -> Result<()> {
    while let Some(frame) = stack.last_mut() {
        let children = draft.tree().children(frame.node);
        let is_last = mutate!("lift/shortcut_before_last", frame.tested == children.len(), true);
        if is_last && !accepts(frame, choices) {
            stack.pop();
            continue;
        }
        let child = children[frame.tested - 1] as usize;
        let above = mutate!("lift/residual_without_w", frame.w.clone(), W::one());
        let mass = frame.residual.reject(draft, view, child, &above)?;
        let open = mass.add(&W::one().sub(&frame.w));
        let open = mutate!("lift/h_no_one_minus_w", open, frame.w.clone());
        let open = mutate!("lift/h_is_m", open, W::one());
        let left = if mass.is_positive() { mass.div(&open) } else { W::zero() };
        frame.w = mutate!("lift/h_is_w", left, frame.w.clone());
        return Ok(());
    }
    Ok(())
}

/// For a chain's last test, the product of `p / q` above it without a cap; `above` elsewhere.
#[cfg(feature = "mutants")]
fn uncapped_at_leaf<W: Weight, V: View<W>>(
    draft: &Draft,
    view: &mut V,
    child: usize,
    above: W,
) -> Result<W> {
    if !draft.tree().children(child).is_empty() {
        return Ok(above);
    }
    let mut product = W::one();
    for node in 1..child {
        let token = draft.token(node);
        let ratio = view.target(node - 1, token)?.div(&view.drafter(node - 1, token)?);
        product = product.mul(&ratio);
    }
    Ok(product)
}
