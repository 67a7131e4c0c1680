use super::changes::{level_by_draws, narrow_after, nothing, share_draws};
use super::*;

#[test]
fn independent_siblings_without_repeats_are_drawn_without_replacement() {
    // What is left after dropping repeats is a Swor draft that stopped early: append-only.
    let merged = Misdeclared { declared: Law::Swor, ..MISDECLARED[1] };
    assert_eq!(merged.name, "law/iid_duplicates_merged");
    assert_eq!(merged.distance().unwrap(), Fraction::zero());
}

#[test]
fn a_forbidden_token_that_stays_in_the_draft_does_no_harm() {
    let kept = Misdeclared { change: nothing, ..MISDECLARED[14] };
    assert_eq!(kept.name, "law/forbidden_token_dropped");
    assert_eq!(kept.distance().unwrap(), Fraction::zero());
}

#[test]
fn one_draw_for_each_depth_is_lossless_from_the_root_down() {
    // What hangs below a node is looked at after the node is accepted, and the siblings' children
    // never: given all that was looked at, its children have the law of children drawn anew.
    for (law, core) in [
        (Law::Swor, Core::TopDown),
        (Law::Iid, Core::TopDown),
        (Law::Iid, Core::KSeq),
        (Law::TopPlusOne, Core::TopDown),
    ] {
        for model in ["A", "by depth"] {
            for shape in [&[2, 1][..], &[3, 1], &[2, 2]] {
                if law == Law::TopPlusOne && shape == [2, 2] {
                    continue; // More children than the rest of two tokens has.
                }
                let grown = Case { law, shape };
                let draft = Misdeclared { model, grown, change: share_draws, ..MISDECLARED[0] };
                let draft = Misdeclared { declared: law, core, ..draft };
                let found = draft.distance().unwrap();
                assert_eq!(found, Fraction::zero(), "{law:?} {core:?} {model} {shape:?}");
            }
        }
    }
}

#[test]
fn every_refused_rule_of_its_own_is_shown_to_be_biased() {
    for core in [Core::KSeq, Core::Gbv, Core::GlobalResolution] {
        for law in [Law::Deterministic, Law::Swor, Law::TopPlusOne, Law::Mixed] {
            assert!(verify::resolve(core.name(), law).is_err());
            assert!(MISDECLARED.iter().any(|draft| draft.core == core && draft.grown.law == law));
        }
    }
    // Refused, and not biased: one sibling is token or block verification under another name.
    for core in [Core::KSeq, Core::GlobalResolution] {
        assert!(verify::resolve(core.name(), Law::Chain).is_err());
        let chain =
            Misdeclared { grown: Case { law: Law::Chain, shape: &[1, 1] }, ..MISDECLARED[0] };
        let chain = Misdeclared { declared: Law::Iid, core, ..chain };
        assert_eq!(chain.distance().unwrap(), Fraction::zero());
    }
}

#[test]
fn every_lie_is_biased_by_the_stated_amount() {
    for draft in MISDECLARED {
        let found = draft.distance().unwrap();
        assert!(draft.is_biased_as_written(&found), "{}: {found}", draft.name);
    }
}

/// The bias of a draft of a law that is changed after its draws, and declared as that law.
fn changed(model: &'static str, grown: Case, change: Change, core: Core) -> Fraction {
    let draft = Misdeclared { model, grown, change, declared: grown.law, core, ..MISDECLARED[0] };
    draft.distance().unwrap()
}

/// Leaves out every node below an unsure row: a stop before the draw.
fn stop_before(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let bound = Fraction::ratio(2, 5);
    let mut kept = vec![0];
    for node in 1..grown.tokens.len() {
        let parent = grown.parents[node] as usize;
        if kept.contains(&parent) && grown.rows[parent].1.iter().any(|q| *q >= bound) {
            kept.push(node);
        }
    }
    grown.keep(&kept);
}

const SAMPLED: [(Law, &[usize]); 5] = [
    (Law::Chain, &[1, 1]),
    (Law::Iid, &[2, 1]),
    (Law::Swor, &[2, 1]),
    (Law::TopPlusOne, &[2, 1]),
    (Law::Mixed, &[2, 1]),
];

#[test]
fn a_stop_before_an_unsure_row_is_lossless() {
    for (law, shape) in SAMPLED {
        for core in [Core::TopDown, Core::Lifted] {
            for model in ["B", "C"] {
                let found = changed(model, Case { law, shape }, stop_before, core);
                assert_eq!(found, Fraction::zero(), "{law:?} {core:?} {model}");
            }
        }
    }
    // Independent siblings: the rules that look at all of them at once, too.
    for core in [Core::KSeq, Core::GlobalResolution] {
        for model in ["A", "B", "C"] {
            let grown = Case { law: Law::Iid, shape: &[2, 1] };
            assert_eq!(changed(model, grown, stop_before, core), Fraction::zero(), "{core:?}");
        }
    }
}

#[test]
fn the_number_of_siblings_may_depend_on_those_drawn_before_where_they_are_tested_one_by_one() {
    for (law, core) in [
        (Law::Iid, Core::TopDown),
        (Law::Iid, Core::Lifted),
        (Law::Swor, Core::TopDown),
        (Law::Swor, Core::Lifted),
    ] {
        for model in ["A", "B", "E"] {
            for shape in [&[2][..], &[2, 1]] {
                let found = changed(model, Case { law, shape }, narrow_after, core);
                assert_eq!(found, Fraction::zero(), "{law:?} {core:?} {model} {shape:?}");
            }
        }
    }
}

#[test]
fn a_level_may_depend_on_the_levels_above() {
    // All but gbv, which selects a path by all of it.
    for core in [Core::TopDown, Core::Lifted, Core::KSeq, Core::GlobalResolution] {
        for model in ["A", "B", "C"] {
            let grown = Case { law: Law::Iid, shape: &[2, 1] };
            let found = changed(model, grown, level_by_draws, core);
            assert_eq!(found, Fraction::zero(), "{core:?} {model}");
        }
    }
}
