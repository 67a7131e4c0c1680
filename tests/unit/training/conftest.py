"""A tiny target and a little of its text, written once for all tests of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from mtp_verify.training.recipe import Recipe
from mtp_verify.training.shards import Shards, shard_path, write_shard
from mtp_verify.training.start import count_tokens, new_head, spec_of
from mtp_verify.training.writing import write_texts
from tests.models import VOCAB, tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.heads import Head

RECIPE = Recipe(
    draft_vocab_size=24, max_rows=100, dtype="float32", evaluate_every=8, matrix_rate=0.01
)
DEPTH = 4  # blocks of the target: EAGLE-3 reads three of them


class Stand:
    """A target with shards of its own text."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = tiny_model("llama", num_hidden_layers=DEPTH)
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(1, VOCAB, (20, 5), generator=generator).tolist()
        self._shards: dict[tuple[int, ...], tuple[Shards, Shards]] = {}

    def shards(self, layers: tuple[int, ...]) -> tuple[Shards, Shards]:
        if layers not in self._shards:
            made = []
            for name, prompts in (("text", self.prompts[:14]), ("held", self.prompts[14:])):
                path = shard_path(self.folder / f"{name}-{len(self._shards)}", 0)
                texts = write_texts(
                    self.model,
                    prompts,
                    layers,
                    temperatures=[0.0] * len(prompts),
                    max_new_tokens=12,
                    seed=1,
                )
                write_shard(path, texts)
                made.append(Shards([path]))
            self._shards[layers] = (made[0], made[1])
        return self._shards[layers]

    def head(self, recipe: Recipe) -> tuple[Head, Shards, Shards]:
        """A fresh head with the shards that it reads."""
        spec = spec_of(recipe, self.model.config)
        text, held_out = self.shards(spec.hidden_layers)
        return (
            new_head(spec, self.model, count_tokens(text, VOCAB), recipe.seed), text, held_out
        )  # fmt: skip


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tmp_path_factory.mktemp("training"))


@pytest.fixture
def recipe() -> Recipe:
    return RECIPE
