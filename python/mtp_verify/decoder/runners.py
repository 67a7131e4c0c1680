"""Running the target over many requests: each by itself, or all in one forward.

`Each` gives every request its own cache and its own forwards, the very calls that it would get
alone, so that its rows are the same bits whatever runs beside it. `Together` packs the drafts of
all requests into one padded forward with a mask per request: the weights are read once for all,
which is what batching is for; kernels may then round a row differently with other companions, so
that tokens are the same but for near-ties (and the law is, always).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch

from mtp_verify.errors import ParamsError
from mtp_verify.models.interface import check_cache, check_commit, check_forward, check_slots
from mtp_verify.verifier.kv import commit_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.caches.many import ManyCache
    from mtp_verify.decoder.rows import Row
    from mtp_verify.models.interface import BatchTarget, Target, TargetCache

__all__ = ["Each", "Output", "Runner", "Together"]


class Output(NamedTuple):
    """What a forward gave one request.

    Attributes:
        logits: (N+1, V) raw rows on the host, one per node.
        hidden: per layer that its drafter asked for, (m + N, d): the m tokens that were not cached
            yet, the root last among them, then the N draft nodes; None if it asked for none.
    """

    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None


class Runner(Protocol):
    """The requests in flight, and the target's caches of them.

    Attributes:
        rows: in no particular order, which may change when one leaves.
        shares_forwards: whether one forward, as wide as the widest draft, serves all.
    """

    rows: list[Row]
    shares_forwards: bool

    def add(self, row: Row, past: Any | None = None) -> None:
        """Take a request.

        Raises:
            ParamsError: `past` does not fit the prompt.
            OutOfBlocksError: there is no room for the prompt; nothing has changed.
        """

    def has_room(self) -> bool:
        """Whether every row can take one more entry; if not, one has to make room."""

    def prepare(self) -> None:
        """Run what has to be run by itself before the step's drafts."""

    def room(self, wanted: Sequence[int]) -> list[int]:
        """How many draft nodes each row may have, so that there is room for all of them together.

        A function of the past: the rows' texts, and who holds which entries of the cache.

        Args:
            wanted: the most nodes that are of use to each row.

        Returns:
            One number for each row, at most what it wanted.

        Raises:
            OutOfBlocksError: there is not even room for the roots.
        """

    def forward(self, drafts: Sequence[Draft]) -> list[Output]:
        """Run what is not cached yet and one draft per row, in the order of `rows`.

        Args:
            drafts: each with as many nodes below the root as `room` said, at most.
        """

    def commit(
        self, rows: Sequence[Row], drafts: Sequence[Draft], verdicts: Sequence[Verdict]
    ) -> None:
        """Keep the root and the accepted path of each draft.

        Called when `request.tokens` has been extended already.

        Args:
            rows: those that have a verdict.
            drafts: what was run for them.
            verdicts: of each, cut to what was emitted.
        """

    def roll_back(self, row: Row) -> None:
        """Drop entries of draft nodes after a step that failed."""

    def remove(self, row: Row) -> Any:
        """Let go of a request, and return its cache if it is one's own, else None."""


class Each:
    """Every request by itself: its own cache of any kind, its own forwards."""

    shares_forwards = False

    def __init__(self, target: Target) -> None:
        self._target = target
        self._forgets: bool = getattr(target, "forgets_at_switch", False)
        self.rows: list[Row] = []
        self._caches: dict[int, TargetCache] = {}

    def add(self, row: Row, past: Any | None = None) -> None:
        """See `Runner.add`."""
        cache = self._target.new_cache(past)
        check_cache(self._target, cache)
        prompt_len = row.request.prompt_len
        if cache.length and (row.num_padding or cache.length >= prompt_len):
            length = cache.length
            cache.finish()
            msg = (
                f"past_key_values holds {length} entries, and the prompt has {prompt_len} tokens; "
                "it may hold all of the prompt but its last token, and no padding"
            )
            raise ParamsError(msg, slug="bad_past", sequence=0)
        capacity = cache.capacity
        if capacity is not None and (row.num_padding or capacity < row.max_total - 1):
            cache.finish()
            msg = (
                f"past_key_values has room for {capacity} entries; {row.max_total - 1} are needed "
                "for the prompt and its new tokens but the last, and none for padding: drop the "
                "padding, or use a larger cache"
            )
            raise ParamsError(msg, slug="bad_past", sequence=0)
        self._caches[row.request.id] = cache
        self.rows.append(row)

    def has_room(self) -> bool:
        """See `Runner.has_room`: `add` has seen to it."""
        return True

    def prepare(self) -> None:
        """See `Runner.prepare`: prompts are run with the first draft."""

    def room(self, wanted: Sequence[int]) -> list[int]:
        """See `Runner.room`."""
        limits = []
        for row, most in zip(self.rows, wanted, strict=True):
            capacity = self._caches[row.request.id].capacity
            # The root takes the entry at its position.
            spare = most if capacity is None else capacity - row.request.position - 1
            limits.append(min(most, max(spare, 0)))
        return limits

    def forward(self, drafts: Sequence[Draft]) -> list[Output]:
        """See `Runner.forward`."""
        return [self._forward(row, draft) for row, draft in zip(self.rows, drafts, strict=True)]

    def commit(
        self, rows: Sequence[Row], drafts: Sequence[Draft], verdicts: Sequence[Verdict]
    ) -> None:
        """See `Runner.commit`."""
        for row, draft, verdict in zip(rows, drafts, verdicts, strict=True):
            path = verdict.path
            cache = self._caches[row.request.id]
            # The emitted tokens are appended already: the root stands that much further back.
            root = row.request.position - len(path) - 1
            plan = commit_plan(draft.tree, path, root)
            cache.commit(plan)
            check_commit(cache, plan)

    def roll_back(self, row: Row) -> None:
        """See `Runner.roll_back`."""
        cache = self._caches[row.request.id]
        cache.crop(min(cache.length, row.request.position))

    def remove(self, row: Row) -> Any:
        """See `Runner.remove`."""
        self.rows.remove(row)
        cache = self._caches.pop(row.request.id)
        pending = row.request.tokens[cache.length : -1]
        if pending and cache.is_recurrent and row.finish is not None and row.error is None:
            # Accepted tokens that were to be run again: the user's cache shall hold them.
            ids = torch.tensor([pending], device=self._target.device)
            self._target.forward(ids, None, None, cache, num_logits=1)
        return cache.finish(row.num_padding)

    def _forward(self, row: Row, draft: Draft) -> Output:
        cache, tokens = self._caches[row.request.id], row.request.tokens
        if self._forgets and row.switch is not None and cache.length <= row.switch < len(tokens):
            # Its entries were read in the other way, and are computed again with the root.
            cache.crop(0)
        pending = tokens[cache.length :]
        positions = mask = None
        before: tuple[torch.Tensor, ...] | None = None
        is_chain = draft.tree.is_chain
        if len(pending) > 1 and not (is_chain and (draft.num_nodes == 1 or not cache.is_recurrent)):
            # The prompt is causal; only the tree itself needs a mask. And a recurrent state can be
            # put back to where a forward began: to the root, not to the prompt's beginning.
            _, before = self._run(row, pending[:-1], None, None, 1)
            pending = pending[-1:]
        if not is_chain:
            depths = torch.from_numpy(np.asarray(draft.tree.depths)).to(self._target.device)
            positions = (row.request.position + depths)[None]
            mask = torch.from_numpy(np.asarray(draft.tree.mask()))
        pending = pending + draft.tokens[1:].tolist()
        logits, hidden = self._run(row, pending, positions, mask, draft.num_nodes)
        if before is not None and hidden is not None:
            hidden = tuple(torch.cat(pair) for pair in zip(before, hidden, strict=True))
        if hidden is not None and row.request.position >= row.request.prompt_len:
            # Tokens that are run again have been shown before.
            hidden = tuple(states[-draft.num_nodes :] for states in hidden)
        # The verifier runs on the host; one copy of N+1 rows, none on the CPU.
        return Output(logits.cpu(), hidden)

    def _run(
        self,
        row: Row,
        tokens: list[int],
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        target, layers = self._target, row.hidden_layers
        cache = self._caches[row.request.id]
        row.stats.forwards += 1
        ids, before = torch.tensor([tokens], device=target.device), cache.length
        found = target.forward(ids, positions, mask, cache, layers, num_logits=num_logits)
        check_forward(target, found, num_logits, len(tokens), cache.length - before, len(layers))
        return found


class Together:
    """All requests in one forward over a cache of many sequences; row i has slot i."""

    shares_forwards = True

    def __init__(self, target: BatchTarget, cache: ManyCache) -> None:
        self._target = target
        self.rows: list[Row] = []
        self._cache = cache
        # Hidden states of prompts that were run for the coming forward, by request.
        self._before: dict[int, tuple[torch.Tensor, ...]] = {}

    def add(self, row: Row, past: Any | None = None) -> None:
        """See `Runner.add`."""
        if past is not None:
            msg = "past_key_values can be given for a single sequence that is not paged"
            raise ParamsError(msg, slug="bad_past")
        # A drafter that wants hidden states needs those of all tokens: all are run.
        self._cache.add(row.request.tokens[:-1], is_known=not row.hidden_layers)
        self.rows.append(row)

    def has_room(self) -> bool:
        """See `Runner.has_room`."""
        return self._cache.has_room()

    def prepare(self) -> None:
        """See `Runner.prepare`: prompts that are not in the cache yet."""
        for slot in range(len(self.rows)):
            self._run_prompt(slot)

    def room(self, wanted: Sequence[int]) -> list[int]:
        """See `Runner.room`."""
        return self._cache.room(wanted)

    def forward(self, drafts: Sequence[Draft]) -> list[Output]:
        """See `Runner.forward`."""
        device, rows = self._target.device, self.rows
        self._cache.reserve([draft.num_nodes for draft in drafts])
        width = max(draft.num_nodes for draft in drafts)
        tokens = np.empty((len(rows), width), np.int64)
        positions = np.empty((len(rows), width), np.int64)
        ancestors = np.zeros((len(rows), width, width), bool)
        # What fills a row up repeats the root, and sees nothing but itself and the past.
        ancestors[:, range(width), range(width)] = True
        for slot, (row, draft) in enumerate(zip(rows, drafts, strict=True)):
            num_nodes, request = draft.num_nodes, row.request
            tokens[slot] = request.tokens[-1]
            tokens[slot, 1:num_nodes] = draft.tokens[1:]
            positions[slot] = request.position
            positions[slot, :num_nodes] += draft.tree.depths
            ancestors[slot, :num_nodes, :num_nodes] = draft.tree.mask()
            row.stats.forwards += 1
        layers = sorted({layer for row in rows for layer in row.hidden_layers})
        found = self._target.forward_slots(
            torch.from_numpy(tokens).to(device),
            torch.from_numpy(positions).to(device),
            torch.from_numpy(ancestors).to(device),
            self._cache,
            layers,
        )
        check_slots(self._target, found, len(rows), width)
        logits, hidden = found
        # One copy of the rows that count, and so one wait for the device; none on the CPU.
        counts = [draft.num_nodes for draft in drafts]
        if logits.device.type == "cpu":
            shares = [logits[slot, :count] for slot, count in enumerate(counts)]
        else:
            kept = torch.arange(width, device=device) < torch.tensor(counts, device=device)[:, None]
            shares = list(torch.split(logits[kept].cpu(), counts))
        outputs = []
        for slot, row in enumerate(rows):
            mine = None
            if row.hidden_layers:
                parts = [hidden[layers.index(n)][slot, : counts[slot]] for n in row.hidden_layers]
                before = self._before.pop(row.request.id, None)
                if before is not None:
                    parts = [torch.cat(pair) for pair in zip(before, parts, strict=True)]
                mine = tuple(parts)
            outputs.append(Output(shares[slot], mine))
        return outputs

    def commit(
        self, rows: Sequence[Row], drafts: Sequence[Draft], verdicts: Sequence[Verdict]
    ) -> None:
        """See `Runner.commit`."""
        slots = {row.request.id: slot for slot, row in enumerate(self.rows)}
        self._cache.commit([slots[row.request.id] for row in rows], drafts, verdicts)

    def roll_back(self, row: Row) -> None:
        """See `Runner.roll_back`."""
        self._before.pop(row.request.id, None)
        self._cache.drop(self.rows.index(row))

    def remove(self, row: Row) -> None:
        """See `Runner.remove`."""
        slot = self.rows.index(row)
        self._before.pop(row.request.id, None)
        self._cache.remove(slot, wipe=row.error is not None)
        last = self.rows.pop()
        if last is not row:
            self.rows[slot] = last

    def _run_prompt(self, slot: int) -> None:
        """Bring a slot up to the root; keep the hidden states of what had to be run."""
        row, cache = self.rows[slot], self._cache
        tokens = row.request.tokens
        start, end = cache.lengths[slot], len(tokens) - 1
        if start == end:
            return
        if not row.hidden_layers:
            for other, donor in enumerate(self.rows):
                # Several samples of one prompt: it is run once, and its entries are copied.
                is_donor = (
                    cache.lengths[other] >= end and donor.request.tokens[:end] == tokens[:end]
                )
                if is_donor and cache.share(other, slot, end):
                    return
        device = self._target.device
        cache.aim(end - start, device, slot)
        ids = torch.tensor([tokens[start:end]], device=device)
        _, hidden = self._target.forward(ids, None, None, cache, row.hidden_layers, num_logits=1)
        row.stats.forwards += 1
        cache.extend(slot, end)
        if hidden:
            self._before[row.request.id] = hidden
