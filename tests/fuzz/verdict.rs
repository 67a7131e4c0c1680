//! `verify`, `expected_accepted` and batches.

use mtp_verify::batch::{Addresses, Batch, Each, Logits};
use mtp_verify::error::Error;
use mtp_verify::shaping::Edits;
use mtp_verify::verify::lossy::{self, Lossy};

use crate::bits::Bits;
use crate::harness::same_in_a_fresh_thread;
use crate::request::{self, Answer, Request, broken, sound, text};
use crate::rows::vocabulary;

fn any(bits: &mut Bits, vocab: usize) -> Request {
    if bits.one_in(2) { sound(bits, vocab) } else { broken(bits, vocab) }
}

/// The error's name, or that there is none.
pub(crate) fn outcome<T>(result: &Result<T, Error>) -> &'static str {
    result.as_ref().map_or_else(Error::slug, |_| "ok")
}

pub(crate) fn check_one(bits: &mut Bits) -> &'static str {
    let vocab = vocabulary(bits);
    let mut asked = any(bits, vocab);
    if asked.is_sound && bits.one_in(6) && !asked.params.is_greedy() {
        asked.lossy = request::lossy(bits);
        (asked.rule, asked.is_own_target) = ("auto", false);
        asked.is_sound = !matches!(asked.lossy, Some(Lossy::Ensemble { .. }));
    }
    let other = any(bits, vocab);
    let answer = asked.verify();
    let said = text(&answer);
    assert_eq!(said, text(&asked.verify()), "another answer at once");
    let _ = (other.verify(), other.expected());
    assert_eq!(said, text(&asked.verify()), "another answer after another call");
    if bits.one_in(32) {
        same_in_a_fresh_thread(&said, || text(&asked.verify()));
    }
    check_answer(&asked, &answer);
    check_mean(bits, &asked, &other);
    outcome(&answer)
}

fn check_answer(asked: &Request, answer: &Answer) {
    let (verdict, _) = match answer {
        Err(error) => {
            assert!(!asked.is_sound, "sound input was refused: {error}");
            assert!(error.slug() != "row_changed", "{error}, and nobody wrote into it");
            return;
        }
        Ok(answer) => answer,
    };
    let tree = asked.draft.tree();
    let path: Vec<i64> = verdict.path.iter().map(|&node| i64::from(node)).collect();
    tree.check_path(&path).unwrap();
    assert_eq!(verdict.tokens.len(), path.len() + 1);
    assert_eq!(verdict.logprobs.len(), path.len() + 1);
    for (&node, &token) in verdict.path.iter().zip(&verdict.tokens) {
        assert_eq!(asked.draft.token(node as usize), token);
    }
    let may_be_impossible = matches!(asked.lossy, Some(Lossy::Ensemble { .. }));
    let nodes = std::iter::once(0).chain(verdict.path.iter().map(|&node| node as usize));
    for ((node, &token), &logprob) in nodes.zip(&verdict.tokens).zip(&verdict.logprobs) {
        let p = asked.probability(node, token);
        assert!(logprob <= 0.0, "log-probability {logprob} of token {token} after node {node}");
        if may_be_impossible {
            continue;
        }
        assert!(p > 0.0, "token {token} after node {node} has no probability");
        assert!(logprob.is_finite());
        let difference = (f64::from(logprob) - p.ln()).abs();
        assert!(difference < 1e-4 * (1.0 - f64::from(logprob)), "{logprob} for ln {p}");
    }
    assert_eq!(verdict.is_lossless(), asked.lossy.is_none());
    assert_eq!(verdict.is_lossless(), !lossy::is_name(verdict.rule));
    if asked.is_own_target {
        let depth = (0..tree.num_nodes()).map(|node| tree.depth(node)).max();
        assert_eq!(Some(path.len()), depth, "the drafter is its own target");
    }
}

fn check_mean(bits: &mut Bits, asked: &Request, other: &Request) {
    let tree = asked.draft.tree();
    if asked.lossy.is_some() || tree.num_nodes() > 12 && !bits.one_in(8) {
        return;
    }
    let mean = asked.expected();
    let said = |mean: &Result<f64, Error>| match mean {
        Ok(mean) => mean.to_bits().to_string(),
        Err(error) => format!("{error:?}"),
    };
    let _ = other.verify();
    assert_eq!(said(&mean), said(&asked.expected()), "another mean");
    let depth = (0..tree.num_nodes()).map(|node| tree.depth(node)).max().unwrap_or(0) as f64;
    match mean {
        Ok(mean) => {
            assert!(mean >= 0.0 && mean <= depth * (1.0 + 1e-9), "mean {mean}, depth {depth}");
            if asked.is_own_target {
                assert!((mean - depth).abs() < 1e-6, "mean {mean}, the drafter is its own target");
            }
        }
        Err(Error::LawData { .. }) => {}
        Err(error) => assert!(!asked.is_sound, "sound input was refused: {error}"),
    }
}

pub(crate) fn check_batch(bits: &mut Bits) -> &'static str {
    let vocab = vocabulary(bits);
    let count = bits.between(0, 4);
    let asked: Vec<Request> = (0..count).map(|_| any(bits, vocab)).collect();
    let alone: Vec<Answer> = asked.iter().map(Request::verify).collect();
    let edits: Result<Vec<Option<Edits<'_>>>, Error> = asked.iter().map(Request::edits).collect();
    let Ok(edits) = edits else {
        return "no edits";
    };
    let are_edited = edits.iter().any(Option::is_some);
    let nothing = |at: usize| {
        let draft = &asked[at].draft;
        let tokens = (0..draft.num_nodes()).map(|node| draft.token(node)).collect();
        Edits::new(draft.tree(), tokens, None, None, None)
    };
    let edits: Vec<Edits<'_>> = edits
        .into_iter()
        .enumerate()
        .map(|(at, edits)| edits.unwrap_or_else(|| nothing(at)))
        .collect();
    let params: Vec<_> = asked.iter().map(|request| request.params).collect();
    let rules: Vec<&str> = asked.iter().map(|request| request.rule).collect();
    let lossy: Vec<_> = asked.iter().map(|request| request.lossy).collect();
    let top: Vec<usize> = asked.iter().map(|request| request.top_logprobs).collect();
    let batch = Batch {
        drafts: asked.iter().map(|request| &request.draft).collect(),
        drafters: asked.iter().map(Request::drafter).collect(),
        logits: Logits::Own {
            rows: asked.iter().map(|request| request.target.raw()).collect(),
            padded: false,
        },
        params: Each::Own(&params),
        rules: Each::Own(&rules),
        lossy: Each::Own(&lossy),
        addresses: Addresses {
            seeds: asked.iter().map(|request| request.noise.seed).collect(),
            positions: asked.iter().map(|request| request.noise.position).collect(),
        },
        edits: if are_edited { &edits } else { &[] },
        top_logprobs: Each::Own(&top),
    };
    let result = batch.verify();
    match (&result, alone.iter().position(Result::is_err)) {
        (Ok(verdicts), None) => {
            assert_eq!(verdicts.len(), count);
            for (at, one) in alone.iter().enumerate() {
                let mine = Ok((verdicts.get(at), verdicts.tops[at].clone()));
                assert_eq!(text(one), text(&mine), "sequence {at} of a batch");
            }
            let counts: Vec<i64> = (0..bits.between(count.saturating_sub(1), count + 1))
                .map(|_| bits.size(3) as i64)
                .collect();
            if let Ok(cut) = verdicts.cut(&counts) {
                assert_eq!(cut.tokens.len() as i64, counts.iter().sum::<i64>());
            }
        }
        (Err(Error::InSequence { sequence, source }), Some(first)) => {
            assert_eq!(*sequence, first as i64);
            assert_eq!(text(&alone[first]), format!("{source:?}"));
        }
        (found, wanted) => panic!("{found:?}, alone the first error is of {wanted:?}"),
    }
    outcome(&result)
}
