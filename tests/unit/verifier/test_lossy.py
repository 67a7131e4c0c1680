"""`mv.lossy`: only on request, marked, and refused where it does not fit."""

import numpy as np
import pytest

import mtp_verify as mv

ALL = [
    mv.lossy.typical(0.3, 0.5),
    mv.lossy.threshold(0.15),
    mv.lossy.topk(2),
    mv.lossy.ensemble(0.5),
]
P = np.array([0.1, 0.2, 0.3, 0.4])
LOGITS = np.log(np.stack([P, P, P])).astype(np.float32)
Q = P[::-1].astype(np.float32)


def check(draft, lossy, **options):
    return mv.verify(draft, LOGITS, **{"seed": 1, "position": 0, "lossy": lossy, **options})


def chain(tokens):
    return mv.Draft.chain(tokens, np.stack([Q] * len(tokens)))


@pytest.mark.parametrize("lossy", ALL, ids=repr)
def test_a_verdict_says_that_it_is_lossy(lossy):
    verdict = check(chain([3, 2]), lossy)
    assert verdict.rule == lossy.name
    assert not verdict.lossless
    assert not verdict.cut(1).lossless
    assert "lossless=False" in repr(verdict)
    plain = check(chain([3, 2]), None)
    assert plain.lossless
    assert "lossless" not in repr(plain)


def test_the_longest_accepted_path_is_kept_and_typical_ends_greedily():
    #      root
    #     /    \
    #    3      2       p(3) = 0.4, p(2) = 0.3
    #           |
    #           3
    draft = mv.Draft(mv.TokenTree([-1, 0, 0, 2]), [-1, 3, 2, 3], law="unknown")
    logits = np.concatenate([LOGITS, LOGITS[:1]])
    for lossy in ALL[:3]:
        verdict = mv.verify(draft, logits, seed=1, position=0, lossy=lossy)
        assert verdict.path.tolist() == [2, 3]
    assert mv.verify(draft, logits, seed=1, position=0, lossy=ALL[0]).tokens[-1] == 3
    strict = mv.verify(draft, logits, seed=1, position=0, lossy=mv.lossy.threshold(0.35))
    assert strict.path.tolist() == [1]


def test_no_rule_s_name_is_a_lossy_acceptance():
    assert all(rule["lossless"] for rule in mv.rules())
    for lossy in ALL:
        with pytest.raises(mv.errors.RuleError, match="wanted lossy=") as caught:
            check(chain([3, 2]), None, rule=lossy.name)
        assert caught.value.slug == "illegal_lossy"


def test_illegal_combinations_are_refused():
    draft = chain([3, 2])
    for lossy in ALL:
        with pytest.raises(mv.errors.RuleError, match='rule="block", wanted rule="auto"'):
            check(draft, lossy, rule="block")
        with pytest.raises(mv.errors.RuleError, match="temperature above 0"):
            check(draft, lossy, params=mv.SamplingParams(temperature=0))
    for law in ("deterministic", "unknown", "coupled"):
        with pytest.raises(mv.errors.RuleError, match=f'found law "{law}", wanted law "chain"'):
            check(mv.Draft(mv.TokenTree([-1, 0, 1]), [-1, 3, 2], law=law), ALL[3])
    with pytest.raises(
        mv.errors.ParamsError, match=r"lossy: found 'typical', wanted typical, threshold"
    ):
        check(draft, "typical")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: mv.lossy.typical(1, 0.5), r"eps: found 1, wanted a number in \(0, 1\)"),
        (lambda: mv.lossy.typical(0.3, -1), "delta: found -1"),
        (lambda: mv.lossy.threshold(0), "tau: found 0"),
        (lambda: mv.lossy.topk(0), "k: found 0, wanted an integer"),
        (lambda: mv.lossy.topk(1.5), r"k: found 1\.5"),
        (lambda: mv.lossy.ensemble(1.0), "w: found 1"),
        (lambda: mv.lossy.ensemble(float("nan")), "w: found NaN"),
    ],
)
def test_numbers_out_of_range_are_named(make, part):
    with pytest.raises(mv.errors.ParamsError, match=part):
        make()


def test_empty_drafts_go_with_every_acceptance():
    for lossy in ALL:
        empty = mv.Draft.chain([])
        assert mv.verify(empty, LOGITS[:1], seed=1, position=0, lossy=lossy).num_accepted == 0


def test_acceptances_of_equal_numbers_are_equal():
    assert mv.lossy.topk(2) == mv.lossy.topk(2)
    assert mv.lossy.topk(2) != mv.lossy.topk(3)
    assert repr(mv.lossy.typical(0.3, 0.09)) == "mv.lossy.typical(0.3, 0.09)"
