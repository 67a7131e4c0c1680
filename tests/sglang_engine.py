"""SGLang 0.5.23 without SGLang: its kernels' tensors, and stand-ins of what the hooks touch."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.integrations import sglang


def random_tree(rng, num):
    return mv.TokenTree([-1, *(int(rng.integers(0, node)) for node in range(1, num + 1))])


def distinct_tokens(rng, tree, vocab):
    tokens = np.zeros(tree.num_nodes, np.int64)
    for node in range(tree.num_nodes):
        children = tree.children(node)
        tokens[children] = rng.permutation(vocab)[: len(children)]
    return tokens


def tensors(trees, tokens, logits, *, depth=None, width=None):
    """The engine's tensors for a batch of trees; `logits` are (B, D, V) arrays."""
    width = width or max(tree.num_nodes for tree in trees)
    links = [sglang.links_from_tree(tree, width) for tree in trees]
    batch = len(trees)
    candidates = np.zeros((batch, width), np.int64)
    for b, row in enumerate(tokens):
        candidates[b, : len(row)] = row
    return {
        "predicts": torch.zeros(batch * width, dtype=torch.int32),
        "accept_index": torch.full((batch, depth or width), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(batch, dtype=torch.int32),
        "candidates": torch.from_numpy(candidates),
        "retrive_index": torch.arange(batch * width).reshape(batch, width),
        "retrive_next_token": torch.from_numpy(np.stack([x for x, _ in links])),
        "retrive_next_sibling": torch.from_numpy(np.stack([x for _, x in links])),
        "logits": torch.tensor(np.asarray(logits, np.float32)).reshape(batch * width, -1),
    }


def run(given, params=None, seeds=None, positions=None, **options):
    batch = len(given["accept_token_num"])
    sglang.verify_trees(
        **given,
        params=[params or mv.SamplingParams()] * batch,
        seeds=seeds or range(batch),
        positions=positions or [5] * batch,
        **options,
    )
    return emitted_by(given)


def emitted_by(given):
    out = []
    for index, num in zip(given["accept_index"], given["accept_token_num"], strict=True):
        rows = index[: num + 1]
        assert (rows >= 0).all()
        assert (index[num + 1 :] == -1).all()
        out.append(given["predicts"][rows].tolist())
    return out


def stand_in(monkeypatch):
    """Put modules in place of those of SGLang 0.5.23 that the hooks touch; return its switches."""
    spec = SimpleNamespace(
        speculative_use_rejection_sampling=False,
        speculative_accept_threshold_single=1.0,
        speculative_accept_threshold_acc=1.0,
    )
    broadcasts, registered, sanitised = [], [], []
    group = SimpleNamespace(world_size=1, broadcast=lambda t, src: broadcasts.append((t, src)))

    def eagle_sample(
        verify_input, batch, logits_output, grammar_mask=None, uno_target_max_top_k=None, *,
        watermark_state=None, watermark_full_mask=True,
    ):  # fmt: skip
        raise AssertionError

    def sanitize_nan_logits(logits, message=""):
        sanitised.append(message)
        if engine.sanitises:
            torch.nan_to_num_(logits, nan=-1e30, posinf=1e30, neginf=-1e30)

    modules = {
        "sglang": {"__version__": "0.5.23"},
        "sglang.srt": {},
        "sglang.srt.runtime_context": {
            "get_spec": lambda: spec,
            "get_parallel": lambda: SimpleNamespace(tp_group=group, attn_tp_group=None),
        },
        "sglang.srt.layers": {},
        "sglang.srt.layers.dp_attention": {"is_dp_attention_enabled": lambda: False},
        "sglang.srt.utils": {},
        "sglang.srt.utils.async_probe": {"sanitize_nan_logits": sanitize_nan_logits},
        "sglang.srt.speculative": {},
        "sglang.srt.speculative.spec_utils": {"SIMULATE_ACC_LEN": 0},
        "sglang.srt.speculative.eagle_utils": {"eagle_sample": eagle_sample},
        "sglang.srt.plugins": {},
        "sglang.srt.plugins.hook_registry": {
            "HookRegistry": SimpleNamespace(register=lambda *args: registered.append(args)),
            "HookType": SimpleNamespace(AROUND="around", AFTER="after"),
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    engine = SimpleNamespace(
        spec=spec, group=group, broadcasts=broadcasts, registered=registered, sanitised=sanitised,
        sanitises=False, modules=sys.modules,
    )  # fmt: skip
    return engine


GREEDY = {"temperature": 1.0, "top_k": 1}  # as the engine writes temperature 0


def arguments(trees, tokens, logits, *, params=None, seeds=None, depth=None, lengths=None, **info):
    """The hook's arguments for a batch; `logits` are (B, D, V), `params` what requests ask for."""
    count, width = len(trees), len(logits[0])
    given = tensors(trees, tokens, logits, width=width)
    verify_input = SimpleNamespace(
        draft_token=given["candidates"].reshape(-1),
        draft_token_num=width,
        max_tree_depth=depth or width,
        tree_topk=-1,
        retrieve_index=given["retrive_index"],
        retrieve_next_token=given["retrive_next_token"],
        retrieve_next_sibling=given["retrive_next_sibling"],
        draft_probs=None,
    )
    off = {"temperature": 1.0, "top_k": 1 << 30, "top_p": 1.0, "min_p": 0.0}
    sampling = {
        "acc_additive_penalties": None,
        "acc_scaling_penalties": None,
        "logit_bias": None,
        "sampling_seed": torch.arange(6, 6 + count) if seeds is None else seeds,
        "has_watermark_candidates": False,
    }
    batch = SimpleNamespace(
        device="cpu",
        seq_lens=torch.tensor(lengths or [5] * count),
        reqs=[
            SimpleNamespace(sampling_params=SimpleNamespace(**(off | own)))
            for own in params or [{}] * count
        ],
        sampling_info=SimpleNamespace(**(sampling | info)),
        forward_mode=SimpleNamespace(is_idle=lambda: False),
    )
    return verify_input, batch, SimpleNamespace(next_token_logits=given["logits"])
