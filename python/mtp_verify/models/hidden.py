"""Hidden states of a transformers model, taken from the forward that computes its logits.

Layers are numbered by what enters them, as in transformers' `hidden_states`: 0 is the embedding's
output, -1 (or the number of layers) the last layer's behind the final norm. `BEFORE_NORM` is the
last layer's output before it, which transformers does not return.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from mtp_verify.caches.compiled import uncompiled
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["BEFORE_NORM", "HiddenStates", "check_layers", "final_norm"]

BEFORE_NORM = 1 << 16  # A number that no layer has.
_FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm")


def check_layers(layers: Sequence[int], count: int) -> None:
    """Refuse numbers of hidden states that a model of `count` layers does not have.

    Raises:
        UnsupportedModelError: names the first of them.
    """
    known = {BEFORE_NORM, *range(-count - 1, count + 1)}
    wrong = [layer for layer in layers if layer not in known]
    if wrong:
        message = f"hidden state {wrong[0]} was asked for; the model has {count} layers"
        raise UnsupportedModelError(message, slug="no_such_layer")


def final_norm(decoder: Any) -> Any | None:
    """Return the norm behind a decoder's last layer, or None if it shows none."""
    found = (getattr(decoder, name, None) for name in _FINAL_NORMS)
    return next((norm for norm in found if norm is not None), None)


class HiddenStates:
    """Around one forward: what to ask a transformers model for, and what it gave.

    Raises:
        UnsupportedModelError: a state that the model cannot give.

    Example:
        >>> with HiddenStates(model, (-1,)) as states:  # doctest: +SKIP
        ...     output = model(input_ids=ids, **states.options)
        >>> states.of(output)[0].shape  # doctest: +SKIP
        torch.Size([1, 5, 32])
    """

    def __init__(self, model: Any, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._model = model
        self._ends = ExitStack()
        self._decoder: Any = None
        self._before_norm: list[torch.Tensor] = []
        self._norm: Any | None = None
        # All states need hooks at every layer; one hook is enough for the state before the norm.
        needs_all = any(layer != BEFORE_NORM for layer in self._layers)
        self.options: dict[str, Any] = {"output_hidden_states": True} if needs_all else {}
        if not self._layers:
            return
        check_layers(self._layers, model.config.get_text_config(decoder=True).num_hidden_layers)
        if BEFORE_NORM in self._layers:
            self._decoder = model.get_decoder()
            self._norm = final_norm(self._decoder)
            if self._norm is None:
                message = (
                    f"{type(model).__name__} shows no final norm, so the hidden state before it "
                    "cannot be read; use a head that is fed behind it"
                )
                raise UnsupportedModelError(message, slug="no_final_norm")

    def __enter__(self) -> Self:
        """Put a hook on the final norm, if its input is wanted."""
        if self._norm is not None:
            # Compiled code does not call hooks that came after it.
            for module in (self._model, self._decoder):
                self._ends.enter_context(uncompiled(module))
            self._ends.callback(self._norm.register_forward_pre_hook(self._keep).remove)
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the hook."""
        self._ends.close()

    def _keep(self, _module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._before_norm.append(inputs[0])

    def of(self, output: Any) -> tuple[torch.Tensor, ...]:
        """Return the states (B, n, d) of a forward, one for each layer asked for."""
        return tuple(
            self._before_norm[-1] if layer == BEFORE_NORM else output.hidden_states[layer]
            for layer in self._layers
        )
