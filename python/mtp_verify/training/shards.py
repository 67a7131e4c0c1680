"""Shards: text of the target with what a head learns from, one safetensors file each.

A row is a position i of a sequence: the target's hidden states there, the token at i + 1, and the
target's distribution of that token (its most likely tokens at temperature 1; all zeros within the
prompt, where nothing is learned). Files are mapped, not read: a row comes from the disk when a
batch needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from mtp_verify.checkpoints.tensors import write_tensors
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.files import check_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Text", "Shards", "shard_path", "write_shard"]


@dataclass(frozen=True)
class Text:
    """One sequence of T tokens, as T - 1 rows."""

    hidden: tuple[torch.Tensor, ...]  # by hidden layer (T - 1, d)
    tokens: torch.Tensor  # (T - 1,) int64, the token after each row
    top_ids: torch.Tensor  # (T - 1, C) int64, the target's most likely tokens there
    top_probs: torch.Tensor  # (T - 1, C) float32, their probabilities; zeros within the prompt
    temperature: float  # that the text was drawn at

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.tokens.shape[0])


def shard_path(folder: Path, index: int) -> Path:
    """Return the place of a shard in a folder."""
    return folder / f"shard-{index:05d}.safetensors"


def write_shard(path: Path, sequences: Sequence[Text]) -> None:
    """Write a shard; it appears complete or, with an OSError, not at all."""
    kinds = {"tokens": torch.int32, "top_ids": torch.int32, "top_probs": torch.float16}
    tensors = {
        name: torch.cat([getattr(sequence, name) for sequence in sequences]).to(kind)
        for name, kind in kinds.items()
    }
    tensors["lengths"] = torch.tensor([len(s) for s in sequences], dtype=torch.int32)
    tensors["temperatures"] = torch.tensor([s.temperature for s in sequences])
    for index, states in enumerate(zip(*(s.hidden for s in sequences), strict=True)):
        tensors[f"hidden.{index}"] = torch.cat(states)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_tensors(path, tensors)
    except OSError as error:
        needed = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
        what = f"{path} ({needed:.0f} MB) cannot be written: {error.strerror}"
        todo = "make room and run the same command again: shards that are complete stay"
        raise OSError(error.errno, f"{what}; {todo}") from error


class Shards:
    """All sequences of some shards, in the order of the files; ParamsError: a file is no shard."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[Any] = []
        self._places: list[tuple[int, int, int]] = []
        self.temperatures: list[float] = []
        for number, path in enumerate(paths):
            try:
                check_file(path)
                file: Any = safe_open(path, "pt")
                lengths = file.get_tensor("lengths").tolist()
                self.temperatures += file.get_tensor("temperatures").tolist()
            except (OSError, ParamsError, SafetensorError) as error:
                what = f"{path} is not a shard of training text ({error})"
                message = f"{what}; remove it and run again"
                raise ParamsError(message, slug="bad_shard") from None
            self._files.append(file)
            for end, length in zip(accumulate(lengths), lengths, strict=True):
                self._places.append((number, end - length, end))

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._places)

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        return [end - start for _, start, end in self._places]

    def __getitem__(self, index: int) -> Text:
        """Read one sequence."""
        number, start, end = self._places[index]
        file = self._files[number]

        def rows(name: str) -> torch.Tensor:
            part: torch.Tensor = file.get_slice(name)[start:end]
            return part

        layers = sum(name.startswith("hidden.") for name in file.keys())  # noqa: SIM118
        return Text(
            hidden=tuple(rows(f"hidden.{layer}") for layer in range(layers)),
            tokens=rows("tokens").to(torch.int64),
            top_ids=rows("top_ids").to(torch.int64),
            top_probs=rows("top_probs").float(),
            temperature=self.temperatures[index],
        )
