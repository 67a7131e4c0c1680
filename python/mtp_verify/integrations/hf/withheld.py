"""Arguments of `generate` that it does not pass on to custom code.

transformers drops its own arguments `streamer`, `assistant_model` and `synced_gpus` before it calls
`custom_generate` (5.16 to 5.24), and says nothing; it turns images into the outputs of an encoder
and adds settings of its own. The user's arguments are read from the local variables of the call of
`generate` that was given our callable.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

__all__ = ["AfterPrompt", "Call", "call_of"]

_NAMES = ("streamer", "assistant_model", "synced_gpus")


@dataclass(frozen=True)
class Call:
    """The call of `generate` that has called a custom function.

    Attributes:
        withheld: arguments that it does not pass on, by name.
        given: its keyword arguments; None where it cannot be seen.
        maker: the class of the model whose own `generate` has made that call, or "" where the user
            has (models of images and text hand embeddings to the language model inside).
    """

    withheld: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] | None = None
    maker: str = ""


def call_of(call: Callable[..., Any]) -> Call:
    """Return what the caller of `call` was given.

    To be called by `call` itself. Nothing is known where its caller is no `generate` with
    `custom_generate=call`: where it is wrapped in another callable, for instance.
    """
    frame = sys._getframe(2)
    variables = frame.f_locals
    if variables.get("custom_generate") is not call:
        return Call()
    found = [(name, variables.get(name)) for name in _NAMES]
    # A streamer may be an empty list; `synced_gpus=False` asks for nothing.
    withheld = {name: value for name, value in found if value is not None and value is not False}
    return Call(withheld, dict(variables.get("kwargs") or {}), _maker_of(frame))


def _maker_of(frame: FrameType) -> str:
    """Return the outermost class whose `generate` has called that of the model inside it."""
    model, maker = frame.f_locals.get("self"), ""
    outer = frame.f_back
    while outer is not None:
        other = outer.f_locals.get("self") if outer.f_code.co_name == "generate" else None
        parts = other.children() if isinstance(other, torch.nn.Module) else ()
        if any(part is model for part in parts):
            maker = type(other).__name__
        outer = outer.f_back
    return maker


class AfterPrompt:
    """A streamer to which `generate` itself has already passed the prompt."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Pass on all but the first."""
        if self._has_prompt:
            self._streamer.put(value)
        self._has_prompt = True

    def end(self) -> None:
        """Pass it on."""
        self._streamer.end()
