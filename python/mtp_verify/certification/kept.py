"""Counts that a file keeps between two runs, and the test of those of ranks."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats
from mtp_verify.verifier.files import read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Kept", "bad_file", "fit_of_ranks", "read_file", "write_file"]


def fit_of_ranks(seen: Any, expected: Any, impossible: int) -> stats.Fit:
    """Test counts of ranks (R,); the likelihood ratio keeps its level where few are expected."""
    if impossible:
        return stats.Fit(math.inf, len(seen) - 1, 0.0, int(seen.sum()), impossible)
    return stats.fit(seen, expected / max(expected.sum(), 1e-300), statistic="g")


def bad_file(path: Path, found: str) -> ParamsError:
    """Return the error of a file that cannot be gone on from."""
    return ParamsError(f"{path}: {found}: take another file", slug="bad_resume")


def read_file(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what `write_file` wrote for an identity, or None where there is no file.

    Raises:
        ParamsError: It was written for another identity, or not by `write_file`.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        return None
    try:
        state = json.loads(text)
        found = state["identity"]
    except (KeyError, TypeError, ValueError) as error:
        raise bad_file(path, f"these are not kept counts ({error!r})") from error
    if found != (wanted := json.loads(json.dumps(identity))):
        other = f"found {found}, wanted {wanted}; another certification was kept there"
        raise bad_file(path, other)
    return dict(state)


def write_file(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write counts, so that no moment leaves half a file."""
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(json.dumps({"identity": identity, **state}))
    draft.replace(path)


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
