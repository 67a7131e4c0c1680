"""This package's rules to certify: in its own decoder, and inside transformers' `generate`.

Each mode is a rule with a drafter whose drafts it is legal for: together they are every rule, on
every law that drafters make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import mtp_verify as mv
from mtp_verify.certification.loops import generate_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.certification.checkpoints import Checkpoints
    from mtp_verify.certification.loops import Sample
    from mtp_verify.params import SamplingParams

__all__ = ["LOSSY", "MODES", "NUM_DRAFTS", "decoder_loop", "drop_in_loop", "patched"]

NUM_DRAFTS = 2
# The modes that do not keep the law, with the numbers that their papers and libraries start from.
LOSSY = {
    "typical": mv.lossy.typical(0.3, 0.09),
    "threshold": mv.lossy.threshold(0.25),
    "topk": mv.lossy.topk(2),
    "ensemble": mv.lossy.ensemble(0.5),
}
# Mode -> drafter, rule.
MODES: dict[str, tuple[str, str]] = {
    "plain": ("none", "auto"),
    "auto": ("chain", "auto"),
    "token": ("chain", "token"),
    "block": ("chain", "block"),
    "target_only": ("chain", "target_only"),
    "coupled": ("chain", "coupled"),
    "specinfer": ("iid", "specinfer"),
    "kseq": ("iid", "kseq"),
    "gbv": ("paths", "gbv"),
    "rrsw": ("swor", "rrsw"),
    "traversal": ("swor", "traversal"),
    "hu": ("top_plus_one", "hu"),
    "lifted_hu": ("top_plus_one", "lifted_hu"),
    "race": ("coupled", "coupled"),
    "tree": ("tree", "auto"),
    "ngram": ("ngram", "auto"),
    "suffix": ("suffix", "auto"),
    "recycling": ("recycling", "auto"),
    **dict.fromkeys(LOSSY, ("chain", "auto")),
}


def _drafter(name: str, checkpoints: Checkpoints, params: SamplingParams) -> Any:
    """A drafter by the law of its drafts, or by its own name."""
    from mtp_verify.drafters import Model, ModelTree, NGram, Recycling, Suffix

    made: dict[str, Callable[[], Any]] = {
        "none": lambda: None,
        "chain": lambda: Model(checkpoints.drafter_model, num_tokens=NUM_DRAFTS, params=params),
        "tree": lambda: ModelTree(
            checkpoints.drafter_model, max_nodes=4, max_depth=NUM_DRAFTS, max_children=2
        ),
        "ngram": lambda: NGram(num_tokens=NUM_DRAFTS),
        "suffix": lambda: Suffix(num_tokens=NUM_DRAFTS),
        "recycling": Recycling,
    }
    return made[name]() if name in made else _heads(name, checkpoints.target_model, params)


def _heads(law: str, target: Any, params: SamplingParams) -> Any:
    """Random heads on the target: bad guesses, which must not show in the output."""
    import torch

    from mtp_verify.drafters import Heads
    from mtp_verify.growers import Shape
    from mtp_verify.heads import ParallelHead, Sizes, family

    config = target.config
    sizes = Sizes(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        head = ParallelHead(family("medusa").replace(sizes=sizes, num_modules=NUM_DRAFTS))
        for weight in head.parameters():
            weight.normal_(std=0.15)
    shape = Shape.paths(2, NUM_DRAFTS) if law == "paths" else Shape.by_depth(2, 1)
    law = "iid" if law == "paths" else law
    # Greedy heads draw nothing: at temperature 0 the same tree is the most likely tokens'.
    if params.is_greedy:
        return Heads(head.attach(target).eval(), shape=shape, law="deterministic")
    return Heads(head.attach(target).eval(), shape=shape, law=law, params=params)


def decoder_loop(
    checkpoints: Checkpoints, mode: str, params: SamplingParams, num: int, batch: int | None
) -> Sample:
    """A sampler by `mv.Decoder`, a string or a batch of them at a time."""
    from mtp_verify.decode import Decoder

    name, rule = MODES[mode]
    drafter = _drafter(name, checkpoints, params)
    decoder = Decoder(checkpoints.target_model, drafter, params, rule, lossy=LOSSY.get(mode))
    size = batch or 1

    def sample(prompt: Sequence[int], n: int, seed: int) -> Any:
        found: list[Any] = []
        for start in range(0, n, size):
            rows = range(start, min(n, start + size))
            out = decoder.generate(
                [list(prompt)] * len(rows),
                max_new_tokens=num,
                seed=[mv.derive_seed(seed, row) for row in rows],
                eos_token_id=(),
            )
            found += out.tokens
        return np.array(found)

    return sample


def drop_in_loop(
    checkpoints: Checkpoints, mode: str, params: SamplingParams, num: int, batch: int | None
) -> Sample:
    """A sampler by transformers' `generate(custom_generate=mv.hf.speculative(...))`."""
    name, rule = MODES[mode]
    drafter = _drafter(name, checkpoints, params)
    call = mv.hf.speculative(drafter, rule, lossy=LOSSY.get(mode))
    options = {"custom_generate": call}
    return generate_loop(checkpoints.target_model, params, num, options, batch=batch or 1)


def patched(sample: Sample) -> Sample:
    """The same sampler with transformers' accept function replaced by `mv.hf.patch()`."""

    def inside(prompt: Sequence[int], n: int, seed: int) -> Any:
        with mv.hf.patch():
            return sample(prompt, n, seed)

    return inside
