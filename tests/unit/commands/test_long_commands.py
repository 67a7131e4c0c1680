"""Every command in a process of its own: lines off a terminal, and a clean end at Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from mtp_verify.commands import cli

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("ctrl_c")

# The command in argv, with a line every fifth of a second in place of every eight. Where the first
# word is "slow-disk", each file takes as long to write as a very slow disk would take;
# "studies" is the command line of the experiments.
RUN = """
import sys, time
from mtp_verify.commands import cli
from mtp_verify.console import terminal
terminal._SECONDS_BETWEEN_LINES = 0.2
if sys.argv[1] == "slow-disk":
    del sys.argv[1]
    from mtp_verify.checkpoints import tensors  # before those that write with it
    honest = tensors.write_tensors
    def write(*arguments):
        honest(*arguments)
        with terminal.Progress() as progress:
            progress.show("the slow disk")
            time.sleep(600)
    tensors.write_tensors = write
if sys.argv[1] == "studies":
    del sys.argv[1]
    from studies import __main__ as cli
sys.exit(cli.main())
"""


@dataclass(frozen=True)
class Case:
    """A command that takes long.

    Attributes:
        words: of its command line; FOLDER is one of checkpoints.
        work: what it says when it does what it is there for.
    """

    words: str
    work: str


LONG = {
    "bench": Case("bench --tiny --max-new-tokens 4000 --dtype float32", r"own-.*: "),
    "certify": Case("certify --engine transformers --min-tv 0.001", r"of .* samples"),
    "certify accept": Case("certify --accept tests.unit.commands.test_long_commands:slow_accept",
                           "certifying"),
    "prove": Case("prove", "enumerating"),
    "demo": Case("demo --tiny --max-new-tokens 4000 --repeats 1000", "timing three ways"),
    "doctor": Case("doctor", "looking"),
    "export": Case("slow-disk export FOLDER/head --layout in_checkpoint --base FOLDER/base "
                   "--out FOLDER/out", "the slow disk"),
    "generate": Case("generate hello --tiny --max-new-tokens 4000 --drafter none", "i{20}"),
    "inspect": Case("inspect FOLDER/good --tokens 1000000", "reading"),
    "reattach": Case("slow-disk reattach --base FOLDER/good --tuned FOLDER/base --out FOLDER/out",
                     "the slow disk"),
    "studies": Case("studies training-to-inference", "study"),
    "train": Case("train --model tiny --minutes 60 --tokens 10000000 --out FOLDER/run", "text: "),
    "view": Case("view hello --tiny --max-new-tokens 4000 --drafter recycling --temperature 1",
                 "generating"),
}  # fmt: skip
FAST = ("prove", "generate")
CASES = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow, pytest.mark.timeout(300)])
    for name in LONG
]


def slow_accept(*_):
    """An accept function of a user, as slow as can be."""
    time.sleep(600)


@pytest.fixture
def folder(request, tmp_path):
    """A small target, and the same with a head inside."""
    if "FOLDER/" in LONG[request.getfixturevalue("name")].words:
        from mtp_verify.heads import export, save
        from tests.models import tiny_model
        from tests.published import in_checkpoint_head

        model = tiny_model("llama", max_position_embeddings=10**6)
        model.save_pretrained(tmp_path / "base")
        head = in_checkpoint_head("mimo", model)
        save(head, tmp_path / "head")
        export(head, tmp_path / "good", "in_checkpoint", base=tmp_path / "base")
    return tmp_path


class Running:
    """A command in a session of its own: what Ctrl-C reaches is all that it started too."""

    def __init__(self, words: str, *, terminal: bool) -> None:
        if terminal:
            self._end, theirs = pty.openpty()
        else:
            self._end, theirs = os.pipe()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            (sys.executable, "-c", RUN, *words.split()),
            stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
            start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(theirs)
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """What it has written so far."""
        return self._bytes.decode(errors="replace")

    def until(self, condition: Callable[[], object]) -> None:
        """Wait; the test's own timeout ends this if need be."""
        while not condition():
            assert self.process.poll() is None, f"it has ended:\n{self.text}"
            time.sleep(0.02)

    def interrupt(self) -> float:
        """Press Ctrl-C, wait for the end of all that was started, and return the seconds."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        assert self.process.wait(timeout=100) == 130, self.text
        seconds = time.monotonic() - began
        for _ in range(1500):
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.01)
        else:
            pytest.fail("a process that the command started lives on")
        self._reader.join()
        return seconds

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._end)

    def _read(self) -> None:
        try:
            while more := os.read(self._end, 65536):
                self._bytes += more
        except OSError:  # the other end of a terminal was closed
            pass


@pytest.fixture
def run(request):
    """Start a command, and be sure that it ends."""
    started = []

    def start(words: str, *, terminal: bool = False) -> Running:
        started.append(Running(words, terminal=terminal))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_no_command_is_forgotten():
    parser = cli.build_parser()
    (commands,) = (a.choices for a in parser._actions if isinstance(a.choices, dict))
    tried = {case.words.removeprefix("slow-disk ").split()[0] for case in LONG.values()}
    assert tried == {*commands, "studies"}


@pytest.mark.parametrize("terminal", [False, True], ids=["log", "terminal"])
@pytest.mark.parametrize("name", CASES)
def test_a_command_tells_that_it_lives_and_ends_at_ctrl_c(name, terminal, folder, run):
    case = LONG[name]
    command = run(case.words.replace("FOLDER", str(folder)), terminal=terminal)
    command.until(lambda: re.search(case.work, command.text))
    for _ in range(2):  # it goes on to tell: each 0.2 s here, each 8 s otherwise; 1 s on a terminal
        before = len(command.text)
        command.until(lambda before=before: len(command.text) > before)
    seconds = command.interrupt()
    assert seconds < 2.0  # some 0.1 here
    assert "Traceback" not in command.text
    assert re.search(r"interrupted\r?\n\Z", command.text), command.text[-300:]
    if not terminal and name not in ("demo", "generate"):  # whose random text may hold anything
        assert not set(command.text) & {"\r", "\x1b"}
    assert not (folder / "out").exists()  # nor anything that is half written
    assert [path.name for path in folder.glob(".*")] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "words", ["prove", "view hello --tiny --max-new-tokens 999", LONG["demo"].words]
)
def test_a_command_ends_cleanly_whenever_ctrl_c_comes(words, run):
    for tenths in range(2, 40, 4):
        command = run(words, terminal=True)
        command.until(lambda command=command: "mtp-verify" in command.text)
        time.sleep(tenths / 10)
        if " forwards: tau" not in command.text:  # it is not at its end
            assert command.interrupt() < 2.0
            assert "Traceback" not in command.text, command.text


def test_training_tells_what_it_does_off_a_terminal(tmp_path, run):
    pytest.importorskip("transformers", reason="train needs transformers")
    command = run(f"train --model tiny --out {tmp_path} --epochs 1 --json --tokens 400")
    assert command.process.wait() == 0, command.text
    told = command.text
    assert re.search(r"^loading the model \([0-9]+ s so far\)$", told, re.MULTILINE)
    assert re.search(r"^(text|step|timing).* so far\)$", told, re.MULTILINE)
