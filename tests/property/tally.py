"""Counts of the cases in which float rounding may decide, printed at the end of a module."""

from __future__ import annotations

from collections import Counter

import pytest


class Tally(Counter):
    """Cases by kind; the excused ones must stay a small share."""

    def report(self, title, excused, most):
        line = ", ".join(f"{kind} {count}" for kind, count in sorted(self.items()))
        print(f"\n{title}: {line}")  # Shown with -s, and on failure.
        total, allowed = self["cases"], sum(self[kind] for kind in excused)
        if total and allowed > most * total:
            pytest.fail(f"{title}: {allowed} of {total} cases are excused, wanted at most {most:%}")
