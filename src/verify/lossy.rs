//! Acceptances that change the law of the output: only on request, and marked in every verdict.
//!
//! # What it does
//! Three criteria accept a drafted token by the target's row alone. Of the nodes whose path is
//! accepted all the way the deepest is kept, the first of equally deep ones. `ensemble` verifies
//! against a blend of the two models instead of the target.
//!
//! # Legal laws
//! `typical`, `threshold` and `topk` read no row of the drafter: every law. `ensemble`: `chain`,
//! `iid`, `swor`.
//!
//! # Decision
//! ```text
//! typical(eps, delta)  accept x if p(x) > min(eps, delta exp(-H(p)));  then argmax p
//! threshold(tau)       accept x if p(x) >= tau;                        then y ~ p
//! topk(k)              accept x if fewer than k tokens are likelier;   then y ~ p
//! ensemble(w)          topdown with w p + (1 - w) q in place of p where a child was drawn from q
//! ```
//! No token of probability 0 is accepted, except by `ensemble`.
//!
//! # Why lossy
//! A token is kept although the target would have drawn it less often. On a draft of one token,
//! `threshold` emits `x` with probability `q(x) [p(x) >= tau] + q(p < tau) p(x)` and `ensemble` with
//! `w p(x) + (1 - w) q(x)`: a total variation of `(1 - w)` times that of the two models.
//!
//! # Cost
//! The row of each accepted node that has children; `typical` and `topk` read it twice. No number is
//! drawn for an acceptance.
//!
//! # Source
//! Medusa's typical acceptance (arXiv 2401.10774), whose next first token is the greedy one; the
//! static ensemble of DIVERSE (arXiv 2604.07622), which transformers has as
//! `assistant_ensemble_weight`.

use crate::chance::{Cells, Choices, Purpose, Site, nothing_left};
use crate::error::{Error, Result};
use crate::number::Weight;
use crate::shaping::Params;
use crate::verify::law::{Draft, Law};
use crate::verify::rules::topdown;
use crate::verify::view::{Mix, Outcome, View};

/// An acceptance that is not lossless.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Lossy {
    /// The longest path of tokens that meet a criterion.
    Longest(Criterion),
    /// Verified against `weight p + (1 - weight) q`.
    Ensemble {
        /// The target's share.
        weight: f64,
    },
}

/// What makes a token acceptable after a row of the target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Criterion {
    /// Likely enough for the row's entropy.
    Typical {
        /// The bound for rows of small entropy.
        eps: f64,
        /// Factor of `exp(-H)`.
        delta: f64,
    },
    /// Likely enough.
    Threshold {
        /// The least probability.
        tau: f64,
    },
    /// Among the likeliest.
    TopK {
        /// How many; equal ones count as one place.
        k: u64,
    },
}

pub(super) const NAMES: [&str; 4] = ["typical", "threshold", "topk", "ensemble"];

/// Whether a verdict's rule is the name of a lossy acceptance.
pub fn is_name(rule: &str) -> bool {
    NAMES.contains(&rule)
}

/// The error for a lossy acceptance that was asked for as a rule.
pub(super) fn asked_as_a_rule(rule: &str) -> Option<Error> {
    NAMES.into_iter().find(|&name| name == rule).map(|lossy| Error::IllegalLossy {
        lossy,
        found: format!("rule=\"{lossy}\""),
        wanted: "lossy=: it changes the law of the output, and no rule does",
    })
}

impl Lossy {
    /// The acceptance of a name with its numbers: (eps, delta), (tau), (k) or (weight).
    ///
    /// # Errors
    /// [`Error::ParamOutOfRange`] names the number, or lists the names.
    pub fn new(name: &str, values: &[f64]) -> Result<Self> {
        let out_of_range = |name, value: &dyn ToString, wanted| Error::ParamOutOfRange {
            name,
            value: value.to_string(),
            wanted,
        };
        let within = |name, value: f64, wanted, is_legal: bool| {
            if is_legal { Ok(value) } else { Err(out_of_range(name, &value, wanted)) }
        };
        match (name, values) {
            ("typical", &[eps, delta]) => Ok(Self::Longest(Criterion::Typical {
                eps: within("eps", eps, "a number in (0, 1)", eps > 0.0 && eps < 1.0)?,
                delta: within("delta", delta, "a number > 0", delta > 0.0 && delta.is_finite())?,
            })),
            ("threshold", &[tau]) => Ok(Self::Longest(Criterion::Threshold {
                tau: within("tau", tau, "a number in (0, 1]", tau > 0.0 && tau <= 1.0)?,
            })),
            ("topk", &[k]) => {
                let is_count = k >= 1.0 && k.fract() == 0.0 && k <= f64::from(u32::MAX);
                let k = within("k", k, "an integer >= 1", is_count)? as u64;
                Ok(Self::Longest(Criterion::TopK { k }))
            }
            ("ensemble", &[w]) => Ok(Self::Ensemble {
                weight: within("w", w, "a number in (0, 1)", w > 0.0 && w < 1.0)?,
            }),
            _ => Err(out_of_range(
                "lossy",
                &name,
                "typical (eps, delta), threshold (tau), topk (k) or ensemble (w)",
            )),
        }
    }

    /// The name, which verdicts carry as their rule.
    pub fn name(self) -> &'static str {
        match self {
            Self::Longest(Criterion::Typical { .. }) => NAMES[0],
            Self::Longest(Criterion::Threshold { .. }) => NAMES[1],
            Self::Longest(Criterion::TopK { .. }) => NAMES[2],
            Self::Ensemble { .. } => NAMES[3],
        }
    }

    /// The numbers, in the order of [`Lossy::new`].
    pub fn values(self) -> Vec<f64> {
        match self {
            Self::Longest(Criterion::Typical { eps, delta }) => vec![eps, delta],
            Self::Longest(Criterion::Threshold { tau }) => vec![tau],
            Self::Longest(Criterion::TopK { k }) => vec![k as f64],
            Self::Ensemble { weight } => vec![weight],
        }
    }

    /// Refuses what it cannot be combined with.
    ///
    /// # Errors
    /// [`Error::IllegalLossy`] says what it came with.
    pub(super) fn check(self, rule: &str, params: Params) -> Result<()> {
        let illegal =
            |found, wanted| Err(Error::IllegalLossy { lossy: self.name(), found, wanted });
        if rule != "auto" {
            let wanted = "rule=\"auto\": it decides in a rule's place";
            return illegal(format!("rule=\"{rule}\""), wanted);
        }
        if params.is_greedy() {
            let wanted = "a temperature above 0: one-hot rows leave nothing to relax";
            return illegal("temperature 0".into(), wanted);
        }
        Ok(())
    }

    /// Refuses a draft whose rows it cannot use.
    ///
    /// # Errors
    /// [`Error::IllegalLossy`] names the law.
    pub(super) fn check_draft(self, draft: &Draft) -> Result<()> {
        let law = draft.law();
        let is_drawn = matches!(law, Law::Chain | Law::Iid | Law::Swor) || draft.num_nodes() == 1;
        if matches!(self, Self::Ensemble { .. }) && !is_drawn {
            let wanted = "law \"chain\", \"iid\" or \"swor\": it blends in the rows that all \
                          children were drawn from";
            let found = format!("law \"{}\"", law.name());
            return Err(Error::IllegalLossy { lossy: self.name(), found, wanted });
        }
        Ok(())
    }
}

/// Decides without regard to the target's law.
///
/// # Errors
/// If a row that is read is not a distribution.
pub fn decide<W: Weight, V: View<W>, C: Choices<W>>(
    lossy: Lossy,
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    match lossy {
        Lossy::Longest(criterion) => longest(criterion, draft, view, choices),
        Lossy::Ensemble { weight } => {
            topdown::decide(draft, &mut Blend::new(view, weight), choices)
        }
    }
}

fn longest<W: Weight, V: View<W>, C: Choices<W>>(
    criterion: Criterion,
    draft: &Draft,
    view: &mut V,
    choices: &mut C,
) -> Result<Outcome> {
    let tree = draft.tree();
    let mut is_kept = vec![false; draft.num_nodes()];
    is_kept[0] = true;
    let mut deepest = 0;
    for node in 0..draft.num_nodes() {
        if !is_kept[node] {
            continue;
        }
        if tree.depth(node) > tree.depth(deepest) {
            deepest = node;
        }
        let children = tree.children(node);
        if !children.is_empty() {
            let tokens: Vec<u32> = children.iter().map(|&c| draft.token(c as usize)).collect();
            for (&child, keeps) in children.iter().zip(accepts(criterion, view, node, &tokens)?) {
                is_kept[child as usize] = keeps;
            }
        }
    }
    let mix = Mix::target();
    let mut cells = view.mixture(deepest, &mix)?;
    let bonus = if matches!(criterion, Criterion::Typical { .. }) {
        likeliest(&mut cells)?
    } else {
        choices.draw(Site::new(deepest, Purpose::Sample), &mut cells)?
    };
    Ok(Outcome::stop_at(draft, deepest, bonus, 0))
}

/// The token of the largest weight, the lowest of equal ones.
fn likeliest<W: Weight>(cells: &mut impl Cells<W>) -> Result<u32> {
    let mut best: Option<(u32, W)> = None;
    cells.visit(&mut |token, weight| {
        if best.as_ref().is_none_or(|best| *weight > best.1) {
            best = Some((token, weight.clone()));
        }
    })?;
    best.map(|best| best.0).ok_or_else(nothing_left)
}

/// Whether each of the tokens is accepted after `node`.
fn accepts<W: Weight, V: View<W>>(
    criterion: Criterion,
    view: &mut V,
    node: usize,
    tokens: &[u32],
) -> Result<Vec<bool>> {
    let mix = Mix::target();
    match criterion {
        Criterion::Threshold { tau } => {
            tokens.iter().map(|&token| Ok(view.target(node, token)?.to_f64() >= tau)).collect()
        }
        Criterion::Typical { eps, delta } => {
            let mut entropy = 0.0;
            view.mixture(node, &mix)?.visit(&mut |_, weight| {
                let p = weight.to_f64();
                entropy -= p * p.ln();
            })?;
            let bound = eps.min(delta * f64::exp(-entropy));
            tokens.iter().map(|&token| Ok(view.target(node, token)?.to_f64() > bound)).collect()
        }
        Criterion::TopK { k } => {
            let mut cells = view.mixture(node, &mix)?;
            // From the same pass as the others, so that rounding puts no token above itself.
            let mut shares = vec![W::zero(); tokens.len()];
            cells.visit(&mut |token, weight| {
                let mine = shares.iter_mut().zip(tokens).filter(|(_, wanted)| **wanted == token);
                mine.for_each(|(share, _)| *share = weight.clone());
            })?;
            let mut above = vec![0_u64; tokens.len()];
            cells.visit(&mut |_, weight| {
                for (count, share) in above.iter_mut().zip(&shares) {
                    *count += u64::from(weight > share);
                }
            })?;
            Ok(shares.iter().zip(above).map(|(p, count)| p.is_positive() && count < k).collect())
        }
    }
}

/// Rows in which the drafter has a share: `w p + (1 - w) q` wherever children were drawn from `q`.
struct Blend<'v, V, W> {
    view: &'v mut V,
    weight: W,
    rest: W,
    mix: Mix<W>,
}

impl<'v, V, W: Weight> Blend<'v, V, W> {
    fn new(view: &'v mut V, weight: f64) -> Self {
        // Every number that f64 has in [1/2, 1), and as near as 2^-53 below.
        const WHOLE: i64 = 1 << 53;
        let weight = W::ratio((weight * WHOLE as f64) as i64, WHOLE);
        Self { view, rest: W::one().sub(&weight), weight, mix: Mix::target() }
    }
}

impl<W: Weight, V: View<W>> View<W> for Blend<'_, V, W> {
    type Mixture<'s>
        = V::Mixture<'s>
    where
        Self: 's,
        W: 's;

    fn vocab(&self) -> usize {
        self.view.vocab()
    }

    fn check_target(&mut self, node: usize) -> Result<()> {
        self.view.check_target(node)
    }

    fn target(&mut self, node: usize, token: u32) -> Result<W> {
        let p = self.view.target(node, token)?;
        Ok(self.weight.mul(&p).add(&self.rest.mul(&self.view.drafter(node, token)?)))
    }

    fn drafter(&mut self, node: usize, token: u32) -> Result<W> {
        self.view.drafter(node, token)
    }

    fn drafter_rest(&mut self, node: usize, without: &[u32]) -> Result<W> {
        self.view.drafter_rest(node, without)
    }

    fn drafter_row(&mut self, node: usize) -> Result<Vec<W>> {
        self.view.drafter_row(node)
    }

    /// `w p + (1 - w) q - b q = w (p - (b - (1 - w)) q / w)`. After a rejection `b >= 1`; before one,
    /// that is at a leaf, the row is the target's own.
    fn mixture<'s>(&'s mut self, node: usize, mix: &'s Mix<W>) -> Result<Self::Mixture<'s>> {
        self.mix = Mix {
            b: mix.b.sub(&self.rest).positive_part().div(&self.weight),
            floor: mix.floor.clone(),
            scale: mix.scale.mul(&self.weight),
            set: mix.set.clone(),
            removed: mix.removed.clone(),
        };
        self.view.mixture(node, &self.mix)
    }
}
