"""The optional libraries: what to run when one is missing, and their progress bars."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXTRAS", "need", "quiet_bars"]

# What each extra of pyproject.toml brings, by the names that are imported.
EXTRAS = {
    "torch": ("torch",),
    "hf": ("torch", "transformers"),
    "demo": ("torch", "transformers", "gguf", "accelerate"),
    "plot": ("matplotlib",),
    "xgrammar": ("torch", "xgrammar"),
    "llguidance": ("torch", "llguidance"),
    "testing": ("hypothesis",),
    "server": ("httpx2",),
}


def need(
    *modules: str, extra: str = "", command: str = "", subject: str = "this command needs"
) -> None:
    """Refuse to go on without libraries; none means those of `extra`.

    Raises:
        ImportError: After `subject`, says what is missing, and what installs it: `command`, or
            `extra` of this package.
    """
    missing = [name for name in modules or EXTRAS.get(extra, ()) if find_spec(name) is None]
    if missing:
        command = command or f'pip install "mtp-verify[{extra}]"'
        message = f"{subject} {' and '.join(missing)}; run: {command}"
        raise ImportError(message, name=missing[0])


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Turn transformers' progress bars off for a moment."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
