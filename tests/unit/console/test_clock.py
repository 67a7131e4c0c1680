"""The process's own start, and limits of time that count from it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from mtp_verify.console import clock


def test_a_process_knows_when_it_began_despite_slow_imports():
    code = "import time; time.sleep(1.5); from mtp_verify.console import clock; "
    code += "print(time.monotonic() - clock.process_start())"
    began = time.monotonic()
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, check=True)
    # What it printed lies between its sleep and what this process saw of it.
    assert 1.5 <= float(done.stdout) <= time.monotonic() - began


@pytest.mark.parametrize(
    "content", ["", "1 (a", "1 (a) " + "x " * 40, "1 (a) " + f"{10**15} " * 40]
)
def test_where_the_system_does_not_tell_it_is_the_import(content, tmp_path, monkeypatch):
    file = tmp_path / "stat"
    file.write_text(content)
    monkeypatch.setattr(clock, "Path", lambda _: file)
    assert clock.process_start() == clock._IMPORTED


def test_the_name_of_the_command_may_hold_anything(tmp_path, monkeypatch):
    file = tmp_path / "stat"
    file.write_text("1 (a) 0 (b) S" + " 0" * 18 + " 4200 7")
    monkeypatch.setattr(clock, "Path", lambda _: file)
    monkeypatch.setattr(clock, "_IMPORTED", time.monotonic())
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - 42
    assert time.monotonic() - clock.process_start() == pytest.approx(age, abs=1.0)


# The command in argv, after imports that take four seconds.
SLOW_IMPORTS = (
    "import sys, time; time.sleep(4); from mtp_verify.commands.cli import main; sys.exit(main())"
)


RIGHT = ("--engine", "mutants", "--mode", "none")


def run(*words):
    done = subprocess.run(
        (sys.executable, "-c", SLOW_IMPORTS, *words, "--json"), capture_output=True, check=False
    )
    assert done.returncode in (0, 2), done.stderr  # 2: not enough data
    return json.loads(done.stdout)


def test_certify_counts_its_seconds_from_the_start_of_the_process():
    found = run("certify", "--engine", "mutants", "--max-seconds", "3")
    # The imports took them all.
    assert {one["samples"] for one in found["certificates"]} == {0}


def test_train_counts_its_minutes_from_the_start_of_the_process(tmp_path):
    words = ("--tokens", "200", "--epochs", "1", "--out", str(tmp_path))
    assert run("train", "--model", "tiny", *words)["seconds"] > 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("busy", [0, 4], ids=["idle", "busy"])
@pytest.mark.parametrize(
    ("words", "limit"),
    [
        (("train", "--model", "tiny", "--minutes", "0.75", "--tokens", "1000000"), 45),
        (("certify", "--engine", "transformers", "--min-tv", "0.001", "--max-seconds", "45"), 45),
        (("certify", *RIGHT, "--min-tv", "0.001", "--max-seconds", "45"), 45),
        (("certify", *RIGHT, "--min-tv", "0.01", "--prompts", "500", "--max-seconds", "45"), 45),
    ],
    ids=["train", "certify", "certify small", "certify prompts"],
)
def test_a_limit_holds_under_load(words, limit, busy, tmp_path):
    """Within 20 %, beside as many busy processes."""
    load = [subprocess.Popen((sys.executable, "-c", "while True: pass")) for _ in range(busy)]
    out = ("--out", str(tmp_path)) if words[0] == "train" else ()
    try:
        began = time.monotonic()
        run(*words, *out)
        seconds = time.monotonic() - began
    finally:
        for process in load:
            process.kill()
            process.wait()
    print(f"{words[0]}, {busy} busy processes: {seconds:.1f} s of {limit}")
    assert seconds <= 1.2 * limit
