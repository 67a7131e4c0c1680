//! Drafts cut by a confidence that is computed from the drafted tokens: `DSpark` and vLLM.
//!
//! The confidence `c_j` of the drafted token `j` looks at the tokens before it, not at itself. Here it is
//! what `DSpark`'s head is trained to say (arXiv 2607.05147, equation 8): the probability that the token
//! is accepted, `sum_x min(p(x), q(x))` after the tokens before it. `a_j = c_1 .. c_j`. What is left
//! of a draft is verified token by token.
//!
//! ```text
//! threshold   cut before the first c_j < 3/4 (deepseek-ai/DeepSpec at afdfa7c, eval/dspark/draft_ops.py)
//! scheduler   algorithm 1: take tokens by a_j while (1 + a_1 + .. + a_j) S(1 + j) grows; stop at the first
//!             one that does not let it grow
//! unstopped   the same without the stop: the length at which it is largest (the paper's appendix A
//!             says that this is biased)
//! by rows     unstopped, for a drafter whose rows depend on no drafted token (arXiv 2602.06036); the confidence
//!             is the largest probability of a row
//! stale       the number of places comes from the confidences of the step before (vllm-project/vllm#47808,
//!             adaptive_verification.py; 1 at first), over as many steps as three tokens take
//! ```
//!
//! `S(B)` is the measured rate of steps over `B` tokens, here 1, 3/5, 1/2, 9/20.
//!
//! vLLM keys the drafter's noise by the request's seed and the token's position (#54282 keeps it apart
//! from the target's, not from that of earlier steps). A draft that was not verified is drawn again with
//! the same noise, and the number of places was chosen by what that noise gave. `stale_by_position`
//! keys a draft's one uniform number so, where vLLM has a Gumbel vector.

use super::chain::{self, Key, Noise};
use super::{Rule, Run};
use crate::chance::Purpose;
use crate::chance::enumerator::Enumerator;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::verify::{self, Core};

/// The rate of steps over 1, 2, .. tokens.
pub(super) const CURVE: &[(i64, i64)] = &[(1, 1), (3, 5), (1, 2), (9, 20)];
/// How many tokens are followed over several steps.
const LENGTH: usize = 3;

pub(super) static THRESHOLD: Rule = Rule::chain(
    "dspark_threshold",
    "deepseek-ai/DeepSpec at afdfa7c, draft_ops.py",
    |rows, shape, choices| single(rows, shape, choices, below_threshold),
);

pub(super) static SCHEDULER: Rule =
    Rule::chain("dspark_scheduler", "arXiv 2607.05147, algorithm 1", |rows, shape, choices| {
        single(rows, shape, choices, |survival| scheduled(survival, CURVE))
    });

pub(super) static UNSTOPPED: Rule = Rule {
    is_claimed_lossless: false,
    is_lossless: false,
    ..Rule::chain("dspark_unstopped", "arXiv 2607.05147, appendix A", |rows, shape, choices| {
        single(rows, shape, choices, |survival| best(survival, CURVE))
    })
};

pub(super) static BY_ROWS: Rule = Rule {
    is_claimed_lossless: false,
    ..Rule::chain(
        "dspark_unstopped_by_rows",
        "the same over rows that depend on no draw",
        |rows, shape, choices| by_rows(rows, shape.len(), choices),
    )
};

pub(super) static STALE: Rule = Rule {
    length: Some(LENGTH),
    ..Rule::chain("adaptive_stale", "vllm-project/vllm#47808, steps", |rows, shape, choices| {
        stale(rows, shape.len(), Key::Step, choices)
    })
};

pub(super) static STALE_BY_POSITION: Rule = Rule {
    is_lossless: false,
    length: Some(LENGTH),
    ..Rule::chain(
        "adaptive_stale_by_position",
        "vllm-project/vllm#47808 and #54282, steps whose drafts are keyed by (seed, position)",
        |rows, shape, choices| stale(rows, shape.len(), Key::Position, choices),
    )
};

/// `a_1, a_2, ..` of a draft after the tokens of its sequence.
pub(super) fn survival(rows: &Rows<Fraction>, before: &[u32], draft: &[u32]) -> Vec<Fraction> {
    let mut product = Fraction::one();
    let mut path = before.to_vec();
    let mut all = Vec::with_capacity(draft.len());
    for &token in draft {
        let both = rows.target(&path).iter().zip(rows.drafter(&path));
        let confidence = both.fold(Fraction::zero(), |sum, (p, q)| sum.add(&Weight::min(p, q)));
        product = product.mul(&confidence);
        all.push(product.clone());
        path.push(token);
    }
    all
}

/// The places before the first confidence below 3/4.
fn below_threshold(survival: &[Fraction]) -> usize {
    let bound = Fraction::ratio(3, 4);
    let mut before = Fraction::one();
    for (index, product) in survival.iter().enumerate() {
        if *product < before.mul(&bound) {
            return index;
        }
        before = product.clone();
    }
    survival.len()
}

/// The mean rate of tokens with each number of places, from none on.
fn rates(survival: &[Fraction], curve: &[(i64, i64)]) -> Vec<Fraction> {
    let mut tokens = Fraction::one();
    let mut all = Vec::with_capacity(survival.len() + 1);
    for (places, &(num, den)) in curve.iter().take(survival.len() + 1).enumerate() {
        if places > 0 {
            tokens = tokens.add(&survival[places - 1]);
        }
        all.push(tokens.mul(&Fraction::ratio(num, den)));
    }
    all
}

/// The places up to the first one that does not raise the rate.
pub(super) fn scheduled(survival: &[Fraction], curve: &[(i64, i64)]) -> usize {
    let rates = rates(survival, curve);
    rates.windows(2).take_while(|pair| pair[1] > pair[0]).count()
}

/// The places at which the rate is largest, the fewest of equal ones.
pub(super) fn best(survival: &[Fraction], curve: &[(i64, i64)]) -> usize {
    let rates = rates(survival, curve);
    (0..rates.len()).fold(0, |best, at| if rates[at] > rates[best] { at } else { best })
}

/// One step of one sequence.
pub(super) fn single(
    rows: &Rows<Fraction>,
    shape: &[usize],
    choices: &mut Enumerator<Fraction>,
    places: impl Fn(&[Fraction]) -> usize,
) -> Result<Run> {
    let mut draft = Noise::fresh(choices).chain(rows, &[], shape.len())?;
    draft.truncate(places(&survival(rows, &[], &draft)));
    let tokens = chain::verify(rows, &[], &draft, Core::TopDown, choices)?;
    Ok(Run { accepted: tokens.len() - 1, emitted: vec![tokens], fallbacks: 0 })
}

/// One step of one sequence whose drafter has one row for each depth, all known before the first draw.
fn by_rows(
    rows: &Rows<Fraction>,
    length: usize,
    choices: &mut Enumerator<Fraction>,
) -> Result<Run> {
    let row = |depth: usize| rows.drafter(&vec![0; depth]);
    let mut product = Fraction::one();
    let mut survival = Vec::with_capacity(length);
    for depth in 0..length {
        let top = row(depth).iter().fold(Fraction::zero(), |top, q| Weight::max(&top, q));
        product = product.mul(&top);
        survival.push(product.clone());
    }
    let mut noise = Noise::fresh(choices);
    let mut tokens = Vec::new();
    for depth in 0..best(&survival, CURVE) {
        tokens.push(noise.draw(depth + 1, Purpose::Draft, row(depth).to_vec())?);
    }
    let (draft, mut view) = chain::declared(rows, &[], &tokens)?;
    for (depth, drafter) in view.drafter.iter_mut().enumerate() {
        *drafter = row(depth).to_vec();
    }
    let tokens = verify::decide(Core::TopDown, &draft, &mut view, choices)?.tokens;
    Ok(Run { accepted: tokens.len() - 1, emitted: vec![tokens], fallbacks: 0 })
}

/// As many steps as [`LENGTH`] tokens take, the places of each chosen by the draft before it.
fn stale(
    rows: &Rows<Fraction>,
    length: usize,
    draft: Key,
    choices: &mut Enumerator<Fraction>,
) -> Result<Run> {
    let mut emitted: Vec<u32> = Vec::new();
    let mut accepted = 0;
    let mut before = vec![Fraction::one(); length];
    while emitted.len() < LENGTH {
        let places = best(&before, CURVE);
        let root = emitted.len();
        let mut noise = Noise { choices: &mut *choices, root, draft, accept: Key::Step };
        let tokens = noise.chain(rows, &emitted, length)?;
        before = survival(rows, &emitted, &tokens);
        let more = chain::verify(rows, &emitted, &tokens[..places], Core::TopDown, choices)?;
        accepted += more.len() - 1;
        emitted.extend(more);
    }
    emitted.truncate(LENGTH);
    Ok(Run { emitted: vec![emitted], accepted, fallbacks: 0 })
}
