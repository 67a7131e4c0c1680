"""How much text a run writes, and from which prompts: its shards, one job each.

A shard is of one kind. Its prompts are users' messages (this package's or a file's), messages that
the target makes up, or tasks on documents: texts that the run has written before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mtp_verify.training.documents import document_prompts, read_documents
from mtp_verify.training.questions import frame_of
from mtp_verify.training.shards import shard_path
from mtp_verify.training.writers import PROCESSES, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mtp_verify.training.questions import Frame

__all__ = ["Budget", "Jobs"]

_TEMPERATURES = (0.0, 0.8, 0.0, 1.0)  # what drafts are asked for: greedy text, and sampled
_HELD_OUT_SEED = 1 << 20
_SOURCES = 8  # shards, the last ones, whose texts are the documents of a shard
_LONGER = 2  # prompts with documents are long: so many times fewer of them lie side by side
_OPEN_EVERY = 3  # shards of documents, of which in one the target asks the questions itself


@dataclass(frozen=True)
class Budget:
    """How much a run may take.

    What runs when the minutes are over ends early: texts, the timing of steps and, after a tenth
    more, the planned steps.
    """

    minutes: float | None = 38.0  # of wall time for everything; None: `tokens` and `epochs` decide
    tokens: int = 850_000  # most rows of training text
    epochs: float = 10.0  # most passes over it
    text_share: float = 0.4  # of the minutes, after which no further text is begun
    answer: int = 220  # most tokens of an answer
    together: int = 96  # answers that are written at the same time, one shard
    held_out: int = 32  # prompts that measure acceptance
    questions: float = 0.0  # share of the shards whose prompts the target makes up
    documents: float = 0.0  # share of the shards whose prompts are tasks on documents


@dataclass(frozen=True)
class Jobs:
    """The shards of a run in `folder`."""

    folder: Path
    encode: Callable[[str], list[int]]  # from a user's message to the prompt's ids
    prompts: Mapping[str, Sequence[str]]  # users' messages, by folder: "text" and "held-out"
    layers: tuple[int, ...]  # hidden states that are kept
    ends: tuple[int, ...]  # ids that end an answer
    room: int | None  # most tokens of a prompt, if the target has a most
    budget: Budget
    seed: int
    late: float  # of `time.monotonic()`: no further text is begun
    end: float  # when the run's minutes are over

    def path(self, kind: str, index: int) -> Path:
        """Return the place of a shard."""
        return shard_path(self.folder / kind, index)

    def held_out(self) -> Job:
        """Return the shard of prompts that measure."""
        messages = self.prompts["held-out"][: self.budget.held_out]
        return self._job("held-out", 0, [self.encode(text) for text in messages], self.late)

    def held_out_documents(self) -> Job | None:
        """Return a shard of tasks on what `held_out` has written, if tasks are trained on."""
        if not self.budget.documents or self._frame is None:
            return None
        prompts = self._tasks("held-out", 1, self.budget.held_out)
        return self._job("held-out", 1, prompts, self._last) if prompts else None

    def text(self, index: int) -> Job | None:
        """Return a shard to be trained on; None: all prompts are used."""
        size, frame = self.budget.together, self._frame
        closing: tuple[int, ...] = ()
        kinds = _kinds(index, self.budget) if frame is not None else ["messages"] * (index + 1)
        if frame is None or kinds[-1] == "messages":
            first = (kinds.count("messages") - 1) * size
            prompts = [self.encode(text) for text in self.prompts["text"][first : first + size]]
        elif kinds[-1] == "questions":
            prompts, closing = [list(frame.opening)] * size, frame.closing
        else:
            is_open = kinds.count("documents") % _OPEN_EVERY == 0
            prompts = self._tasks("text", index, size, is_open=is_open)
            closing = frame.closing if is_open else ()
        return self._job("text", index, prompts, self._last, closing) if prompts else None

    @cached_property
    def _frame(self) -> Frame | None:
        """Around a user's message; without one there are neither questions nor documents."""
        return frame_of(self.encode)

    @property
    def _last(self) -> float:
        """When texts that were begun in time end at last."""
        return (self.late + self.end) / 2

    def _tasks(self, kind: str, index: int, size: int, *, is_open: bool = False) -> list[list[int]]:
        """Return prompts of a shard of documents, which earlier shards of its folder hold."""
        assert self._frame is not None
        paths = [path for i in range(index) if (path := self.path(kind, i)).exists()]
        documents = read_documents(paths[-_SOURCES:], self.ends)
        seed, count = self.seed + index, max(1, size // _LONGER)
        return document_prompts(
            documents, count, self.encode, self._frame, seed, room=self.room, is_open=is_open
        )

    def _job(
        self,
        kind: str,
        index: int,
        prompts: list[list[int]],
        deadline: float,
        closing: tuple[int, ...] = (),
    ) -> Job:
        is_held_out = kind == "held-out"
        temperatures = (0.0,) if is_held_out else _TEMPERATURES
        return Job(
            self.path(kind, index), prompts, self.layers,
            temperatures=[temperatures[i % len(temperatures)] for i in range(len(prompts))],
            max_new_tokens=self.budget.answer, closing=closing,
            seed=self.seed + index + is_held_out * _HELD_OUT_SEED, deadline=deadline,
        )  # fmt: skip


def _kinds(index: int, budget: Budget) -> list[str]:
    """Return the kinds of the shards up to one: each time the kind that is furthest behind.

    Documents wait until shards were written that hold some.
    """
    rest = 1.0 - budget.questions - budget.documents
    shares = {"messages": rest, "questions": budget.questions, "documents": budget.documents}
    found: list[str] = []
    for place in range(index + 1):
        behind = {
            kind: share * (place + 1) - found.count(kind)
            for kind, share in shares.items()
            if share > 0 and (kind != "documents" or place >= PROCESSES)
        }
        found.append(max(behind, key=behind.__getitem__, default="messages"))
    return found
