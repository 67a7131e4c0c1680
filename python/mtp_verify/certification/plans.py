"""The settings of one certification, as the command has them and as a report records them."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mtp_verify.certification.engines import EXTRA
from mtp_verify.certification.settings import Setting
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Plan", "plans_of"]

# A report with many certificates has some hundred kilobytes.
_MAX_BYTES = 1 << 26


@dataclass(frozen=True)
class Plan:
    """One engine in one mode, and how it is certified.

    Attributes:
        engine: A key of `engines.MODES`, or MODULE:FUNCTION.
        mode: Of the engine; empty for a function.
        horizon: Tokens that are compared one by one.
        prompts: How many.
        batch: Strings that this package's loops draw together; 0 means one at a time.
        eos: The token at which strings end; -1 for none.
        grammar: A key of `settings.GRAMMARS`.
        cache: A key of `settings.CACHES`.
        sharpness: The logits of target and drafter are that much larger than usual.
    """

    engine: str
    mode: str
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    length: int
    horizon: int
    prompts: int
    min_tv: float
    alpha: float
    tie: float
    seed: int
    batch: int
    eos: int
    grammar: str
    cache: str
    sharpness: float

    def params(self) -> SamplingParams:
        """How rows are shaped."""
        return SamplingParams(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )

    def setting(self) -> Setting:
        """What else the engine is told, and what it runs on."""
        return Setting(
            num=max(self.length, self.horizon) + EXTRA,
            batch=self.batch,
            eos=None if self.eos < 0 else self.eos,
            grammar=self.grammar,
            cache=self.cache,
            sharpness=self.sharpness,
        )


def plans_of(path: Path, *, seed: int | None = None) -> list[Plan]:
    """The plans of what a report calls biased, with the seeds that it records.

    Args:
        path: What `mtp-verify certify --engine ... --json` wrote.
        seed: Another first seed: then a chance finding does not come back.

    Raises:
        ParamsError: Not such a report, or nothing in it is biased.
        OSError: It cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        message = f"{path}: found {path.stat().st_size} bytes, wanted a report of --json"
        raise ParamsError(message, slug="bad_report")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["certificates"]
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
    kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    for field in fields(Plan):
        value = settings[field.name]
        if isinstance(value, bool) or not isinstance(value, kinds[str(field.type)]):
            message = f"{field.name}: found {value!r}, wanted {field.type}"
            raise TypeError(message)
    return Plan(**{field.name: settings[field.name] for field in fields(Plan)})
