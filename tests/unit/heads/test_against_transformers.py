"""Heads made of the target's own kind of layer: equal to transformers' own MTP forward."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.heads import load
from mtp_verify.models.hidden import HiddenStates
from tests.models import prompt

_COMMON = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8,
    "num_experts_per_tok": 2, "initializer_range": 0.3, "num_nextn_predict_layers": 1,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip
_GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_LAYER = "model.layers.2."
_DEEPSEEK = [f"{_LAYER}{part}" for part in ("enorm", "hnorm", "eh_proj", "shared_head.norm")]
_MELLUM = ["mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.fc", "mtp.norm"]
# Latent attention, grouped attention and sliding attention, each with experts.
KINDS = {
    "deepseek_v3": (
        {**_LATENT, **_GROUPS, "n_routed_experts": 4, "n_shared_experts": 1}, _DEEPSEEK, _LAYER,
    ),
    "glm4_moe": (
        {**_GROUPS, "n_routed_experts": 4, "n_shared_experts": 1}, _DEEPSEEK, _LAYER,
    ),
    "mellum": (
        {"num_experts": 4, "sliding_window": 6, "mtp_layer_types": ["sliding_attention"],
         "layer_types": ["full_attention", "sliding_attention"]},
        _MELLUM, "mtp.layers.0.",
    ),
}  # fmt: skip


def write_target(kind, folder):
    """A random target, and a module of its kind, written with the names of the release."""
    fields, parts, block = KINDS[kind]
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **{**_COMMON, **fields})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    # The names of a layer of the target as released, with fresh weights.
    last = "model.layers.1."
    for name, tensor in list(tensors.items()):
        if name.startswith(last):
            fresh = torch.randn_like(tensor) * 0.3 + ("norm" in name)
            tensors[block + name.removeprefix(last)] = fresh
    for part in parts:
        shape = (32, 64) if part.endswith(("eh_proj", "fc")) else (32,)
        tensors[f"{part}.weight"] = torch.randn(shape) * 0.3 + (len(shape) == 1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal_transformers_own_forward(kind, tmp_path):
    model = write_target(kind, tmp_path)
    # transformers knows the releases' own layer numbers alone.
    model._keys_to_ignore_on_load_unexpected = [r"model\.layers\.2.*", r"^mtp\."]
    head = load(tmp_path, model)
    assert head.spec.family == kind
    # transformers never hides the embedding of the first pair.
    head = load_with(head, zero_first=False)
    reference = MtpModel.from_pretrained(model).eval()
    ids = torch.randint(1, 32, (1, 13), generator=torch.Generator().manual_seed(8))
    with HiddenStates(model, (-1,)) as states:
        hidden = states.of(model(ids, **states.options))[0]
    _, wanted, _ = reference(
        ids[:, 1:], hidden[:, :-1], None, torch.arange(1, 13)[None], MtpCache(config=None)
    )
    found = head.read(head.new_state(), [hidden[0, :-1]], ids[0, 1:])
    torch.testing.assert_close(found[0], wanted[0, 0], rtol=0.0, atol=1e-5 * wanted.abs().max())


def load_with(head, **changes):
    head.spec = head.spec.replace(**changes)
    for level in head.levels:
        level.spec = head.spec
    return head


@pytest.mark.parametrize("kind", KINDS)
def test_module_drafts_for_its_target(kind, tmp_path):
    model = write_target(kind, tmp_path)
    decoder = Decoder(model, mv.drafters.Heads(load(tmp_path, model)), mv.SamplingParams(0.0))
    plain = decoder.generate(prompt(), max_new_tokens=12, speculate=False)
    fast = decoder.generate(prompt(), max_new_tokens=12)
    assert fast.tokens == plain.tokens
    assert fast.stats.drafted > 0
