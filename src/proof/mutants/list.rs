//! The list: name, change, killing case, bias.

use super::Check::{self, Other, Past, Rounds, Shaping, Step};
use super::checks;
use super::{Listed, Mutant};
use crate::proof::float::trials::Trial;
use crate::proof::past::Setting;
use crate::verify::Core::{Coupled, Gbv, GlobalResolution, Lifted, TargetOnly, TopDown};
use crate::verify::law::Law::{Chain, Deterministic, Iid, Mixed, Swor, TopPlusOne};

/// A mutant of the specification's list, with the bias that is stated there.
const fn mutant(
    name: &'static str,
    change: &'static str,
    check: Check,
    bias: (i64, i64),
) -> Mutant {
    Mutant { name, change, check, bias, listed: Listed::AsFound }
}

/// One of that list whose figure there is for other code than ours, and why.
const fn differing(
    (name, change): (&'static str, &'static str),
    check: Check,
    bias: (i64, i64),
    (stated, why): (&'static str, &'static str),
) -> Mutant {
    Mutant { name, change, check, bias, listed: Listed::Otherwise(stated, why) }
}

/// One of the float path, which the list does not have either.
pub(super) const fn float(
    name: &'static str,
    change: &'static str,
    trial: Trial,
    bias: (i64, i64),
) -> Mutant {
    own(name, change, Check::Float(trial), bias)
}

/// One that the list does not have.
pub(super) const fn own(
    name: &'static str,
    change: &'static str,
    check: Check,
    bias: (i64, i64),
) -> Mutant {
    Mutant { name, change, check, bias, listed: Listed::No }
}

/// `topdown` on B's chain of two, where most of its mutants show.
const B_CHAIN: Check = Step("B", Chain, &[1, 1], TopDown);
const B_BLOCK: Check = Step("B", Chain, &[1, 1], Lifted);
const E_PAIR: Check = Step("E", Swor, &[2], TopDown);
const E_TREE: Check = Step("E", Swor, &[2, 1], Lifted);

const BATCH: Check = Other("B chain[1] and chain[1, 1] in one batch", checks::batch_of_two_seeds);

/// One level on which all can be delivered, and two on which not.
const B_SELECTED: Check = Step("B", Iid, &[2], GlobalResolution);
const E_SELECTED: Check = Step("E", Iid, &[2, 1], GlobalResolution);

const PAIR_AT_TWO: Check = Other("E iid[2] KSeq, rho=2", checks::sequence_at_two);

const REPETITION: Check = Past("B deterministic[1, 1] after 2, theta=2", Setting::Repetition);
const FREQUENCY: Check = Past("B deterministic[1, 1] after 2, frequency ln 2", Setting::Frequency);
const PRESENCE: Check = Past("B deterministic[1, 1] after 1, presence ln 2", Setting::Presence);
const PAIRS: Check = Past("B deterministic[1, 1] after 0 1 0, no pair twice", Setting::Pairs);
const MIN_NEW_TOKENS: Check =
    Past("B deterministic[1, 1] after 1, token 0 not first", Setting::MinNewTokens);
const MASK: Check = Past("B deterministic[1, 1] after 1, mask of the last token", Setting::Mask);

/// Every mutant but those of the float path.
pub(super) static MUTANTS: &[Mutant] = &[
    mutant("td/residual_is_p", "residual row = p", B_CHAIN, (11, 108)),
    mutant("td/residual_abs", "abs(p - q)", B_CHAIN, (7, 36)),
    mutant("td/residual_flipped", "(q - p)+", B_CHAIN, (7, 18)),
    mutant("td/residual_zero_token_only", "p with the rejected token zeroed", B_CHAIN, (7, 90)),
    mutant("td/inverted_ratio", "accept q/p", B_CHAIN, (19, 54)),
    mutant("td/forget_q", "accept with probability p", B_CHAIN, (1, 3)),
    mutant("td/halved_threshold", "accept p/(2q)", B_CHAIN, (1, 4)),
    mutant("td/bonus_draft_row", "leaf token from q", B_CHAIN, (37, 216)),
    mutant("td/bonus_parent_row", "leaf token from the parent's row", B_CHAIN, (17, 144)),
    mutant("td/child_row", "accept tested with the child's row", B_CHAIN, (5, 36)),
    mutant("td/shared_u_depths", "one u for all depths", B_CHAIN, (1, 36)),
    mutant("td/u_reused_for_sample", "accept u reused in the residual pick", B_CHAIN, (1, 24)),
    mutant(
        "td/le_at_zero",
        "<= instead of <",
        Other("p=(0,1) q=(1/2,1/2), u of 2 bits", checks::acceptance_at_zero),
        (1, 8),
    ),
    mutant("td/row_not_updated", "later siblings tested against the old row", E_PAIR, (31, 350)),
    mutant("td/q_not_renormalised", "sibling q not renormalised", E_PAIR, (17, 392)),
    mutant(
        "td/residual_not_renormalised",
        "second sibling tested against the unnormalised residual",
        E_PAIR,
        (3, 50),
    ),
    mutant("td/shared_u_siblings", "one u for all siblings", E_PAIR, (13, 840)),
    mutant(
        "td/sample_p_after_reject",
        "after a rejection pick from p",
        Step("B", TopPlusOne, &[2], TopDown),
        (1, 4),
    ),
    mutant(
        "td/match_any_parent",
        "child found by token and depth, not by parent",
        Step("B", Deterministic, &[2, 2], TargetOnly),
        (1, 18),
    ),
    mutant("lift/no_min1", "w recursion without min(1, .)", B_BLOCK, (1, 36)),
    mutant("lift/h_is_w", "no update of w after a rejection", B_BLOCK, (1, 12)),
    mutant("lift/residual_without_w", "(p - q)+ instead of (w p - q)+", B_BLOCK, (1, 24)),
    own(
        "block/last_test_uncapped",
        "leaf accepted by the joint ratio without a cap",
        Step("A", Chain, &[1, 1], Lifted),
        (1, 9),
    ),
    mutant("lift/leaf_token_ratio", "leaf accepted by its own min(1, p/q)", B_BLOCK, (1, 9)),
    differing(
        ("lift/h_no_one_minus_w", "w <- min(1, m/w)"),
        Step("E", Chain, &[1, 1], Lifted),
        (3657, 80_000),
        ("2669/31250", "there the root is tested, too"),
    ),
    differing(
        ("lift/h_is_m", "w <- m"),
        Step("E", Chain, &[1, 1], Lifted),
        (2241, 40_000),
        ("9669/125000", "there the root is tested, too"),
    ),
    mutant("lift/row_not_updated", "later siblings tested against the old row", E_TREE, (172, 875)),
    mutant("lift/q_not_renormalised", "sibling q not renormalised", E_TREE, (17, 392)),
    mutant("lift/forget_w", "w_c = min(1, r/q)", E_TREE, (17, 100)),
    mutant("kseq/rho_1", "rho = 1", PAIR_AT_TWO, (3, 25)),
    mutant("kseq/no_gamma", "factor a/beta missing", PAIR_AT_TWO, (3, 50)),
    mutant("kseq/leviathan", "residual (p - q)+", PAIR_AT_TWO, (3, 50)),
    mutant(
        "gbv/q_not_skewed",
        "the selected path verified with q",
        Step("A", Iid, &[2, 1], Gbv),
        (5, 81),
    ),
    own("global/one_draft_more", "places as if one more had been drafted", B_SELECTED, (11, 162)),
    own(
        "global/ties_counted_twice",
        "each of several drafts in one place is in front",
        B_SELECTED,
        (7, 468),
    ),
    own("global/lead_of_own_place", "tested for the law of its own place", B_SELECTED, (1, 40)),
    own("global/residual_is_p", "residual row = p", E_SELECTED, (17_108_561, 88_000_000)),
    own("global/forgets_w", "later levels selected as if w = 1", E_SELECTED, (12, 125)),
    own("global/h_is_w", "no update of w after a rejection", E_SELECTED, (385_147, 3_520_000)),
    own(
        "lift/hopeless_child_not_taken_out",
        "a child with w_c = 0 leaves the residual as it is",
        E_TREE,
        (29, 560),
    ),
    own(
        "lift/shortcut_before_last",
        "the early rejection before the last child, too",
        Step("E", Mixed, &[1, 2], Lifted),
        (27, 1_000),
    ),
    own(
        "lift/set_child_takes_nothing",
        "a rejected deterministic child leaves w as it is",
        Step("E", TopPlusOne, &[1, 2], Lifted),
        (107, 4_650),
    ),
    own(
        "to/shared_u_depths",
        "one u for all depths",
        Step("B", Deterministic, &[1, 1], TargetOnly),
        (11, 48),
    ),
    own(
        "coupled/keyed_by_root_position",
        "one race for all depths",
        Step("B", Deterministic, &[1, 1], Coupled),
        (11, 48),
    ),
    own(
        "mixed/set_not_left_out",
        "q of the set subtracted, too",
        Step("E", TopPlusOne, &[2], TopDown),
        (1, 10),
    ),
    differing(
        ("law/iid_claimed_swor", "Iid declared Swor"),
        Step("E", Iid, &[2], TopDown),
        (3, 80),
        ("3/112", "there a repeated token keeps the whole q"),
    ),
    mutant(
        "law/top1_rest_not_renormalised",
        "q outside S not divided by Z",
        Step("E", TopPlusOne, &[2], TopDown),
        (1, 5),
    ),
    own(
        "fallback/rejected_token_returns",
        "an empty residual falls back to the whole of p",
        Other("p=(1/2,1/2), residual emptied", checks::empty_residual),
        (1, 4),
    ),
    mutant(
        "shape/draft_only",
        "target not shaped",
        Shaping("row B0, temperature 1/2", checks::target_at_half_temperature),
        (1, 7),
    ),
    mutant(
        "shape/top_p_drops_crossing_token",
        "crossing token dropped",
        Shaping("row D0, top_p=7/10", checks::top_p),
        (1, 3),
    ),
    own(
        "shape/top_p_exact_sum_stays",
        "one token more where the mass before it is top_p",
        Shaping("row D0, top_p=1/2", checks::top_p_at_a_sum),
        (1, 3),
    ),
    mutant(
        "shape/temperature_after_top_p",
        "wrong order",
        Shaping("row D0, temperature 1/2, top_p=7/10", checks::temperature_then_top_p),
        (1, 5),
    ),
    mutant(
        "shape/top_k_breaks_ties",
        "exactly k kept",
        Shaping("row D0, top_k=3", checks::top_k_with_a_tie),
        (1, 8),
    ),
    mutant(
        "shape/min_p_absolute",
        "p < min_p",
        Shaping("row D0, min_p=3/10", checks::min_p),
        (1, 3),
    ),
    mutant(
        "shape/min_p_before_top_p",
        "vLLM's order under the preset of transformers",
        Shaping("row D0, min_p=3/10, top_p=3/5", checks::top_p_then_min_p),
        (1, 3),
    ),
    mutant(
        "rng/draft_and_accept_share_u",
        "draft u = accept u",
        Step("A", Chain, &[1], TopDown),
        (1, 6),
    ),
    own(
        "noise/draft_shares_residual",
        "a draft's number draws what replaces it, too",
        Step("E", Chain, &[1], TopDown),
        (7, 80),
    ),
    mutant(
        "rng/position_noise_reused",
        "same u at t and t+1",
        Rounds("B", Chain, &[], TargetOnly, 2),
        (17, 36),
    ),
    mutant(
        "rng/batch_rows_share_noise",
        "rows share noise",
        Other("B0 in two rows of a batch", checks::rows_of_a_batch),
        (11, 18),
    ),
    mutant(
        "rng/cdf_uses_le",
        "CDF scan with <=",
        Other("row (0,1/2,1/2), u of 2 bits", checks::draw_at_an_edge),
        (1, 4),
    ),
    mutant(
        "rng/cdf_runs_past_last_positive",
        "overrun returns V-1",
        Other("row (1/3,2/3,0), u of 4 bits, cells cut to 1/8", checks::draw_beyond_the_cells),
        (1, 8),
    ),
    mutant(
        "rng/accept_keyed_by_token_position",
        "ACCEPT keyed by token position",
        Rounds("E", Chain, &[1, 1], Lifted, 3),
        (2091, 200_000),
    ),
    mutant(
        "rng/draft_keyed_by_token_position",
        "DRAFT keyed by token position",
        Rounds("A", Chain, &[1, 1], Lifted, 3),
        (7, 108),
    ),
    own(
        "batch/rows_of_companion",
        "a sequence's rows taken from where its companion's begin",
        BATCH,
        (1015, 2592),
    ),
    own("batch/seed_of_companion", "one seed for the whole batch", BATCH, (5, 324)),
    own(
        "batch/position_of_companion",
        "one root position for the whole batch",
        Other("B chain[1] and chain[1, 1], one seed", checks::batch_of_two_positions),
        (5, 324),
    ),
    own(
        "seed/high_word_dropped",
        "the seed's upper half is ignored",
        Other("B0 under two seeds 2^32 apart", checks::seeds_far_apart),
        (11, 18),
    ),
    own(
        "seed/row_cut_to_one_word",
        "the row's upper half is ignored",
        Other("B0 in two rows 2^32 apart", checks::rows_far_apart),
        (11, 18),
    ),
    mutant(
        "stop/emits_after_eos",
        "emits after EOS",
        Other("B chain[1, 1] TopDown, eos=0", checks::stop_token),
        (4, 9),
    ),
    mutant(
        "greedy/tie_to_higher_id",
        "argmax tie to the higher id",
        Other("row (1/2,1/2) at temperature 0", checks::greedy_tie),
        (1, 1),
    ),
    own(
        "history/root_s_for_all_nodes",
        "penalties of the root at every node",
        REPETITION,
        (495, 4991),
    ),
    own("history/path_not_counted", "path left out of the counts", FREQUENCY, (5, 132)),
    own("history/prompt_is_counted", "prompt counted as output", PRESENCE, (61, 336)),
    own("history/ngram_of_root", "n-grams looked up without the path", PAIRS, (1, 4)),
    own(
        "history/min_new_tokens_counts_prompt",
        "min_new_tokens counted from the prompt's start",
        MIN_NEW_TOKENS,
        (1, 2),
    ),
    own("history/mask_of_root", "the root's mask at every node", MASK, (9, 20)),
    own(
        "commit/moves_reversed",
        "entries copied from the path's end",
        Other("path 2, 4, 6 of seven nodes", checks::commit),
        (1, 1),
    ),
    own(
        "commit/bonus_counted",
        "the bonus token is counted as cached",
        Other("path 2, 4, 6 of seven nodes", checks::commit),
        (1, 1),
    ),
    own(
        "commit/state_of_first_node",
        "recurrent state of the path's first node",
        Other("path 2, 4, 6 of seven nodes", checks::commit),
        (1, 1),
    ),
    own(
        "lazy/sums_of_another_mixture",
        "block sums of the row's last mixture",
        Other("E mixed[3, 1] Lifted over logits", checks::lazy_tree),
        (13, 400),
    ),
    own(
        "lazy/set_not_left_out",
        "q of the set subtracted, too",
        Other("E mixed[3, 1] Lifted over logits", checks::lazy_tree),
        (42857, 1_000_000),
    ),
    own(
        "lazy/factor_forgotten",
        "q subtracted without its factor",
        Other("E mixed[3, 1] Lifted over logits", checks::lazy_tree),
        (11, 200),
    ),
    own(
        "lazy/removed_token_stays",
        "rejected tokens keep their weight",
        Other("E mixed[3, 1] Lifted over logits", checks::lazy_tree),
        (88_459, 500_000),
    ),
    own(
        "lazy/column_is_token",
        "the drafter's sub-vocabulary is not mapped",
        Other("E chain[1] TopDown over logits, columns reversed", checks::lazy_columns),
        (2, 5),
    ),
];
