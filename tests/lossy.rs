//! Properties of the lossy acceptances over random trees and rows.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use mtp_verify::chance::{NoChoices, Philox};
use mtp_verify::error::Error;
use mtp_verify::tree::TokenTree;
use mtp_verify::verify::dense::DenseView;
use mtp_verify::verify::law::{Draft, Law};
use mtp_verify::verify::lossy::{Lossy, decide, is_name};
use proptest::prelude::*;

/// A tree with its rows: parents, tokens, counts that make the rows.
fn cases() -> impl Strategy<Value = (Vec<i64>, Vec<i64>, Vec<Vec<f64>>)> {
    (2_usize..6, 0_usize..9).prop_flat_map(|(vocab, count)| {
        let parents = (1..=count).map(|node| 0..node as i64).collect::<Vec<_>>();
        let tokens = proptest::collection::vec(0..vocab as i64, count);
        // Zeros and ties are common.
        let counts = proptest::collection::vec(0_u32..4, vocab).prop_map(|mut row| {
            if row.iter().sum::<u32>() == 0 {
                row[0] = 1;
            }
            let sum = f64::from(row.iter().sum::<u32>());
            row.into_iter().map(|count| f64::from(count) / sum).collect::<Vec<f64>>()
        });
        (parents, tokens, proptest::collection::vec(counts, count + 1))
    })
}

fn acceptances() -> impl Strategy<Value = Lossy> {
    prop_oneof![
        (0.01..0.99, 0.01..2.0).prop_map(|(e, d)| Lossy::new("typical", &[e, d]).unwrap()),
        (0.01..=1.0).prop_map(|tau| Lossy::new("threshold", &[tau]).unwrap()),
        (1_u32..5).prop_map(|k| Lossy::new("topk", &[f64::from(k)]).unwrap()),
    ]
}

/// Whether a token is accepted, written down once more from the definitions.
fn is_accepted(lossy: Lossy, row: &[f64], token: usize) -> bool {
    let p = row[token];
    match (lossy.name(), &lossy.values()[..]) {
        ("typical", &[eps, delta]) => {
            let positive = row.iter().filter(|p| **p > 0.0);
            let entropy: f64 = positive.map(|p| -p * p.ln()).sum();
            p > eps.min(delta * (-entropy).exp())
        }
        ("threshold", &[tau]) => p >= tau,
        (_, values) => {
            p > 0.0 && (row.iter().filter(|other| **other > p).count() as f64) < values[0]
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_first_of_the_longest_accepted_paths_is_kept(
        (parents, tokens, rows) in cases(),
        lossy in acceptances(),
        seed in any::<u64>(),
    ) {
        let tree = TokenTree::new(&[&[-1], &parents[..]].concat()).unwrap();
        let draft =
            Draft::new(tree, [&[-1], &tokens[..]].concat(), Law::Unknown, None);
        let Ok(draft) = draft else { return Ok(()) }; // Siblings of one token.
        let count = draft.num_nodes();
        let mut kept = vec![true];
        for node in 1..count {
            let parent = draft.tree().parent(node).unwrap();
            let token = draft.token(node) as usize;
            kept.push(kept[parent] && is_accepted(lossy, &rows[parent], token));
        }
        let depth = (0..count).filter(|&n| kept[n]).map(|n| draft.tree().depth(n)).max().unwrap();
        let stop = (0..count).find(|&n| kept[n] && draft.tree().depth(n) == depth).unwrap();
        let mut view = DenseView { target: rows.clone(), drafter: vec![Vec::new(); count] };
        let found = decide(lossy, &draft, &mut view, &mut Philox::new(seed, 7)).unwrap();
        prop_assert_eq!(&found.path, &draft.tree().path(stop));
        let bonus = *found.tokens.last().unwrap() as usize;
        prop_assert!(rows[stop][bonus] > 0.0);
        if lossy.name() == "typical" {
            let most = rows[stop].iter().copied().fold(0.0, f64::max);
            prop_assert_eq!(rows[stop].iter().position(|p| *p >= most), Some(bonus));
            let silent = decide(lossy, &draft, &mut view, &mut NoChoices).unwrap();
            prop_assert_eq!(silent, found);
        }
    }
}

#[test]
fn numbers_out_of_range_are_named() {
    let bad: [(&str, &[f64], &str); 9] = [
        ("typical", &[0.0, 1.0], "eps"),
        ("typical", &[0.5, f64::NAN], "delta"),
        ("threshold", &[0.0], "tau"),
        ("threshold", &[1.5], "tau"),
        ("topk", &[0.0], "k"),
        ("topk", &[2.5], "k"),
        ("ensemble", &[1.0], "w"),
        ("ensemble", &[0.5, 0.5], "lossy"),
        ("synthetic", &[0.5], "lossy"),
    ];
    for (name, values, wanted) in bad {
        let found = Lossy::new(name, values);
        assert!(
            matches!(found, Err(Error::ParamOutOfRange { name, .. }) if name == wanted),
            "{name} {values:?}: {found:?}"
        );
    }
    assert!(is_name("topk") && !is_name("block"));
}
