"""Tiny block heads in their published layouts, and what they compute, written from the papers.

The reference runs without caches and one row at a time: keys and values of all hidden states, then
the slots; it shares no code with the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from tests.models import VOCAB
from tests.published import write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

D, HEADS, KV, WIDTH, INNER, EPS, THETA = 32, 4, 2, 8, 48, 1e-6, 10_000.0
LAYERS = 2
RANK, GRU = 6, 10
CONFIG: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": D, "vocab_size": VOCAB, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV,
    "head_dim": WIDTH, "rms_norm_eps": EPS, "rope_theta": THETA, "hidden_act": "silu",
    "max_position_embeddings": 256, "num_target_layers": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A published head: its configuration, and how it is to be read.

    Attributes:
        config: beside `CONFIG`.
        hidden: what it reads, as transformers numbers hidden states.
        slots, mask: its block.
        skipped: slots before the first that predicts something.
        is_causal: by layer, whether a slot sees no slot behind it.
        windows: by layer, the width of its attention; 0 for all.
        correction: of its rows.
        start: what stands before the names of the correction.
        drafted: tokens that it drafts, in order, or None for all.
        has_copies: embedding and output head stand in the repository too.
    """

    family: str
    config: dict[str, Any]
    hidden: tuple[int, ...] = (1, 2)
    slots: int = 5
    mask: int = 3
    skipped: int = 1
    is_causal: tuple[bool, ...] = (False, False)
    windows: tuple[int, ...] = (0, 0)
    correction: str = "none"
    start: str = ""
    num_plain: int = 0
    drafted: tuple[int, ...] | None = None
    has_copies: bool = False
    unread: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)  # of the spec, after loading


def _dflash(**own: Any) -> dict[str, Any]:
    return {"block_size": 5, "dflash_config": {"mask_token_id": 3, "target_layer_ids": [0, 1],
                                               **own}}  # fmt: skip


def _speculators(kind: str, **own: Any) -> dict[str, Any]:
    return {
        "speculators_model_type": kind, "transformer_layer_config": CONFIG, "block_size": 5,
        "mask_token_id": 3, "aux_hidden_state_layer_ids": [1, 2], **own,
    }  # fmt: skip


def _dspark(kind: str, **own: Any) -> dict[str, Any]:
    return _dflash(projector_type="dspark", markov_head_type=kind, markov_rank=RANK, **own)


_SOME = tuple(range(1, VOCAB, 2))
_CONFIDENCE = ("confidence_head.proj.weight", "confidence_head.proj.bias")
KINDS: dict[str, Kind] = {
    "dflash": Kind("dflash", _dflash()),
    "dflash, sliding": Kind(
        "dflash",
        {**_dflash(), "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4,
         "use_sliding_window": True},
        is_causal=(True, False), windows=(4, 0),
    ),
    "dflash, causal": Kind("dflash", _dflash(causal=True), is_causal=(True, True)),
    "dflash of speculators": Kind(
        "dflash", _speculators("dflash", draft_vocab_size=len(_SOME)), drafted=_SOME,
        has_copies=True,
    ),
    "dflash, from the root": Kind(
        "dflash", _speculators("dflash", sample_from_anchor=True), skipped=0, has_copies=True
    ),
    "jetspec": Kind("jetspec", _dflash(causal_head=True), is_causal=(True, True)),
    "dspark": Kind(
        "dspark", _dspark("vanilla"), skipped=0, correction="markov", start="markov_head.",
        unread=_CONFIDENCE,
    ),
    "dspark, early": Kind(
        "dspark", _dspark("vanilla"), skipped=0, correction="markov",
        start="logit_head.markov_head.",
    ),
    "dspark of DeepSpec": Kind(
        "dspark",
        {"block_size": 5, "mask_token_id": 3, "target_layer_ids": [-1, 1], "markov_rank": RANK,
         "markov_head_type": "gated", "enable_confidence_head": False},
        hidden=(0, 2), skipped=0, correction="gated", start="markov_head.", has_copies=True,
    ),
    "dspark, recurrent": Kind(
        "dspark", _dspark("rnn"), skipped=0, correction="rnn", start="markov_head."
    ),
    "dspark of speculators": Kind(
        "dspark",
        _speculators("dspark", draft_vocab_size=len(_SOME), markov_head_type="rnn",
                     sample_from_anchor=False),
        correction="rnn", start="markov_head.", drafted=_SOME, has_copies=True,
    ),
    "domino": Kind(
        "domino",
        _dflash(projector_type="domino", emb_dim=RANK, gru_hidden_dim=GRU,
                pure_draft_prefix_len=1, shift_label=False),
        correction="gru", num_plain=1,
    ),
    "domino, shifted": Kind(
        "domino",
        _dflash(projector_type="domino", emb_dim=RANK, gru_hidden_dim=GRU, shift_label=True),
        skipped=0, correction="gru",
    ),
}  # fmt: skip


def _shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    size = len(kind.drafted or range(VOCAB))
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (D, len(kind.hidden) * D), "hidden_norm.weight": (D,), "norm.weight": (D,),
    }  # fmt: skip
    for n in range(LAYERS):
        own = {
            "input_layernorm": (D,), "post_attention_layernorm": (D,),
            "self_attn.q_proj": (HEADS * WIDTH, D), "self_attn.k_proj": (KV * WIDTH, D),
            "self_attn.v_proj": (KV * WIDTH, D), "self_attn.o_proj": (D, HEADS * WIDTH),
            "self_attn.q_norm": (WIDTH,), "self_attn.k_norm": (WIDTH,),
            "mlp.gate_proj": (INNER, D), "mlp.up_proj": (INNER, D), "mlp.down_proj": (D, INNER),
        }  # fmt: skip
        shapes |= {f"layers.{n}.{part}.weight": shape for part, shape in own.items()}
    if kind.correction in ("markov", "gated", "rnn"):
        own = {"markov_w1.weight": (VOCAB, RANK), "markov_w2.weight": (size, RANK)}
        if kind.correction == "gated":
            own |= {"gate_proj.weight": (RANK, D + RANK), "gate_proj.bias": (RANK,)}
        if kind.correction == "rnn":
            own |= {"joint_proj.weight": (3 * RANK, 2 * RANK + D), "joint_proj.bias": (3 * RANK,)}
        shapes |= {kind.start + part: shape for part, shape in own.items()}
    if kind.correction == "gru":
        shapes |= {
            "prefix_gru.weight_ih_l0": (3 * GRU, D), "prefix_gru.weight_hh_l0": (3 * GRU, GRU),
            "embed_proj.0.weight": (RANK, D + GRU), "embed_proj.2.weight": (size, RANK),
        }  # fmt: skip
    return shapes | dict.fromkeys(kind.unread, (1, D))


def write_block_head(folder: Path, kind: Kind, model: Any, seed: int = 3) -> dict[str, Any]:
    """Write a random head and return its tensors, those of the target that it uses included."""
    torch.manual_seed(seed)
    tensors = {name: torch.randn(shape) * 0.3 for name, shape in _shapes(kind).items()}
    for name in tensors:
        if "norm" in name:
            tensors[name] += 1.0
    used = {
        "embed_tokens.weight": model.get_input_embeddings().weight.detach().clone(),
        "lm_head.weight": model.get_output_embeddings().weight.detach().clone(),
    }
    if kind.drafted is not None:
        tokens = torch.tensor(kind.drafted)
        tensors["d2t"] = tokens - torch.arange(len(tokens))
        tensors["t2d"] = torch.isin(torch.arange(VOCAB), tokens)
        used["lm_head.weight"] = torch.randn(len(tokens), D) * 0.3
    write(folder, CONFIG | kind.config, tensors | (used if kind.has_copies else {}))
    return tensors | used


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def rotated(x: torch.Tensor, position: int) -> torch.Tensor:
    """Rotate (heads, width) by a position: pairs are half a width apart."""
    half = WIDTH // 2
    angles = position / THETA ** (torch.arange(half) * 2 / WIDTH)
    a, b = x[:, :half], x[:, half:]
    return torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1
    )


def slots(kind: Kind, w: dict[str, Any], hidden: Sequence[torch.Tensor], root: int) -> Any:
    """Return the features (S, d) of all slots, given (n, d) hidden states before the root."""
    context = rms(torch.cat(tuple(hidden), -1) @ w["fc.weight"].T, w["hidden_norm.weight"])
    count = len(context)
    x = [w["embed_tokens.weight"][t] for t in [root] + [kind.mask] * (kind.slots - 1)]
    for n in range(LAYERS):
        part = {
            name: w[f"layers.{n}.{name}.weight"]
            for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj",
                         "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                         "self_attn.q_norm", "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj",
                         "mlp.down_proj")
        }  # fmt: skip
        normed = [rms(row, part["input_layernorm"]) for row in x]
        keys, values = [], []
        for position, row in enumerate([*context, *normed]):
            key = (part["self_attn.k_proj"] @ row).view(KV, WIDTH)
            keys.append(rotated(rms(key, part["self_attn.k_norm"]), position))
            values.append((part["self_attn.v_proj"] @ row).view(KV, WIDTH))
        out = []
        for slot, (row, own) in enumerate(zip(x, normed, strict=True)):
            place = count + slot
            query = (part["self_attn.q_proj"] @ own).view(HEADS, WIDTH)
            query = rotated(rms(query, part["self_attn.q_norm"]), place)
            seen = [
                at
                for at in range(count + kind.slots)
                if (at <= place or not kind.is_causal[n])
                and (not kind.windows[n] or at > place - kind.windows[n])
            ]
            mixed = []
            for head in range(HEADS):
                group = head // (HEADS // KV)
                scores = torch.stack([query[head] @ keys[at][group] for at in seen])
                share = (scores / math.sqrt(WIDTH)).softmax(-1)
                mixed.append(sum(s * values[at][group] for s, at in zip(share, seen, strict=True)))
            row = row + part["self_attn.o_proj"] @ torch.cat(mixed)
            own = rms(row, part["post_attention_layernorm"])
            gate = part["mlp.gate_proj"] @ own
            row = row + part["mlp.down_proj"] @ (
                gate * torch.sigmoid(gate) * (part["mlp.up_proj"] @ own)
            )
            out.append(row)
        x = out
    return torch.stack([rms(row, w["norm.weight"]) for row in x])


def row(kind: Kind, w: dict[str, Any], features: torch.Tensor, path: Sequence[int]) -> Any:
    """Return the logits behind a path, which begins with the root's token."""
    depth = len(path) - 1
    own = features[kind.skipped + depth]
    logits = w["lm_head.weight"] @ own
    if kind.correction in ("markov", "gated"):
        latent = w[f"{kind.start}markov_w1.weight"][path[-1]]
        if kind.correction == "gated":
            gate = w[f"{kind.start}gate_proj.weight"] @ torch.cat((own, latent))
            latent = latent * torch.sigmoid(gate + w[f"{kind.start}gate_proj.bias"])
        return logits + w[f"{kind.start}markov_w2.weight"] @ latent
    if kind.correction == "rnn":
        state, latent = torch.zeros(RANK), torch.zeros(RANK)
        # Slots that predict nothing are run with the root's token.
        for slot, token in enumerate([path[0]] * kind.skipped + list(path)):
            joined = torch.cat((state, w[f"{kind.start}markov_w1.weight"][token], features[slot]))
            parts = w[f"{kind.start}joint_proj.weight"] @ joined
            gate, candidate, latent = (parts + w[f"{kind.start}joint_proj.bias"]).split(RANK)
            gate = torch.sigmoid(gate)
            state = gate * state + (1 - gate) * torch.tanh(candidate)
        return logits + w[f"{kind.start}markov_w2.weight"] @ torch.tanh(latent)
    if kind.correction == "gru" and depth >= kind.num_plain:
        state = torch.zeros(GRU)
        for token in path:
            inner = (w["prefix_gru.weight_ih_l0"] @ w["embed_tokens.weight"][token]).split(GRU)
            outer = (w["prefix_gru.weight_hh_l0"] @ state).split(GRU)
            reset, update = (torch.sigmoid(inner[i] + outer[i]) for i in (0, 1))
            state = (1 - update) * torch.tanh(inner[2] + reset * outer[2]) + update * state
        mixed = w["embed_proj.0.weight"] @ torch.cat((own, state))
        return logits + w["embed_proj.2.weight"] @ (mixed * torch.sigmoid(mixed))
    return logits
