"""The folder of files that are expensive to make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """Return the folder of converted models and measured costs; it need not exist yet.

    `MTP_VERIFY_CACHE` names it; otherwise it is `mtp-verify` where the system keeps a user's
    caches, such as `XDG_CACHE_HOME` or `~/.cache`.
    """
    if override := os.environ.get("MTP_VERIFY_CACHE"):
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("mtp-verify", appauthor=False)
