from __future__ import annotations

import importlib.util
import json

import pytest

from mtp_verify.commands import cli
from mtp_verify.commands.shared import threads

BASE = ("bench", "decode", "--tiny", "--max-new-tokens", "6")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Measuring the best number of threads takes longer than all the rest."""
    report = threads.ThreadReport(best=1, milliseconds={}, cores=1)
    monkeypatch.setattr(threads, "use_best", lambda model: report)


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main([*BASE, *words])
    out, err = capsys.readouterr()
    return code, out, err


def prompts_file(tmp_path):
    path = tmp_path / "two.jsonl"
    lines = [
        {"id": f"{kind}{i}", "category": kind, "prompt": f"{kind} {kind} {i}"}
        for kind in ("talk", "code")
        for i in range(3)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_report_gives_tau_by_category_and_speed(capsys, tmp_path):
    code, out, _ = run(capsys, "--prompts", str(prompts_file(tmp_path)), "--json")
    data = json.loads(out)
    assert (code, data["status"], data["num_prompts"]) == (0, "ok", 6)
    assert len(data["runs"]) == 6 * 2 * 7
    for mode in ("greedy", "sampled"):
        found = data["figures"][mode]["drafters"]
        assert list(found) == ["ngram", "suffix", "suffix tree", "recycling", "self"]
        for name, entry in found.items():
            assert [name for name in entry["tau"] if name != "low repetition"] == [
                "talk",
                "code",
                "all",
            ]
            assert entry["tau"]["all"]["num_prompts"] == 6
            assert 1 <= entry["tau"]["all"]["value"] <= 7
            assert entry["is_upper_bound"] == (name == "self")
            # The target as its own drafter cannot be fast; its speed is not a finding.
            assert ("over_plain" in entry) == ("over_transformers" in entry) == (name != "self")


def test_text_marks_the_upper_bound(capsys, tmp_path):
    path = str(prompts_file(tmp_path))
    code, out, _ = run(capsys, "--prompts", path, "--per-category", "1", "--mode", "greedy")
    assert code == 0
    assert "self *" in out
    assert "an upper bound" in out
    assert "tau, sampled" not in out
    assert out.splitlines()[-1].startswith("tiny random model, 2 prompts, 6 tokens each")


@pytest.mark.parametrize("name", ["tau.svg", "tau.png"])
def test_plot_is_written(capsys, tmp_path, name):
    pytest.importorskip("matplotlib", reason="the plot needs the extra `plot`")
    path = tmp_path / name
    code, _, _ = run(
        capsys,
        "--per-category",
        "1",
        "--drafter",
        "ngram",
        "--drafter",
        "self",
        "--plot",
        str(path),
    )
    assert code == 0
    data = path.read_bytes()
    if name.endswith(".png"):
        assert data.startswith(b"\x89PNG")
    else:
        text = data.decode()
        assert "self (upper bound)" in text
        assert "extraction" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--per-category", "0"), "--per-category: found 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens: found 0"),
        (("--model", "no/such"), "no such folder"),
        (("--prompts", "no-such-file.jsonl"), "No such file"),
        (("--plot", "tau.exe"), "wanted a name that ends in"),
        (("--plot", "no/such/tau.svg"), "no such folder"),
        (("--drafter", "magic"), "invalid choice"),
        (("--mode", "dreaming"), "invalid choice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_use_is_refused_before_the_work(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err


def test_missing_matplotlib_is_named_before_the_work(capsys, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "mtp_verify.console.libraries.find_spec",
        lambda name: None if name == "matplotlib" else found(name),
    )
    code, _, err = run(capsys, "--plot", str(tmp_path / "tau.svg"))
    assert code == 2
    assert 'pip install "mtp-verify[plot]"' in err
