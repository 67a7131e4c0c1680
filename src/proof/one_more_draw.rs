//! The lemma under the append-only theorem, draft by draft: given what has been drawn, the law of what a
//! rule emits is the mean of its laws over one more draw. So going on or stopping changes nothing,
//! whatever decides it, and in whichever order several requests of one step draw.

use std::collections::BTreeSet;

use super::tests::{R, model, r};
use super::*;
use crate::tree::TokenTree;
use crate::verify::law::{Draft, Law};

/// Drafted nodes: parent and token of each, the root left out.
type Nodes = Vec<(usize, u32)>;

fn draft_of(nodes: &Nodes, law: Law) -> Draft {
    let parents: Vec<i64> =
        std::iter::once(-1).chain(nodes.iter().map(|node| node.0 as i64)).collect();
    let tokens = std::iter::once(-1).chain(nodes.iter().map(|node| i64::from(node.1))).collect();
    Draft::new(TokenTree::new(&parents).unwrap(), tokens, law, None).unwrap()
}

/// The law of what a rule emits for one draft, continued to `length` tokens.
fn emitted(
    rows: &Rows<R>,
    nodes: &Nodes,
    law: Law,
    core: Core,
    length: usize,
) -> OutputLaw<R, Vec<u32>> {
    let draft = draft_of(nodes, law);
    let outcomes =
        enumerate(|choices| verify::decide(core, &draft, &mut growth::view(rows, &draft), choices))
            .unwrap();
    summarise(rows, length, &outcomes).law
}

/// The draws that are possible below a node, with their probabilities.
fn draws(rows: &Rows<R>, nodes: &Nodes, law: Law, parent: usize) -> Vec<(u32, R)> {
    let draft = draft_of(nodes, law);
    let view = growth::view(rows, &draft);
    let drawn: Vec<u32> =
        draft.tree().children(parent).iter().map(|&child| draft.token(child as usize)).collect();
    let left = |token: u32| law != Law::Swor || !drawn.contains(&token);
    let live: Vec<(u32, R)> = (0..)
        .zip(view.drafter[parent].iter().cloned())
        .filter(|(token, q)| left(*token) && q.is_positive())
        .collect();
    let total = live.iter().fold(r(0, 1), |sum: R, (_, q)| sum.add(q));
    live.into_iter().map(|(token, q)| (token, q.div(&total))).collect()
}

/// The largest distance of one more draw over every draft of up to `most` nodes, and how many draws there are.
fn largest(
    rows: &Rows<R>,
    law: Law,
    core: Core,
    most: usize,
    may_have: fn(&Draft, usize) -> bool,
) -> (R, usize) {
    let length = most + 1;
    let mut open: BTreeSet<Nodes> = BTreeSet::from([Vec::new()]);
    let (mut worst, mut count) = (r(0, 1), 0);
    while let Some(nodes) = open.pop_first() {
        if nodes.len() == most {
            continue;
        }
        let draft = draft_of(&nodes, law);
        let before = emitted(rows, &nodes, law, core, length);
        for parent in (0..draft.num_nodes()).filter(|&parent| may_have(&draft, parent)) {
            let mut mean = OutputLaw::empty();
            for (token, q) in draws(rows, &nodes, law, parent) {
                let longer = [&nodes[..], &[(parent, token)]].concat();
                for (tokens, weight) in emitted(rows, &longer, law, core, length).iter() {
                    mean.add(tokens.clone(), &weight.mul(&q));
                }
                open.insert(longer);
            }
            // Nothing may be left to draw without replacement.
            if mean.total() == r(1, 1) {
                count += 1;
                worst = Weight::max(&worst, &mean.distance(&before));
            }
        }
    }
    (worst, count)
}

/// Of a chain the end alone.
fn end(draft: &Draft, parent: usize) -> bool {
    parent + 1 == draft.num_nodes()
}

fn any(_: &Draft, _: usize) -> bool {
    true
}

fn childless(draft: &Draft, parent: usize) -> bool {
    draft.tree().children(parent).is_empty()
}

const SIZES: [(&str, usize); 4] = [("A", 4), ("B", 3), ("C", 3), ("E", 2)];

#[test]
fn one_more_draw_changes_no_law() {
    let mut draws = 0;
    for (law, may_have) in
        [(Law::Chain, end as fn(&Draft, usize) -> bool), (Law::Swor, any), (Law::Iid, any)]
    {
        for core in [Core::TargetOnly, Core::TopDown, Core::Lifted] {
            for (name, most) in SIZES {
                let (worst, count) = largest(&model(name), law, core, most, may_have);
                assert_eq!(worst, r(0, 1), "{law:?} {core:?} {name}");
                draws += count;
            }
        }
    }
    assert!(draws > 1000, "{draws}");
}

#[test]
fn one_more_draw_below_a_leaf_changes_no_law() {
    for core in [Core::KSeq, Core::GlobalResolution] {
        for (name, most) in SIZES {
            let (worst, _) = largest(&model(name), Law::Iid, core, most, childless);
            assert_eq!(worst, r(0, 1), "{core:?} {name}");
        }
    }
}

#[test]
fn one_more_sibling_changes_the_law_of_rules_that_look_at_all_of_them() {
    for core in [Core::KSeq, Core::Gbv, Core::GlobalResolution] {
        let root = |_: &Draft, parent: usize| parent == 0;
        let (worst, _) = largest(&model("E"), Law::Iid, core, 2, root);
        assert!(worst.is_positive(), "{core:?}");
    }
}
