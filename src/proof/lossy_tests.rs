//! The bias of lossy acceptances, exactly: the same enumerator that proves the rules.

use super::tests::{R, model, r};
use super::*;
use crate::proof::golden::Rows;
use crate::verify::law::Law;
use crate::verify::lossy::{self, Lossy};

fn finding(rows: &Rows<R>, law: Law, shape: &'static [usize], lossy: Lossy) -> Finding<R> {
    let case = Case { law, shape };
    let outcomes = enumerate(|choices| {
        let (draft, mut view) = draft(rows, &case, choices)?;
        lossy::decide(lossy, &draft, &mut view, choices)
    })
    .unwrap();
    summarise(rows, shape.len() + 1, &outcomes)
}

fn first_token(found: &Finding<R>, vocab: usize) -> Vec<R> {
    let mut law = vec![r(0, 1); vocab];
    for (tokens, weight) in found.law.iter() {
        law[tokens[0] as usize] = law[tokens[0] as usize].add(weight);
    }
    law
}

#[test]
fn threshold_has_the_law_of_the_worked_example() {
    // B, one drafted token, tau = 1/4: the specification's scale of a lossy acceptance.
    let lossy = Lossy::new("threshold", &[0.25]).unwrap();
    let found = finding(&model("B"), Law::Chain, &[1], lossy);
    assert_eq!(first_token(&found, 3), [r(1, 2), r(4, 9), r(1, 18)]);
    assert_eq!(found.distance, r(1, 9));
}

#[test]
fn ensemble_emits_the_blend_of_the_two_rows() {
    let lossy = Lossy::new("ensemble", &[0.75]).unwrap();
    for name in ["A", "B", "C", "D", "E"] {
        let rows = model(name);
        let (p, q) = (rows.target(&[]), rows.drafter(&[]));
        let blend: Vec<R> =
            p.iter().zip(q).map(|(p, q)| p.mul(&r(3, 4)).add(&q.mul(&r(1, 4)))).collect();
        for (law, shape) in [
            (Law::Chain, &[1][..]),
            (Law::Chain, &[1, 1]),
            (Law::Iid, &[2, 1]),
            (Law::Swor, &[2, 1]),
            (Law::Swor, &[3]),
        ] {
            let found = finding(&rows, law, shape, lossy);
            assert_eq!(first_token(&found, p.len()), blend, "{name} {law:?} {shape:?}");
            assert_eq!(found.fallbacks, 0);
        }
    }
}

#[test]
fn each_acceptance_is_biased_and_accepts_more_than_the_rule_it_stands_for() {
    let token = run(&model("E"), &Case { law: Law::Chain, shape: &[1, 1] }, Core::TopDown).unwrap();
    for (name, values) in [
        ("typical", &[0.3, 0.3][..]),
        ("threshold", &[0.0625]),
        ("topk", &[4.0]),
        ("ensemble", &[0.5]),
    ] {
        let lossy = Lossy::new(name, values).unwrap();
        let found = finding(&model("E"), Law::Chain, &[1, 1], lossy);
        assert!(found.distance.is_positive(), "{name}");
        assert!(found.expected > token.expected, "{name}");
    }
}
