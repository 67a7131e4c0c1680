"""The guard itself: it sees every way in which a value reaches the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.verifier.kernels import to_host
from tests.host_reads import HostReads

VALUES = torch.tensor([[1.0, 0.0, 3.0], [0.5, 2.0, 4.0]])
READS = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool(x[0, 0]),
    "int": lambda x: int(x[0, 0]),
    "float": lambda x: float(x[0, 0]),
    "index": lambda x: range(9)[x[0, 0].long()],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "dlpack": lambda x: np.from_dlpack(x),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 1],
    "masked_select": lambda x: x.masked_select(x > 1),
    "unique": lambda x: x.unique(),
}
NONE = {
    "arithmetic": lambda x: (x * 2).sum(),
    "gather": lambda x: x[torch.zeros(4, dtype=torch.int64)],
    "select": lambda x: torch.where(x > 1, x, 0.0).argmax(1),
    "upload": lambda x: x + torch.tensor([1.0, 2.0, 3.0]) + torch.from_numpy(np.ones(3)),
    "slices": lambda x: [row[:1] for row in x],
}


@pytest.mark.parametrize("name", READS)
def test_a_read_is_counted_once(name):
    with HostReads() as reads:
        READS[name](VALUES)
    assert len(reads.places) == 1, reads.places
    assert "test_host_reads.py" in reads.places[0]


@pytest.mark.parametrize("name", NONE)
def test_what_stays_on_a_device_is_not_counted(name):
    with HostReads() as reads:
        NONE[name](VALUES)
    assert reads.places == []


def test_what_was_copied_may_be_read_again():
    door = to_host  # The name in this module is a test's, and is not replaced.
    from mtp_verify.decoder import verdicts

    with HostReads() as reads:
        host = verdicts.to_host(VALUES)
        assert verdicts.to_host(host) is host
        host[0].tolist()
        assert float(host[0, 0]) == 1.0
        assert len(reads.places) == 1
        VALUES.tolist()
    assert len(reads.places) == 2
    assert verdicts.to_host is door
    VALUES.tolist()
    assert len(reads.places) == 2


def test_a_call_of_the_core_is_one_read():
    with HostReads() as reads:
        mv.verify(mv.Draft.chain([2]), VALUES, seed=0, position=0)
    assert len(reads.places) == 1
    assert reads.places[0].startswith("to_host, verifier/kernels/host.py")


@torch.inference_mode()
def test_reads_in_inference_mode_are_seen():
    with HostReads() as reads:
        bool(VALUES[0, 0] > 0)
    assert len(reads.places) == 1
