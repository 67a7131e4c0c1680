"""Every kind of error once: its class, its attributes, and a message that says what to do."""

import re
from pathlib import Path

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core

SOURCE = Path(__file__).parents[2] / "src" / "error.rs"


def rows(n: int, vocab: int = 4) -> np.ndarray:
    return np.zeros((n, vocab), np.float32)


def chain(tokens: list[int], **options: object) -> mv.Draft:
    tree = mv.TokenTree(range(-1, len(tokens)))
    return mv.Draft(tree, [-1, *tokens], **options)


def check(draft: mv.Draft, logits: np.ndarray, params: object = None, **options: object) -> object:
    return mv.verify(draft, logits, params, **{"seed": 1, "position": 0, **options})


def with_value(value: float) -> np.ndarray:
    logits = rows(1)
    logits[0, 2] = value
    return logits


UNIFORM = np.full((2, 4), 0.25, np.float32)
SKEWED = np.array([[1.0, 0, 0, 0], [0.25] * 4], np.float32)
LADDER = np.array([[0.1, 0.3, 0.2, 0.4]])
HEAVY = np.full((1, 4), 0.5, np.float32)


def table(*seqs: int, reserved: int = 0) -> mv.kv.BlockTable:
    """Sequences of three entries each over a pool of four blocks of two slots."""
    blocks = mv.kv.BlockTable(num_blocks=4, block_size=2)
    for seq in seqs:
        blocks.add_sequence(seq, 3)
        if reserved:
            blocks.reserve(seq, reserved)
    return blocks


# slug -> (call, class, attribute that must be set, a part of the message)
CASES = {
    "bad_parent": (
        lambda: mv.TokenTree([-1, 0, 5]),
        mv.errors.DraftError,
        ("node", 2),
        "parents[i] < i",
    ),
    "shape_mismatch": (
        lambda: check(chain([1]), rows(1)),
        mv.errors.DraftError,
        None,
        "wanted 2 rows",
    ),
    "bad_dtype": (
        lambda: check(chain([]), np.zeros((1, 4), np.int32)),
        mv.errors.DraftError,
        None,
        "float32, float16 or bfloat16",
    ),
    "bad_tensor": (
        lambda: check(chain([]), np.zeros((1, 8), np.float32)[:, ::2]),
        mv.errors.DraftError,
        None,
        "np.ascontiguousarray",
    ),
    "token_out_of_vocabulary": (
        lambda: check(chain([1, 4]), rows(3)),
        mv.errors.DraftError,
        ("node", 2),
        "vocabulary of 4",
    ),
    "duplicate_sibling": (
        lambda: mv.Draft(mv.TokenTree([-1, 0, 0]), [-1, 3, 3]),
        mv.errors.DraftError,
        ("node", 2),
        "repeats its sibling node 1",
    ),
    "law_shape": (
        lambda: mv.Draft(mv.TokenTree([-1, 0, 0]), [-1, 2, 3], law="chain", probs=UNIFORM),
        mv.errors.DraftError,
        ("node", 2),
        "is one path",
    ),
    "law_data": (
        lambda: chain([1], law="chain"),
        mv.errors.DraftError,
        None,
        "pass probs, or logits",
    ),
    "missing_row": (
        lambda: chain([1, 2], law="chain", probs=UNIFORM[:1]),
        mv.errors.DraftError,
        ("node", 2),
        "node 1, has no drafter row",
    ),
    "zero_draft_probability": (
        lambda: chain([1], law="chain", probs=SKEWED),
        mv.errors.DraftError,
        ("node", 1),
        "a sampled token has q > 0",
    ),
    "not_the_top": (
        lambda: mv.Draft(mv.TokenTree([-1, 0, 0]), [-1, 1, 2], law="top_plus_one", probs=LADDER),
        mv.errors.DraftError,
        ("node", 2),
        "token 2 has q = 0.2, and token 1 outside the set has 0.3",
    ),
    "unknown_law": (
        lambda: chain([1], law="greedy"),
        mv.errors.DraftError,
        None,
        "deterministic, chain",
    ),
    "param_out_of_range": (
        lambda: mv.SamplingParams(top_p=0),
        mv.errors.ParamsError,
        None,
        "top_p: found 0, wanted a number in (0, 1]",
    ),
    "unknown_rule": (
        lambda: check(chain([1]), rows(2), rule="blocks"),
        mv.errors.RuleError,
        None,
        'use "auto" or one of: greedy',
    ),
    "illegal_pair": (
        lambda: check(chain([1], law="unknown"), rows(2), rule="block"),
        mv.errors.RuleError,
        None,
        "one of: greedy, target_only, coupled",
    ),
    "rule_shape": (
        lambda: check(
            mv.Draft(mv.TokenTree([-1, 0, 1, 1]), [-1, 1, 2, 3], law="iid", probs=UNIFORM),
            rows(4),
            rule="gbv",
        ),
        mv.errors.RuleError,
        ("node", 1),
        "gbv",
    ),
    "greedy_temperature": (
        lambda: check(chain([1]), rows(2), rule="greedy"),
        mv.errors.RuleError,
        None,
        "set temperature=0",
    ),
    "illegal_lossy": (
        lambda: check(chain([1]), rows(2), rule="block", lossy=mv.lossy.topk(2)),
        mv.errors.RuleError,
        None,
        'lossy acceptance "topk": found rule="block", wanted rule="auto"',
    ),
    "row_not_finite": (
        lambda: check(chain([]), with_value(np.nan)),
        mv.errors.NumericsError,
        ("row", 0),
        "target row 0: NaN at token 2",
    ),
    "row_empty": (
        lambda: check(chain([]), np.full((1, 4), -np.inf, np.float32)),
        mv.errors.NumericsError,
        ("row", 0),
        "every logit is -inf",
    ),
    "row_not_normalised": (
        lambda: chain([1], law="chain", probs=HEAVY).validate(),
        mv.errors.NumericsError,
        ("row", 0),
        "sum to 2",
    ),
    "not_a_path": (
        lambda: mv.kv.commit_plan(mv.TokenTree([-1, 0, 0]), [1, 2], 0),
        mv.errors.CacheError,
        None,
        "path[1] = 2",
    ),
    "overflow": (
        lambda: check(chain([]), rows(1), position=2**32),
        mv.errors.ParamsError,
        None,
        "position: 4294967296 overflows",
    ),
    "unknown_sequence": (
        lambda: table(3).release(4),
        mv.errors.CacheError,
        ("sequence", 4),
        "never added, or released",
    ),
    "duplicate_sequence": (
        lambda: table(3).add_sequence(3, 1),
        mv.errors.CacheError,
        ("sequence", 3),
        "release it first",
    ),
    "out_of_blocks": (
        lambda: table(3, -8).reserve(3, 2),
        mv.errors.OutOfBlocksError,
        ("missing", 1),
        "release or roll back",
    ),
    "no_reservation": (
        lambda: table(3).commit(3, mv.TokenTree([-1]), []),
        mv.errors.CacheError,
        ("sequence", 3),
        "call reserve before this",
    ),
    "open_reservation": (
        lambda: table(3, reserved=2).fork(3, 4),
        mv.errors.CacheError,
        ("sequence", 3),
        "2 slots; commit it, or drop it with rollback",
    ),
    "bad_state": (
        lambda: table(3).__setstate__([1]),
        mv.errors.CacheError,
        None,
        "state: found another format",
    ),
    "reservation_mismatch": (
        lambda: table(3, reserved=2).commit(3, mv.TokenTree([-1]), []),
        mv.errors.CacheError,
        ("sequence", 3),
        "tree has 1 nodes with its root, 2 slots are reserved",
    ),
}


def test_every_slug_of_the_core_has_a_case() -> None:
    slugs = set(re.findall(r'=> "([a-z_]+)"', SOURCE.read_text()))
    # A row changes only by another thread's hand: tests/property/test_writer.py.
    assert slugs - {"row_changed"} == set(CASES)


@pytest.mark.parametrize("slug", CASES)
def test_error(slug: str) -> None:
    call, kind, place, part = CASES[slug]
    with pytest.raises(kind, match=re.escape(part)) as caught:
        call()
    error = caught.value
    assert isinstance(error, mv.MtpVerifyError)
    assert isinstance(error, ValueError)
    assert error.slug == slug
    if place is not None:
        assert getattr(error, place[0]) == place[1]


@pytest.mark.parametrize(("value", "found"), [(np.nan, "NaN"), (np.inf, "inf")], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "params",
    [
        mv.SamplingParams(),
        mv.SamplingParams(temperature=0),
        mv.SamplingParams(temperature=0.5),
        mv.SamplingParams(top_k=2),
        mv.SamplingParams(top_p=0.5),
        mv.SamplingParams(min_p=0.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("at", [0, 2, 2047, 2048, 2999])
def test_no_kind_of_shaping_overlooks_a_value_that_no_row_may_hold(
    value: float, found: str, params: mv.SamplingParams, at: int
) -> None:
    logits = rows(1, 3000)
    logits[0, at] = value
    with pytest.raises(mv.errors.NumericsError, match=f"target row 0: {found} at token {at}"):
        check(chain([]), logits, params)


def test_rows_that_the_decision_does_not_reach_are_never_read() -> None:
    logits = rows(3)
    logits[0, 1] = 50  # The target's first token is 1, which was not drafted.
    logits[1:] = np.nan
    verdict = check(chain([2, 3]), logits)
    assert verdict.tokens.tolist() == [1]


def test_a_refused_call_changes_nothing() -> None:
    draft = chain([1])
    logits = with_value(np.nan).repeat(2, axis=0)
    before = logits.copy()
    with pytest.raises(mv.errors.NumericsError):
        check(draft, logits)
    np.testing.assert_array_equal(logits, before)
    assert check(draft, rows(2)).num_accepted in {0, 1}


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_have_64_bits(seed: int) -> None:
    with pytest.raises(mv.errors.ParamsError, match="seed"):
        check(chain([]), rows(1), seed=seed)


def test_a_panic_becomes_an_internal_error() -> None:
    with pytest.raises(mv.errors.InternalError, match="please report") as caught:
        _core._panic()
    assert isinstance(caught.value, RuntimeError)
