"""Each command is one file with one interface, registered by one line."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from mtp_verify.commands import cli, command, registry
from mtp_verify.console.report import Report

FOLDER = Path(registry.__file__).parent
NOT_COMMANDS = {"__init__", "cli", "command", "pytest_plugin", "registry"}


def test_every_file_of_the_room_is_a_registered_command():
    files = {path.stem for path in FOLDER.glob("*.py")} - NOT_COMMANDS
    assert files == {one.name for one in registry.COMMANDS}
    assert len(files) == len(registry.COMMANDS)


@pytest.mark.parametrize("one", registry.COMMANDS, ids=lambda one: one.name)
def test_it_is_defined_in_the_file_of_its_name(one):
    for function in (one.add_arguments, one.run):
        assert Path(inspect.getfile(function)).stem == one.name
    assert one.summary.endswith(".")


def test_the_command_line_names_no_command():
    words = {
        node.value
        for node in ast.walk(ast.parse(Path(cli.__file__).read_text()))
        if isinstance(node, ast.Constant)
    }
    assert not words & {one.name for one in registry.COMMANDS}


def test_a_new_command_is_a_record(monkeypatch, capsys):
    made = command.Command(
        "count",
        "Count.",
        "mtp-verify count 3",
        lambda parser: parser.add_argument("number", type=command.positive),
        lambda args: Report("count", data={"found": args.number}),
    )
    monkeypatch.setattr(registry, "COMMANDS", (*registry.COMMANDS, made))
    assert cli.main(["count", "3", "--json"]) == 0
    assert '"found": 3' in capsys.readouterr().out
    assert cli.main(["count", "0"]) == 2
    assert "found 0, wanted at least 1" in capsys.readouterr().err
