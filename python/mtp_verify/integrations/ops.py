"""Verification as operators of torch, for loops under `torch.compile`; and verifiers on a device.

The operators take and return tensors whose shapes do not depend on what is drafted or accepted, so
that a compiled loop is not compiled again from step to step. Tracing sees the shapes alone; the
rule runs, on the host or on the device, whenever the compiled code gets there.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from mtp_verify._core import DraftBatch
from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.verifier.arrays import is_equal, sizes
from mtp_verify.verifier.batch import verify_batch as verify_drafts
from mtp_verify.verifier.intake import check_type
from mtp_verify.verifier.kernels import select, to_host
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.kernel import OnDevice
from mtp_verify.verifier.kernels.device.layout import Outcomes
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier
from mtp_verify.verifier.params import SamplingParams, as_params
from mtp_verify.verifier.words import Law, Rule

__all__ = ["DeviceDrafts", "DeviceVerifier", "Verdicts", "verify_batch", "verify_planned"]

_DEFAULT = SamplingParams()
_TAKEN = ("temperature", "top_k", "top_p", "min_p", "preset")
_OTHERS = {f.name: getattr(_DEFAULT, f.name) for f in fields(SamplingParams)}
for _name in (*_TAKEN, "stop_ids"):
    del _OTHERS[_name]


class Verdicts(NamedTuple):
    """The verdicts of B sequences of N drafted tokens each, padded.

    Attributes:
        tokens: (B, N+1) int64, the emitted tokens, then -1.
        path: (B, N) int64, the accepted nodes, then -1.
        num_accepted: (B,) int64.
        logprobs: (B, N+1) float32, of the emitted tokens, then 0.
    """

    tokens: Tensor
    path: Tensor
    num_accepted: Tensor
    logprobs: Tensor

    def __eq__(self, other: object) -> bool:
        """Return whether all four tensors are equal."""
        if not isinstance(other, Verdicts):
            return NotImplemented
        return is_equal(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:
        """Return the opposite of `==`; a tuple's own would compare the tensors."""
        return not self == other

    def __hash__(self) -> NoReturn:
        """Refuse: tensors can change, so a hash of them would not fit `==`."""
        message = "unhashable type: 'Verdicts'"
        raise TypeError(message)

    def __repr__(self) -> str:
        """Return shapes and dtypes."""
        return sizes(self)


def verify_batch(
    tokens: Tensor,
    logits: Tensor,
    params: SamplingParams | None = None,
    *,
    law: Law = "deterministic",
    parents: Tensor | None = None,
    probs: Tensor | None = None,
    lengths: Tensor | None = None,
    rule: Rule = "auto",
    seeds: Tensor,
    positions: Tensor,
) -> Verdicts:
    """Verify a rectangular batch; safe inside ``torch.compile(fullgraph=True)``.

    The verdict of each sequence is that of `mtp_verify.verify`. Logits and drafted tokens on a GPU
    stay there, where the rule is covered (docs/explanation/gpu.md), and the results too; the other
    tensors are read on the host, so the call waits for those that are not there. For a step that
    waits for nothing see `DeviceVerifier`.

    Args:
        tokens: (B, N+1) integers, the root's first, node by node.
        logits: (B, N+1, V) float32, float16 or bfloat16; row i follows node i.
        params: How rows are shaped: temperature, top-k, top-p, min-p and preset. What depends on
            the text so far is for `mtp_verify.verify_batch`.
        law: How the drafted tokens were chosen, see `mtp_verify.Draft`; not "mixed".
        parents: (N+1,) or (B, N+1) integers as in `mtp_verify.TokenTree`; None means chains.
        probs: (B, M, V) float, row i is the drafter's after node i; M >= the inner nodes.
        lengths: (B,) integers, how many of the N tokens are drafted; None means all. What lies
            behind them is not read.
        rule: A rule's name, or "auto".
        seeds: (B,) int64, >= 0, each sequence's own.
        positions: (B,) int64, the index of each root among its sequence's own tokens.

    Returns:
        The verdicts, on the device of the logits.

    Raises:
        DraftError, RuleError, NumericsError, ParamsError: As `mtp_verify.verify_batch`.

    Example:
        >>> logits = 9 * torch.eye(3)[torch.tensor([[2, 0, 1], [0, 2, 1]])]
        >>> found = verify_batch(
        ...     torch.tensor([[0, 2, 0], [0, 1, 1]]),
        ...     logits,
        ...     SamplingParams(temperature=0),
        ...     seeds=torch.tensor([1, 2]),
        ...     positions=torch.tensor([5, 8]),
        ... )
        >>> found.tokens.tolist(), found.num_accepted.tolist()
        ([[2, 0, 1], [0, -1, -1]], [2, 0])
    """
    chosen = as_params(params)
    needed = {"tokens": tokens, "logits": logits, "seeds": seeds, "positions": positions}
    optional = {"parents": parents, "probs": probs, "lengths": lengths}
    for name, tensor in (needed | optional).items():
        if name in needed or tensor is not None:
            check_type(name, tensor, Tensor)
    check_type("law", law, str)
    check_type("rule", rule, str)
    for name, default in _OTHERS.items():
        if getattr(chosen, name) != default:
            message = f"{name}: found {getattr(chosen, name)!r} in mv.ops; use mv.verify_batch"
            raise ParamsError(message, slug="not_supported")
    shaping = (float(chosen.temperature), chosen.top_k, float(chosen.top_p), float(chosen.min_p))
    given = (tokens, logits, parents, probs, lengths, seeds, positions, law, rule)
    return Verdicts(*_operator(*given, *shaping, chosen.preset))


def _check_shape(
    name: str, tensor: Tensor | None, wanted: Sequence[tuple[int | None, ...]]
) -> None:
    """Refuse a tensor, if there is one, of none of the shapes; None is any size."""
    if tensor is None:
        return
    shape = tuple(tensor.shape)

    def fits(form: tuple[int | None, ...]) -> bool:
        parts = zip(shape, form, strict=False)
        return len(shape) == len(form) and all(size in (None, found) for found, size in parts)

    if not any(map(fits, wanted)):
        texts = " or ".join(str(form).replace("None", "any") for form in wanted)
        message = f"{name}: found {shape}, wanted {texts}"
        raise DraftError(message, slug="shape_mismatch")


@torch.library.custom_op("mtp_verify::verify_batch", mutates_args=())
def _operator(
    tokens: Tensor,
    logits: Tensor,
    parents: Tensor | None,
    probs: Tensor | None,
    lengths: Tensor | None,
    seeds: Tensor,
    positions: Tensor,
    law: str,
    rule: str,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    preset: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if tokens.dim() != 2 or logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        message = (
            f"tokens {tuple(tokens.shape)} and logits {tuple(logits.shape)}: wanted (B, N+1) and "
            "(B, N+1, V)"
        )
        raise DraftError(message, slug="shape_mismatch")
    packed = _packed(tokens, parents, probs, lengths, law)  # type: ignore[arg-type]
    params = SamplingParams(temperature, top_k, top_p, min_p, preset=preset)  # type: ignore[arg-type]
    options: Any = {"rule": rule, "seeds": to_host(seeds), "positions": to_host(positions)}
    kernel = select(logits)
    if isinstance(kernel, OnDevice):
        found = kernel.verify_in_place(packed, logits, params, **options)
        if found is not None:
            return _padded(found, tuple(tokens.shape))
    verdicts = verify_drafts(_on_host(packed), logits, params, **options)
    shape = tuple(tokens.shape)
    emitted, path, logprobs = np.full(shape, -1), np.full(shape, -1), np.zeros(shape, np.float32)
    accepted, places = verdicts.num_accepted, np.arange(shape[1])
    is_emitted = places <= accepted[:, None]
    emitted[is_emitted] = verdicts.tokens
    logprobs[is_emitted] = verdicts.logprobs
    path[places < accepted[:, None]] = verdicts.path
    results = (emitted, path[:, :-1].copy(), accepted, logprobs)
    on_device = [torch.from_numpy(result).to(logits.device) for result in results]
    return on_device[0], on_device[1], on_device[2], on_device[3]


def _packed(
    tokens: Tensor, parents: Tensor | None, probs: Tensor | None, lengths: Tensor | None, law: Law
) -> DeviceDrafts:
    """Pack the nodes that are drafted; tokens and rows stay where they are."""
    count, nodes = tokens.shape
    _check_shape("lengths", lengths, [(count,)])
    _check_shape("parents", parents, [(nodes,), (count, nodes)])
    _check_shape("probs", probs, [(count, None, None)])
    sizes = np.full(count, nodes) if lengths is None else to_host(lengths).numpy() + 1
    for sequence, size in enumerate(sizes.tolist()):
        if not 1 <= size <= nodes:
            message = f"lengths: found {size - 1}, wanted 0 <= length <= {nodes - 1}"
            raise ParamsError(message, slug="param_out_of_range").in_sequence(sequence)
    is_node = np.arange(nodes) < sizes[:, None]
    tree = np.arange(-1, nodes - 1) if parents is None else to_host(parents).numpy()
    rows = None
    if probs is not None:
        height = probs.shape[1]
        table = np.arange(count)[:, None] * height + np.arange(nodes)
        rows = np.where(np.arange(nodes) < height, table, -1)[is_node]
        probs = probs.reshape(-1, probs.shape[2])
    kept = torch.from_numpy(np.flatnonzero(is_node)).to(tokens.device)
    return DeviceDrafts(
        np.concatenate([[0], np.cumsum(sizes)]),
        np.broadcast_to(tree, tuple(tokens.shape))[is_node],
        tokens.reshape(-1)[kept],
        law,
        probs=probs,
        rows=rows,
    )


def _on_host(drafts: DeviceDrafts) -> DraftBatch:
    """Return the same drafts with tokens and rows on the host."""
    probs = None if drafts.probs is None else to_host(drafts.probs)
    tokens, law = to_host(drafts.tokens).numpy(), drafts.law
    assert isinstance(law, str)
    return DraftBatch(drafts.offsets, drafts.parents, tokens, law, probs=probs, rows=drafts.rows)


def _padded(found: Outcomes, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return outcomes on the device in the shapes of the operator; copies."""
    count, nodes = shape
    tokens = found.tokens[:count, :nodes].to(torch.int64)
    path = found.path[:count, : nodes - 1].to(torch.int64)
    return (
        tokens,
        path,
        found.num_accepted[:count].to(torch.int64),
        found.logprobs[:count, :nodes].clone(),
    )


@_operator.register_fake
def _shapes(tokens: Tensor, logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count, nodes = tokens.shape
    emitted = logits.new_empty((count, nodes), dtype=torch.int64)
    path = logits.new_empty((count, nodes - 1), dtype=torch.int64)
    accepted = logits.new_empty((count,), dtype=torch.int64)
    return emitted, path, accepted, logits.new_empty((count, nodes), dtype=torch.float32)


def verify_planned(verifier: DeviceVerifier, logits: Tensor) -> Verdicts:
    """Verify what was planned; safe inside ``torch.compile(fullgraph=True)`` and CUDA graphs.

    Args:
        verifier: `DeviceVerifier.plan` has been called, outside of the compiled code.
        logits: As for `DeviceVerifier.verify`; on the verifier's device, borrowed.

    Returns:
        Copies of the outcomes on the device, int32 but for the log-probabilities, padded to the
        verifier's `max_batch` and `max_depth`. Errors are raised by `DeviceVerifier.host`.

    Example:
        >>> verifier = DeviceVerifier(1, 2, 3, torch.float32, device="cpu", max_depth=1)
        >>> greedy = SamplingParams(temperature=0)
        >>> verifier.plan([Draft.chain([2])], greedy, seeds=[0], positions=[4])
        >>> verify_planned(verifier, 9 * torch.eye(3)[[2, 0]]).tokens
        tensor([[2, 0]], dtype=torch.int32)
    """
    check_type("verifier", verifier, DeviceVerifier)
    return Verdicts(*_planned(logits, verifier.key))


@torch.library.custom_op("mtp_verify::verify_planned", mutates_args=())
def _planned(logits: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = DeviceVerifier.of_key(key).verify(logits)
    parts = found.tokens, found.path, found.num_accepted, found.logprobs
    return parts[0].clone(), parts[1].clone(), parts[2].clone(), parts[3].clone()


@_planned.register_fake
def _planned_shapes(logits: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    capacity = DeviceVerifier.of_key(key).capacity
    requests, depth = capacity.requests, capacity.depth
    tokens = logits.new_empty((requests, depth + 1), dtype=torch.int32)
    path = logits.new_empty((requests, depth), dtype=torch.int32)
    accepted = logits.new_empty((requests,), dtype=torch.int32)
    return tokens, path, accepted, logits.new_empty((requests, depth + 1), dtype=torch.float32)
