//! Drafts whose declared law is not the one they were made by: each is biased, and by how much.
//!
//! This is the evidence for refusing pairs of rule and law, for checking a draft against its law, and
//! for the growers' rule that a drawn token is never removed, reordered or exchanged. The machinery is
//! the proof's: the same rules, the same enumerator.

use crate::chance::enumerator::enumerate;
use crate::error::Result;
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::golden::{MODELS, Rows};
use crate::proof::growth::{Case, Grown, grow};
use crate::proof::summarise;
use crate::shaping::weights::WeightParams;
use crate::verify::law::Law;
use crate::verify::{self, Core};

/// What happens to a tree after its tokens were drawn, before a law is declared.
type Change = fn(&mut Grown<Fraction>, &Rows<Fraction>);

/// A draft that is not what it says, under a rule that believes it.
#[derive(Debug, Clone, Copy)]
pub struct Misdeclared {
    /// Its name in the list of mutants.
    pub name: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// The model of [`MODELS`].
    pub model: &'static str,
    /// How the tree is really grown.
    pub grown: Case,
    change: Change,
    /// The law that the draft declares.
    pub declared: Law,
    /// The rule that believes it.
    pub core: Core,
    /// The bias.
    pub bias: (i64, i64),
    /// Whether the specification states it, too.
    is_listed: bool,
}

const fn claim(
    (name, what): (&'static str, &'static str),
    (model, law, shape): (&'static str, Law, &'static [usize]),
    change: Change,
    (declared, core): (Law, Core),
    bias: (i64, i64),
) -> Misdeclared {
    Misdeclared {
        name,
        what,
        model,
        grown: Case { law, shape },
        change,
        declared,
        core,
        bias,
        is_listed: true,
    }
}

/// One that the specification does not have.
const fn own(draft: Misdeclared) -> Misdeclared {
    Misdeclared { is_listed: false, ..draft }
}

/// Every misdeclared draft.
pub static MISDECLARED: [Misdeclared; 34] = [
    claim(
        ("law/swor_claimed_iid", "drawn without replacement, declared independent"),
        ("E", Law::Swor, &[2]),
        nothing,
        (Law::Iid, Core::TopDown),
        (17, 392),
    ),
    claim(
        ("law/iid_duplicates_merged", "independent siblings with their duplicates merged"),
        ("E", Law::Iid, &[2]),
        merge_duplicates,
        (Law::Iid, Core::TopDown),
        (3, 112),
    ),
    claim(
        ("law/top1_claimed_swor", "one drawn child before the top ones, declared drawn"),
        ("E", Law::TopPlusOne, &[2]),
        nothing,
        (Law::Swor, Core::TopDown),
        (1, 6),
    ),
    claim(
        ("law/greedy_claimed_chain", "the drafter's argmax, declared drawn"),
        ("B", Law::Deterministic, &[1]),
        nothing,
        (Law::Chain, Core::TopDown),
        (1, 2),
    ),
    claim(
        ("law/top2_claimed_swor", "the two most likely tokens, declared drawn"),
        ("E", Law::Deterministic, &[2]),
        nothing,
        (Law::Swor, Core::TopDown),
        (1, 2),
    ),
    claim(
        ("law/pruned_after_sampling", "the two most likely nodes of a drawn tree"),
        ("A", Law::Swor, &[2, 1]),
        |grown, _| grown.keep_two_likeliest(),
        (Law::Swor, Core::TopDown),
        (1, 9),
    ),
    claim(
        ("law/pruned_after_sampling (lifted)", "the two most likely nodes of a drawn tree"),
        ("A", Law::Swor, &[2, 1]),
        |grown, _| grown.keep_two_likeliest(),
        (Law::Swor, Core::Lifted),
        (4, 27),
    ),
    claim(
        ("law/pruned_after_sampling (four tokens)", "the two most likely nodes of a drawn tree"),
        ("D", Law::Swor, &[2, 1]),
        |grown, _| grown.keep_two_likeliest(),
        (Law::Swor, Core::TopDown),
        (31, 224),
    ),
    claim(
        (
            "law/pruned_after_sampling (four tokens, lifted)",
            "the two most likely nodes of a drawn tree",
        ),
        ("D", Law::Swor, &[2, 1]),
        |grown, _| grown.keep_two_likeliest(),
        (Law::Swor, Core::Lifted),
        (23, 160),
    ),
    claim(
        ("law/discard_low_prob_token", "a chain without the drawn tokens below 2/5"),
        ("A", Law::Chain, &[1, 1]),
        |grown, _| cut_before(grown, &Fraction::ratio(2, 5), false),
        (Law::Chain, Core::TopDown),
        (1, 9),
    ),
    claim(
        ("law/discard_low_prob_token (four tokens)", "a chain without the drawn tokens below 2/5"),
        ("E", Law::Chain, &[1, 1]),
        |grown, _| cut_before(grown, &Fraction::ratio(2, 5), false),
        (Law::Chain, Core::TopDown),
        (1, 8),
    ),
    claim(
        ("law/cut_in_hindsight", "a chain cut where its path's probability fell below 1/5"),
        ("D", Law::Chain, &[1, 1]),
        |grown, _| cut_before(grown, &Fraction::ratio(1, 5), true),
        (Law::Chain, Core::TopDown),
        (3, 16),
    ),
    claim(
        ("td/sort_siblings", "drawn siblings put into the order of the target's row"),
        ("E", Law::Swor, &[2]),
        sort_by_target,
        (Law::Swor, Core::TopDown),
        (17, 120),
    ),
    claim(
        ("shape/q_reported_before_temperature", "drawn at temperature 1/2, reported without it"),
        ("tempered", Law::Chain, &[1]),
        report_untempered,
        (Law::Chain, Core::TopDown),
        (1, 7),
    ),
    claim(
        ("law/forbidden_token_dropped", "a drawn token that a grammar forbids is left out"),
        ("masked", Law::Chain, &[1]),
        drop_forbidden,
        (Law::Chain, Core::TopDown),
        (1, 4),
    ),
    own(claim(
        ("law/swor_claimed_iid (lifted)", "drawn without replacement, declared independent"),
        ("E", Law::Swor, &[2]),
        nothing,
        (Law::Iid, Core::Lifted),
        (17, 392),
    )),
    own(claim(
        ("law/top1_claimed_swor (lifted)", "one drawn child before the top ones, declared drawn"),
        ("E", Law::TopPlusOne, &[2]),
        nothing,
        (Law::Swor, Core::Lifted),
        (1, 6),
    )),
    own(claim(
        ("law/greedy_claimed_chain (lifted)", "the drafter's argmax, declared drawn"),
        ("B", Law::Deterministic, &[1]),
        nothing,
        (Law::Chain, Core::Lifted),
        (1, 2),
    )),
    own(claim(
        ("pair/kseq_on_deterministic", "the two most likely tokens under kseq"),
        ("E", Law::Deterministic, &[2]),
        nothing,
        (Law::Iid, Core::KSeq),
        (3, 10),
    )),
    own(claim(
        ("pair/kseq_on_swor", "drawn without replacement under kseq"),
        ("E", Law::Swor, &[2]),
        nothing,
        (Law::Iid, Core::KSeq),
        (25, 378),
    )),
    own(claim(
        ("pair/kseq_on_top_plus_one", "one drawn child before the top one under kseq"),
        ("E", Law::TopPlusOne, &[2]),
        nothing,
        (Law::Iid, Core::KSeq),
        (1, 18),
    )),
    own(claim(
        ("pair/kseq_on_mixed", "children of a set and drawn ones under kseq"),
        ("E", Law::Mixed, &[2]),
        nothing,
        (Law::Iid, Core::KSeq),
        (1, 18),
    )),
    own(claim(
        ("pair/gbv_on_deterministic", "the two most likely paths under gbv"),
        ("E", Law::Deterministic, &[2, 1]),
        nothing,
        (Law::Iid, Core::Gbv),
        (1, 2),
    )),
    own(claim(
        ("pair/gbv_on_swor", "paths drawn without replacement under gbv"),
        ("E", Law::Swor, &[2, 1]),
        nothing,
        (Law::Iid, Core::Gbv),
        (571, 5600),
    )),
    own(claim(
        ("pair/gbv_on_top_plus_one", "a drawn path before the top one under gbv"),
        ("B", Law::TopPlusOne, &[2, 1]),
        nothing,
        (Law::Iid, Core::Gbv),
        (7, 18),
    )),
    own(claim(
        ("pair/gbv_on_mixed", "paths of a set and drawn ones under gbv"),
        ("B", Law::Mixed, &[2, 1]),
        nothing,
        (Law::Iid, Core::Gbv),
        (3, 4),
    )),
    own(claim(
        ("law/one_draw_per_depth (lifted)", "one draw for each depth, hung below every node above"),
        ("A", Law::Swor, &[2, 1]),
        share_draws,
        (Law::Swor, Core::Lifted),
        (1, 18),
    )),
    own(claim(
        (
            "law/one_draw_per_depth (independent, lifted)",
            "one draw for each depth, hung below every node above",
        ),
        ("A", Law::Iid, &[2, 1]),
        share_draws,
        (Law::Iid, Core::Lifted),
        (1, 54),
    )),
    own(claim(
        (
            "law/one_draw_per_depth (top-plus-one, lifted)",
            "one draw for each depth, hung below every node above",
        ),
        ("by depth", Law::TopPlusOne, &[3, 1]),
        share_draws,
        (Law::TopPlusOne, Core::Lifted),
        (11, 72),
    )),
    own(claim(
        ("law/one_draw_per_depth (gbv)", "one draw for each depth, hung below every node above"),
        ("A", Law::Iid, &[2, 1]),
        share_draws,
        (Law::Iid, Core::Gbv),
        (4, 45),
    )),
    own(claim(
        (
            "pair/global_resolution_on_deterministic",
            "the two most likely tokens under global_resolution",
        ),
        ("E", Law::Deterministic, &[2]),
        nothing,
        (Law::Iid, Core::GlobalResolution),
        (67, 165),
    )),
    own(claim(
        ("pair/global_resolution_on_swor", "drawn without replacement under global_resolution"),
        ("E", Law::Swor, &[2]),
        nothing,
        (Law::Iid, Core::GlobalResolution),
        (1, 10),
    )),
    own(claim(
        (
            "pair/global_resolution_on_top_plus_one",
            "one drawn child before the top one under global_resolution",
        ),
        ("E", Law::TopPlusOne, &[2]),
        nothing,
        (Law::Iid, Core::GlobalResolution),
        (61, 528),
    )),
    own(claim(
        (
            "pair/global_resolution_on_mixed",
            "children of a set and drawn ones under global_resolution",
        ),
        ("E", Law::Mixed, &[2]),
        nothing,
        (Law::Iid, Core::GlobalResolution),
        (61, 528),
    )),
];

/// Every misdeclared draft with the total variation that it causes.
///
/// # Errors
/// Whatever a rule raises.
pub fn try_misdeclared() -> Result<Vec<(Misdeclared, Fraction)>> {
    MISDECLARED.iter().map(|draft| Ok((*draft, draft.distance()?))).collect()
}

impl Misdeclared {
    /// The model, how the tree is grown, and the rule that believes the declared law.
    pub fn describe(&self) -> String {
        let Case { law, shape } = self.grown;
        let declared = self.declared.name();
        format!("{} {}{shape:?} as {declared}, {:?}", self.model, law.name(), self.core)
    }

    /// The bias in the words of the specification; empty if it has none.
    pub fn stated(&self) -> String {
        if !self.is_listed {
            return String::new();
        }
        if self.name == "td/sort_siblings" {
            return "113/1400 (there each sibling keeps its law from the order of drawing)".into();
        }
        let (num, den) = self.bias;
        Fraction::ratio(num, den).to_string()
    }

    /// Whether a found bias is the one that is written down.
    pub fn is_biased_as_written(&self, distance: &Fraction) -> bool {
        let (num, den) = self.bias;
        *distance == Fraction::ratio(num, den)
    }

    /// The total variation between what the rule emits, continued, and the target's law.
    ///
    /// # Errors
    /// Whatever the rule raises.
    pub fn distance(&self) -> Result<Fraction> {
        let rows = self.rows();
        let outcomes = enumerate(|choices| {
            let mut grown = grow(&rows, &self.grown, choices)?;
            (self.change)(&mut grown, &rows);
            let (draft, mut view) = grown.declare(self.declared)?;
            verify::decide(self.core, &draft, &mut view, choices)
        })?;
        Ok(summarise(&rows, self.grown.shape.len() + 1, &outcomes).distance)
    }

    fn rows(&self) -> Rows<Fraction> {
        let plain = WeightParams::neutral();
        match self.model {
            "tempered" => Rows::new(&[B0], &[B0_SQUARED], &plain),
            "masked" => Rows::new(&[MASKED], &[UNMASKED], &plain),
            "by depth" => Rows::new(BY_DEPTH, &[B0], &plain),
            name => MODELS
                .iter()
                .find(|model| model.name == name)
                .expect("a model of the list")
                .rows(&plain),
        }
    }
}

const B0: &[(i64, i64)] = &[(1, 2), (1, 3), (1, 6)];
const B0_SQUARED: &[(i64, i64)] = &[(9, 14), (4, 14), (1, 14)];
// A fair row of three tokens whose first one a grammar forbids, and a drafter that does not know.
const MASKED: &[(i64, i64)] = &[(0, 1), (1, 2), (1, 2)];
const UNMASKED: &[(i64, i64)] = &[(1, 2), (1, 2), (0, 1)];
// A target whose rows depend on the path, and a drafter with one row.
const BY_DEPTH: &[&[(i64, i64)]] =
    &[&[(1, 6), (1, 2), (1, 3)], &[(1, 4), (1, 4), (1, 2)], &[(1, 2), (1, 3), (1, 6)]];

fn nothing(_: &mut Grown<Fraction>, _: &Rows<Fraction>) {}

fn merge_duplicates(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let seen = |node: usize| (1..node).any(|other| grown.tokens[other] == grown.tokens[node]);
    let nodes: Vec<usize> = (0..grown.tokens.len()).filter(|&node| !seen(node)).collect();
    grown.keep(&nodes);
}

/// Cuts a chain before the first token (or path) whose drafter's probability is below a bound.
fn cut_before(grown: &mut Grown<Fraction>, bound: &Fraction, by_path: bool) {
    let paths = grown.path_probabilities();
    let low = |node: usize| {
        let q = if by_path { paths[node].clone() } else { paths[node].div(&paths[node - 1]) };
        q < *bound
    };
    let end = (1..paths.len()).find(|&node| low(node)).unwrap_or(paths.len());
    grown.keep(&(0..end).collect::<Vec<_>>());
}

fn drop_forbidden(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let allowed = |node: usize| grown.rows[0].0[grown.tokens[node] as usize] > Fraction::zero();
    let nodes: Vec<usize> = (0..grown.tokens.len()).filter(|&n| n == 0 || allowed(n)).collect();
    grown.keep(&nodes);
}

fn sort_by_target(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    let mut nodes: Vec<usize> = (1..grown.tokens.len()).collect();
    nodes.sort_by(|&a, &b| {
        let p = |node: usize| &grown.rows[0].0[grown.tokens[node] as usize];
        p(b).cmp(p(a))
    });
    nodes.insert(0, 0);
    grown.keep(&nodes);
}

/// Gives all nodes of a depth the tokens that the first of them got: one draw for each depth, as a
/// drafter makes it whose rows depend on the depth alone.
fn share_draws(grown: &mut Grown<Fraction>, rows: &Rows<Fraction>) {
    let count = grown.tokens.len();
    let mut paths: Vec<Vec<u32>> = vec![Vec::new(); count];
    // The children of the first node of each depth, from which the others take theirs.
    let mut drawn: Vec<(usize, Vec<i64>)> = Vec::new();
    for node in 0..count {
        let depth = paths[node].len();
        let children: Vec<usize> =
            (1..count).filter(|&child| grown.parents[child] == node as i64).collect();
        if children.is_empty() {
            continue;
        }
        if drawn.len() <= depth {
            drawn.push((node, children.iter().map(|&child| grown.tokens[child]).collect()));
        }
        for (&child, &token) in children.iter().zip(&drawn[depth].1) {
            grown.tokens[child] = token;
            paths[child] = [&paths[node][..], &[token as u32]].concat();
            // The target's row after another token is another one.
            grown.rows[child].0 = rows.target(&paths[child]).to_vec();
        }
    }
}

fn report_untempered(grown: &mut Grown<Fraction>, _: &Rows<Fraction>) {
    for (target, drafter) in &mut grown.rows {
        drafter.clone_from(target);
    }
}

#[cfg(test)]
mod tests {
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
                assert!(
                    MISDECLARED.iter().any(|draft| draft.core == core && draft.grown.law == law)
                );
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
        for draft in &MISDECLARED {
            let found = draft.distance().unwrap();
            assert!(draft.is_biased_as_written(&found), "{}: {found}", draft.name);
        }
    }
}
