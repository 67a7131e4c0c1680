"""Muon against torch's own, and what a step looks like."""

from __future__ import annotations

import copy
import types

import pytest
import torch

from mtp_verify.training.muon import Muon

SHAPES = [(24, 40), (40, 24), (32, 32)]
RATE, DECAY = 0.02, 0.1


def _walk(make, steps=6):
    """Weights after some steps on given gradients."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = make(weights)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights, optimizer


def _ours(weights, dtype=torch.float32):
    return Muon(weights, lr=RATE, weight_decay=DECAY, dtype=dtype)


def _torchs(weights):
    return torch.optim.Muon(weights, lr=RATE, weight_decay=DECAY, momentum=0.95, ns_steps=4)


def test_equals_torchs_own_without_its_rounding(monkeypatch):
    plain = types.SimpleNamespace(**{**vars(torch), "bfloat16": torch.float32})
    monkeypatch.setattr(torch.optim._muon, "torch", plain)
    for mine, theirs in zip(_walk(_ours)[0], _walk(_torchs)[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torchs_own_up_to_rounding(dtype):
    start, (moved_to, _) = _walk(_ours, steps=0)[0], _walk(lambda w: _ours(w, dtype))
    for mine, theirs, first in zip(moved_to, _walk(_torchs)[0], start, strict=True):
        moved = (mine - first).norm()
        assert 0 < (mine - theirs).norm() < 0.02 * moved


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_nearly_orthogonal_along_the_gradient(shape):
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(weight.grad, full_matrices=False)
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    turned = -(left.T @ weight.detach() @ right.T) / scale
    torch.testing.assert_close(turned, torch.diag(turned.diag()), rtol=0, atol=1e-4)
    # The polynomial carries what is not tiny to between 0.65 and 1.25.
    large = values > 0.1 * values[0]
    assert ((turned.diag()[large] > 0.6) & (turned.diag()[large] < 1.3)).all()


def test_a_parameter_without_a_gradient_stays():
    still, moving = (torch.nn.Parameter(torch.ones(4, 6)) for _ in range(2))
    moving.grad = torch.eye(4, 6)
    optimizer = _ours([still, moving])
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 6))
    assert not torch.equal(moving, torch.ones(4, 6))
    assert still not in optimizer.state


def test_goes_on_from_its_saved_state_bit_for_bit():
    weights, optimizer = _walk(_ours, steps=3)
    copies = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    again = _ours(copies)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    generator = torch.Generator().manual_seed(9)
    for _ in range(3):
        for weight, twin in zip(weights, copies, strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            twin.grad = weight.grad.clone()
        optimizer.step()
        again.step()
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
