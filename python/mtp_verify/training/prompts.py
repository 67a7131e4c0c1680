"""Prompts for self-distillation: templates times topics, written for this project.

A fixed share of the topics is held out: text on them is never trained on and measures acceptance.
"""

from __future__ import annotations

import random

__all__ = ["HELD_OUT", "TEMPLATES", "TOPICS", "make_prompts"]

TEMPLATES = (
    "Explain {} to a ten-year-old.",
    "Write a short story about {}.",
    "List five interesting facts about {}.",
    "What are the advantages and disadvantages of {}?",
    "Give me step-by-step advice for a beginner who is interested in {}.",
    "Write a short poem about {}.",
    "How did {} change over the last hundred years?",
    "Write an email to a colleague in which you suggest a talk about {}.",
    "Summarise what most people know about {} in three sentences.",
    "Describe {} to somebody who has never heard of it.",
    "Write a dialogue between two friends who disagree about {}.",
    "What would the world be like without {}?",
    "What are common mistakes that people make about {}?",
    "Write the opening paragraph of a newspaper article about {}.",
    "Compare {} with something similar, and say which you prefer.",
    "Write a Python function that has to do with {}, and explain it.",
    "Make a plan for a one-hour school lesson about {}.",
    "Which questions should I ask an expert on {}?",
    "Write a product description for a book about {}.",
    "Why do some people love {}, and why do others not care?",
    "Give three examples from daily life that involve {}.",
    "Write a diary entry of a person whose work is connected with {}.",
    "What tools or materials does one need for {}?",
    "Tell me about the history of {}.",
    "Write a table that lists four aspects of {} with a short note on each.",
    "What could {} look like in fifty years?",
    "Write a quiz with three questions and answers about {}.",
    "How can I save money when it comes to {}?",
    "Write a motivational speech that uses {} as its example.",
    "Define the most important words one needs to talk about {}.",
    "I have to decide whether to spend my weekend on {}. Help me to decide.",
    "Write a letter to the city council about {}.",
)

TOPICS = (
    "rainwater tanks", "old railway lines", "bread baking", "chess openings", "lighthouses",
    "solar panels", "beekeeping", "public libraries", "long-distance running", "sailing boats",
    "mountain huts", "paper folding", "street markets", "sorting algorithms", "night trains",
    "vegetable gardens", "puppet theatre", "volcanoes", "bicycle repair", "folk music",
    "deserts", "photography", "river ferries", "herbal tea", "model aeroplanes",
    "fractions", "ocean currents", "handwriting", "wind turbines", "jigsaw puzzles",
    "dinosaurs", "the water cycle", "city parks", "knitting", "spreadsheets",
    "migrating birds", "canal locks", "prime numbers", "coral reefs", "board games",
    "glass blowing", "learning a language", "castles", "weather forecasts", "rock climbing",
    "recycling", "clock making", "orchards", "snow shovels", "robots in factories",
    "traffic lights", "the moon", "cheese", "swimming lessons", "postage stamps",
    "password safety", "earthquakes", "wooden furniture", "choirs", "electric cars",
    "magnets", "soup", "family budgets", "tents", "fire brigades",
    "crossword puzzles", "soil", "dance classes", "museums", "bridges",
    "small islands", "the alphabet", "whales", "carpentry", "job interviews",
    "butterflies", "morning routines", "compost", "radio stations", "maps",
    "lost luggage", "ice cream", "linked lists", "neighbours", "stage lighting",
    "the human heart", "windmills", "origins of money", "picnics", "shadow plays",
    "tree houses", "home insulation", "school uniforms", "goats", "public speaking",
    "telescopes", "winter sports", "barter", "typewriters",
)  # fmt: skip

HELD_OUT = TOPICS[4::5]


def make_prompts(seed: int, *, held_out: bool) -> list[str]:
    """All prompts on topics that are trained on, or on those that are held out, in a random order.

    Args:
        seed: of the order.
        held_out: which of the two.

    Example:
        >>> len(make_prompts(0, held_out=True)) == len(HELD_OUT) * len(TEMPLATES)
        True
    """
    topics = [topic for topic in TOPICS if (topic in HELD_OUT) == held_out]
    made = [template.format(topic) for template in TEMPLATES for topic in topics]
    random.Random(seed).shuffle(made)
    return made
