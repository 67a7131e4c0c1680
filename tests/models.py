"""Tiny random transformers models and simple drafters for the tests of the decoding loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

import mtp_verify as mv

if TYPE_CHECKING:
    from collections.abc import Sequence

# The CPUs on which the width of a forward changes no bit (docs/howto/tune.md).
on_measured_cpus = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    reason="the order of this CPU's sums was not looked at",
)

VOCAB = 32
WINDOW = 7
KINDS = ("llama", "gpt2", "mistral", "gemma2", "gemma3")
# Gated delta, short convolutions, Mamba beside attention in one layer, Mamba alone.
RECURRENT_KINDS = ("qwen3_next", "lfm2", "falcon_h1", "mamba2")

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
_ATTENTION: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    # Wide enough that rows are far from uniform and that wrong positions show.
    "initializer_range": 0.3,
}


def tiny_model(kind: str, seed: int = 1, **overrides: Any) -> Any:
    """Return a random model.

    Its layers are full (llama, gpt2), sliding (mistral), both (gemma2, gemma3), or recurrent with
    or without full ones (`RECURRENT_KINDS`).
    """
    torch.manual_seed(seed)
    if kind == "llama":
        options = {**_ATTENTION, "num_hidden_layers": 2, "max_position_embeddings": 256}
        model = LlamaForCausalLM(LlamaConfig(**{**options, **overrides}))
    elif kind == "gpt2":
        options = {
            **_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
            "initializer_range": 0.3,
        }  # fmt: skip
        model = GPT2LMHeadModel(GPT2Config(**{**options, **overrides}))
    elif kind == "mistral":
        options = {**_ATTENTION, "num_hidden_layers": 2, "sliding_window": WINDOW}
        model = MistralForCausalLM(MistralConfig(**{**options, **overrides}))
    elif kind == "gemma3":
        options = {
            **_ATTENTION, "num_hidden_layers": 3, "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        }  # fmt: skip
        model = Gemma3ForCausalLM(Gemma3TextConfig(**{**options, **overrides}))
    elif kind in RECURRENT_KINDS:
        model = _recurrent_model(kind, overrides)
    else:
        options = {
            **_ATTENTION, "num_hidden_layers": 4, "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8, "attn_implementation": "eager",
        }  # fmt: skip
        model = Gemma2ForCausalLM(Gemma2Config(**{**options, **overrides}))
    return model.eval()


def _recurrent_model(kind: str, overrides: dict[str, Any]) -> Any:
    if kind == "qwen3_next":
        options = {
            **_ATTENTION, "num_hidden_layers": 3, "linear_num_value_heads": 4,
            "initializer_range": 0.15,  # Two algorithms round their sums differently.
            "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        }  # fmt: skip
        return Qwen3NextForCausalLM(Qwen3NextConfig(**{**options, **overrides}))
    if kind == "lfm2":
        layer_types = ["conv", "full_attention", "conv"]
        options = {**_ATTENTION, "num_hidden_layers": 3, "layer_types": layer_types}
        return Lfm2ForCausalLM(Lfm2Config(**{**options, **overrides}))
    mamba = {"mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
    if kind == "falcon_h1":
        options = {
            **_ATTENTION, **mamba, "num_hidden_layers": 2, "mamba_d_ssm": 32, "mamba_n_heads": 4,
            "mamba_d_head": 8,
        }  # fmt: skip
        return FalconH1ForCausalLM(FalconH1Config(**{**options, **overrides}))
    options = {
        **_COMMON, "hidden_size": 32, "state_size": 8, "num_heads": 8, "head_dim": 8,
        "n_groups": 1, "num_hidden_layers": 2, "chunk_size": 16, "initializer_range": 0.3,
    }  # fmt: skip
    return Mamba2ForCausalLM(Mamba2Config(**{**options, **overrides}))


def prompt(length: int = 9, seed: int = 3) -> torch.Tensor:
    """Return (1, length) random tokens; 0 is left to padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (1, length), generator=generator)


def greedy_tokens(model: Any, ids: torch.Tensor, count: int) -> list[int]:
    """Return what transformers itself generates greedily."""
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, ids.shape[1] :].tolist()


class StubDrafter(mv.Drafter):
    """Keeps a record of the calls; drafts nothing."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.budgets: list[int] = []
        self.verdicts: list[Any] = []

    def start(self, request: Any) -> None:
        self.calls.append("start")

    def propose(self, requests: Sequence[Any], budgets: Sequence[int]) -> list[mv.Draft]:
        self.calls.append("propose")
        self.budgets += budgets
        return [
            self.draft(request, budget) for request, budget in zip(requests, budgets, strict=True)
        ]

    def commit(self, verdicts: Sequence[Any], hidden: Any) -> None:
        self.calls.append("commit")
        self.verdicts += verdicts

    def release(self, request: Any) -> None:
        self.calls.append("release")

    def draft(self, request: Any, budget: int) -> mv.Draft:
        return mv.Draft(mv.TokenTree([-1]), [request.tokens[-1]])


class ScriptDrafter(StubDrafter):
    """Drafts the continuation of a known text, as a chain."""

    def __init__(self, text: Sequence[int], num_tokens: int = 4) -> None:
        super().__init__()
        self.text = list(text)
        self.num_tokens = num_tokens

    def draft(self, request: Any, budget: int) -> mv.Draft:
        start = len(request.tokens)
        tokens = self.text[start : start + min(self.num_tokens, budget)]
        return mv.Draft(mv.TokenTree(range(-1, len(tokens))), [request.tokens[-1], *tokens])


class TreeDrafter(StubDrafter):
    """Drafts a tree whose siblings are distinct and depend on the position alone.

    Its shape is the same at each step, as far as the budget goes.

    With `text`, the known continuation is among them, at a place that moves from step to step.
    """

    makes_trees = True

    def __init__(
        self, parents: Sequence[int], vocab: int = VOCAB, text: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.tree = mv.TokenTree(parents)
        self.parents = list(parents)
        self.vocab = vocab
        self.text = list(text)

    def draft(self, request: Any, budget: int) -> mv.Draft:
        parents = self.parents[: budget + 1]
        rng = np.random.default_rng(len(request.tokens))
        tokens = [request.tokens[-1]] + [0] * (len(parents) - 1)
        on_text = {0}
        for node in range(len(parents)):
            children = [c for c in range(1, len(parents)) if parents[c] == node]
            picks = rng.permutation(self.vocab)[: len(children)].tolist()
            place = len(request.tokens) + int(self.tree.depths[node])
            if children and node in on_text and place < len(self.text):
                lucky = int(rng.integers(len(children)))
                wanted = self.text[place]
                if wanted in picks:
                    picks[picks.index(wanted)] = picks[lucky]
                picks[lucky] = wanted
                on_text.add(children[lucky])
            for child, token in zip(children, picks, strict=True):
                tokens[child] = token
        return mv.Draft(mv.TokenTree(parents), tokens)
