//! One node budget for many requests, spent where a node adds most.
//!
//! Each request's scores do not increase, so the sum of expected tokens under a common budget is
//! largest when the largest scores of all are taken. Deterministic trees may be cut to their share;
//! sampled trees may take such a decision only before a draw.
//!
//! Source: marginal gains as in AdaServe (arXiv 2501.12162), TurboSpec (2406.14066).

use std::cmp::Ordering;

use crate::error::{Error, Result};

/// How many nodes each request gets: at least `minimum` (or all it has), then by descending score,
/// equal ones by the earlier request; at most `budget` in all.
///
/// # Errors
/// [`Error::ParamOutOfRange`] if the minima alone exceed the budget, or for scores that increase or
/// are not probabilities.
pub fn allocate(scores: &[Vec<f64>], budget: usize, minimum: usize) -> Result<Vec<usize>> {
    let refuse = |name, value: String, wanted| Err(Error::ParamOutOfRange { name, value, wanted });
    for (request, list) in scores.iter().enumerate() {
        let bad = list.iter().enumerate().find(|&(index, score)| {
            !(0.0..=1.0).contains(score) || (index > 0 && *score > list[index - 1])
        });
        if let Some((index, score)) = bad {
            let value = format!("{score} at index {index} of request {request}");
            return refuse("scores", value, "probabilities in descending order");
        }
    }
    let mut counts: Vec<usize> = scores.iter().map(|list| list.len().min(minimum)).collect();
    let granted: usize = counts.iter().sum();
    if granted > budget {
        return refuse("budget", budget.to_string(), "at least the minimum of every request");
    }
    let mut gains: Vec<(f64, usize)> = Vec::new();
    for (request, list) in scores.iter().enumerate() {
        gains.extend(list[counts[request]..].iter().map(|&score| (score, request)));
    }
    // Within a request scores do not increase, so counting the winners takes each one's best first.
    gains.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)));
    for &(_, request) in gains.iter().take(budget - granted) {
        counts[request] += 1;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_common_budget_is_spent_best(
            mut scores in proptest::collection::vec(
                proptest::collection::vec(0.0_f64..1.0, 0..4), 1..4),
            budget in 0_usize..8,
        ) {
            for list in &mut scores {
                list.sort_by(|a, b| b.total_cmp(a));
            }
            let counts = allocate(&scores, budget, 0).unwrap();
            let value = |counts: &[usize]| -> f64 {
                scores.iter().zip(counts).map(|(list, &n)| list[..n].iter().sum::<f64>()).sum()
            };
            let mut best = 0.0_f64;
            let mut trial = vec![0; scores.len()];
            'search: loop {
                if trial.iter().sum::<usize>() <= budget {
                    best = best.max(value(&trial));
                }
                for (at, list) in trial.iter_mut().zip(&scores) {
                    if *at < list.len() {
                        *at += 1;
                        continue 'search;
                    }
                    *at = 0;
                }
                break;
            }
            prop_assert!(counts.iter().sum::<usize>() <= budget);
            prop_assert!((value(&counts) - best).abs() < 1e-12);
        }
    }

    #[test]
    fn every_request_gets_its_minimum() {
        let scores = [vec![0.9, 0.8, 0.7], vec![0.1, 0.1], vec![]];
        assert_eq!(allocate(&scores, 4, 1).unwrap(), [3, 1, 0]);
        assert_eq!(allocate(&scores, 9, 0).unwrap(), [3, 2, 0]);
        assert!(allocate(&scores, 1, 1).is_err());
        assert!(allocate(&[vec![0.1, 0.2]], 1, 0).is_err());
        assert!(allocate(&[vec![f64::NAN]], 1, 0).is_err());
    }
}
