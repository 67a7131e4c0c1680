"""Change a line of a source that verifies on a device: a mistake that its law must show.

Mistakes of one name are the same mistake in another source.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mtp_verify.testing.device.cases import MODELS, Case
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from mtp_verify.verifier.words import Law, RuleName

__all__ = [
    "COUPLED",
    "GREEDY",
    "LONG",
    "MASKED",
    "MIN_P_FIRST",
    "NOISY",
    "PENALISED",
    "SHAPED",
    "SHORT",
    "SPREAD",
    "SPREAD_LIFTED",
    "Mutant",
    "mutated",
    "on",
]

_NAME = "mtp_verify_mutant"


class Mutant(NamedTuple):
    """One line of a package's source changed.

    Attributes:
        name: The rule or part, and what is wrong.
        module: In which module.
        before: The source text, which occurs there once.
        after: What stands there instead.
        case: Where it shows.
    """

    name: str
    module: str
    before: str
    after: str
    case: Case


def on(rule: RuleName, law: Law, shape: tuple[int, ...], model: int = 0) -> Case:
    """Return a plain case on a model by its number."""
    return Case(MODELS[model], rule, law, shape)


# Cases with what plain ones lack. Without drafted tokens a step is one row, shaped and drawn from.
MASKED = Case(MODELS[0], "target_only", "chain", (), forbidden=(1,))
SHAPED = Case(
    MODELS[2], "target_only", "chain", (),
    SamplingParams(temperature=1.2, top_k=3, top_p=0.75, min_p=0.1),
)  # fmt: skip
MIN_P_FIRST = Case(
    MODELS[0], "target_only", "chain", (), SamplingParams(top_p=0.6, min_p=0.5, preset="vllm")
)
GREEDY = Case(MODELS[1], "greedy", "chain", (), SamplingParams(temperature=0))
PENALISED = Case(MODELS[0], "token", "chain", (1,), SamplingParams(presence_penalty=0.7))
SHORT = Case(MODELS[0], "token", "chain", (1,), vocab=(2, 0))
LONG = Case(MODELS[4], "target_only", "chain", (), is_spread=True)
SPREAD = Case(MODELS[4], "hu", "mixed", (2,), is_spread=True)
SPREAD_LIFTED = Case(MODELS[4], "lifted_hu", "mixed", (2,), is_spread=True)
NOISY = Case(MODELS[4], "token", "chain", (1,), has_noise=True)
COUPLED = Case(MODELS[0], "coupled", "chain", (1,), has_noise=True)


@contextmanager
def mutated(package: str, mutant: Mutant) -> Iterator[ModuleType]:
    """Import a copy of a package with one mistake in it.

    Args:
        package: Its full name; its modules import one another by theirs.
        mutant: The mistake.

    Raises:
        ValueError: The source has changed, and the mistake no longer fits it.
    """
    found = import_module(package).__file__
    source = Path(str(found)).parent
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / _NAME
        copy.mkdir()
        for path in source.glob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.stem == mutant.module:
                if text.count(mutant.before) != 1:
                    message = f"{mutant.name}: {mutant.before!r} is not once in {path.name}"
                    raise ValueError(message)
                text = text.replace(mutant.before, mutant.after)
            (copy / path.name).write_text(text.replace(package, _NAME), encoding="utf-8")
        sys.path.insert(0, folder)
        invalidate_caches()
        try:
            yield import_module(_NAME)
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.split(".")[0] == _NAME]:
                del sys.modules[name]
