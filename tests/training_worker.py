"""One process of a training run, for tests that kill it or run several of it.

`python -m tests.training_worker TEXT HELD_OUT FOLDER STEPS RANK WORLD`
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed

from mtp_verify.training.loop import Trainer
from mtp_verify.training.recipe import Recipe
from mtp_verify.training.shards import Shards
from mtp_verify.training.start import count_tokens, new_head, spec_of
from tests.models import VOCAB, tiny_model

RECIPE = Recipe(draft_vocab_size=24, max_rows=100, dtype="float32", evaluate_every=10, patience=100)


def main(text: str, held_out: str, folder: str, steps: int, rank: int, world: int) -> None:
    torch.set_num_threads(1)
    if world > 1:
        store = f"file://{Path(folder).absolute()}.rendezvous"
        distributed.init_process_group("gloo", store, rank=rank, world_size=world)
    model = tiny_model("llama", num_hidden_layers=4)
    shards = Shards([Path(text)])
    counts = count_tokens(shards, VOCAB)
    head = new_head(spec_of(RECIPE, model.config), model, counts, RECIPE.seed)
    trainer = Trainer(
        head, shards, Shards([Path(held_out)]), RECIPE,
        steps=steps, folder=Path(folder), save_every=3,
    )  # fmt: skip
    print(f"from step {trainer.step}", flush=True)
    trainer.run()
    print("done", flush=True)
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:7]))
