"""Long commands in processes of their own: lines off a terminal, and a clean end at Ctrl-C."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("ctrl_c")

# The command in argv, with a line every fifth of a second in place of every eight.
RUN = (
    "import sys; from mtp_verify import cli, terminal; "
    "terminal._SECONDS_BETWEEN_LINES = 0.2; sys.exit(cli.main(sys.argv[1:]))"
)


def start(*words: str, **streams) -> subprocess.Popen[bytes]:
    # A session of its own: what Ctrl-C reaches is its whole group, the processes it started too.
    return subprocess.Popen((sys.executable, "-c", RUN, *words), start_new_session=True, **streams)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Press Ctrl-C; the command must end, and all that it started."""
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=60) == 130
    # It takes less than 2 seconds here; a proof that goes on takes a minute, and more under load.
    assert time.monotonic() - began < 15.0
    for _ in range(1500):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("a process that the command started lives on")


def test_the_proof_tells_that_it_lives_and_ends_at_ctrl_c():
    with start("certify", "--self", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for _ in range(5):  # the first lines come while the other process starts
            line = process.stderr.readline()
            assert re.fullmatch(rb"enumerating .* \([0-9]+ s so far\)\n", line), line
        interrupt(process)
        rest = process.stderr.read()
    assert rest.endswith(b"\ninterrupted\n")
    assert b"Traceback" not in rest


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_the_proof_ends_at_ctrl_c_on_a_terminal(seconds):
    ours, theirs = pty.openpty()
    with start("certify", "--self", stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"enumerating" not in shown:
            shown += os.read(ours, 1024)
        time.sleep(seconds)  # 0: while the other process still starts
        interrupt(process)
    try:
        while more := os.read(ours, 1024):
            shown += more
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert b"so far" not in shown
    assert b"interrupted" in shown
    assert b"Traceback" not in shown


def test_training_tells_what_it_does_off_a_terminal(tmp_path):
    pytest.importorskip("transformers", reason="train needs transformers")
    words = ["train", "--model", "tiny", "--out", str(tmp_path), "--epochs", "1", "--json"]
    words += ["--tokens", "400"]
    with start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert process.returncode == 0, told
    assert re.search(r"^loading the model \([0-9]+ s so far\)$", told, re.MULTILINE)
    assert re.search(r"^(text|step|timing).* so far\)$", told, re.MULTILINE)
