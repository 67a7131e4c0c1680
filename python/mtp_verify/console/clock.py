"""When this process began: limits of time count from there, imports included."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["process_start"]

_IMPORTED = time.monotonic()
_STARTED_FIELD = 19  # of /proc/self/stat behind the command's name: its 22nd, `starttime`


def process_start() -> float:
    """Return when this process began, of `time.monotonic()`.

    On other systems than Linux: when this module was imported, some tenths of a second later.
    """
    try:
        # The name of the command may hold blanks and brackets itself.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[_STARTED_FIELD]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks
    except (OSError, ValueError, IndexError, AttributeError):
        return _IMPORTED
    began = time.monotonic() - age
    return began if age >= 0 and began <= _IMPORTED else _IMPORTED
