"""Weights laid out beforehand: the same products, by rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mtp_verify.models.cpu.packing import (
    Product,
    can_prepack,
    is_prepacked,
    multiply,
    prepack,
    prepacked_copy,
)
from tests.heads import tiny_head
from tests.models import on_measured_cpus, prompt, tiny_model


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


@on_measured_cpus
@pytest.mark.parametrize("width", [96, 1040])
def test_a_row_has_the_same_bits_in_any_company(layer: nn.Linear, width: int) -> None:
    """1,040 columns are more than torch's kernel for a single row sums up in one go."""
    weight = prepacked_copy(torch.randn(64, width).to(layer.weight.dtype))
    assert weight is not None
    rows = (torch.randn(24, width) * torch.rand(24, width) ** 4).to(layer.weight.dtype)
    whole = multiply(rows, weight, None)
    for count in (1, 2, 3, 5, 8, 13):
        for start in range(24 - count):
            some = slice(start, start + count)
            assert torch.equal(multiply(rows[some], weight, None), whole[some])
            assert torch.equal(multiply(rows[None, some], weight, None), whole[None, some])


def test_tied_weights_are_copied_once_and_gradients_take_the_ordinary_way(
    layer: nn.Linear,
) -> None:
    twin = nn.Linear(96, 160, bias=False).to(torch.bfloat16)
    twin.weight = layer.weight
    assert prepack(nn.ModuleList([layer, twin])) == layer.weight.nbytes
    twin(torch.randn(3, 96).to(torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None


def test_layers_of_another_dtype_are_left_and_not_counted(layer: nn.Linear) -> None:
    other = nn.Linear(96, 160)
    assert prepack(nn.ModuleList([layer, other])) == layer.weight.nbytes
    assert "forward" not in vars(other)


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


def test_a_product_leaves_gradients_and_other_dtypes_to_torch(layer: nn.Linear) -> None:
    product = Product(layer.weight.detach())
    assert product.packed is not None
    rows = torch.randn(3, 96, dtype=torch.bfloat16, requires_grad=True)
    product(rows).sum().backward()
    assert rows.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert product(rows.detach().float()).shape == (3, 160)
    assert copy.deepcopy(product)(rows).shape == (3, 160)


def test_a_head_drafts_with_laid_out_weights(layer: nn.Linear) -> None:
    del layer
    model = tiny_model("llama").to(torch.bfloat16)
    head = tiny_head("mimo", model).to(torch.bfloat16)
    hidden = torch.randn(4, head.spec.known_sizes.hidden_size).to(torch.bfloat16)
    tokens = torch.tensor([3, 5, 7, 2])
    rows = []
    for _ in range(2):
        state = head.new_state()
        with torch.inference_mode():
            head.read(state, [hidden], tokens)
            rows.append(head.step(state, [0, 0, 0], tokens[:3]).float())
        prepack(head)
    assert is_prepacked(head)
    assert torch.allclose(*rows, atol=0.05)
