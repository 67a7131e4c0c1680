//! The list: name, what is wrong, how the tree is grown, what is declared, the bias.

use super::changes::{
    cut_before, cut_below_the_mean, drop_forbidden, level_by_draws, merge_duplicates, narrow_after,
    nothing, report_untempered, share_draws, sort_by_target, stop_one_row_late,
};
use super::{Change, Misdeclared};
use crate::number::Weight;
use crate::number::fraction::Fraction;
use crate::proof::growth::Case;
use crate::verify::Core;
use crate::verify::law::Law;

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

const LATE: &str = "a drawn token left out because the row after it is unsure (largest below 2/5)";
const MEAN: &str = "a chain cut before the first token below the mean of all that were drawn";
const NARROW: &str = "no second sibling where the first one was token 0";

/// Every misdeclared draft.
pub static MISDECLARED: &[Misdeclared] = &[
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
    own(claim(
        ("law/discard_low_prob_token (block)", "a chain without the drawn tokens below 2/5"),
        ("A", Law::Chain, &[1, 1]),
        |grown, _| cut_before(grown, &Fraction::ratio(2, 5), false),
        (Law::Chain, Core::Lifted),
        (2, 27),
    )),
    own(claim(
        ("law/mean_of_drawn", MEAN),
        ("A", Law::Chain, &[1, 1]),
        cut_below_the_mean,
        (Law::Chain, Core::TopDown),
        (2, 27),
    )),
    own(claim(
        ("law/mean_of_drawn (block)", MEAN),
        ("A", Law::Chain, &[1, 1]),
        cut_below_the_mean,
        (Law::Chain, Core::Lifted),
        (10, 81),
    )),
    own(claim(
        ("law/stopped_one_row_late", LATE),
        ("B", Law::Chain, &[1, 1]),
        stop_one_row_late,
        (Law::Chain, Core::TopDown),
        (1, 6),
    )),
    own(claim(
        ("law/stopped_one_row_late (block)", LATE),
        ("B", Law::Chain, &[1, 1]),
        stop_one_row_late,
        (Law::Chain, Core::Lifted),
        (1, 6),
    )),
    own(claim(
        ("law/stopped_one_row_late (tree)", LATE),
        ("B", Law::Swor, &[2, 1]),
        stop_one_row_late,
        (Law::Swor, Core::TopDown),
        (1, 4),
    )),
    own(claim(
        ("law/stopped_one_row_late (tree, lifted)", LATE),
        ("B", Law::Swor, &[2, 1]),
        stop_one_row_late,
        (Law::Swor, Core::Lifted),
        (1, 4),
    )),
    own(claim(
        ("law/width_by_draws (kseq)", NARROW),
        ("E", Law::Iid, &[2]),
        narrow_after,
        (Law::Iid, Core::KSeq),
        (2, 45),
    )),
    own(claim(
        ("law/width_by_draws (gbv)", NARROW),
        ("E", Law::Iid, &[2]),
        narrow_after,
        (Law::Iid, Core::Gbv),
        (4, 55),
    )),
    own(claim(
        ("law/width_by_draws (global_resolution)", NARROW),
        ("E", Law::Iid, &[2]),
        narrow_after,
        (Law::Iid, Core::GlobalResolution),
        (4, 55),
    )),
    own(claim(
        ("law/depth_by_draws (gbv)", "no second level where the first path begins with token 0"),
        ("A", Law::Iid, &[2, 1]),
        level_by_draws,
        (Law::Iid, Core::Gbv),
        (1, 189),
    )),
];
