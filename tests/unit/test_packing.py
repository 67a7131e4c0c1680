"""Weights laid out beforehand: the same products, by rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mtp_verify.packing import can_prepack, is_prepacked, prepack
from tests.models import prompt, tiny_model


def test_float32_is_left_as_it_is() -> None:
    model = tiny_model("llama")
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    assert not can_prepack(model)
    assert prepack(model) == 0
    assert all("forward" not in vars(layer) for layer in layers)


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(96, 160).to(torch.bfloat16).eval()
    if not can_prepack(made):
        pytest.skip("this CPU, or this torch, has no bfloat16 kernels")
    return made


def test_products_agree_at_every_width(layer: nn.Linear) -> None:
    rows = {count: torch.randn(1, count, 96).to(torch.bfloat16) for count in (1, 2, 7, 64, 65)}
    with torch.inference_mode():
        before = {count: layer(x) for count, x in rows.items()}
        assert prepack(nn.Sequential(layer)) == layer.weight.nbytes
        after = {count: layer(x) for count, x in rows.items()}
    for count, expected in before.items():
        assert after[count].shape == expected.shape == (1, count, 160)
        if count in (1, 65):  # the ordinary way
            assert torch.equal(after[count], expected)
        else:
            exact = rows[count].double() @ layer.weight.double().T + layer.bias.double()
            assert torch.allclose(after[count].double(), exact, rtol=2**-7, atol=2**-6)


def test_tied_weights_are_copied_once_and_gradients_take_the_ordinary_way(
    layer: nn.Linear,
) -> None:
    twin = nn.Linear(96, 160, bias=False).to(torch.bfloat16)
    twin.weight = layer.weight
    assert prepack(nn.ModuleList([layer, twin])) == layer.weight.nbytes
    twin(torch.randn(3, 96).to(torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_a_model_gives_the_same_rows(layer: nn.Linear) -> None:
    del layer  # skips where there are no kernels
    model = tiny_model("llama").to(torch.bfloat16)
    ids = prompt(6)
    with torch.inference_mode():
        before = model(ids).logits.float()
        assert not is_prepacked(model)
        assert prepack(model) > 0
        assert is_prepacked(model)
        after = model(ids).logits.float()
    assert torch.allclose(before, after, atol=0.05)
