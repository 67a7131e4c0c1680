"""Hydra's published heads, with and without a block before them, against a forward of our own."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import mtp_verify as mv
from mtp_verify.heads import load, save
from tests.heads import random_hidden
from tests.models import VOCAB, prompt, tiny_model
from tests.published import write

D, HEADS, KV_HEADS, HEAD_DIM, NUM_HEADS = 32, 4, 2, 8, 3


def written(folder, *, num_layers=1, plus=False, bias=True):
    """Random tensors by the names that the authors' `state_dict` gives."""
    torch.manual_seed(9)
    tensors = {}

    def put(name, *shape, scale=0.3, shift=0.0):
        tensors[name] = torch.randn(*shape) * scale + shift

    for head in range(NUM_HEADS):
        for number in range(num_layers):
            place = 2 * number + 1 if plus else number
            wide = (2 + head) * D if number == 0 else D
            for part in ("linear", "res_connection") if number == 0 else ("linear",):
                put(f"hydra_mlp.{head}.{place}.{part}.weight", D, wide)
                put(f"hydra_mlp.{head}.{place}.{part}.bias", D)
        out = f"hydra_lm_head.{head}.1" if plus else f"hydra_lm_head.{head}"
        put(f"{out}.weight", VOCAB, D)
        if bias:
            put(f"{out}.bias", VOCAB)
    if plus:
        start = "prefix_embeding_layer."
        widths = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
        for part, width in widths.items():
            put(f"{start}layers.0.self_attn.{part}_proj.weight", width, D)
        put(f"{start}layers.0.self_attn.o_proj.weight", D, HEADS * HEAD_DIM)
        put(f"{start}layers.0.mlp.gate_proj.weight", 64, D)
        put(f"{start}layers.0.mlp.up_proj.weight", 64, D)
        put(f"{start}layers.0.mlp.down_proj.weight", D, 64)
        for norm in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm"):
            put(f"{start}{norm}.weight", D, shift=1.0)
        put(f"{start}embed_tokens.weight", VOCAB, D)  # LlamaModel has one, and nobody reads it.
    config = {"hydra_num_heads": NUM_HEADS, "hydra_num_layers": num_layers, "grounded_heads": True,
              "hydra_head_arch": "prefix-mlp" if plus else "mlp"}  # fmt: skip
    write(folder, config, tensors)
    return tensors


def norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turned(x, positions):
    half = HEAD_DIM // 2
    angles = positions[:, None, None] / 10_000.0 ** (torch.arange(half) * 2 / HEAD_DIM)
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * angles.cos() - second * angles.sin(),
                      second * angles.cos() + first * angles.sin()), -1)  # fmt: skip


def prefixed(t, x, eps):
    """One Llama block over hidden states (n, d), and its norm."""
    start = "prefix_embeding_layer.layers.0."
    y = norm(x, t[f"{start}input_layernorm.weight"], eps)
    q, k, v = ((y @ t[f"{start}self_attn.{p}_proj.weight"].T).view(len(x), -1, HEAD_DIM)
               for p in "qkv")  # fmt: skip
    places = torch.arange(len(x), dtype=torch.float32)
    q, k = turned(q, places), turned(k, places)
    k, v = (z.repeat_interleave(HEADS // KV_HEADS, 1) for z in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(HEAD_DIM)
    scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(len(x), -1)
    x = x + mixed @ t[f"{start}self_attn.o_proj.weight"].T
    y = norm(x, t[f"{start}post_attention_layernorm.weight"], eps)
    y = functional.silu(y @ t[f"{start}mlp.gate_proj.weight"].T) * (
        y @ t[f"{start}mlp.up_proj.weight"].T
    )
    x = x + y @ t[f"{start}mlp.down_proj.weight"].T
    return norm(x, t["prefix_embeding_layer.norm.weight"], eps)


def wanted_row(t, model, hidden, path, num_layers, plus):
    """The row after a path, which begins with the root's token."""
    eps, head = model.config.rms_norm_eps, len(path) - 1
    stream = prefixed(t, hidden, eps) if plus else hidden
    embeds = model.get_input_embeddings().weight[torch.tensor(path)]
    x = torch.cat((stream[-1], *embeds))
    for number in range(num_layers):
        place = f"hydra_mlp.{head}.{2 * number + 1 if plus else number}"
        new = functional.silu(t[f"{place}.linear.weight"] @ x + t[f"{place}.linear.bias"])
        if number == 0:
            part = f"{place}.res_connection"
            x = t[f"{part}.weight"] @ x + t[f"{part}.bias"]
        x = x + new
    out = f"hydra_lm_head.{head}.1" if plus else f"hydra_lm_head.{head}"
    return t[f"{out}.weight"] @ x + t.get(f"{out}.bias", torch.zeros(VOCAB))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@torch.no_grad()
def test_published_heads_are_exact(num_layers, plus, bias, model, tmp_path):
    tensors = written(tmp_path / "a", num_layers=num_layers, plus=plus, bias=bias)
    head = load(tmp_path / "a", model)
    spec = head.spec
    assert (spec.family, spec.num_modules, spec.num_layers) == ("hydra", NUM_HEADS, num_layers)
    save(head, tmp_path / "b")
    for found in (head, load(tmp_path / "b", model)):
        hidden, text = random_hidden(found, 6), torch.arange(1, 7)
        state = found.new_state()
        found.read(state, [h[:4] for h in hidden], text[:4])
        found.step(state, [0], torch.tensor([8]))
        rows = [found.read(state, [h[4:] for h in hidden], text[4:])]
        rows += [found.step(state, [0, 0], torch.tensor([3, 9]))]
        rows += [found.step(state, [2], torch.tensor([4]))]
        for row, path in zip(torch.cat(rows), ([6], [6, 3], [6, 9], [6, 9, 4]), strict=True):
            wanted = wanted_row(tensors, model, hidden[0], path, num_layers, plus)
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-5 * wanted.abs().max())


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("settings", [{"num_tokens": 3}, {"max_nodes": 6}])
def test_greedy_drafts_equal_plain_decoding(plus, settings, model, tmp_path):
    written(tmp_path, plus=plus)
    drafter = mv.drafters.Heads(load(tmp_path, model), **settings)
    batch = [prompt(n, seed=n)[0].tolist() for n in (9, 4)]
    for cache in (None, "static"):
        decoder = mv.Decoder(model, drafter, mv.SamplingParams(temperature=0.0), cache=cache)
        options = {"max_new_tokens": 8, "eos_token_id": ()}
        plain = decoder.generate(batch, speculate=False, **options)
        fast = decoder.generate(batch, **options)
        assert fast.tokens == plain.tokens
        assert fast.stats.drafted > 0


def test_what_is_missing_or_other_is_named(model, tmp_path):
    written(tmp_path, plus=True)
    with pytest.raises(mv.errors.ParamsError, match="the target's numbers of attention heads"):
        load(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["hydra_mlp.1.1.res_connection.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"missing: hydra_mlp\.1\.1\.res_connection\.weight"
    ):
        load(tmp_path, model)
    (tmp_path / "config.json").write_text('{"hidden_state_offset": 1}')
    with pytest.raises(mv.errors.UnsupportedModelError, match="hidden_state_offset: found 1"):
        load(tmp_path, model)
