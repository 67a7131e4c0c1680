"""How an engine is certified: its parameters, and what it runs on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing.laws import ENDED
from mtp_verify.testing.mutants import follow
from mtp_verify.verifier.files import read_text
from mtp_verify.verifier.intake import check_word
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mtp_verify.testing.mutants import Follow

__all__ = ["NUM_DRAFTS", "Plan", "Setting", "add_options", "filled_up", "plans_of"]

NUM_DRAFTS = 2  # of a chain
CACHES = {
    "": "memory for each sequence as it grows",
    "paged": "blocks of one pool, equal beginnings shared",
    "tight": "a pool too small for drafts, in which sequences wait for each other",
    "static": "fixed sizes, too small for drafts near the end",
}
# A report with many certificates has some hundred kilobytes.
_MAX_BYTES = 1 << 26
GRAMMARS = {
    "": "any token may follow any other",
    "pairs": "half of the tokens may follow each token",
    "dead-ends": "the same, but behind one token none may",
}


@dataclass(frozen=True)
class Setting:
    """An engine's parameters beside how rows are shaped, and what it runs on.

    Attributes:
        num: Tokens that are generated; engines shorten drafts near the end, which should lie
            beyond those that are compared.
        batch: Strings that this package's loops draw together; 0 means one at a time.
        eos: The token at which strings end, or None.
        grammar: A key of `GRAMMARS`.
        cache: A key of `CACHES`.
        sharpness: The logits of target and drafter are that much larger than usual.
    """

    num: int
    batch: int = 0
    eos: int | None = None
    grammar: str = ""
    cache: str = ""
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for name, known in (("grammar", GRAMMARS), ("cache", CACHES)):
            if value := getattr(self, name):
                check_word(name, value, tuple(filter(None, known)))
        if self.cache == "static" and self.batch:
            message = "cache: a static one serves a single sequence; leave out the batch"
            raise ParamsError(message, slug="bad_options")

    def allowed(self, vocab: int) -> Follow | None:
        """Return the grammar over a vocabulary, or None."""
        return follow(self.grammar, vocab)

    def refuse(self, engine: str, *names: str) -> None:
        """Raise `ParamsError` if one of the names has another value than usual."""
        for name in names:
            if getattr(self, name) != getattr(Setting(0), name):
                message = f"{engine}: it has no {name} to set; leave it out"
                raise ParamsError(message, slug="bad_options")


def _option(default: Any, words: str, metavar: str | None = None) -> Any:
    """Return a field of `Plan` that is an option of the command."""
    return field(default=default, metadata={"help": words, "metavar": metavar})


def _kinds(known: dict[str, str]) -> str:
    return "; ".join(f"{name}: {words}" for name, words in known.items() if name)


@dataclass(frozen=True)
class Plan:
    """One engine in one mode, and how it is certified; its fields are options of the command.

    Attributes:
        engine: A key of `engines.MODES`, or MODULE:FUNCTION.
        mode: Of the engine; empty for a function.
    """

    engine: str
    mode: str
    min_tv: float = _option(0.1, "bias to find (default 0.1)")
    alpha: float = _option(1e-4, "false alarms (default 1e-4)")
    length: int = _option(3, "tokens whose joint law is compared (default 3)")
    horizon: int = _option(12, "tokens compared one by one (default 12)")
    prompts: int = _option(3, "how many (default 3)")
    temperature: float = _option(1.0, "0 is greedy (default 1)")
    top_k: int = _option(0, "0 is off")
    top_p: float = _option(1.0, "1 is off")
    repetition_penalty: float = _option(1.0, "1 is off")
    no_repeat_ngram_size: int = _option(0, "0 is off")
    batch: int = _option(0, "strings drawn together by this package (default 0: 1)")
    eos: int = _option(-1, "0 to 7: strings end at it", "TOKEN")
    grammar: str = _option("", _kinds(GRAMMARS))
    cache: str = _option("", _kinds(CACHES))
    sharpness: float = _option(1.0, "larger logits, peaked rows (default 1)")
    tie: float = _option(1e-4, "logit gap of a tie at temperature 0 (default 1e-4)")
    seed: int = 0

    def params(self) -> SamplingParams:
        """Return how rows are shaped."""
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size")
        return SamplingParams(**{name: getattr(self, name) for name in names})

    def setting(self) -> Setting:
        """Return the engine's other parameters, and what it runs on."""
        # Engines shorten drafts near the limit: it must lie beyond the compared tokens.
        num, eos = max(self.length, self.horizon) + NUM_DRAFTS, None if self.eos < 0 else self.eos
        return Setting(num, self.batch, eos, self.grammar, self.cache, self.sharpness)


_READ: dict[str, type] = {"str": str, "int": int, "float": float}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each field of a plan that has a help text."""
    for known in fields(Plan):
        if known.metadata:
            option = f"--{known.name.replace('_', '-')}"
            kind = _READ[str(known.type)]
            parser.add_argument(option, type=kind, default=known.default, **known.metadata)


def plans_of(path: Path, *, seed: int | None = None) -> list[Plan]:
    """Read the plans of what a report calls biased, with the seeds that it records.

    Args:
        path: What `mtp-verify certify --engine ... --json` wrote.
        seed: Another first seed: then a chance finding does not come back.

    Raises:
        ParamsError: Not such a report, or nothing in it is biased.
        FileNotFoundError: There is none.
    """
    text = read_text(path, _MAX_BYTES)
    try:
        found = json.loads(text)["certificates"]
        failed = [entry["settings"] for entry in found if entry["verdict"] == "biased"]
        plans = [_plan(settings) for settings in failed]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        message = (
            f"{path}: found no certificates with their settings ({type(error).__name__}: {error}); "
            "wanted the report of mtp-verify certify --engine ... --json"
        )
        raise ParamsError(message, slug="bad_report") from error
    if not plans:
        message = f"{path}: nothing in this report is biased, so there is nothing to run again"
        raise ParamsError(message, slug="bad_report")
    return plans if seed is None else [replace(plan, seed=seed) for plan in plans]


def _plan(settings: Any) -> Plan:
    given = {}
    for known in fields(Plan):
        given[known.name] = value = settings[known.name]
        kind = (int, float) if known.type == "float" else _READ[str(known.type)]
        if isinstance(value, bool) or not isinstance(value, kind):
            message = f"{known.name}: found {value!r}, wanted {known.type}"
            raise TypeError(message)
    return Plan(**given)


def filled_up(rows: Sequence[Sequence[int]], num: int) -> NDArray[np.int64]:
    """Return strings of at most `num` tokens as one array, the shorter ones filled up."""
    return np.array([[*row, *[ENDED] * (num - len(row))] for row in rows], np.int64)
