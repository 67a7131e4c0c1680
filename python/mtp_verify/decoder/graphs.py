"""Forwards that are captured once for each shape and then replayed: CUDA graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Graphs", "capture_cuda"]


@dataclass
class _Graph:
    inputs: tuple[torch.Tensor, ...]
    outputs: Any
    replay: Callable[[], None]


class Graphs:
    """Runs a function of tensors, from a graph where it has run with the same shapes before.

    Args:
        capture: as `capture_cuda`: gives what a function returns, and what computes it anew in
            place. None runs the function itself, always.
    """

    def __init__(
        self, capture: Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]] | None = None
    ) -> None:
        self._capture = capture
        self._graphs: dict[Hashable, _Graph] = {}

    def __bool__(self) -> bool:
        """Return whether graphs are captured."""
        return self._capture is not None

    def run(
        self,
        key: Callable[[], Hashable],
        function: Callable[..., Any],
        inputs: tuple[torch.Tensor, ...],
    ) -> Any:
        """Return what the function returns; from a graph it is the same tensors at each call.

        Args:
            key: gives all that the function's work depends on, the values of tensors aside, and
                where else it reads and writes. Called again once the function has run, which may
                have moved its memory.
            function: reads nothing on the host.
            inputs: its arguments.
        """
        if self._capture is None:
            return function(*inputs)
        if (graph := self._graphs.get(key())) is not None:
            for own, given in zip(graph.inputs, inputs, strict=True):
                own.copy_(given)
            graph.replay()
            return graph.outputs
        found = function(*inputs)
        held = tuple(tensor.clone() for tensor in inputs)
        outputs, replay = self._capture(lambda: function(*held))
        self._graphs[key()] = _Graph(held, outputs, replay)
        return found


def capture_cuda(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Capture what a function starts on the current CUDA device, and run none of it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay
