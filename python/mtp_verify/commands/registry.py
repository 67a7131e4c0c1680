"""The commands, in the order of the help: a new one is its file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtp_verify.commands.command import Command

__all__ = ["COMMANDS"]

_NAMES = (
    "demo",
    "generate",
    "doctor",
    "prove",
    "certify",
    "bench",
    "inspect",
    "reattach",
    "export",
    "train",
    "view",
)

COMMANDS: tuple[Command, ...] = tuple(
    import_module(f"mtp_verify.commands.{name}").COMMAND for name in _NAMES
)
