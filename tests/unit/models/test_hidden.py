"""Hidden states of a forward: those of transformers, and the one before the final norm."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.models.hidden import BEFORE_NORM, HiddenStates
from tests.models import KINDS, prompt, tiny_model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_state_before_the_norm_becomes_the_one_behind_it(kind):
    model = tiny_model(kind)
    with HiddenStates(model, (0, BEFORE_NORM, -1)) as states:
        output = model(prompt(), **states.options)
    first, before, behind = states.of(output)
    torch.testing.assert_close(first, output.hidden_states[0])
    norm = model.transformer.ln_f if kind == "gpt2" else model.model.norm
    torch.testing.assert_close(norm(before), behind)
    assert not norm._forward_pre_hooks


def test_nothing_is_asked_for_where_nothing_is_wanted():
    assert HiddenStates(tiny_model("llama"), ()).options == {}


def test_layers_that_do_not_exist_are_refused():
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"state 3 was asked for.* 2 layers"):
        HiddenStates(tiny_model("llama"), (3,))
    model = tiny_model("llama")
    model.model.output_norm = model.model.norm
    del model.model.norm
    with pytest.raises(mv.errors.UnsupportedModelError, match="shows no final norm"):
        HiddenStates(model, (BEFORE_NORM,))
