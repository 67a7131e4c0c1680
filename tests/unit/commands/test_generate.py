from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="generate needs transformers")

from mtp_verify.commands.cli import build_parser


def generate(*words, length=12):
    """The report of `generate` with the tiny model."""
    line = ["generate", "--tiny", "--max-new-tokens", str(length), *words]
    args = build_parser().parse_args(line)
    return args.function(args)


def test_generate_reports_what_it_printed(capsys):
    report = generate("hello", "--temperature", "1", "--seed", "5")
    out = capsys.readouterr().out
    assert out == report.data["text"] + "\n"
    assert len(report.data["tokens"]) == 12
    assert report.data["finish_reason"] == "length"


def test_generate_repeats_with_its_seed():
    first = generate("hello", "--temperature", "1")
    again = generate("hello", "--temperature", "1", "--seed", str(first.data["seed"]))
    assert first.data["tokens"] == again.data["tokens"]


def test_seed_exact_text_does_not_depend_on_the_drafter():
    words = ("abcabcabc", "--temperature", "0.7", "--dtype", "float32", "--seed", "9")
    texts = {
        generate(*words, "--rule", "coupled", "--drafter", drafter, length=16).data["text"]
        for drafter in ("suffix", "ngram", "none")
    }
    assert len(texts) == 1
