"""Engines of other people: quick settings here, the defaults in the slow tests."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.certification import certify, engines, own
from mtp_verify.certification.models import VOCAB
from mtp_verify.certification.settings import NUM_DRAFTS, Setting
from mtp_verify.commands import cli
from mtp_verify.console import libraries
from mtp_verify.testing import mutants

pytest.importorskip("transformers")

PARAMS = mv.SamplingParams()
biased = mutants.engine("biased", tv=0.1)
accepts_at_zero = mutants.accept("le_at_zero")


def without_target(prompt, n, seed):
    return np.zeros((n, 3), int)


def right_on_checkpoint(prompt, n, seed, *, target, params, length):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mtp_verify.certification.loops import generate_loop

    assert len(AutoTokenizer.from_pretrained(target)) == VOCAB
    model = AutoModelForCausalLM.from_pretrained(target)
    return generate_loop(model, params, Setting(length), {})(prompt, n, seed)


@pytest.fixture
def make(tmp_path):
    def engine(kind, mode, params=PARAMS, num=2 + NUM_DRAFTS, **more):
        setting = Setting(num, **more)
        return engines.make_engine(kind, mode, params=params, folder=tmp_path, setting=setting)

    return engine


def test_plain_sampling_of_transformers_passes(make):
    params = mv.SamplingParams(temperature=0.8, top_k=5, top_p=0.95)
    found = certify(make("transformers", "plain", params), length=2, min_tv=0.1)
    assert found.verdict == "pass"
    assert found.repeats


@pytest.mark.timeout(120)
def test_the_assistant_of_gemma_4_is_found_biased(make):
    found = certify(make("transformers", "gemma4"), length=2, min_tv=0.4)
    assert found.verdict == "biased"
    assert found.is_sound


@pytest.mark.timeout(120)
def test_mtp_layers_draft_in_transformers_own_loop(make):
    engine = make("transformers", "mtp")
    first, again = (engine([1, 2, 3], 3, 5) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape[0] == 3


def test_a_transformers_without_such_layers_is_refused(make, monkeypatch):
    from transformers import modeling_layers

    monkeypatch.delattr(modeling_layers, "MtpModel")
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"5\.23 has it"):
        make("transformers", "mtp")


OURS = [
    *((kind, mode) for kind in ("mtp-verify", "drop-in") for mode in own.MODES),
    *(("drop-in", mode) for mode in ("patch-assisted", "patch-mtp", "patch-gemma4")),
]
RIGHT = [(kind, mode) for kind, mode in OURS if mode not in own.LOSSY]


@pytest.mark.parametrize(("kind", "mode"), OURS)
def test_a_seed_repeats_the_strings_of_every_mode(make, kind, mode):
    engine = make(kind, mode)
    first, again = (engine([1, 2, 3], 3, 5) for _ in range(2))
    assert first.shape == (3, 2 + NUM_DRAFTS)
    # A planner learns from one call to the next.
    assert mode == "planned" or np.array_equal(first, again)
    assert mode in own.LOSSY or len({tuple(row) for row in first.tolist()}) > 1


@pytest.mark.parametrize("mode", ["traversal", "ngram"])
def test_a_batch_of_the_decoder_has_the_strings_of_its_rows(make, mode):
    params = mv.SamplingParams(temperature=0.8)
    alone, together = (make("mtp-verify", mode, params, batch=size) for size in (0, 4))
    assert np.array_equal(alone([1, 2, 3], 7, 5), together([1, 2, 3], 7, 5))
    assert together.name == f"mtp-verify {mode}, batches of 4"


@pytest.mark.parametrize("kind", ["mtp-verify", "drop-in"])
@pytest.mark.parametrize("mode", ["hu", "race", "block"])
def test_strings_of_temperature_0_are_the_greedy_one(make, kind, mode):
    found = make(kind, mode, mv.SamplingParams(temperature=0))([1, 2, 3], 3, 5)
    assert len({tuple(row) for row in found.tolist()}) == 1


@pytest.mark.timeout(120)
def test_a_tree_rule_inside_transformers_passes_in_padded_batches(make):
    params = mv.SamplingParams(temperature=0.8, top_k=6)
    found = certify(make("drop-in", "lifted_hu", params, batch=16), length=2, min_tv=0.3)
    assert found.verdict == "pass"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["traversal", "ngram"])
def test_rows_that_depend_on_the_history_pass_inside_transformers(make, mode):
    params = mv.SamplingParams(temperature=0.8, repetition_penalty=1.3, no_repeat_ngram_size=2)
    found = certify(make("drop-in", mode, params, batch=16), length=2, min_tv=0.3)
    assert found.verdict == "pass"


@pytest.mark.timeout(120)
def test_an_engine_that_forgets_the_penalties_is_found(make):
    params = mv.SamplingParams(repetition_penalty=1.8, no_repeat_ngram_size=2)
    engine = make("transformers", "plain")
    assert certify(engine, params=params, length=2, min_tv=0.3).verdict == "biased"


def test_mutants_are_controls_without_a_model(make):
    right, wrong = (make("mutants", mode) for mode in ("none", "biased"))
    assert certify(right, length=2, min_tv=0.1).verdict == "pass"
    assert certify(wrong, length=2, min_tv=0.02).verdict == "biased"


def test_every_rule_of_the_table_is_a_mode():
    cores = {row["core"] for row in mv.rules() if row["core"] != row["name"]}
    named = {row["name"] for row in mv.rules()} - cores - {"greedy"}
    assert named <= own.MODES.keys()
    assert all(own.MODES[name][1] == name for name in named)


# The whole matrix with other shapings, and one string at a time: scripts/certify_engines.py.
@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "mode"), [*(("transformers", mode) for mode in ("assisted", "lookup", "mtp")), *RIGHT]
)
def test_right_engines_pass(make, kind, mode):
    engine = make(kind, mode, mv.SamplingParams(temperature=0.8), num=8, batch=16)
    assert certify(engine, length=2, min_tv=0.1).verdict == "pass"


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", own.LOSSY)
def test_lossy_modes_say_so_and_their_bias_is_above_zero(make, mode):
    found = certify(make("mtp-verify", mode), length=2, min_tv=0.1)
    assert found.verdict == "lossy"
    assert found.tv.low > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(engines.find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_passes_without_speculation(make):
    assert certify(make("vllm", "plain"), length=2, min_tv=0.1).verdict == "pass"


def test_command_finds_a_biased_function_and_writes_the_page(capsys, tmp_path):
    page = tmp_path / "report.html"
    words = ["--engine", f"{__name__}:biased", "--html", str(page), "--resume", str(tmp_path)]
    words += ["--horizon", "5"]
    assert cli.main(["certify", *words, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["certificates"][0]["verdict"] == "biased"
    assert document["certificates"][0]["versions"]["mtp-verify"] == mv.__version__
    assert "<svg" in page.read_text()


@pytest.mark.timeout(120)
def test_command_gives_a_function_the_checkpoints_it_asks_for(capsys):
    words = ["--engine", f"{__name__}:right_on_checkpoint", "--length", "2", "--min-tv", "0.3"]
    assert cli.main(["certify", *words]) == 0
    assert "pass" in capsys.readouterr().out


def test_command_certifies_an_accept_function_from_inside(capsys):
    assert cli.main(["certify", "--accept", f"{__name__}:accepts_at_zero"]) == 1
    assert "emits a token of target probability 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "magic"], "wanted one of: transformers, drop-in, mtp-verify, vllm, mutants"),
        (["--engine", "transformers", "--mode", "magic"], "wanted one of: plain"),
        (["--engine", "no_such_module:f"], "no_such_module"),
        (["--engine", f"{__name__}:nothing"], "no callable nothing"),
        (["--engine", f"{__name__}:without_target"], "parameter target="),
        (["--accept", "nothing"], "wanted MODULE:FUNCTION"),
        (["--accept", f"{__name__}:without_target"], "the accept function raised TypeError"),
        (
            ["--accept", "f", "--engine", "transformers"],
            "one of --engine, --accept, --url and --rerun",
        ),
        (["--engine", "mutants", "--top-k", "3"], "a temperature alone"),
        (["--engine", "gallery", "--top-p", "0.5"], "a temperature alone"),
        (["--engine", f"{__name__}:biased", "--length", "40"], "the limit for an exact law"),
        (["--engine", f"{__name__}:biased", "--alpha", "2"], "alpha"),
    ],
)
def test_wrong_use_exits_with_2_and_says_why(capsys, words, message):
    assert cli.main(["certify", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_failing_configuration_runs_again_from_its_report(capsys, tmp_path):
    words = [
        "--engine",
        f"{__name__}:biased",
        "--length",
        "2",
        "--horizon",
        "5",
        "--seed",
        "40",
        "--json",
    ]
    assert cli.main(["certify", *words]) == 1
    text = capsys.readouterr().out
    file = tmp_path / "report.json"
    file.write_text(text)
    first = json.loads(text)["certificates"][0]
    assert cli.main(["certify", "--rerun", str(file), "--json"]) == 1
    again = json.loads(capsys.readouterr().out)["certificates"][0]
    assert again["tests"] == first["tests"]
    assert again["seeds"] == first["seeds"]
    assert first["seeds"]["first"] == 40
    assert cli.main(["certify", "--rerun", str(file), "--seed", "9000", "--json"]) == 1
    fresh = json.loads(capsys.readouterr().out)["certificates"][0]
    assert fresh["seeds"]["first"] == 9000
    assert fresh["tests"] != first["tests"]


SETTINGS = {
    "engine": "transformers", "mode": "plain", "temperature": 1.0, "top_k": 0, "top_p": 1.0,
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "length": 2, "horizon": 4, "prompts": 3, "min_tv": 0.1, "alpha": 1e-4, "tie": 1e-4, "seed": 0,
    "batch": 0, "eos": -1, "grammar": "", "cache": "", "sharpness": 1.0,
}  # fmt: skip


def recorded(settings):
    return json.dumps({"certificates": [{"verdict": "biased", "settings": settings}]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found no certificates"),
        ("[]", "found no certificates"),
        ("[" * 100_000, "found no certificates"),
        ('{"certificates": [{"verdict": "biased"}]}', "KeyError"),
        (
            json.dumps(
                {"certificates": [{"verdict": "biased", "settings": SETTINGS | {"seed": "x"}}]}
            ),
            "seed: found 'x', wanted int",
        ),
        (json.dumps({"certificates": [{"verdict": "pass"}]}), "nothing in this report is biased"),
        (
            json.dumps(
                {"certificates": [{"verdict": "biased", "settings": SETTINGS | {"mode": "no"}}]}
            ),
            "wanted one of: plain",
        ),
    ],
)
def test_what_is_no_report_with_a_failure_cannot_run_again(capsys, tmp_path, content, message):
    file = tmp_path / "report.json"
    file.write_text(content)
    assert cli.main(["certify", "--rerun", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_engine_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "vllm" else True)
    assert cli.main(["certify", "--engine", "vllm"]) == 2
    assert "pip install vllm" in capsys.readouterr().err


def test_mutants_need_no_library(capsys, monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    words = ["--engine", "mutants", "--mode", "none", "--length", "2", "--horizon", "4"]
    assert cli.main(["certify", *words, "--min-tv", "0.3"]) == 0
    assert "mutant none" in capsys.readouterr().out
    assert cli.main(["certify", "--engine", "drop-in", "--mode", "block"]) == 2
    assert 'pip install "mtp-verify[hf]"' in capsys.readouterr().err
