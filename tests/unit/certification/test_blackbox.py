from __future__ import annotations

import json

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.certification import certify, report, runs
from mtp_verify.testing import exact_law, mutants


@pytest.mark.parametrize("mistake", mutants.ENGINES)
def test_right_engines_pass_and_mutants_are_found(mistake):
    found = mv.certify(mutants.engine(mistake, tv=0.1), min_tv=0.1, name=mistake)
    assert found.verdict == ("pass" if mistake == "none" else "biased")
    assert found.is_sound


def test_a_bias_of_two_percent_is_found_in_its_interval():
    found = certify(mutants.engine("biased", tv=0.02), min_tv=0.02)
    assert found.verdict == "biased"
    assert found.tv.low <= 0.02 <= found.tv.high
    best = min(found.checks, key=lambda check: check.adjusted).name
    assert best in ("token 1", "token 1 given those before")


@pytest.mark.parametrize("mistake", ["none", "biased"])
def test_a_lossy_engine_never_passes_and_its_bias_is_measured(mistake):
    engine = mutants.engine(mistake, tv=0.1)

    def lossy(prompt, n, seed):
        return engine(prompt, n, seed)

    lossy.lossy = mv.lossy.threshold(0.25)
    found = certify(lossy, engine.rows, min_tv=0.1)
    assert (found.verdict, found.lossy) == ("lossy", "mv.lossy.threshold(0.25)")
    assert found.num_samples >= found.num_needed  # A clear bias does not end it early.
    assert found.tv.low <= (0.1 if mistake == "biased" else 0) <= found.tv.high
    made = report([found])
    assert made.exit_code == 1
    document = json.loads(made.to_json())
    assert (document["status"], document["certificates"][0]["lossy"]) == ("lossy", found.lossy)
    for text in (made.summary, made.to_html()):
        assert "lossy" in text
        assert f"{found.tv.estimate:.4f}" in text


def test_shared_noise_is_found_by_the_pairs_alone():
    found = certify(mutants.engine("rows_share_noise"), min_tv=0.1)
    failed = {check.name for check in found.checks if check.adjusted < 1e-4}
    assert "neighbours" in failed


def test_noise_that_repeats_from_seed_to_seed_is_found():
    right = mutants.engine()

    def engine(prompt, n, seed):
        return right(prompt, n, seed // 2)

    found = certify(engine, right.rows, min_tv=0.1)
    assert found.verdict == "biased"
    assert any(c.name == "next seed" and c.adjusted < 1e-9 for c in found.checks)


def test_too_few_samples_say_how_many_are_missing():
    found = certify(mutants.engine(), min_tv=0.1, max_samples=600)
    assert found.verdict == "not enough data"
    assert found.num_missing == found.num_needed - found.num_samples > 0
    made = report([found])
    assert (made.exit_code, json.loads(made.to_json())["status"]) == (2, "not_enough_data")
    assert f"{found.num_missing:,} samples missing" in made.summary


def test_no_time_at_all_is_not_enough_data():
    found = certify(mutants.engine(), min_tv=0.1, max_seconds=0.0)
    assert (found.verdict, found.num_samples) == ("not enough data", 0)
    assert report([found]).to_html()


def test_an_interrupted_run_goes_on_and_finds_what_one_run_finds(tmp_path):
    engine = mutants.engine()
    whole = certify(engine, min_tv=0.1)
    file = tmp_path / "counts.json"
    certify(engine, min_tv=0.1, max_samples=900, resume=file)
    kept = json.loads(file.read_text())
    resumed = certify(engine, min_tv=0.1, resume=file)
    assert resumed.checks == whole.checks
    assert resumed.seeds == whole.seeds
    assert kept["next_seed"] > 0


def test_a_file_of_another_certification_is_refused(tmp_path):
    file = tmp_path / "counts.json"
    certify(mutants.engine(), min_tv=0.1, max_samples=300, resume=file)
    with pytest.raises(mv.errors.ParamsError, match="take another file"):
        certify(mutants.engine(), min_tv=0.1, seed=5, resume=file)


def test_a_greedy_engine_is_compared_with_the_one_possible_string():
    greedy = mv.SamplingParams(temperature=0)
    rows = mutants.table_rows(4, 7)
    prompts = [(1,), (2,)]

    def engine(prompt, n, seed):
        law = exact_law(rows, prompt, 3, greedy)
        return np.tile(law.string(int(law.probs.argmax())), (n, 1))

    assert certify(engine, rows, params=greedy, prompts=prompts).verdict == "pass"
    sampled = certify(mutants.engine(), params=greedy, prompts=prompts)
    assert sampled.verdict == "biased"


def test_a_run_that_dies_goes_on_from_the_last_round(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0.0)
    right, file = mutants.engine(), tmp_path / "counts.json"
    whole = certify(right, min_tv=0.1, name="right")
    calls = []

    def dies(prompt, n, seed):
        calls.append(seed)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return right(prompt, n, seed)

    with pytest.raises(KeyboardInterrupt):
        certify(dies, right.rows, min_tv=0.1, name="right", resume=file)
    # A write that was cut off leaves its draft behind: it must not matter.
    file.with_suffix(".json.part").write_text("{")
    resumed = certify(right, min_tv=0.1, name="right", resume=file)
    assert resumed.checks == whole.checks
    assert resumed.seeds == whole.seeds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: "not json", "not kept counts"),
        (lambda state: [], "not kept counts"),
        (lambda state: state | {"tallies": state["tallies"][:1]}, "found 1 prompts"),
        (lambda state: state | {"count": 0}, "0 samples"),
        (lambda state: state | {"tallies": [{"halves": "x"}] * 3}, "halves: these are not"),
        (lambda state: state | {"tallies": [{"halves": [[1]]}] * 3}, r"found shape \(1, 1\)"),
        (lambda state: {k: v for k, v in state.items() if k != "next_seed"}, "next_seed"),
    ],
)
def test_a_damaged_file_of_counts_is_refused(tmp_path, change, message):
    file = tmp_path / "counts.json"
    certify(mutants.engine(), min_tv=0.1, max_samples=300, resume=file)
    damaged = change(json.loads(file.read_text()))
    file.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with pytest.raises(mv.errors.ParamsError, match=message):
        certify(mutants.engine(), min_tv=0.1, resume=file)


def test_at_temperature_0_ties_are_told_from_failures():
    greedy = mv.SamplingParams(temperature=0)
    prompts = [(1,), (2,)]

    def rows(path):
        # After token 1 the tokens 0 and 2 are as good as equal; everywhere else 3 is best.
        return [2.0, 0.0, 2.0 - 1e-6, -1.0] if path[-1] == 1 else [0.0, 0.5, 1.0, 3.0]

    def engine(tied):
        def sample(prompt, n, seed):
            first = tied if prompt[-1] == 1 else 3
            return np.tile([first, 3, 3], (n, 1))

        return sample

    options = {"params": greedy, "prompts": prompts}
    same, other, wrong = (certify(engine(token), rows, **options) for token in (0, 2, 1))
    assert (same.verdict, same.ties) == ("pass", 0)
    assert other.verdict == "pass"
    assert other.ties == other.num_samples // 2 > 0
    assert json.loads(report([other]).to_json())["certificates"][0]["ties"] == other.ties
    assert (wrong.verdict, wrong.ties) == ("biased", 0)
    assert certify(engine(2), rows, **options, tie=1e-9).verdict == "biased"


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (lambda prompt, n, seed: np.zeros((n, 2), int), r"wanted \(4, 3\) or wider"),
        (lambda prompt, n, seed: np.zeros((n + 1, 3), int), "wanted"),
        (lambda prompt, n, seed: np.full((n, 3), 9), "wanted tokens of 0 to 3"),
        (lambda prompt, n, seed: np.zeros((n, 3)), "wanted integers"),
    ],
)
def test_what_is_not_a_sampler_is_refused(engine, message):
    with pytest.raises(mv.errors.ParamsError, match=message):
        certify(engine, mutants.table_rows(4, 7), min_tv=0.1)


def test_an_unknown_target_is_refused():
    with pytest.raises(mv.errors.ParamsError, match="pass rows="):
        certify(lambda prompt, n, seed: None)


def test_a_model_too_large_for_an_exact_law_is_refused():
    with pytest.raises(mv.errors.ParamsError, match="the limit for an exact law is 65536"):
        certify(mutants.engine(), lambda path: np.zeros(49_152))


def test_report_is_text_json_and_a_page_that_loads_nothing():
    made = report([certify(mutants.engine("greedy_claimed_chain"), min_tv=0.1, name="<b>")])
    assert made.exit_code == 1
    assert "where" in made.to_text()
    document = json.loads(made.to_json())
    assert document["certificates"][0]["verdict"] == "biased"
    page = made.to_html()
    assert "http" not in page
    assert "src=" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert page.count("<svg") == 3


def test_power_is_what_is_promised():
    # 20 biases of exactly min_tv in every prompt, in proportion to the law: the hardest kind.
    rows = mutants.table_rows(4, 7)
    prompts = [(1,), (2,)]

    def engine(base):
        def sample(prompt, n, seed):
            law = exact_law(rows, prompt, 2).probs
            up = np.argsort(-law)[::2]
            tilted = law * (1 - 0.1 / (1 - law[up].sum()))
            tilted[up] = law[up] * (1 + 0.1 / law[up].sum())
            found = np.random.default_rng((base, seed)).choice(16, n, p=tilted)
            return np.stack([found // 4, found % 4], axis=1)

        return sample

    found = [
        certify(engine(i), rows, length=2, min_tv=0.1, prompts=prompts).verdict for i in range(20)
    ]
    assert found.count("biased") >= 19


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(600)
def test_few_of_200_certifications_of_a_right_engine_fail():
    engine = mutants.engine()
    failed = [
        seed
        for seed in range(0, 200 * 1_000, 1_000)
        if certify(engine, min_tv=0.1, alpha=0.01, seed=seed).verdict != "pass"
    ]
    print(f"false alarms: {len(failed)} of 200")
    assert len(failed) <= 7
