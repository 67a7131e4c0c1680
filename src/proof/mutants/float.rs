//! Mistakes in what lies between a tensor and a token, with the cases of floating point that show them.

use super::Mutant;
use super::checks;
use super::list::{float, own};
use crate::proof::float::trials::Measure::{Decisions, Draws, Target};
use crate::proof::float::trials::Rows::{Generated, Golden, Padded, Special};
use crate::proof::float::trials::Trial;
use crate::proof::growth::Case;
use crate::proof::mutants::Check::{Other, Shaping};
use crate::verify::Core::{Lifted, TargetOnly, TopDown};
use crate::verify::law::Law::{Chain, Deterministic, Swor, TopPlusOne};

/// Every mutant of the float path.
pub(super) static FLOAT_MUTANTS: &[Mutant] = &[
    float(
        "float/rest_is_one_minus_the_taken",
        "what is left of q as 1 minus what was taken",
        Trial {
            rows: Generated(1),
            format: 0,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Swor, shape: &[2] }),
        },
        (1, 4),
    ),
    float(
        "float/rest_not_normalised",
        "what is left of q not divided by the row's sum",
        Trial {
            rows: Golden(4),
            format: 5,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Swor, shape: &[2] }),
        },
        (2447, 200_000_000),
    ),
    float(
        "float/rest_of_another_question",
        "what is left of q outside other tokens",
        Trial {
            rows: Golden(4),
            format: 7,
            params: (0.2, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Swor, shape: &[3] }),
        },
        (229_911_253, 500_000_000),
    ),
    float(
        "float/rest_of_first_sibling",
        "only the first sibling taken out of q",
        Trial {
            rows: Golden(4),
            format: 3,
            params: (0.2, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Swor, shape: &[3] }),
        },
        (89_722_151, 200_000_000),
    ),
    float(
        "float/rest_by_token",
        "tokens taken for columns of the sub-vocabulary",
        Trial {
            rows: Golden(4),
            format: 7,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Swor, shape: &[2] }),
        },
        (8_673_463, 250_000_000),
    ),
    float(
        "float/sum_taken_for_one",
        "rows of probabilities used as they are",
        Trial {
            rows: Golden(1),
            format: 6,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Chain, shape: &[1, 1] }),
        },
        (487_359, 500_000_000),
    ),
    float(
        "float/sum_checked_at_every_node",
        "a row's sum refused wherever the walk comes",
        Trial {
            rows: Special("off"),
            format: 4,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(Lifted, Case { law: Chain, shape: &[1, 1] }),
        },
        (1, 1),
    ),
    float(
        "float/factor_without_totals",
        "q subtracted without the totals of the rows",
        Trial {
            rows: Special("off"),
            format: 0,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Chain, shape: &[1, 1] }),
        },
        (48_325_343, 1_000_000_000),
    ),
    float(
        "float/list_of_another_node",
        "kept tokens of the node listed last",
        Trial {
            rows: Golden(1),
            format: 0,
            params: (1.0, 0, 0.7, 0.0),
            measure: Decisions(TargetOnly, Case { law: Deterministic, shape: &[1, 1] }),
        },
        (359_999_991, 1_000_000_000),
    ),
    float(
        "float/removal_not_summed",
        "a removed token stays in its block's sum",
        Trial {
            rows: Golden(4),
            format: 0,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(Lifted, Case { law: TopPlusOne, shape: &[3, 1] }),
        },
        (40_165_289, 1_000_000_000),
    ),
    float(
        "float/removed_token_listed",
        "a removed token stays in the list",
        Trial {
            rows: Generated(1),
            format: 0,
            params: (1.0, 0, 0.7, 0.0),
            measure: Decisions(Lifted, Case { law: TopPlusOne, shape: &[2, 1] }),
        },
        (1, 4),
    ),
    float(
        "float/spread_of_another_row",
        "the sub-vocabulary's row of another node",
        Trial {
            rows: Special("off"),
            format: 7,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(Lifted, Case { law: TopPlusOne, shape: &[2, 1] }),
        },
        (5_340_539, 500_000_000),
    ),
    float(
        "float/unit_forgotten",
        "a draw's point not scaled to the weights",
        Trial {
            rows: Special("off"),
            format: 0,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TargetOnly, Case { law: Chain, shape: &[1] }),
        },
        (41_844_881, 125_000_000),
    ),
    float(
        "float/block_s_start_forgotten",
        "a block searched from 0",
        Trial {
            rows: Padded(4),
            format: 0,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TargetOnly, Case { law: Chain, shape: &[1] }),
        },
        (162_999_999, 500_000_000),
    ),
    float(
        "float/block_edge_le",
        "blocks searched with <=",
        Trial { rows: Special("equal"), format: 0, params: (1.0, 0, 1.0, 0.0), measure: Draws },
        (1, 4_503_599_627_370_496),
    ),
    float(
        "float/token_edge_le",
        "tokens searched with <=",
        Trial { rows: Special("equal"), format: 0, params: (1.0, 0, 1.0, 0.0), measure: Draws },
        (1, 4_503_599_627_370_496),
    ),
    float(
        "float/top_k_one_more",
        "one token more under top-k",
        Trial { rows: Golden(3), format: 0, params: (1.0, 1, 1.0, 0.0), measure: Target },
        (571_428_571, 1_000_000_000),
    ),
    float(
        "float/top_p_goes_on_at_the_goal",
        "one token more where the mass is top_p",
        Trial { rows: Special("flat"), format: 0, params: (1.0, 0, 0.5, 0.0), measure: Target },
        (333_333_333, 1_000_000_000),
    ),
    float(
        "float/ties_all_kept",
        "all equal tokens at the cut of top-p",
        Trial { rows: Special("flat"), format: 0, params: (1.0, 0, 0.7, 0.0), measure: Target },
        (166_666_667, 1_000_000_000),
    ),
    float(
        "float/one_tie_more",
        "one equal token more at the cut of top-p",
        Trial { rows: Special("flat"), format: 0, params: (1.0, 0, 0.7, 0.0), measure: Target },
        (166_666_667, 1_000_000_000),
    ),
    float(
        "float/tied_tokens_weighed",
        "tokens behind a tie's end weighed in blocks",
        Trial { rows: Special("many"), format: 0, params: (1.0, 0, 0.5, 0.0), measure: Draws },
        (1, 2),
    ),
    float(
        "float/min_p_rounded_down",
        "the cut of min-p a step too low",
        Trial { rows: Special("edge"), format: 0, params: (1.0, 0, 1.0, 0.2), measure: Target },
        (166_666_669, 1_000_000_000),
    ),
    float(
        "float/cut_below_the_window",
        "a cut below the least weight",
        Trial { rows: Special("floor"), format: 0, params: (1.0, 65, 1.0, 0.0), measure: Target },
        (1, 1),
    ),
    float(
        "float/window_not_moved",
        "larger values in a later block capped",
        Trial { rows: Special("later"), format: 0, params: (1.0, 0, 1.0, 0.0), measure: Target },
        (1, 1),
    ),
    float(
        "float/windows_not_aligned",
        "block sums of different windows added as they are",
        Trial {
            rows: Special("late"),
            format: 0,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TargetOnly, Case { law: Deterministic, shape: &[1] }),
        },
        (196_159_073, 500_000_000),
    ),
    float(
        "float/origin_forgotten",
        "logits far from 0 not brought near",
        Trial { rows: Special("far"), format: 0, params: (0.2, 0, 1.0, 0.0), measure: Target },
        (317_841, 100_000_000),
    ),
    float(
        "float/temperature_by_reciprocal",
        "logits multiplied by 1 / temperature",
        Trial { rows: Special("far"), format: 0, params: (0.2, 0, 1.0, 0.0), measure: Target },
        (4_681_629, 125_000_000),
    ),
    float(
        "float/f16_read_as_bf16",
        "half precision read as bfloat16",
        Trial {
            rows: Golden(1),
            format: 1,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TargetOnly, Case { law: Chain, shape: &[1] }),
        },
        (108_323_013, 500_000_000),
    ),
    float(
        "float/f64_narrowed",
        "probabilities of f64 rounded to f32",
        Trial {
            rows: Golden(1),
            format: 3,
            params: (1.0, 0, 1.0, 0.0),
            measure: Decisions(TopDown, Case { law: Chain, shape: &[1, 1] }),
        },
        (7, 1_000_000_000),
    ),
    own(
        "float/uniforms_of_24_bits",
        "24 bits of a number used",
        Shaping("the least number above 0", checks::resolution),
        (1, 1),
    ),
    own(
        "lift/unreadable_row_raises",
        "a drafted node's dead end raised before the node is accepted",
        Other("block on two tokens, nothing after token 0", checks::dead_end),
        (1, 2),
    ),
];
