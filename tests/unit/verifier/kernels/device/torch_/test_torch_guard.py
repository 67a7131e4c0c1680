"""A step in torch operators never asks the host: no reads, no sizes by data, no other memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

import mtp_verify as mv
from mtp_verify.verifier.kernels.device.torch_ import Workspace, run
from tests import steps
from tests.guards import HostReadError, NoHostReads
from tests.random_requests import CORES, LAWS, random_request

if TYPE_CHECKING:
    import numpy as np

    from mtp_verify.verifier.kernels.device.layout import Step


def everything(rng: np.random.Generator, *, is_logits: bool) -> tuple[Step, list[steps.Request]]:
    """Return a step of every law and rule, shaped, masked, over a sub-vocabulary."""
    params = mv.SamplingParams(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01)
    requests = [
        random_request(
            rng, law, core, params=params, is_logits=is_logits, masked=True, columns=[*range(2, 11)]
        )
        for law in LAWS
        for core in CORES
    ]
    return steps.step_of(requests), requests


@pytest.mark.parametrize("is_logits", [False, True])
def test_no_operator_reads_or_sizes_by_data(rng: np.random.Generator, is_logits: bool) -> None:
    step, requests = everything(rng, is_logits=is_logits)
    workspace = Workspace(step.capacity)
    tensors = [t for t in tree_leaves(step) if isinstance(t, torch.Tensor)]
    memory = [(t.data_ptr(), t.shape, t.stride()) for t in tensors]
    outputs = {t.data_ptr() for t in step.outcomes}
    inputs = [(t, t.clone()) for t in tensors if t.data_ptr() not in outputs]
    with NoHostReads() as guard:
        run(step, workspace)
    assert guard.names
    assert memory == [(t.data_ptr(), t.shape, t.stride()) for t in tensors]
    for tensor, before in inputs:
        assert torch.equal(tensor.nan_to_num(), before.nan_to_num())
    steps.assert_equal_to_core(step, requests)


def test_all_operators_stay_on_a_device(rng: np.random.Generator) -> None:
    # Tensors of shapes alone take the part of a GPU's: what needs a value cannot run on them.
    step, _ = everything(rng, is_logits=True)

    def on_cuda(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")

    with FakeTensorMode(), NoHostReads() as guard:
        run(tree_map(on_cuda, step), Workspace(step.capacity))
    assert "sort" in guard.names


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
    ],
)
def test_the_guard_refuses(read: Any) -> None:
    with pytest.raises(HostReadError), NoHostReads():
        read(torch.ones(3))
