"""Counts that a file keeps between two runs, and the test of those of ranks."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats

__all__ = ["Kept", "fit_of_ranks"]


def fit_of_ranks(seen: Any, expected: Any, impossible: int) -> stats.Fit:
    """Test counts of ranks (R,); the likelihood ratio keeps its level where few are expected."""
    if impossible:
        return stats.Fit(math.inf, len(seen) - 1, 0.0, int(seen.sum()), impossible)
    return stats.fit(seen, expected / max(expected.sum(), 1e-300), statistic="g")


class Kept:
    """Something whose attributes of the names `kept` are arrays of counts."""

    kept: ClassVar[tuple[str, ...]] = ()

    def state(self) -> dict[str, Any]:
        """Return the counts, for a file."""
        return {name: getattr(self, name).tolist() for name in self.kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Take counts back.

        Raises:
            ParamsError: They are not counts of this class and size.
        """
        for name in self.kept:
            own = getattr(self, name)
            try:
                counts = np.asarray(state[name], own.dtype)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                message = f"{name}: these are not kept counts ({error!r}): take another file"
                raise ParamsError(message, slug="bad_resume") from error
            if counts.shape != own.shape or not (counts >= 0).all():
                message = f"{name}: found shape {counts.shape}, wanted counts of shape {own.shape}"
                raise ParamsError(message, slug="bad_resume")
            own[:] = counts
