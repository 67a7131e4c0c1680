"""Prompts for self-distillation: templates times topics, written for this project.

Some topics are held out: text on them is never trained on and measures acceptance. Many topics
matter more than long text on a few: a head soon knows its text by heart.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

__all__ = ["HELD_OUT", "TASKS", "TEMPLATES", "TOPICS", "make_prompts"]

_FILE: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
TEMPLATES, TOPICS = tuple(_FILE["templates"]), tuple(_FILE["topics"])
TASKS = tuple(_FILE["tasks"])  # with a document in them
HELD_OUT = TOPICS[4:99:5]


def make_prompts(seed: int, *, held_out: bool) -> list[str]:
    """Return all prompts on topics that are trained on, or on held-out ones, in a random order.

    Example:
        >>> len(make_prompts(0, held_out=True)) == len(HELD_OUT) * len(TEMPLATES)
        True
    """
    topics = [topic for topic in TOPICS if (topic in HELD_OUT) == held_out]
    made = [template.format(topic) for template in TEMPLATES for topic in topics]
    random.Random(seed).shuffle(made)
    return made
