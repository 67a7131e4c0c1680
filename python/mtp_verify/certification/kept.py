"""Counts that a file keeps between two runs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mtp_verify.errors import ParamsError

__all__ = ["Kept"]


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
