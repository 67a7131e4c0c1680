"""Verify step after step on a device, without waiting for it: `DeviceVerifier`."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakValueDictionary

import numpy as np
import torch

from mtp_verify._core import Verdict, VerdictBatch
from mtp_verify.errors import DraftError, ParamsError
from mtp_verify.verifier.intake import as_count, as_list, as_words, shown
from mtp_verify.verifier.kernels.device import layout
from mtp_verify.verifier.kernels.device.arena import Arena
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.forest import plant
from mtp_verify.verifier.kernels.device.plan import (
    Plan,
    edits_of,
    fields,
    fill,
    nodes_of,
    requests_of,
    shaping_of,
)
from mtp_verify.verifier.kernels.device.results import error_of, outcomes_of, result_fields
from mtp_verify.verifier.kernels.device.shadow import Shadow
from mtp_verify.verifier.kernels.device.sizes import MOST, as_device, check_memory
from mtp_verify.verifier.params import as_params

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from mtp_verify._core import CoreParams, Draft, DraftBatch
    from mtp_verify.verifier.kernels.edits import Edits
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Backend, Rule

__all__ = ["BACKENDS", "DTYPES", "DeviceVerifier", "as_backend"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS: dict[Backend, str] = {"triton": "triton_", "torch": "torch_"}


class DeviceVerifier:
    """Verify drafts where the logits are, with memory that is allocated once.

    A step is `plan`, which copies the drafts to the device, `verify`, which starts the work over
    the logits, and `host`, which waits for the outcome and copies it back. The first two never wait
    for the device, and `verify` can be captured in a CUDA graph if `max_passes` and `truncates` are
    given: it then runs, at each replay, on what the last `plan` has sent and on the memory of the
    logits and rows that it was captured with. Decisions are those of `mtp_verify.verify_batch`.

    Args:
        max_batch: The most requests of a step.
        max_rows: The most nodes of all trees together, roots included.
        vocab: Tokens of a row, V.
        dtype: Of the logits: torch.float32, torch.bfloat16 or torch.float16.
        device: Where the logits are.
        max_nodes: The most nodes of one tree; default: as many as there are rows.
        max_depth: The most levels below a root; default: as many as there are nodes.
        max_children: The most children of a node; default: as many as there are nodes.
        max_passes: How many passes over rows may wait for one another (chains: 1, trees: as many
            as children are tested in turn); each step then makes so many, over as many levels and
            children as there may be. None: as each plan needs.
        max_drafted: The most rows of the drafter; default: as many as `max_rows`.
        columns: Tokens of a drafter's row; default V.
        truncates: Whether top-k, top-p and min-p may be on; None: as each plan has it.
        backend: "triton", "torch" or "auto": Triton on GPUs, else torch.

    Raises:
        ParamsError: A size or name is out of range.
    """

    _known: ClassVar[WeakValueDictionary[int, DeviceVerifier]] = WeakValueDictionary()
    _keys: ClassVar[Iterator[int]] = count()

    def __init__(
        self,
        max_batch: int,
        max_rows: int,
        vocab: int,
        dtype: torch.dtype = torch.bfloat16,
        *,
        device: torch.device | str = "cuda",
        max_nodes: int | None = None,
        max_depth: int | None = None,
        max_children: int | None = None,
        max_passes: int | None = None,
        max_drafted: int | None = None,
        columns: int | None = None,
        truncates: bool | None = None,
        backend: str = "auto",
    ) -> None:
        """Allocate what a step needs."""
        rows = as_count("max_rows", max_rows, least=1, most=MOST)
        if not any(dtype is known for known in DTYPES):
            message = f"dtype: found {shown(dtype)}, wanted float32, bfloat16 or float16 of torch"
            raise ParamsError(message, slug="param_out_of_range")
        nodes = as_count("max_nodes", rows if max_nodes is None else max_nodes, least=1, most=MOST)
        self.capacity = layout.Capacity(
            requests=as_count("max_batch", max_batch, least=1, most=MOST),
            rows=rows,
            nodes=nodes,
            depth=as_count(
                "max_depth", nodes if max_depth is None else max_depth, least=0, most=MOST
            ),
            children=as_count(
                "max_children", nodes if max_children is None else max_children, least=0
            ),
            rounds=as_count("max_passes", nodes if max_passes is None else max_passes, least=0),
            vocab=as_count("vocab", vocab, least=1, most=(1 << 31) - 1),
            drafted=as_count(
                "max_drafted", rows if max_drafted is None else max_drafted, least=0, most=MOST
            ),
            columns=as_count(
                "columns", vocab if columns is None else columns, least=1, most=(1 << 31) - 1
            ),
        )
        check_memory(self.capacity)
        self.dtype = dtype
        self.device = as_device(device)
        self.backend = as_backend(backend, self.device)
        self._truncates = truncates
        self._rounds = max_passes
        module = import_module(f"{__package__}.{BACKENDS[self.backend]}")
        self._run = module.run
        self._workspace = module.Workspace(self.capacity, self.device)
        # Two mirrors: a step is planned while the device is still at the one before.
        self._inputs = Arena(fields(self.capacity), self.device, mirrors=2)
        self._results = Arena(result_fields(self.capacity), self.device)
        self._column = torch.zeros(self.capacity.vocab, dtype=torch.int32, device=self.device)
        self._vocab: Any = None
        self._shadow = Shadow(
            rows, self.capacity.vocab, self.device, is_fixed=max_passes is not None
        )
        self._masks: Tensor | None = None
        self._mask: Tensor | None = None
        self._plan: Plan | None = None
        self._drafts: DeviceDrafts | None = None
        self._captured: tuple[int, bool, bool, bool] | None = None
        self.key = next(self._keys)
        self._known[self.key] = self

    @classmethod
    def of_key(cls, key: int) -> DeviceVerifier:
        """Return the verifier of a key: operators of torch take numbers, and no objects."""
        return cls._known[key]

    @property
    def outcomes(self) -> layout.Outcomes:
        """The outcomes of the last step, on the device."""
        return outcomes_of(self._results.tensors)

    def plan(
        self,
        drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
        params: SamplingParams | Sequence[SamplingParams | None] | None = None,
        *,
        rule: Rule | Sequence[Rule] = "auto",
        seeds: Any,
        positions: Any,
        starts: Any = None,
        height: int | None = None,
        histories: Sequence[Sequence[int] | None] | None = None,
        prompt_lens: Sequence[int] | None = None,
        bitmask: Any = None,
    ) -> None:
        """Check the drafts of the next step, and send them to the device in one copy.

        Args:
            drafts: B drafts, each of its own law and shape. Those with sampled tokens need their
                rows on the device: `DeviceDrafts`.
            params: How rows are shaped: one for all, or a list of B. Penalties, biases and bans
                need the drafted tokens on the host; a captured step applies as many of them as
                were planned before it was captured.
            rule: One for all, or a list of B; not "kseq", "gbv" and "global_resolution".
            seeds: (B,) integers on the host, as for `mtp_verify.verify_batch`, or int64 on the
                verifier's device, their bits.
            positions: (B,) integers on the host, the index of each root in its sequence; or on the
                verifier's device, where nothing checks them.
            starts: (B,) integers on the host, the cache's entry of each root, those of the other
                nodes behind it; None means 0. For `Outcomes.moves` and `length` alone.
            height: M where logits are (B, M, V); None where rows follow each other.
            histories: B (or None), the tokens up to and including each root, for parameters that
                depend on them.
            prompt_lens: B integers, how many of these are prompt; None means 0.
            bitmask: int32 (R, ceil(V/32)), on the host or the device: the tokens that are allowed
                after each node, all trees' nodes one after the other; see `mtp_verify.verify`.

        Raises:
            DraftError, RuleError, ParamsError: As `mtp_verify.verify_batch`; or the drafts need
                more than the verifier was made for. Nothing has been sent.
        """
        each: CoreParams | list[CoreParams]
        if isinstance(params, (list, tuple)):
            each = [as_params(own)._core for own in params]
        else:
            each = as_params(cast("SamplingParams | None", params))._core
        items = drafts if hasattr(drafts, "offsets") else as_list("drafts", drafts)
        away = {
            name: self._checked_words(f"{name}s", values)
            for name, values in (("seed", seeds), ("position", positions))
            if isinstance(values, torch.Tensor) and values.device.type == self.device.type
        }
        places = [0] * len(positions) if "position" in away else as_words("positions", positions)
        self.send(
            items,
            each,
            rule if isinstance(rule, str) else as_list("rule", rule),
            seeds=[0] * len(seeds) if "seed" in away else as_words("seeds", seeds),
            positions=places,
            starts=None if starts is None else as_words("starts", starts),
            height=height,
            edits=edits_of(items, places, histories, prompt_lens),
            bitmask=bitmask,
        )
        requests = requests_of(self._inputs.tensors)
        for name, values in away.items():
            getattr(requests, name)[: len(values)] = values

    def send(
        self,
        drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
        params: CoreParams | Sequence[CoreParams],
        rule: str | Sequence[str],
        *,
        seeds: Sequence[int],
        positions: Sequence[int],
        starts: Sequence[int] | None = None,
        height: int | None = None,
        edits: Sequence[Edits | None] = (),
        bitmask: Any = None,
    ) -> None:
        """Do as `plan`, with arguments as the core takes them."""
        own = drafts if isinstance(drafts, DeviceDrafts) else None
        self._check_rows(own)
        self._check_mask(bitmask)
        self._inputs.wait()
        plan = fill(
            self._inputs, self.capacity, drafts, params, rule,
            seeds=seeds, positions=positions, starts=starts, height=height, edits=edits,
        )  # fmt: skip
        self._check_fixed(plan, own, has_mask=bitmask is not None)
        self._shadow.check(plan.changes)
        self._inputs.send()
        self._shadow.send(plan.changes)
        if own is not None:
            self._send_drafts(own, plan)
        if bitmask is not None:
            self._mask = self._sent_mask(bitmask)
        elif self._captured is None or self._mask is None:
            self._mask = None
        else:
            self._mask.fill_(-1)  # The captured graph reads it: all tokens are allowed.
        self._plan, self._drafts = plan, own

    def step(self, logits: Tensor) -> layout.Step:
        """Return the step over some logits, as backends run it: for tests and proofs.

        Rows that penalties change are written for it.
        """
        plan = self._planned()
        if logits.dim() == 3 and logits.is_contiguous():
            logits = logits.view(-1, logits.shape[2])
        wanted = f"({plan.height} or more, {self.capacity.vocab}) {self.dtype}, without gaps"
        is_right = logits.dim() == 2 and logits.shape[1] == self.capacity.vocab
        is_right = is_right and logits.stride(1) == 1 and logits.dtype == self.dtype
        if not is_right or len(logits) < plan.height:
            message = f"logits: found {tuple(logits.shape)} {logits.dtype}, wanted {wanted}"
            raise DraftError(message, slug="shape_mismatch")
        if logits.device.type != self.device.type:
            message = f"logits: found device {logits.device}, wanted {self.device}"
            raise DraftError(message, slug="bad_tensor")
        tensors = self._inputs.tensors
        nodes = nodes_of(tensors)
        shadow, shadow_of = self._shadow.write(logits, nodes.place)
        sizes = {
            "nodes": plan.nodes,
            "depth": plan.depth,
            "children": plan.children,
            "rounds": plan.rounds,
        }
        return layout.Step(
            capacity=self.capacity if self._rounds is not None else replace(self.capacity, **sizes),
            nodes=nodes,
            requests=requests_of(tensors),
            shaping=shaping_of(tensors, "target"),
            truncates=plan.truncates if self._truncates is None else self._truncates,
            logits=logits,
            drafted=self._drafted_rows() if plan.reads_drafter else None,
            edited=layout.Edited(self._mask, shadow, shadow_of),
            given=None,
            outcomes=self.outcomes,
            # A captured graph races for the requests of later plans.
            races=plan.races or self._rounds is not None,
        )

    def verify(self, logits: Tensor) -> layout.Outcomes:
        """Start the verification of the planned drafts; the device works on it while this returns.

        Args:
            logits: (rows, V), the rows of all nodes one after the other, or (B, M, V) as planned
                with ``height=M``; unit stride in V; on the device, borrowed, not modified.

        Returns:
            The outcomes, on the device: the same tensors at each step.

        Raises:
            DraftError: Shape, dtype or device are not those of the verifier; nothing was planned.
        """
        step = self.step(logits)
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._check_capture()
        if len(self._planned().rules):
            self._run(step, self._workspace)
        return step.outcomes

    def host(self) -> VerdictBatch:
        """Wait for the outcomes of the last step and return them as verdicts: one copy.

        Raises:
            NumericsError, DraftError: What the device found wrong in rows that were read; the
                first request that is wrong as ``sequence``.
        """
        plan = self._planned()
        self._results.fetch()
        self._results.wait()
        found = outcomes_of(self._results.host)
        for request in range(len(plan.rules)):
            if error := error_of(int(found.status[request]), int(found.fault[request])):
                raise error.in_sequence(request)
        verdicts = []
        for request, name in enumerate(plan.rules):
            kept = int(found.num_accepted[request])
            verdicts.append(
                Verdict(
                    found.tokens[request, : kept + 1],
                    found.path[request, :kept],
                    found.logprobs[request, : kept + 1],
                    name,
                    backend=self.backend,
                )
            )
        return VerdictBatch(verdicts)

    @property
    def trees(self) -> list[NDArray[np.int32]]:
        """The parents of each draft's nodes, as `host` has brought them with the verdicts.

        Of drafts with a `table` alone; places that hold no node are marked as there.
        """
        parents = self._results.host["parents"].astype(np.int32)
        offsets = self._planned().offsets
        return np.split(parents[: offsets[-1]], offsets[1:-1])

    def _planned(self) -> Plan:
        if self._plan is None:
            message = "drafts: found none; call plan() first"
            raise DraftError(message, slug="shape_mismatch")
        return self._plan

    def _check_capture(self) -> None:
        if self._rounds is None or self._truncates is None:
            message = "a captured step needs max_passes and truncates: pass them to DeviceVerifier"
            raise ParamsError(message, slug="param_out_of_range")
        self._captured = self._form(self._drafts, has_mask=self._mask is not None)
        self._shadow.capture()

    def _check_fixed(self, plan: Plan, drafts: DeviceDrafts | None, *, has_mask: bool) -> None:
        """Refuse a plan that a step of this verifier, or its captured graph, does not run."""
        if plan.truncates and self._truncates is False:
            message = "params: found top_k, top_p or min_p, wanted none: truncates=False was given"
            raise ParamsError(message, slug="param_out_of_range")
        if self._captured is None:
            return
        form = self._form(drafts, has_mask=has_mask)
        if plan.reads_drafter and form[:3] != self._captured[:3]:
            message = (
                "probs: found other memory, or another kind of rows, than the captured graph reads"
            )
            raise DraftError(message, slug="bad_tensor")
        if has_mask and not self._captured[3]:
            message = "bitmask: found one, wanted none: the captured graph reads none"
            raise DraftError(message, slug="bad_tensor")

    @staticmethod
    def _form(drafts: DeviceDrafts | None, *, has_mask: bool) -> tuple[int, bool, bool, bool]:
        """Return what a captured graph holds on to: where rows are, their kind, a mask."""
        if drafts is None:
            return 0, False, False, has_mask
        rows = drafts.logits if drafts.probs is None else drafts.probs
        memory = 0 if rows is None else rows.data_ptr()
        return memory, drafts.probs is None, drafts.vocab is not None, has_mask

    def _check_rows(self, drafts: DeviceDrafts | None) -> None:
        """Refuse drafter's rows that the kernels cannot read."""
        if drafts is None:
            return
        if drafts.probs is not None and drafts.logits is not None:
            message = "drafts: takes probs or logits, not both"
            raise DraftError(message, slug="law_data")
        rows = drafts.logits if drafts.probs is None else drafts.probs
        if rows is None:
            return
        columns = self.capacity.columns
        is_right = rows.dim() == 2 and rows.shape[1] == columns and rows.stride(1) == 1
        if not is_right or rows.dtype not in DTYPES or rows.device.type != self.device.type:
            found = f"{tuple(rows.shape)} {rows.dtype} on {rows.device}"
            message = (
                f"probs: found {found}, wanted (Q, {columns}) float32, bfloat16 or float16 on "
                f"{self.device}, without gaps in a row"
            )
            raise DraftError(message, slug="bad_tensor")
        if drafts.vocab is None and columns != self.capacity.vocab:
            message = f"vocab: found None, wanted the tokens of the {columns} columns"
            raise DraftError(message, slug="shape_mismatch")

    @staticmethod
    def _checked_words(name: str, values: Tensor) -> Tensor:
        if values.dim() != 1 or values.dtype not in (torch.int64, torch.int32):
            message = f"{name}: found {tuple(values.shape)} {values.dtype}, wanted integers (B,)"
            raise ParamsError(message, slug="param_out_of_range")
        return values

    def _check_mask(self, mask: Any) -> None:
        words = -(-self.capacity.vocab // 32)
        if mask is None:
            return
        found = tuple(mask.shape), str(mask.dtype).removeprefix("torch.")
        if len(found[0]) != 2 or found[0][1] != words or found[1] != "int32":
            message = f"bitmask: found {found[0]} {found[1]}, wanted (R, {words}) int32"
            raise DraftError(message, slug="shape_mismatch")

    def _sent_mask(self, mask: Any) -> Tensor:
        """Return a mask's copy on the device, in memory that is made once."""
        if self._masks is None:
            shape = (self.capacity.rows, mask.shape[1])
            self._masks = torch.zeros(shape, dtype=torch.int32, device=self.device)
        given = torch.as_tensor(mask)
        self._masks[: len(given)].copy_(given)
        return self._masks

    def _send_drafts(self, drafts: DeviceDrafts, plan: Plan) -> None:
        tokens, vocab, total = drafts.tokens, self.capacity.vocab, int(plan.offsets[-1])
        nodes = nodes_of(self._inputs.tensors)
        if drafts.table is not None:
            requests = requests_of(self._inputs.tensors)
            plant(nodes, requests, drafts.table, width=plan.nodes, vocab=vocab)
            self._results.tensors["parents"][:total] = drafts.table[0]
            if drafts.places is not None:
                nodes.place[:total] = drafts.places
        elif isinstance(tokens, torch.Tensor) and not tokens.is_cpu:
            own = nodes.token[:total]
            # What is no token must not be looked up: any other is as wrong, and in the row.
            own.copy_(tokens.clamp(0, vocab - 1))
        if drafts.vocab is not None and drafts.vocab is not self._vocab:
            column = np.full(vocab, -1, np.int32)
            listed = np.asarray(drafts.vocab)
            column[listed] = np.arange(len(listed), dtype=np.int32)
            self._column.copy_(torch.from_numpy(column))
            self._vocab = drafts.vocab

    def _drafted_rows(self) -> layout.Drafted:
        assert self._drafts is not None
        drafts = self._drafts
        rows = drafts.logits if drafts.probs is None else drafts.probs
        assert rows is not None
        is_logits = drafts.probs is None
        shaping = shaping_of(self._inputs.tensors, "drafter") if is_logits else None
        column = None if drafts.vocab is None else self._column
        return layout.Drafted(rows, shaping, column)


def as_backend(name: str, device: torch.device) -> Backend:
    """Return "triton" or "torch"."""
    if name == "auto":
        if device.type != "cuda":
            return "torch"
        try:
            import_module("triton")
        except ImportError:
            return "torch"
        return "triton"
    for known in BACKENDS:
        if name == known:
            return known
    message = f"backend: found {shown(name)}, wanted auto, {' or '.join(BACKENDS)}"
    raise ParamsError(message, slug="param_out_of_range")
