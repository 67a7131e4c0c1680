"""Prompts to measure on: a small set of our own, or a file of the user's."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mtp_verify.errors import ParamsError
from mtp_verify.training.prompt_files import read_lines, read_object
from mtp_verify.training.prompts import make_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["OWN", "BenchPrompt", "held_out", "load", "pick"]

_FIELDS = ("id", "category", "prompt")


@dataclass(frozen=True)
class BenchPrompt:
    """A user's message.

    Attributes:
        id: unique in its set.
        category: what kind of text answers it; figures are given for each.
        prompt: the message.
    """

    id: str
    category: str
    prompt: str


_MENU = (
    "Soup of the day 6.50, mushroom risotto 13.00, grilled trout 17.50, apple tart 5.00, "
    "house lemonade 3.50. Open Tuesday to Sunday, 12 to 22. Closed on Mondays."
)
_LETTER = (
    "The allotment society met on 14 May. Nineteen of the thirty-one plots have water now; the "
    "rest will be connected before the end of June. The fee rises from 40 to 44 crowns a year. "
    "Members who help to dig the trench on Saturday pay the old fee for one more year. The shed "
    "got a new lock, and the key hangs at Mrs Holm's."
)
_FUNCTION = """def mean_and_range(values):
    total = 0.0
    smallest = values[0]
    largest = values[0]
    for value in values:
        total += value
        if value < smallest:
            smallest = value
        if value > largest:
            largest = value
    return total / len(values), largest - smallest
"""

OWN = (
    BenchPrompt(
        "own-edit-1",
        "code edit",
        "Rename the variable `total` to `running_sum` and write out the whole function.\n\n"
        f"```python\n{_FUNCTION}```",
    ),
    BenchPrompt(
        "own-edit-2",
        "code edit",
        f"Add a docstring to this function and write it out in full.\n\n```python\n{_FUNCTION}```",
    ),
    BenchPrompt(
        "own-code-1", "coding", "Write a Python function that reverses the words of a sentence."
    ),
    BenchPrompt(
        "own-code-2", "coding", "Write a SQL query that counts the orders of each customer in 2024."
    ),
    BenchPrompt("own-quote-1", "extraction", f"List every dish with its price.\n\n{_MENU}"),
    BenchPrompt("own-quote-2", "extraction", f"Which figures does this letter name?\n\n{_LETTER}"),
    BenchPrompt("own-summary-1", "summary", f"Summarise in two sentences.\n\n{_LETTER}"),
    BenchPrompt(
        "own-summary-2", "summary", f"Write one sentence about this restaurant.\n\n{_MENU}"
    ),
    BenchPrompt(
        "own-reason-1",
        "reasoning",
        "A train leaves at 9:40 and arrives at 13:05. How long is the journey? Think step by step.",
    ),
    BenchPrompt(
        "own-reason-2",
        "reasoning",
        "Eggs cost 2 crowns each and a dozen costs 20. What do 30 eggs cost at least?",
    ),
    BenchPrompt("own-chat-1", "chat", "How can I learn to like cold water swimming?"),
    BenchPrompt("own-chat-2", "chat", "Tell a short story about a lighthouse that moves at night."),
)


def load(path: Path) -> list[BenchPrompt]:
    """Read a file of one JSON object a line with the texts `id`, `category` and `prompt`.

    Other fields are ignored, and so are empty lines.

    Raises:
        ParamsError: the file is not of that form; names the line.
        OSError: it cannot be read.
    """
    found = [BenchPrompt(*read_object(line, where, _FIELDS)) for where, line in read_lines(path)]
    name, count = Counter(prompt.id for prompt in found).most_common(1)[0]
    if count > 1:
        message = f'{path}: the id "{name}" stands there {count} times; ids must differ'
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
    """Prompts on the topics that training holds out, the first `count` of a random order."""
    texts = make_prompts(0, held_out=True)[:count]
    return [
        BenchPrompt(f"held-out-{number}", "held-out topics", text)
        for number, text in enumerate(texts, 1)
    ]
