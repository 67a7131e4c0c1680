"""What users give to `generate` and `generate` keeps from custom code.

transformers drops its own arguments `streamer`, `assistant_model` and `synced_gpus` before it calls
`custom_generate` (5.16 to 5.24), and says nothing. They are read where they still are: in the
variables of the call of `generate` that was given our callable, which is how it is known.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["AfterPrompt", "withheld_from"]

_NAMES = ("streamer", "assistant_model", "synced_gpus")


def withheld_from(call: Callable[..., Any]) -> dict[str, Any]:
    """Return what the caller of `call` was given and did not hand over, by name.

    To be called by `call` itself. Empty where its caller is no `generate` with
    `custom_generate=call`: where it is wrapped in another callable, for instance.
    """
    variables = sys._getframe(2).f_locals
    if variables.get("custom_generate") is not call:
        return {}
    given = {name: variables.get(name) for name in _NAMES}
    # A streamer may be an empty list; `synced_gpus=False` asks for nothing.
    return {
        name: value for name, value in given.items() if value is not None and value is not False
    }


class AfterPrompt:
    """A streamer that has been given the prompt already, by `generate` itself."""

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
