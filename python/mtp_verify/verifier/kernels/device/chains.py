"""Verify chains that the device alone knows: nothing is read on the host, and nothing is planned.

An engine that runs ahead of its device does not know there which tokens it drafted, where a
sequence stands or how much of a draft is left. `DeviceVerifier` plans on the host; here a step is
written on the device from the engine's own tensors, and runs through the same kernels. Every
request has places for the longest chain; those that its chain does not reach are not used.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mtp_verify import _core
from mtp_verify.errors import RuleError
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.results import outcomes_of, result_fields
from mtp_verify.verifier.kernels.device.shadow import above
from mtp_verify.verifier.kernels.device.sizes import check_memory
from mtp_verify.verifier.kernels.device.verifier import BACKENDS, as_backend
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from mtp_verify.verifier.words import Law

__all__ = ["ChainVerifier", "Chains", "Drawn", "core_of"]


class Chains(NamedTuple):
    """The chains of B requests, on a device.

    Attributes:
        offsets: int (B+1,), request b has the rows ``offsets[b]`` to ``offsets[b + 1]`` of the
            logits: its root's, then one for each drafted token; none for a request without rows.
        tokens: int (rows,), the token of each row's node; a root's is not read. A chain ends before
            what is no token of the vocabulary.
        seeds: int64 (B,), their bits.
        positions: int (B,), the index of each root in its sequence.
        temperature: float32 (B,); 0 for greedy requests.
        top_k: int (B,), 0 is off; None for all off.
        top_p: float (B,), 1 is off; None for all off.
    """

    offsets: Tensor
    tokens: Tensor
    seeds: Tensor
    positions: Tensor
    temperature: Tensor
    top_k: Tensor | None = None
    top_p: Tensor | None = None


class Drawn(NamedTuple):
    """The rows that tokens of chains were drawn from.

    Attributes:
        rows: (Q, columns) float32, bfloat16 or float16, unit stride in a row; column j is token j,
            and tokens behind the last column were never drawn.
        first: int (B,), the row behind each request's root; that behind its node i is i later.
        temperature: float32 (Q,), by which rows of logits are divided; None for probabilities.
        place: int (Q,), where in `rows` each row of logits lies, if there are others; else None.
    """

    rows: Tensor
    first: Tensor
    temperature: Tensor | None
    place: Tensor | None = None


@cache
def core_of(rule: str, law: Law) -> tuple[int, int]:
    """Return which core of `layout` verifies a chain under a rule, and its passes over rows.

    Raises:
        RuleError: The rule cannot verify such chains, or runs on the host alone.
    """
    params = SamplingParams()._core
    _, requests, _, _, sizes = _core.tables_of_trees([0, 2], [-1, 0], None, law, None, params, rule)
    core = int(requests[2][0])
    if core > layout.LIFTED:
        message = f"rule: {rule} runs on the host alone"
        raise RuleError(message, slug="not_supported")
    return core, int(sizes[2])


class ChainVerifier:
    """Verify chains of up to K drafted tokens over rows of V tokens.

    The host never waits for the device. Memory grows to the largest step that was seen.

    Args:
        vocab: V.
        depth: K.
        device: Where everything is.
        backend: As for `DeviceVerifier`.
    """

    def __init__(
        self, vocab: int, depth: int, device: torch.device, *, backend: str = "auto"
    ) -> None:
        """Allocate nothing yet."""
        self._device = device
        self._module: Any = import_module(f"{__package__}.{BACKENDS[as_backend(backend, device)]}")
        self._numbers = torch.arange(depth + 1, device=device)
        # Of one step; and of the memory: the most requests and rows so far.
        self._step_of = layout.Capacity(0, 0, depth + 1, depth, min(depth, 1), 0, vocab)
        self._most = self._step_of
        self._workspace: Any = None
        self._results: dict[str, Tensor] = {}
        self._columns: dict[int, Tensor] = {}

    def verify(
        self, logits: Tensor, chains: Chains, rule: str, drawn: Drawn | None = None
    ) -> layout.Outcomes:
        """Start the verification; the device works on it while this returns.

        Args:
            logits: (rows, V) float32, bfloat16 or float16, unit stride in V; not modified.
            chains: The chains.
            rule: For requests that are not greedy.
            drawn: The rows that tokens were drawn from; None where tokens are a function of the
                past, or of unknown law, for a rule that takes these.

        Returns:
            The outcomes of B requests, in memory that the next call writes to. Entries of requests
            without rows mean nothing.

        Raises:
            RuleError: As `core_of`.
        """
        core, rounds = core_of(rule, "deterministic" if drawn is None else "chain")
        if core < layout.TOPDOWN:
            drawn = None  # Not read.
        batch, width = len(chains.seeds), len(self._numbers)
        capacity = replace(
            self._step_of,
            requests=batch,
            rows=batch * width,
            rounds=rounds,
            drafted=0 if drawn is None else len(drawn.rows if drawn.place is None else drawn.place),
            columns=0 if drawn is None else drawn.rows.shape[1],
        )
        self._reserve(capacity)
        outcomes = layout.Outcomes(*(part[:batch] for part in outcomes_of(self._results)))
        if batch == 0:
            return outcomes
        nodes, count = self._nodes(chains, len(logits), drawn)
        core_of_each = torch.where(chains.temperature == 0, layout.GREEDY, core)
        zeros = torch.zeros_like(count)
        step = layout.Step(
            capacity=capacity,
            nodes=nodes,
            requests=layout.Requests(
                root=torch.where(count > 0, self._roots(batch)[:, 0], -1).int(),
                count=count,
                core=core_of_each.int(),
                without=zeros,
                has_set=zeros,
                seed=chains.seeds.long(),
                position=chains.positions.long(),
                start=zeros.long(),
            ),
            shaping=_shaping_of(chains, width),
            truncates=chains.top_k is not None or chains.top_p is not None,
            logits=logits,
            drafted=None if drawn is None else self._drafted(drawn),
            edited=layout.Edited(),
            given=None,
            outcomes=outcomes,
            races=core == layout.COUPLED,
        )
        self._module.run(step, self._workspace)
        return outcomes

    def _roots(self, batch: int) -> Tensor:
        """Return (B, 1), the rows of roots among the nodes."""
        width = len(self._numbers)
        return torch.arange(0, batch * width, width, device=self._device)[:, None]

    def _nodes(self, chains: Chains, rows: int, drawn: Drawn | None) -> tuple[layout.Nodes, Tensor]:
        """Return the nodes of a step, and how many each request has, (B,) int32."""
        numbers, batch = self._numbers, len(chains.seeds)
        starts = chains.offsets[:-1, None]
        sizes = chains.offsets[1:, None] - starts
        place = (starts + numbers).clamp(max=rows - 1).long()
        token = chains.tokens[place]
        is_token = (token >= 0) & (token < self._most.vocab)
        is_there = (numbers < sizes) & (is_token | (numbers == 0))
        is_there = is_there.int().cumprod(1) > 0  # Up to the first that is missing.
        count = is_there.sum(1, keepdim=True)
        has_child = numbers + 1 < count
        is_child = is_there & (numbers > 0)
        row = self._roots(batch) + numbers
        request = torch.arange(batch, device=self._device)[:, None].expand_as(row)

        def column(where: Tensor, values: Tensor) -> Tensor:
            return torch.where(where, values, -1).int().flatten()

        number = column(is_there, numbers.expand_as(row))
        none = torch.full_like(number, -1)
        is_drawn = is_child & (chains.temperature[:, None] != 0)
        nodes = layout.Nodes(
            request=column(is_there, request),
            number=number,
            parent=column(is_child, row - 1),
            first_child=column(has_child, row + 1),
            next_sibling=none,
            depth=number,
            post=column(is_there, count - 1 - numbers),
            token=column(is_child, token),
            sampled=torch.zeros_like(number) if drawn is None else is_drawn.int().flatten(),
            drafted=none if drawn is None else column(has_child, drawn.first[:, None] + numbers),
            place=place.int().flatten(),
        )
        return nodes, count[:, 0].int()

    def _drafted(self, drawn: Drawn) -> layout.Drafted:
        vocab, columns = self._most.vocab, drawn.rows.shape[1]
        if columns not in self._columns:
            tokens = torch.arange(vocab, dtype=torch.int32, device=self._device)
            self._columns[columns] = torch.where(tokens < columns, tokens, -1).int()
        return layout.Drafted(
            rows=drawn.rows,
            shaping=None if drawn.temperature is None else _shaping(drawn.temperature),
            column=None if columns == vocab else self._columns[columns],
            place=None if drawn.place is None else drawn.place.int(),
        )

    def _reserve(self, wanted: layout.Capacity) -> None:
        """Make room for a step that is larger than those before."""
        most = self._most
        room = {
            name: max(getattr(most, name), above(getattr(wanted, name)))
            for name in ("requests", "rows", "drafted")
            if getattr(wanted, name) > getattr(most, name)
        }
        if wanted.columns > most.columns:
            room["columns"] = wanted.columns
        if self._workspace is None or room:
            self._most = replace(most, **room)
            check_memory(self._most)
            self._workspace = None  # Let go before there is a larger one.
            fields = result_fields(self._most).items()
            # Steps inside and outside of inference mode write to it.
            with torch.inference_mode(mode=False):
                self._workspace = self._module.Workspace(self._most, self._device)
                self._results = {
                    name: torch.zeros(shape, dtype=dtype, device=self._device)
                    for name, (shape, dtype) in fields
                }


def _shaping_of(chains: Chains, width: int) -> layout.Shaping:
    """Return how the rows of all nodes are shaped."""

    def each(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.repeat_interleave(width)

    temperature = chains.temperature.repeat_interleave(width)
    return _shaping(temperature, each(chains.top_k), each(chains.top_p))


def _shaping(
    temperature: Tensor, top_k: Tensor | None = None, top_p: Tensor | None = None
) -> layout.Shaping:
    """Return how rows are shaped, in vLLM's order; what is None is off."""
    zeros = torch.zeros_like(temperature, dtype=torch.float64)
    return layout.Shaping(
        temperature=temperature.float(),
        top_k=zeros.int() if top_k is None else top_k.int(),
        top_p=zeros + 1 if top_p is None else top_p.double(),
        min_p=zeros,
        log_min_p=zeros - torch.inf,
        min_p_first=torch.ones_like(temperature, dtype=torch.int32),
    )
