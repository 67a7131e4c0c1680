"""Prompts to measure on: small sets of our own, or a file of the user's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_verify.errors import ParamsError
from mtp_verify.training.prompt_files import read_lines, read_object
from mtp_verify.training.prompts import make_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DEMO", "OWN", "BenchPrompt", "held_out", "load", "pick"]

_FIELDS = ("id", "category", "prompt")


@dataclass(frozen=True)
class BenchPrompt:
    """A user's message, with an id unique in its set, and the kind of text that answers it."""

    id: str
    category: str
    prompt: str


def load(path: Path) -> list[BenchPrompt]:
    """Read a file of one JSON object a line with `id`, `category`, `prompt` and others, ignored.

    Raises:
        ParamsError: the file is not of that form; names the line.
    """
    found = [BenchPrompt(*read_object(line, where, _FIELDS)) for where, line in read_lines(path)]
    name, count = Counter(prompt.id for prompt in found).most_common(1)[0]
    if count > 1:
        message = f'{path}: the id "{name}" occurs {count} times, wanted ids that differ'
        raise ParamsError(message, slug="bad_prompts_file")
    return found


def pick(prompts: Sequence[BenchPrompt], per_category: int | None) -> list[BenchPrompt]:
    """Return the first `per_category` prompts of each category (None: all), in their order."""
    seen: Counter[str] = Counter()
    kept = []
    for prompt in prompts:
        seen[prompt.category] += 1
        if per_category is None or seen[prompt.category] <= per_category:
            kept.append(prompt)
    return kept


def held_out(count: int) -> list[BenchPrompt]:
    """Return `count` prompts, in a random order, on the topics that training holds out."""
    texts, kind = make_prompts(0, held_out=True)[:count], "held-out topics"
    return [BenchPrompt(f"held-out-{at}", kind, text) for at, text in enumerate(texts, 1)]


# The small set of `bench`, and what `demo` answers.
OWN, DEMO = (load(Path(__file__).with_name(f"{name}.jsonl")) for name in ("bench", "demo"))
