"""What is seen along strings: late tokens, ends, grammars, peaked rows, seeds and rows by parity.

Each engine here has a mistake that the joint law of the first three tokens does not show at the
usual settings. Seeds are fixed; samples, power and false alarms are those of `certify`: a bias of
`min_tv` is found with probability 0.99, a right engine fails with probability 1e-4.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.certification import certify, report
from mtp_verify.certification.blackbox import make_prompts
from mtp_verify.certification.paths import NUM_CALLS, PathTally
from mtp_verify.testing import exact_law, mutants
from mtp_verify.testing.laws import ENDED, TokenLaws

# The tests that there were before strings were followed.
OLD = {"joint", "token 1", "token 2", "token 3", "neighbours", "next seed"}


def failed(found):
    return {check.name for check in found.checks if check.adjusted < 1e-4}


# Mistake -> a test that finds it.
LATE = {
    "even_seeds": "tokens of even seeds",
    "late_bonus": "token 5 given those before",
    "late_noise": "tokens by the one before, second half",
    "late_rows": "noise of the next row",
    "late_seeds": "noise of the next seed",
    "odd_seeds": "noise of the next seed, odd to even",
    "late_drop": "token 6 given those before",
}


@pytest.mark.parametrize("mistake", LATE)
def test_what_a_short_look_misses_is_found_along_strings(mistake):
    found = certify(mutants.engine(mistake, length=8), min_tv=0.1)
    assert found.verdict == "biased"
    assert LATE[mistake] in failed(found)
    assert not failed(found) & OLD
    assert mistake != "even_seeds" or not any("odd seeds" in name for name in failed(found))
    assert found.is_sound


@pytest.mark.parametrize("mistake", ["runs_past_stop", "drops_stop", "masks_late"])
def test_mistakes_with_ends_and_grammars_are_found(mistake):
    wrong = mutants.engine(mistake, length=8)
    assert certify(wrong, min_tv=0.1).verdict == "biased"
    # Where nothing stops and no grammar holds, it is a right engine.
    alike = mutants.engine(mistake, length=8, eos=None, grammar="")
    assert certify(alike, min_tv=0.1).verdict == "pass"


@pytest.mark.parametrize(("temperature", "verdict"), [(1.0, "pass"), (0.04, "biased")])
def test_what_peaked_rows_break_shows_at_low_temperature(temperature, verdict):
    engine = mutants.engine("cancels", temperature=temperature)
    assert certify(engine, min_tv=0.2, prompts=make_prompts(12)).verdict == verdict


@pytest.mark.parametrize("grammar", ["", "pairs", "dead-ends"])
@pytest.mark.parametrize("eos", [None, 3])
def test_right_engines_with_ends_and_grammars_pass(grammar, eos):
    engine = mutants.engine(grammar=grammar, eos=eos, length=8, temperature=0.7)
    found = certify(engine, min_tv=0.2, prompts=make_prompts(6))
    assert (found.verdict, found.horizon) == ("pass", 8)


def test_strings_that_end_too_early_or_go_on_are_found():
    right = mutants.engine(eos=3, length=8)

    def early(prompt, n, seed):
        found = right(prompt, n, seed)
        found[:, 5:] = ENDED
        return found

    found = certify(early, right.rows, eos=3, min_tv=0.2)
    assert found.verdict == "biased"
    assert "token 6 given those before" in failed(found)

    def late(prompt, n, seed):
        found = right(prompt, n, seed)
        # Behind the end stands padding that looks like a token.
        return np.where(found == ENDED, 0, found)

    found = certify(late, right.rows, eos=3, min_tv=0.2)
    assert found.verdict == "biased"
    assert any(check.fit.num_impossible for check in found.checks)


def test_the_exact_law_knows_ends_and_dead_ends():
    follow = mutants.Follow.dead_ends(3)
    laws = TokenLaws(lambda path: [0.0, 0.0, 0.0], eos=0, allowed=follow)
    law = exact_law(laws, [1], 2)
    assert (law.vocab, law.may_end) == (4, True)
    # In a circle of three all others are neighbours: after 1 comes 1; 2 is a dead end; 0 stops.
    wanted = {(0, 3): 1 / 3, (1, 1): 1 / 3, (2, 3): 1 / 3}
    found = {law.string(i): p for i, p in enumerate(law.probs) if p > 0}
    assert found == pytest.approx(wanted)
    assert law.indices([[0, ENDED], [1, 1]]).tolist() == [3, 5]
    assert laws.after((1,), (0,)) is None
    assert laws.after((1,), (1,)).tolist() == [0.0, 1.0, 0.0]


def test_ranks_and_places_of_right_samples_are_as_they_should_be():
    # 200,000 tokens: the share of each rank within five standard deviations.
    right = mutants.engine(length=6)
    paths = PathTally(TokenLaws(right.rows), 4, 6, 1e-4)
    for round_ in range(4):
        calls = [right([1, 2], 2_000, seed) for seed in range(4 * round_, 4 * round_ + NUM_CALLS)]
        paths.add((1, 2), calls, 4 * round_)
    for depth in range(6):
        seen, expected = paths.ranks(depth)
        assert seen.sum() == pytest.approx(expected.sum()) == 32_000
        assert (np.abs(seen - expected) < 5 * np.sqrt(expected)).all()
    assert min(fit.p_value for _, fit in paths.fits()) > 1e-5


def test_at_temperature_0_ties_count_as_right():
    def rows(path):
        # 0 and 2 tie after every 1; else 3 is best, and 1 after it.
        if path[-1] == 1:
            return [2.0, 0.0, 2.0 - 1e-6, -1.0]
        return [0.0, 3.0, 1.0, 0.5] if path[-1] == 3 else [0.0, 0.5, 1.0, 3.0]

    greedy = mv.SamplingParams(temperature=0)

    def engine(last):
        def sample(prompt, n, seed):
            return np.tile([2, 3, 1, 0, 3, 1, last], (n, 1))

        return sample

    options = {"params": greedy, "prompts": [(1,)], "length": 2}
    assert certify(engine(0), rows, **options).verdict == "pass"
    assert certify(engine(2), rows, **options).verdict == "pass"
    wrong = certify(engine(3), rows, **options)
    assert wrong.verdict == "biased"
    assert failed(wrong) >= {"token 7 given those before"}


def test_prompts_do_not_share_seeds():
    seen = []
    right = mutants.engine()

    def engine(prompt, n, seed):
        seen.append((seed, tuple(prompt)))
        return right(prompt, n, seed)

    certify(engine, right.rows, min_tv=0.3)
    calls = seen[2:]  # behind the two that look whether seeds repeat
    assert len({seed for seed, _ in calls}) == len(calls)


def test_a_report_shows_the_ranks_of_a_late_token():
    found = certify(mutants.engine("late_bonus", length=8), min_tv=0.1)
    text = report([found]).to_text()
    assert "given those before, by rank in its law" in text
    assert "8 tokens were compared one by one" in text
    document = json.loads(report([found]).to_json())["certificates"][0]
    assert document["horizon"] == 8


def test_more_tokens_than_the_engine_returns_are_refused():
    with pytest.raises(mv.errors.ParamsError, match=r"wanted \(16, 9\) or wider"):
        certify(mutants.engine(length=8), min_tv=0.3, horizon=9)


def markov(tv=0.0, place=49, vocab=4, length=52):
    """An engine whose rows depend on the last token; at `place` token 0 becomes 3, for `tv`."""
    table = mutants.softmax(np.random.default_rng(5).normal(size=(vocab, vocab)))

    def sample(prompt, n, seed):
        rng = np.random.default_rng(seed)
        out = np.full((n, length + 1), prompt[-1])
        for depth in range(length):
            below = rng.random((n, 1)) >= table[out[:, depth]].cumsum(axis=1)
            token = below[:, :-1].sum(axis=1)
            if depth == place:
                share = max(float((token == 0).mean()), tv, 1e-9)
                token[(token == 0) & (rng.random(n) < tv / share)] = 3
            out[:, depth + 1] = token
        return out[:, 1:]

    return sample, lambda path: np.log(table[path[-1]])


# A fault of the 50th token alone, TV 0.1: found at the first look, with an eighth of the samples.
def test_a_bias_of_the_fiftieth_token_alone_is_found():
    wrong = mutants.engine("biased", tv=0.1, biased_at=49, length=52)
    found = certify(wrong, min_tv=0.1, horizon=52)
    assert found.verdict == "biased"
    assert "token 50 given those before" in failed(found)
    assert all("token 50 " in name for name in failed(found))
    assert certify(wrong, min_tv=0.2, horizon=49, prompts=[(1, 2)]).verdict == "pass"


def test_a_bias_of_one_token_of_whatever_rank_is_found_by_its_number():
    sample, rows = markov(tv=0.2)
    found = certify(sample, rows, min_tv=0.2, horizon=52, prompts=[(1, 2)])
    assert found.verdict == "biased"
    assert "token 50 by its number" in failed(found)
    sample, rows = markov()
    assert certify(sample, rows, min_tv=0.2, horizon=52, prompts=[(1, 2)]).verdict == "pass"


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("biased_at", "horizon"), [(49, 60), (199, 220)])
def test_a_late_bias_of_ten_percent_is_found(biased_at, horizon):
    options = {"min_tv": 0.1, "horizon": horizon}
    wrong = mutants.engine("biased", tv=0.1, biased_at=biased_at, length=horizon)
    found = certify(wrong, **options)
    print(f"token {biased_at + 1}: {found.num_samples} samples, {found.seconds:.0f} s")
    assert found.verdict == "biased"
    assert f"token {biased_at + 1} given those before" in failed(found)
    if horizon == 60:
        assert certify(mutants.engine(length=horizon), **options).verdict == "pass"


# False alarms: at level 0.01 a right certifier fails 2 of 200 in the mean, and more than 7 with
# probability 1e-3.
@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"temperature": 0.3}, 24),
        ({"temperature": 0.1}, 12),
        ({"eos": 3}, 3),
        ({"grammar": "dead-ends"}, 3),
    ],
    ids=["warm", "peaked", "ends", "dead ends"],
)
def test_of_200_certifications_at_one_percent_at_most_7_fail(options, count):
    engine = mutants.engine(length=8, **options)
    prompts = make_prompts(count)
    verdicts = [
        certify(engine, min_tv=0.2, alpha=0.01, seed=seed, prompts=prompts).verdict
        for seed in range(0, 200 * 10_000, 10_000)
    ]
    print(f"false alarms: {200 - verdicts.count('pass')} of 200")
    assert verdicts.count("pass") >= 193
