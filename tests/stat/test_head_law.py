"""The joint law of whole generations drafted by heads equals the target's exact law.

The target is a table whose hidden states are random functions of the text, the heads are random: a
draft that depends on anything it should not, or carries rows that it was not drawn from, biases the
strings. Sample sizes, false alarms and power are those of `test_generation_law`: for the 27 strings
of three tokens, n = 4,000 generations find a bias of total variation 0.071 and n = 600 (the fast
cases) one of 0.182, each with a false alarm rate of 1e-9 a case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import Heads
from mtp_verify.heads import Shared, Sizes, family
from mtp_verify.heads.kinds import build
from mtp_verify.verifier.growers import TreeShape
from tests.heads import VARIANTS, randomised
from tests.stat.test_generation_law import assert_law, table

if TYPE_CHECKING:
    from mtp_verify.testing import TableTarget

VOCAB, WIDTH = 3, 8
SIZES = Sizes(
    hidden_size=WIDTH,
    vocab_size=VOCAB,
    intermediate_size=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
)
WARM = mv.SamplingParams(temperature=1.2)
SHARP = mv.SamplingParams(temperature=0.7, top_k=2)
WAYS = {
    "greedy chain": ({"params": None}, "auto"),
    "chain as the target draws": ({}, "auto"),
    "sampled chain, token": ({"params": WARM, "num_tokens": 3}, "token"),
    "sampled chain, block": ({"params": SHARP, "num_tokens": 3}, "block"),
    "best-first tree": ({"max_nodes": 4, "num_tokens": 3}, "auto"),
    "top-plus-one tree": (
        {"shape": TreeShape.by_depth(2, 2), "law": "top_plus_one", "params": WARM}, "auto",
    ),
    "tree without replacement": ({"shape": TreeShape.by_depth(2, 2), "params": SHARP}, "auto"),
    "coupled tree": (
        {"shape": TreeShape.by_depth(2, 1), "law": "coupled", "params": WARM}, "coupled",
    ),
}  # fmt: skip


def hidden_table() -> TableTarget:
    target = table(VOCAB, 4, 1.0)
    pool = torch.randn((101, WIDTH), generator=torch.Generator().manual_seed(9))

    def hidden(path: tuple[int, ...], layer: int) -> torch.Tensor:
        place = layer % 7
        for token in path:
            place = (place * 17 + token + 1) % 101
        return pool[place]

    target.hidden = hidden
    return target


def head_of(name: str) -> mv.heads.Head:
    fields = {**VARIANTS[name], "draft_vocab_size": VARIANTS[name].get("draft_vocab_size") and 2}
    spec = family(fields.pop("family")).replace(sizes=SIZES, **fields)
    torch.manual_seed(3)
    embedding = torch.nn.Embedding(VOCAB, WIDTH)
    output = torch.nn.Linear(WIDTH, VOCAB, bias=False)
    return randomised(build(spec)).attach(Shared(embedding, output, output.weight, None)).eval()


def check(name: str, way: str, num_samples: int) -> None:
    options, rule = WAYS[way]
    target = hidden_table()
    params = mv.SamplingParams(temperature=0.9)
    decoder = Decoder(target, Heads(head_of(name), **options), params, rule)
    # The first step drafts nothing: two tokens more than are looked at keep drafts long.
    assert_law(decoder, target, [1, 0, 1], length=3, extra=2, num_samples=num_samples)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("deepseek-2", "sampled chain, block"),
        ("eagle3", "tree without replacement"),
        ("medusa", "top-plus-one tree"),
        ("dspark", "sampled chain, block"),
        ("domino", "tree without replacement"),
    ],
)
def test_generations_have_the_targets_law(name: str, way: str) -> None:
    check(name, way, 600)


# Every head in a sampled chain and a sampled tree, and two heads in every way there is.
PAIRS = [(name, way) for name in VARIANTS for way in WAYS if "block" in way or "without" in way]
ALL = [(name, way) for name in ("deepseek-2", "dspark") for way in WAYS]
PAIRS += [pair for pair in ALL if pair not in PAIRS]


@pytest.mark.stat
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_generations_of_every_head_have_the_targets_law(name: str, way: str) -> None:
    check(name, way, 4_000)
