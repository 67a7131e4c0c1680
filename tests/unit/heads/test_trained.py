"""The module that `speculators` trains, against transformers' own layer of the target."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import mtp_verify as mv
from mtp_verify.heads import load
from tests.heads import random_hidden
from tests.models import VOCAB, prompt
from tests.published import write

_COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
    "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
KINDS = {
    "qwen3": {},
    "qwen3_5_text": {
        "layer_types": ["full_attention", "linear_attention"], "linear_num_value_heads": 2,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "partial_rotary_factor": 1.0, "pad_token_id": None,
    },
}  # fmt: skip


def written(kind, folder):
    """A target, and the parts of a random module of its kind, as speculators saves them."""
    torch.manual_seed(4)
    config = AutoConfig.for_model(kind, **_COMMON, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    layers = model.get_decoder().layers
    types = getattr(config, "layer_types", None)
    index = types.index("full_attention") if types else 0
    layer = copy.deepcopy(layers[index]).eval()
    norms = {n: copy.deepcopy(model.get_decoder().norm) for n in ("hidden", "token", "final")}
    fused = torch.nn.Linear(64, 32, bias=False)
    with torch.no_grad():
        for module in (layer, *norms.values(), fused):
            for name, parameter in module.named_parameters():
                parameter.normal_(std=0.3)
                if "norm" in name or parameter.dim() == 1:
                    parameter += 0.0 if kind.startswith("qwen3_5") else 1.0
    tensors = {f"mtp_layers.0.{n}": t.clone() for n, t in layer.state_dict().items()}
    tensors |= {f"mtp_layers.0.{n}_layernorm.weight": m.weight.detach().clone()
                for n, m in norms.items()}  # fmt: skip
    tensors["mtp_layers.0.input_proj.weight"] = fused.weight.detach().clone()
    write(folder, {
        "architectures": ["MTPDraftModel"], "speculators_model_type": "mtp",
        "num_nextn_predict_layers": 1, "transformer_layer_config": config.to_dict(),
    }, tensors)  # fmt: skip
    return model, layer, norms, fused


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal_transformers_own_layer(kind, tmp_path):
    model, layer, norms, fused = written(kind, tmp_path)
    head = load(tmp_path, model, probe=False)
    assert (head.spec.family, head.spec.num_modules) == ("mtp", 1)
    hidden, text = random_hidden(head, 6), torch.arange(1, 7)
    stream = hidden[0][None]
    embed, output = model.get_input_embeddings(), model.get_output_embeddings()
    path, wanted = [3, 9, 4], []
    for depth in range(len(path) + 1):
        ids = torch.cat((text, torch.tensor(path[:depth], dtype=torch.int64)))[None]
        x = fused(torch.cat((norms["token"](embed(ids)), norms["hidden"](stream)), -1))
        places = torch.arange(ids.shape[1])[None]
        mask = torch.full((ids.shape[1],) * 2, -1e9).triu(1)[None, None]
        turned = model.get_decoder().rotary_emb(x, places)
        out = layer(x, position_embeddings=turned, attention_mask=mask, position_ids=places)
        out = norms["final"](out[0] if isinstance(out, tuple) else out)
        wanted.append(output(out)[0, -1])
        stream = torch.cat((stream, out[:, -1:]), 1)
    state = head.new_state()
    head.read(state, [h[:4] for h in hidden], text[:4])
    rows = [head.read(state, [h[4:] for h in hidden], text[4:])]
    rows += [head.step(state, [n], torch.tensor([token])) for n, token in enumerate(path)]
    wanted = torch.stack(wanted)
    torch.testing.assert_close(torch.cat(rows), wanted, rtol=0, atol=1e-5 * wanted.abs().max())


def test_greedy_drafts_equal_plain_decoding(tmp_path):
    model, *_ = written("qwen3", tmp_path)
    head = load(tmp_path, model)
    decoder = mv.Decoder(model, mv.drafters.Heads(head), mv.SamplingParams(temperature=0.0))
    plain = decoder.generate(prompt(), max_new_tokens=8, speculate=False)
    fast = decoder.generate(prompt(), max_new_tokens=8)
    assert fast.tokens == plain.tokens
    assert fast.stats.drafted > 0


def test_the_target_is_needed(tmp_path):
    written("qwen3", tmp_path)
    with pytest.raises(mv.errors.ParamsError, match="give the target"):
        load(tmp_path)
