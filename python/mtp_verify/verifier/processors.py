"""Logits processors of the caller, called with the history of each node.

A processor is called as transformers' are: ``processor(input_ids, scores) -> scores``. Row j of
``input_ids`` (n, T) is the history followed by the path of one node; ``scores`` (n, V) float32 are
those nodes' logits. Nodes of equal depth come in one call, and a level that the decision never
reaches never comes. Tensors are torch's where the logits are, else NumPy's. A processor must be a
function of its arguments.

One that keeps state of its sequence offers ``fork() -> processor`` and ``accept(token)``, or
``accept(token)`` and ``rollback(n)``: it then stands at the root, and each node gets a fork (or the
processor itself, rolled back after the call) that has accepted the node's path; it is called with
one row at a time. After a verdict its owner calls ``accept`` with each emitted token.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtp_verify._core import Draft
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.cleanup import at_end
from mtp_verify.verifier.intake import as_list, shown
from mtp_verify.verifier.kernels.edits import Process

__all__ = ["Processor", "accept", "check_processors", "keeps_state", "row_process"]

Processor = Callable[[Any, Any], Any]


def keeps_state(processor: Processor) -> bool:
    """Return whether a processor keeps state of its sequence."""
    return hasattr(processor, "accept") and (
        hasattr(processor, "fork") or hasattr(processor, "rollback")
    )


def accept(processors: Sequence[Processor], tokens: Sequence[int]) -> None:
    """Tell the processors that keep state what was emitted."""
    for processor in filter(keeps_state, processors):
        for token in tokens:
            processor.accept(token)  # type: ignore[attr-defined]


def check_processors(processors: Sequence[Processor]) -> None:
    """Refuse processors that cannot be called.

    Raises:
        ParamsError: names the first one.
    """
    for index, processor in enumerate(as_list("processors", processors)):
        if isinstance(processor, type) or not callable(processor):
            message = f"processors[{index}]: found {shown(processor)}, wanted a callable"
            raise ParamsError(message, slug="bad_processor")


def row_process(
    processors: Sequence[Processor], draft: Draft, history: Sequence[int], like: Any
) -> Process:
    """Return the function over some nodes' rows that the core calls.

    Args:
        processors: Applied one after the other.
        draft: The draft whose nodes they are.
        history: (T,) the tokens up to and including the root.
        like: The logits, whose kind of tensor processors are given.
    """
    tokens, tree = draft.tokens, draft.tree
    past = np.asarray(history, np.int64)

    def process(nodes: list[int], rows: NDArray[np.float32]) -> NDArray[np.float32]:
        paths = [tokens[tree.path(node)] for node in nodes]
        ids = np.stack([np.concatenate([past, path]) for path in paths])
        scores = rows
        for processor in processors:
            if keeps_state(processor):
                parts = [
                    _call_at(processor, path, ids[j : j + 1], scores[j : j + 1], like)
                    for j, path in enumerate(paths)
                ]
                scores = np.concatenate(parts)
            else:
                scores = _call(processor, ids, scores, like)
        return np.ascontiguousarray(scores)

    return process


def _call_at(
    processor: Any,
    path: NDArray[np.int64],
    ids: NDArray[np.int64],
    scores: NDArray[np.float32],
    like: Any,
) -> NDArray[np.float32]:
    """Call a processor that keeps state as it is after a node's path."""
    forks = hasattr(processor, "fork")
    if forks:
        at_node = processor.fork()
        for token in path.tolist():
            at_node.accept(token)
        return _call(at_node, ids, scores, like)
    taken = 0
    with at_end(lambda: processor.rollback(taken) if taken else None):
        for token in path.tolist():
            processor.accept(token)
            taken += 1
        return _call(processor, ids, scores, like)


def _call(
    processor: Processor, ids: NDArray[np.int64], scores: NDArray[np.float32], like: Any
) -> NDArray[np.float32]:
    torch = _torch_of(like)
    if torch is None:
        answer = np.asarray(processor(ids, scores), np.float32)
    else:
        given = processor(torch.from_numpy(ids), torch.from_numpy(scores))
        answer = given.detach().to("cpu", torch.float32).numpy()
    if answer.shape != scores.shape:
        name = getattr(processor, "__name__", type(processor).__name__)
        message = f"processor {name}: returned shape {answer.shape}, wanted {scores.shape}"
        raise ParamsError(message, slug="bad_processor")
    checked: NDArray[np.float32] = answer
    return checked


def _torch_of(like: Any) -> Any:
    """Return torch if the logits are its tensor, which implies that it is imported."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(like, torch.Tensor) else None
