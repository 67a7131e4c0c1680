//! Drafts of one round that end by what the drafter's rows or its drawn tokens look like.
//!
//! ```text
//! confidence_stop    two sequences draft in step; the round ends before the first row of which no sequence has
//!                    had only rows with a largest probability of 2/3 or more; one token is always drafted
//!                    (vllm/v1/worker/gpu/spec_decode/confidence_stop.py)
//! .. block           one sequence, under block verification
//! .. late            one sequence; the token above such a row goes with it: one row too late
//! low_token          cut before the first drawn token whose own probability is below 1/2
//!                    (vllm-project/vllm#43522, closed)
//! mean               cut before the first drawn token below the mean of all that were drawn
//! mean of earlier    end before a row whose largest probability is below the mean of the tokens above it
//! ```

use super::chain::{self, Noise};
use super::{Rule, Run};
use crate::chance::enumerator::Enumerator;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::Rows;
use crate::verify::Core;

pub(super) static CONFIDENCE: Rule = Rule {
    shapes: &[&[1], &[1, 1]],
    sequences: 2,
    ..Rule::chain(
        "confidence_stop",
        "vllm-project/vllm at 41f9ab8, confidence_stop.py, two sequences",
        in_step,
    )
};

pub(super) static CONFIDENCE_BLOCK: Rule = Rule::chain(
    "confidence_stop_block",
    "vllm-project/vllm at 41f9ab8, confidence_stop.py, under block verification",
    |rows, shape, choices| single(rows, shape, Core::Lifted, choices, sure),
);

pub(super) static CONFIDENCE_LATE: Rule = Rule {
    is_claimed_lossless: false,
    is_lossless: false,
    ..Rule::chain("confidence_stop_late", "the same, one row too late", |rows, shape, choices| {
        single(rows, shape, Core::TopDown, choices, sure_behind)
    })
};

pub(super) static LOW_TOKEN: Rule = Rule {
    is_claimed_lossless: false,
    is_lossless: false,
    ..Rule::chain("low_token_dropped", "vllm-project/vllm#43522", |rows, shape, choices| {
        single(rows, shape, Core::TopDown, choices, |rows, draft| {
            let half = Fraction::ratio(1, 2);
            first(&own(rows, draft), |q| *q < half)
        })
    })
};

pub(super) static MEAN: Rule = Rule {
    is_claimed_lossless: false,
    is_lossless: false,
    ..Rule::chain(
        "mean_of_drawn",
        "a bound that is the draft's own mean",
        |rows, shape, choices| {
            single(rows, shape, Core::TopDown, choices, |rows, draft| {
                let own = own(rows, draft);
                let mean = mean(&own);
                first(&own, |q| *q < mean)
            })
        },
    )
};

pub(super) static MEAN_OF_EARLIER: Rule = Rule {
    is_claimed_lossless: false,
    ..Rule::chain("mean_of_earlier", "a bound that is the mean so far", |rows, shape, choices| {
        single(rows, shape, Core::TopDown, choices, |rows, draft| {
            let own = own(rows, draft);
            let is_low = |depth: usize| top(rows, &draft[..depth]) < mean(&own[..depth]);
            (1..draft.len()).find(|&depth| is_low(depth)).unwrap_or(draft.len())
        })
    })
};

/// How many tokens of a drawn draft are kept.
type Kept = fn(&Rows<Fraction>, &[u32]) -> usize;

/// One step of one sequence, its draft cut after it was drawn.
fn single(
    rows: &Rows<Fraction>,
    shape: &[usize],
    core: Core,
    choices: &mut Enumerator<Fraction>,
    kept: Kept,
) -> Result<Run> {
    let mut draft = Noise::fresh(choices).chain(rows, &[], shape.len())?;
    draft.truncate(kept(rows, &draft));
    let tokens = chain::verify(rows, &[], &draft, core, choices)?;
    Ok(Run { accepted: tokens.len() - 1, emitted: vec![tokens], fallbacks: 0 })
}

/// One step of two sequences whose drafts have one length.
fn in_step(
    rows: &Rows<Fraction>,
    shape: &[usize],
    choices: &mut Enumerator<Fraction>,
) -> Result<Run> {
    let drafts = chain::drafts(rows, shape.len(), choices)?;
    let longest = drafts.iter().map(|draft| sure(rows, draft)).max().unwrap_or(0);
    chain::verify_all(rows, &drafts, &[longest.max(1); 2], choices)
}

/// The largest probability of the drafter's row after a path.
fn top(rows: &Rows<Fraction>, path: &[u32]) -> Fraction {
    rows.drafter(path).iter().fold(Fraction::zero(), |top, q| Weight::max(&top, q))
}

fn is_sure(rows: &Rows<Fraction>, path: &[u32]) -> bool {
    top(rows, path) >= Fraction::ratio(2, 3)
}

/// The tokens before the first row that is not sure.
fn sure(rows: &Rows<Fraction>, draft: &[u32]) -> usize {
    let end = (0..draft.len()).find(|&depth| !is_sure(rows, &draft[..depth]));
    end.unwrap_or(draft.len())
}

/// The tokens before the first one with a row behind it that is not sure.
fn sure_behind(rows: &Rows<Fraction>, draft: &[u32]) -> usize {
    let end = (0..draft.len()).find(|&depth| !is_sure(rows, &draft[..=depth]));
    end.unwrap_or(draft.len())
}

/// The drafter's probability of each drawn token.
pub(super) fn own(rows: &Rows<Fraction>, draft: &[u32]) -> Vec<Fraction> {
    let q = |depth: usize| rows.drafter(&draft[..depth])[draft[depth] as usize].clone();
    (0..draft.len()).map(q).collect()
}

fn mean(values: &[Fraction]) -> Fraction {
    chain::sum(values).div(&Fraction::ratio(values.len() as i64, 1))
}

/// The place of the first value that is low, or their number.
fn first(values: &[Fraction], is_low: impl Fn(&Fraction) -> bool) -> usize {
    values.iter().position(is_low).unwrap_or(values.len())
}
