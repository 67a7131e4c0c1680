from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import pytest

import mtp_verify as mv
from mtp_verify.commands import cli, registry
from mtp_verify.console import libraries
from mtp_verify.console.report import Report, Table

COMMANDS = tuple(command.name for command in registry.COMMANDS)


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def doctor(monkeypatch):
    """Replace the command `doctor` by a function of the test's choice."""

    def install(function):
        replaced = [
            dataclasses.replace(command, run=function) if command.name == "doctor" else command
            for command in registry.COMMANDS
        ]
        monkeypatch.setattr(registry, "COMMANDS", replaced)

    return install


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    example = out.split("example:")[1]
    assert f"mtp-verify {command}" in example or f"make {command}" in example
    assert "--json" in out


def test_tables_fit_the_terminal_and_files_are_not_broken(monkeypatch, capsys, doctor):
    table = Table("", ("a", "b"), (("word " * 20, "1"),))
    doctor(lambda args: Report("doctor", sections=[table]))
    assert max(map(len, run(capsys, "doctor")[1].splitlines())) > 90
    monkeypatch.setattr(cli, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, run(capsys, "doctor")[1].splitlines())) <= 40


def test_version_is_the_package_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert mv.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["no-such-command"],
        ["demo", "--max-new-tokens", "0"],
        ["demo", "--repeats", "many"],
        ["demo", "--drafter", "magic"],
        ["generate"],
        ["generate", " "],
        ["generate", "hello", "--model", "no/such/folder"],
        ["generate", "hello", "--tiny", "--temperature", "-1"],
        ["generate", "hello", "--tiny", "--top-p", "0"],
        ["generate", "hello", "--tiny", "--rule", "no-such-rule"],
        ["certify"],
        ["certify", "--engine", "transformers", "--accept", "transformers"],
        ["certify", "--self"],
        ["certify", "--engine", "mutants", "--html", "no/such/folder/page.html"],
        ["view", "hello", "--tiny", "--html", "no/such/folder/page.html"],
        ["prove", "--no-such-option"],
        ["view", "hello", "--tiny", "--max-new-tokens", "0"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_2_and_says_why_on_stderr(capsys, words):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("mtp-verify: ")


def test_wrong_use_with_json_gives_one_document(capsys):
    code, out, err = run(capsys, "generate", "--json")
    assert code == 2
    document = json.loads(out)
    assert document["status"] == "error"
    assert "prompt" in document["error"]["message"]
    assert err != ""


def test_a_library_error_keeps_its_slug_in_json(capsys, doctor):
    def function(args):
        raise mv.errors.ParamsError("top_p is 0", slug="bad_top_p")

    doctor(function)
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 2
    assert json.loads(out)["error"] == {
        "type": "ParamsError",
        "slug": "bad_top_p",
        "message": "top_p is 0",
    }


def test_an_internal_error_is_not_taken_for_wrong_use(doctor):
    def function(args):
        raise mv.errors.InternalError("broken")

    doctor(function)
    with pytest.raises(mv.errors.InternalError):
        cli.main(["doctor"])


def test_a_found_failure_exits_with_1(capsys, doctor):
    doctor(lambda args: Report("doctor", ok=False, summary="FAILED"))
    code, out, _ = run(capsys, "doctor")
    assert (code, out) == (1, "FAILED\n")


def test_json_stdout_holds_the_document_alone(capsys, doctor):
    def function(args):
        print("chatter of a library")
        return Report("doctor")

    doctor(function)
    code, out, err = run(capsys, "doctor", "--json")
    assert code == 0
    assert json.loads(out) == {"command": "doctor", "status": "ok"}
    assert "chatter" in err


def test_an_interrupt_exits_with_130(capsys, doctor):
    def function(args):
        raise KeyboardInterrupt

    doctor(function)
    assert run(capsys, "doctor")[0] == 130


@pytest.mark.parametrize("command", [["demo", "--tiny"], ["generate", "hello"]])
def test_a_missing_extra_says_what_to_install(capsys, monkeypatch, command):
    real = libraries.find_spec
    monkeypatch.setattr(
        libraries, "find_spec", lambda name: None if name == "torch" else real(name)
    )
    code, out, err = run(capsys, *command)
    assert code == 2
    assert out == ""
    assert 'pip install "mtp-verify[demo]"' in err


def test_a_prompt_can_come_from_stdin(capsys, monkeypatch):
    pytest.importorskip("transformers", reason="generate needs transformers")
    monkeypatch.setattr("sys.stdin", io.StringIO("a prompt"))
    code, out, _ = run(capsys, "generate", "-", "--tiny", "--max-new-tokens", "4", "--json")
    assert code == 0
    assert len(json.loads(out)["tokens"]) == 4


MODULE = (sys.executable, "-m", "mtp_verify")


def test_the_package_runs_as_a_module():
    words = (*MODULE, "doctor", "--quick", "--json")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["command"] == "doctor"


def test_a_reader_that_leaves_is_no_error():
    words = (*MODULE, "doctor", "--quick")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        told = process.stderr.read().decode()
        assert [line for line in told.splitlines() if "so far)" not in line] == []
    assert process.returncode == 0
