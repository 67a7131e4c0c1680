"""Which values of a parameter a test runs with by default."""

from __future__ import annotations

import pytest


def few(values, fast):
    """Return values for a test, of which all but some run among the slow ones."""
    return [v if v in fast else pytest.param(v, marks=pytest.mark.slow) for v in values]
