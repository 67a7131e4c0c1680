"""A process that was forked after batches ran on threads verifies on threads of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Forks while another thread is inside a call, too: that is when a lock can be caught.
PROGRAM = """
import os, sys, threading, time
import numpy as np
import mtp_verify as mv

mv.verifier.set_num_threads(3)
rng = np.random.default_rng(0)
drafts = [mv.Draft.chain([1, 2]) for _ in range(6)]
logits = rng.normal(0, 1, (18, 1 << 16)).astype(np.float32)

def tokens():
    return mv.verify_batch(drafts, logits, seeds=range(6), positions=range(6)).tokens.tolist()

wanted = tokens()
stop = threading.Event()

def work():
    while not stop.is_set():
        assert tokens() == wanted

busy = threading.Thread(target=work)
busy.start()
for _ in range(8):
    child = os.fork()
    if child == 0:
        # And a grandchild, whose parent's pool is itself a second one.
        right = tokens() == wanted
        if (grandchild := os.fork()) == 0:
            os._exit(0 if tokens() == wanted else 1)
        right &= os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
busy.join()
assert tokens() == wanted
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_processes_verify_batches():
    # The limit is for a child that waits for ever, not for a busy machine.
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
