"""Sliding windows of drafters' own repositories: read as vLLM reads them, and run as they say.

The logits are held against a forward of our own that is written out here: every row by itself, one
attention weight after the other, no masks, no caches, no code of the package's heads.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.heads import load, save
from tests.heads import random_hidden, tiny_head
from tests.models import VOCAB, prompt, tiny_model
from tests.published import write_eagle, write_eagle3, write_speculators

WINDOW, EPS = 3, 1e-6
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8


def norm(x, weight):
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


def turned(x, position):
    """Rotate pairs (i, i + half) of each head by the position."""
    half = HEAD_DIM // 2
    angles = position / 10_000.0 ** (torch.arange(half) * 2 / HEAD_DIM)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attended(tensors, prefix, inputs, width):
    """Attention over rows (n, k), each seeing itself and the `width` - 1 rows before it."""
    names = {n: tensors[f"{prefix}self_attn.{n}_proj.weight"] for n in "qkvo"}
    q = (inputs @ names["q"].T).view(len(inputs), HEADS, HEAD_DIM)
    k = (inputs @ names["k"].T).view(len(inputs), KV_HEADS, HEAD_DIM)
    v = (inputs @ names["v"].T).view(len(inputs), KV_HEADS, HEAD_DIM)
    rows = []
    for i in range(len(inputs)):
        seen = range(max(0, i - width + 1) if width else 0, i + 1)
        parts = []
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            query = turned(q[i, head], i)
            scores = torch.stack([query @ turned(k[j, group], j) for j in seen])
            weights = torch.softmax(scores / math.sqrt(HEAD_DIM), 0)
            parts.append(sum(w * v[j, group] for w, j in zip(weights, seen, strict=True)))
        rows.append(torch.cat(parts))
    return torch.stack(rows) @ names["o"].T


def mlp(tensors, prefix, x):
    gate, up, down = (tensors[f"{prefix}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def eagle3(tensors, prefix, embeds, hidden, width):
    """One pass over pairs; the rows after them and what is handed on."""
    side = torch.cat(
        (norm(embeds, tensors[f"{prefix}input_layernorm.weight"]),
         norm(hidden, tensors[f"{prefix}hidden_norm.weight"])), -1,
    )  # fmt: skip
    x = hidden + attended(tensors, prefix, side, width)
    x = x + mlp(tensors, prefix, norm(x, tensors[f"{prefix}post_attention_layernorm.weight"]))
    return norm(x, tensors["norm.weight"]) @ tensors["lm_head.weight"].T, x


def eagle(tensors, prefix, embeds, hidden, width, rows):
    x = torch.cat((embeds, hidden), -1) @ tensors["fc.weight"].T
    x = x + attended(tensors, prefix, x, width)
    x = x + mlp(tensors, prefix, norm(x, tensors[f"{prefix}post_attention_layernorm.weight"]))
    return x @ rows.T, x


def wanted_rows(model, folder, kind, hidden, text, path, width):
    tensors = load_file(folder / "model.safetensors")
    embed = model.get_input_embeddings().weight.detach()
    prefix = {"eagle": "layers.0.", "eagle3": "midlayer.", "speculators": "layers.0."}[kind]
    stream = hidden[0] if kind == "eagle" else torch.cat(hidden, -1) @ tensors["fc.weight"].T
    rows = []
    for level in range(len(path) + 1):
        embeds = embed[torch.cat((text, torch.tensor(path[:level], dtype=torch.int64)))]
        if kind == "eagle":
            out = model.get_output_embeddings().weight.detach()
            logits, handed = eagle(tensors, prefix, embeds, stream, width, out)
        else:
            logits, handed = eagle3(tensors, prefix, embeds, stream, width)
        rows.append(logits[-1])
        stream = torch.cat((stream, handed[-1:]))
    return torch.stack(rows)


WRITERS = {"eagle": write_eagle, "eagle3": write_eagle3, "speculators": write_speculators}
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention"]}
# What a configuration says -> the width that it means.
CONFIGS = {
    "layer types": (SLIDING, WINDOW),
    "full by layer types": ({**SLIDING, "layer_types": ["full_attention"]}, None),
    "window alone, llama": ({"sliding_window": WINDOW}, None),
    "mistral": ({"model_type": "mistral", "sliding_window": WINDOW}, WINDOW),
    "mistral, none": ({"model_type": "mistral", "sliding_window": None}, None),
    "qwen, off": ({"model_type": "qwen3", "sliding_window": WINDOW, "use_sliding_window": False},
                  None),
    "qwen, from a layer on": (
        {"model_type": "qwen3", "sliding_window": WINDOW, "use_sliding_window": True}, None,
    ),
    "qwen, all layers": (
        {"model_type": "qwen3", "sliding_window": WINDOW, "use_sliding_window": True,
         "max_window_layers": 0}, WINDOW,
    ),
    "qwen, off before layer types": ({**SLIDING, "model_type": "qwen3"}, None),
    "qwen, layer types": ({**SLIDING, "model_type": "qwen3", "use_sliding_window": True}, WINDOW),
}  # fmt: skip


def published(folder, kind, model, changes):
    WRITERS[kind](folder, model)
    config = json.loads((folder / "config.json").read_text())
    table = config["transformer_layer_config"] if kind == "speculators" else config
    table |= changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", WRITERS)
@torch.no_grad()
def test_a_drafter_s_window_is_that_of_its_configuration(kind, name, model, tmp_path):
    changes, width = CONFIGS[name]
    published(tmp_path, kind, model, changes)
    head = load(tmp_path, model, probe=False)
    assert head.spec.known_sizes.window == width
    hidden, text, path = random_hidden(head, 9), torch.arange(1, 10), [3, 9, 1, 30]
    wanted = wanted_rows(model, tmp_path, kind, hidden, text, path, width)
    full = wanted_rows(model, tmp_path, kind, hidden, text, path, None)
    assert ((wanted - full).abs().max() > 0.01) == (width is not None)
    state = head.new_state()
    head.read(state, [h[:5] for h in hidden], text[:5])
    head.step(state, [0], torch.tensor([8]))  # A draft that is dropped again.
    rows = [head.read(state, [h[5:] for h in hidden], text[5:])]
    rows += [head.step(state, [n], torch.tensor([token])) for n, token in enumerate(path)]
    torch.testing.assert_close(torch.cat(rows), wanted, rtol=0, atol=1e-5 * wanted.abs().max())


@pytest.mark.parametrize("kind", WRITERS)
@torch.no_grad()
def test_trees_see_the_window_of_their_own_path(kind, model, tmp_path):
    published(tmp_path, kind, model, SLIDING)
    head = load(tmp_path, model, probe=False)
    hidden, text = random_hidden(head, 6), torch.arange(1, 7)
    state = head.new_state()
    rows = [head.read(state, hidden, text), head.step(state, [0, 0], torch.tensor([4, 7]))]
    rows += [head.step(state, [1, 1, 2], torch.tensor([2, 9, 2]))]
    rows += [head.step(state, [3], torch.tensor([11]))]
    paths = [[], [4], [7], [4, 2], [4, 9], [7, 2], [4, 2, 11]]
    for row, path in zip(torch.cat(rows), paths, strict=True):
        wanted = wanted_rows(model, tmp_path, kind, hidden, text, path, WINDOW)[-1]
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-5 * wanted.abs().max())


@pytest.mark.parametrize("settings", [{"num_tokens": 4}, {"max_nodes": 7}])
def test_greedy_drafts_with_a_window_equal_plain_decoding(settings, model, tmp_path):
    published(tmp_path, "eagle3", model, SLIDING)
    head = load(tmp_path, model, probe=False)
    options = {"max_new_tokens": 10, "eos_token_id": ()}
    batch = [prompt(n, seed=n)[0].tolist() for n in (9, 4, 12)]
    for cache in (None, "static"):
        decoder = Decoder(model, mv.drafters.Heads(head, **settings),
                          mv.SamplingParams(temperature=0.0), cache=cache)  # fmt: skip
        plain = decoder.generate(batch, speculate=False, **options)
        fast = decoder.generate(batch, **options)
        assert fast.tokens == plain.tokens
        assert fast.stats.drafted > 0


@pytest.mark.parametrize("kind", WRITERS)
def test_a_window_survives_saving_and_exporting(kind, model, tmp_path):
    published(tmp_path / "a", kind, model, SLIDING)
    head = load(tmp_path / "a", model, probe=False)
    save(head, tmp_path / "b")
    assert load(tmp_path / "b", model).spec.known_sizes.window == WINDOW
    layout = "eagle" if kind != "speculators" else "speculators"
    tiny_model("llama", num_hidden_layers=4).save_pretrained(tmp_path / "target")
    mv.heads.export(head, tmp_path / "c", layout, base=tmp_path / "target")
    again = load(tmp_path / "c", model, probe=False)
    assert again.spec.known_sizes.window == WINDOW


@torch.no_grad()
def test_meta_heads_with_a_window(model):
    wide = tiny_head("meta", model)
    sizes = wide.spec.known_sizes
    head = tiny_head("meta", model, sizes=type(sizes)(**{**vars(sizes), "window": WINDOW}))
    head.load_state_dict(wide.state_dict())
    hidden, text = random_hidden(head, 9), torch.arange(1, 10)
    # A row sees its own pair and the two before it: those before these change nothing.
    short = [h[-WINDOW:] for h in hidden]
    state = head.new_state()
    state.first = 6
    near = head.read(state, short, text[-WINDOW:])
    for start in (0, 4):
        state = head.new_state()
        state.first = start
        if start == 0:
            head.read(state, [h[:4] for h in hidden], text[:4])
        far = head.read(state, [h[4:] for h in hidden], text[4:])
        torch.testing.assert_close(far, near, rtol=1e-5, atol=1e-5)
    assert (wide.read(wide.new_state(), hidden, text) - near).abs().max() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": "wide", "layer_types": ["sliding_attention"]}, "sliding_window: found"),
        ({"layer_types": ["sliding_attention"]}, "sliding_window: found None"),
        ({"layer_types": ["chunked_attention"]}, "layer_types: found"),
        ({"layer_types": []}, "layer_types: found"),
        ({"layer_types": "sliding"}, "layer_types: found"),
        ({"sliding_window": 3, "layer_types": [["sliding_attention"]]}, "layer_types: found"),
        ({"sliding_window": 0, "layer_types": ["sliding_attention"]}, "sliding_window: found 0"),
    ],
)
def test_windows_that_make_no_sense_are_named(changes, message, model, tmp_path):
    published(tmp_path, "eagle3", model, changes)
    with pytest.raises(mv.errors.UnsupportedModelError, match=message):
        load(tmp_path, model, probe=False)
    assert model.config.vocab_size == VOCAB
