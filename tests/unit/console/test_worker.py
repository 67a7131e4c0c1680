"""A process that works for this one: what it sends, how it fails, and that it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from mtp_verify.console import worker
from mtp_verify.console.worker import Worker

pytestmark = pytest.mark.usefixtures("ctrl_c")


def answer(connection, *words):
    connection.send((words, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    connection.send(KeyError("a fault"))


def die(connection):
    os._exit(3)


def sleep(connection):
    connection.send("asleep")
    time.sleep(600)


def test_what_it_sends_comes_and_faults_are_raised():
    found = Worker(answer, "one", 2)
    assert found.receive() == (("one", 2), True)
    with pytest.raises(KeyError, match="a fault"):
        found.receive()
    with pytest.raises(RuntimeError, match="has died"):
        found.receive()
    found.stop()
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_named():
    found = Worker(die)
    with pytest.raises(RuntimeError, match="has died"):
        found.receive()
    found.stop()


def test_ctrl_c_waits_while_a_process_is_started():
    done = threading.Event()
    other = threading.Thread(target=done.wait, daemon=True)
    other.start()  # the mask of the main thread is not its own
    seen = []

    def start():
        with worker._interrupts_wait():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            seen.append("it went on")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert seen
    done.set()
    other.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_ends_whatever_it_does():
    found = Worker(sleep)
    assert found.receive() == "asleep"
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGINT)  # Ctrl-C is not its own to handle
    child.join(0.2)
    assert child.is_alive()
    found.stop()
    assert not multiprocessing.active_children()


def test_ctrl_c_while_it_starts_ends_it(monkeypatch):
    start = multiprocessing.get_context("spawn").Process.start

    def interrupted(process):
        start(process)
        os.kill(os.getpid(), signal.SIGINT)  # held back until the process has started

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Worker(sleep)
    assert not multiprocessing.active_children()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_systems_without_signal_masks_start_it_too(monkeypatch):
    monkeypatch.delattr(worker.signal, "pthread_sigmask")
    found = Worker(sleep)
    assert found.receive() == "asleep"
    found.stop()
