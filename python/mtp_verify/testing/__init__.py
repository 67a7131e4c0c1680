"""Tools for tests of decoders: exact laws, statistical assertions, rows, strategies, mutants.

Tables as targets and checks of your own target need torch, `strategies` needs Hypothesis; both
load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtp_verify.testing.asserts import assert_same_law, assert_sampler_has_law
from mtp_verify.testing.drafter import assert_drafter
from mtp_verify.testing.laws import JointLaw, exact_law, model_rows
from mtp_verify.testing.logit_rows import draw_logits, recorded_logits
from mtp_verify.testing.loops import loop_law
from mtp_verify.testing.stats import min_discrepancy, min_num_samples

__all__ = [
    "BatchTableTarget",
    "JointLaw",
    "TableCache",
    "TableTarget",
    "assert_drafter",
    "assert_lossless",
    "assert_same_law",
    "assert_sampler_has_law",
    "assert_target",
    "draw_logits",
    "exact_law",
    "loop_law",
    "min_discrepancy",
    "min_num_samples",
    "model_rows",
    "mutants",
    "recorded_logits",
    "strategies",
]

# What needs torch or Hypothesis is loaded on first use; type checkers see it at once.
if TYPE_CHECKING:
    from mtp_verify.testing import mutants, strategies
    from mtp_verify.testing.lossless import assert_lossless
    from mtp_verify.testing.table import BatchTableTarget, TableCache, TableTarget
    from mtp_verify.testing.target import assert_target
else:
    _LAZY = {"assert_lossless": "lossless", "assert_target": "target"}
    _LAZY |= dict.fromkeys(["BatchTableTarget", "TableCache", "TableTarget"], "table")

    def __getattr__(name: str) -> Any:
        """Load what needs torch or Hypothesis on first use."""
        if name in _LAZY:
            return getattr(import_module(f"mtp_verify.testing.{_LAZY[name]}"), name)
        if name in {"mutants", "strategies"}:
            return import_module(f"mtp_verify.testing.{name}")
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
