"""Where this package keeps what it would otherwise have to make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the folder of converted models and measured costs; it need not exist yet.

    `MTP_VERIFY_CACHE` names it; otherwise it is `mtp-verify` in `XDG_CACHE_HOME`, or in `~/.cache`.
    """
    override = os.environ.get("MTP_VERIFY_CACHE")
    if override:
        return Path(override).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mtp-verify"
