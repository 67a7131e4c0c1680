"""`mtp-verify certify --url` and the plug-in for pytest, on toy servers of a tiny checkpoint."""

from __future__ import annotations

import json

import pytest

from mtp_verify.certification.server import load_reference, write_checkpoints
from mtp_verify.commands import cli
from mtp_verify.testing.server import ToyServer
from tests.packaging.test_import import imported_after
from tests.toys import PLUGIN, served

pytest_plugins = "pytester"

QUICK = ["--load", "n", "--length", "2", "--horizon", "2", "--min-tv", "0.4", "--prompts", "2"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoints(folder)
    return folder / "target"


@pytest.fixture(scope="module")
def rows(checkpoint):
    return load_reference(checkpoint).rows


def run(capsys, *words):
    code = cli.main(["certify", "--json", *map(str, words)])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("faults", "code"), [((), 0), (("bias",), 1), (("shared_noise",), 1)])
def test_a_report_is_written(tmp_path, capsys, checkpoint, rows, faults, code):
    page = tmp_path / "report.html"
    with served(ToyServer(rows, faults)) as url:
        words = ["--url", url, "--checkpoint", checkpoint, "--html", page, *QUICK]
        found, document = run(capsys, *words)
    assert found == code
    assert document["status"] == ("failed" if code else "ok")
    assert document["certificates"][0]["engine"] == "toy, load n, temperature 1"
    assert document["certificates"][0]["server"] == url
    assert "beside the law" in page.read_text()


@pytest.mark.parametrize(("faults", "code"), [((), 0), (("shared_noise",), 1)])
def test_two_servers_are_compared(tmp_path, capsys, rows, faults, code):
    page = tmp_path / "report.html"
    with served(ToyServer(rows, faults)) as url, served(ToyServer(rows)) as other:
        words = ["--url", url, "--against", other, "--html", page, "--prompt", "t1 t2", *QUICK]
        found, document = run(capsys, *words)
    assert found == code
    assert document["comparisons"][0]["servers"] == [url, other]
    assert "greedy texts are the other server" in page.read_text()


def test_text_alone_is_read_by_the_checkpoint_s_tokenizer(capsys, checkpoint, rows):
    with served(ToyServer(rows, ["text_prompts"])) as url:
        code, document = run(capsys, "--url", url, "--checkpoint", checkpoint, *QUICK)
    assert (code, document["tokens_from"]) == (0, "text")


@pytest.mark.parametrize(
    ("words", "slug"),
    [
        (["--url", "URL"], "bad_options"),  # no law
        (["--url", "URL", "--checkpoint", "nowhere"], "no_checkpoint"),
        (["--url", "URL", "--checkpoint", "FOLDER", "--model", "gpt"], "unknown_model"),
        (["--url", "URL", "--checkpoint", "FOLDER", "--load", "crowd"], "unknown_load"),
        (["--url", "URL", "--checkpoint", "FOLDER", "--batch", "4"], "bad_options"),
        (["--url", "URL", "--checkpoint", "FOLDER", "--mode", "plain"], "bad_options"),
        (["--url", "URL", "--checkpoint", "FOLDER", "--concurrency", "0"], "param_out_of_range"),
        (["--url", "toy", "--checkpoint", "FOLDER"], "bad_address"),
        (["--url", "http://127.0.0.1:9/v1", "--checkpoint", "FOLDER", "--retries", "0"],
         "server_unreachable"),
        (["--url", "URL", "--engine", "vllm"], "bad_options"),
        (["--engine", "mutants", "--min-p", "0.1"], "bad_options"),
        (["--accept", "transformers", "--load", "n"], "bad_options"),
        (["--url", "URL", "--checkpoint", "FOLDER", "--against", "URL"], "bad_options"),
        (["--url", "URL", "--against", "URL", "--load", "cache"], "unknown_load"),
        (["--url", "BROKEN", "--checkpoint", "FOLDER"], "wrong_checkpoint"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_use_is_named(capsys, checkpoint, rows, words, slug):
    with served(ToyServer(rows)) as url, served(ToyServer(rows, ["other_weights"])) as broken:
        known = {"URL": url, "FOLDER": str(checkpoint), "BROKEN": broken}
        code, document = run(capsys, *(known.get(word, word) for word in words))
    assert (code, document["error"]["slug"]) == (2, slug)


def test_checkpoints_are_written_with_the_lines_that_serve_them(tmp_path, capsys):
    code, document = run(capsys, "--make-checkpoint", tmp_path / "made", "--seed", "3")
    assert code == 0
    assert any(line.startswith("vllm serve") for line in document["next"])
    for name in ("config.json", "model.safetensors", "tokenizer.json", "model.gguf"):
        assert (tmp_path / "made" / "target" / name).is_file()
        assert (tmp_path / "made" / "drafter" / name).is_file()


PYTEST = (*PLUGIN, "-p", "no:cacheprovider")


@pytest.mark.parametrize(("fault", "outcome"), [(None, "passed"), ("bias", "failed")])
def test_the_plug_in_adds_a_test_that_fails_on_bias(pytester, checkpoint, rows, fault, outcome):
    pytester.makepyfile("def test_of_the_repository(): pass")
    with served(ToyServer(rows, filter(None, [fault]))) as url:
        words = f"--checkpoint {checkpoint} {' '.join(QUICK)}"
        options = ("--mtp-verify-url", url, "--mtp-verify-options", words)
        result = pytester.runpytest_inprocess(*PYTEST, *options)
    expected = {"passed": 2} if outcome == "passed" else {"passed": 1, "failed": 1}
    result.assert_outcomes(**expected)
    if outcome == "failed":
        result.stdout.fnmatch_lines(["*FAILED: toy, load n, temperature 1 (TV *"])


def test_the_plug_in_alone_is_a_run_too_and_names_what_is_wrong(pytester, checkpoint):
    options = ("--mtp-verify-url", "http://127.0.0.1:9/v1")
    words = f"--checkpoint {checkpoint} --retries 0"
    result = pytester.runpytest_inprocess(*PYTEST, *options, "--mtp-verify-options", words)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["http://127.0.0.1:9/v1: it does not answer*"])


def test_the_plug_in_does_nothing_unless_asked(pytester):
    pytester.makepyfile("def test_of_the_repository(): pass")
    pytester.runpytest_inprocess(*PYTEST).assert_outcomes(passed=1)
    added = imported_after("import mtp_verify.commands.pytest_plugin")
    assert added.isdisjoint({"httpx2", "torch", "transformers", "asyncio.tasks", "rich"})
    assert not {name for name in added if name.startswith("mtp_verify.certification")}
