"""The optional libraries, and what to run when one is missing."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["EXTRAS", "need"]

# What each extra of pyproject.toml brings, by the names that are imported.
EXTRAS = {
    "torch": ("torch",),
    "hf": ("torch", "transformers"),
    "demo": ("torch", "transformers", "gguf", "accelerate"),
    "plot": ("matplotlib",),
    "xgrammar": ("torch", "xgrammar"),
    "llguidance": ("torch", "llguidance"),
    "testing": ("hypothesis",),
}


def need(
    *modules: str, extra: str = "", command: str = "", subject: str = "this command needs"
) -> None:
    """Refuse to go on without libraries.

    Args:
        modules: The libraries; none means those of `extra`.
        extra: The extra of this package that installs them.
        command: What installs them, where no extra does.
        subject: How the message begins.

    Raises:
        ImportError: Says what is missing and what to run.
    """
    missing = [name for name in modules or EXTRAS.get(extra, ()) if find_spec(name) is None]
    if missing:
        command = command or f'pip install "mtp-verify[{extra}]"'
        message = f"{subject} {' and '.join(missing)}; run: {command}"
        raise ImportError(message, name=missing[0])
