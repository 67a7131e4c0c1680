"""Runs the target over many sequences: each by itself, or all in one forward.

`Each` gives every sequence its own cache and its own forwards, the very calls that it would get
alone, so that its rows are the same bits whatever runs beside it. `Together` packs the drafts of
all into one padded forward with a mask for each: the weights are read once for all. Kernels may
then round a row differently with other companions, so that tokens are the same but for near-ties
(and the distribution is the same always).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mtp_verify.errors import ParamsError
from mtp_verify.models.interface import check_cache, check_commit, check_forward, check_slots
from mtp_verify.verifier.kernels.device.arena import sent
from mtp_verify.verifier.kv import commit_plan

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mtp_verify.caches.many import ManyCache
    from mtp_verify.decoder.graphs import Graphs
    from mtp_verify.decoder.sequences import Sequence
    from mtp_verify.models.interface import BatchTarget, Target, TargetCache

__all__ = ["Each", "Output", "Runner", "Together"]


class Output(NamedTuple):
    """What a forward gave one sequence."""

    # (N+1, V) raw rows, one per node; where the target is, until `Verdicts.fetch` brings them.
    logits: torch.Tensor
    # Per layer that its drafter asked for, (m + N, d): the m tokens that were not cached yet, the
    # root last among them, then the N draft nodes; None if it asked for none.
    hidden: tuple[torch.Tensor, ...] | None
    # (B, W, V), of which `logits` are rows, if all sequences shared a forward.
    batch: torch.Tensor | None = None

    def cut(self, num_nodes: int) -> Output:
        """Return what belongs to the first nodes of the draft."""
        if not (surplus := len(self.logits) - num_nodes):
            return self
        hidden = self.hidden and tuple(states[:-surplus] for states in self.hidden)
        return Output(self.logits[:num_nodes], hidden)


class Runner(ABC):
    """The sequences in flight, in an order that may change, and the target's caches of them."""

    shares_forwards = False  # Whether one forward, as wide as the widest draft, serves all.
    is_ragged = False  # Whether a forward that is shared costs what its nodes do, not its width.

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []

    @abstractmethod
    def add(self, sequence: Sequence) -> None:
        """Take a sequence.

        Raises:
            ParamsError: its `past` does not fit the prompt.
            OutOfBlocksError: there is no space for the prompt; nothing has changed.
        """

    def has_space(self) -> bool:
        """Return whether every sequence can take one more entry; if not, one has to leave."""
        return True

    def prepare(self) -> None:  # noqa: B027
        """Run what has to be run by itself before the step's drafts."""

    @abstractmethod
    def budgets(self, wanted: list[int]) -> list[int]:
        """Return how many draft nodes each sequence may have, as `ManyCache.budgets`.

        A function of the past: the texts, and who holds which entries of the cache.
        """

    @abstractmethod
    def forward(self) -> None:
        """Run what is not cached yet and the draft of each sequence; set its `output`."""

    @abstractmethod
    def commit(self, sequences: list[Sequence]) -> None:
        """Keep the root and the accepted path; `request.tokens` has been extended already."""

    @abstractmethod
    def roll_back(self, sequence: Sequence) -> None:
        """Drop entries of draft nodes after a step that failed."""

    @abstractmethod
    def remove(self, sequence: Sequence) -> Any:
        """Release a sequence, and return its cache if it has one of its own, else None."""


class Each(Runner):
    """Every sequence by itself: its own cache of any kind, its own forwards."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._forgets: bool = getattr(target, "forgets_at_switch", False)
        self._caches: dict[int, TargetCache] = {}

    def add(self, sequence: Sequence) -> None:
        """See `Runner.add`."""
        cache = self._target.new_cache(sequence.past)
        check_cache(self._target, cache)
        prompt_len, needed = sequence.request.prompt_len, sequence.max_total - 1
        length, capacity = cache.length, cache.capacity
        message = None
        if length and (sequence.num_padding or length >= prompt_len):
            message = (
                f"past_key_values: found {length} entries for a prompt of {prompt_len} tokens; it "
                "may hold all of the prompt but its last token, and no padding"
            )
        elif capacity is not None and (sequence.num_padding or capacity < needed):
            message = (
                f"past_key_values: found a capacity of {capacity} entries, wanted {needed}: one "
                "for each token of the prompt and each new one but the last, none for padding; "
                "drop the padding, or use a larger cache"
            )
        if message is not None:
            cache.finish()
            raise ParamsError(message, slug="bad_past", sequence=0)
        self._caches[sequence.request.id] = cache
        self.sequences.append(sequence)

    def budgets(self, wanted: list[int]) -> list[int]:
        """See `Runner.budgets`."""
        limits = []
        for sequence, most in zip(self.sequences, wanted, strict=True):
            capacity = self._caches[sequence.request.id].capacity
            # The root takes the entry at its position.
            spare = most if capacity is None else capacity - sequence.request.position - 1
            limits.append(min(most, max(spare, 0)))
        return limits

    def forward(self) -> None:
        """See `Runner.forward`."""
        for sequence in self.sequences:
            sequence.output = self._forward(sequence)

    def commit(self, sequences: list[Sequence]) -> None:
        """See `Runner.commit`."""
        for sequence in sequences:
            path = sequence.verdict.path
            cache = self._caches[sequence.request.id]
            # The emitted tokens are appended already: the root stands that much further back.
            root = sequence.request.position - len(path) - 1
            plan = commit_plan(sequence.tree_run.tree, path, root)
            cache.commit(plan)
            check_commit(cache, plan)

    def roll_back(self, sequence: Sequence) -> None:
        """See `Runner.roll_back`."""
        cache = self._caches[sequence.request.id]
        cache.crop(min(cache.length, sequence.request.position))

    def remove(self, sequence: Sequence) -> Any:
        """See `Runner.remove`."""
        self.sequences.remove(sequence)
        cache = self._caches.pop(sequence.request.id)
        pending = sequence.request.tokens[cache.length : -1]
        has_ended = sequence.finish is not None and sequence.error is None
        if pending and cache.is_recurrent and has_ended:
            # Accepted tokens that were to be run again: the user's cache shall hold them.
            ids = torch.tensor([pending], device=self._target.device)
            self._target.forward(ids, None, None, cache, num_logits=1)
        return cache.finish(sequence.num_padding)

    def _forward(self, sequence: Sequence) -> Output:
        request, draft, switch = sequence.request, sequence.draft, sequence.switch
        cache, tokens = self._caches[request.id], request.tokens
        if self._forgets and switch is not None and cache.length <= switch < len(tokens):
            # Its entries were read in the other way, and are computed again with the root.
            cache.crop(0)
        pending = tokens[cache.length :]
        positions = mask = before = None
        is_chain = draft.tree.is_chain
        if len(pending) > 1 and not (is_chain and (draft.num_nodes == 1 or not cache.is_recurrent)):
            # The prompt is causal; only the tree itself needs a mask. And a recurrent state can be
            # put back to where a forward began: to the root, not to the prompt's beginning.
            _, before = self._run(sequence, self._ids(pending[:-1]), None, None, 1)
            pending = pending[-1:]
        sketch = sequence.sketch
        if not is_chain:
            if sketch is None:
                mask = torch.from_numpy(np.asarray(draft.tree.mask()))
                depths = torch.from_numpy(np.asarray(draft.tree.depths)).to(self._target.device)
            else:
                mask, depths = sketch.ancestors, sketch.depths
            positions = (request.position + depths)[None]
        if sketch is None:
            ids = self._ids(pending + draft.tokens[1:].tolist())
        else:
            ids = torch.cat([self._ids(pending), sketch.table[1:2, 1:]], dim=1)
        logits, hidden = self._run(sequence, ids, positions, mask, draft.num_nodes)
        if before is not None and hidden is not None:
            hidden = tuple(torch.cat(pair) for pair in zip(before, hidden, strict=True))
        if hidden is not None and request.position >= request.prompt_len:
            # Tokens that are run again have been shown before.
            hidden = tuple(states[-draft.num_nodes :] for states in hidden)
        return Output(logits, hidden)

    def _run(
        self,
        sequence: Sequence,
        ids: torch.Tensor,
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        target, layers = self._target, sequence.hidden_layers
        cache = self._caches[sequence.request.id]
        sequence.stats.forwards += 1
        before, width = cache.length, ids.shape[1]
        found = target.forward(ids, positions, mask, cache, layers, num_logits=num_logits)
        check_forward(target, found, num_logits, width, cache.length - before, len(layers))
        return found

    def _ids(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self._target.device)


class Together(Runner):
    """All sequences in one forward over a cache of many; sequence i has slot i."""

    shares_forwards = True

    def __init__(self, target: BatchTarget, cache: ManyCache, graphs: Graphs) -> None:
        super().__init__()
        self._target = target
        self._cache = cache
        self._graphs = graphs
        self.is_ragged = bool(getattr(target, "is_ragged", False)) and not graphs
        # Hidden states of prompts that were run for the coming forward, by request.
        self._before: dict[int, tuple[torch.Tensor, ...]] = {}

    def add(self, sequence: Sequence) -> None:
        """See `Runner.add`."""
        if sequence.past is not None:
            message = "past_key_values can be given for a single sequence that is not paged"
            raise ParamsError(message, slug="bad_past")
        # A drafter that wants hidden states needs those of all tokens: all are run.
        self._cache.add(sequence.request.tokens[:-1], is_known=not sequence.hidden_layers)
        self.sequences.append(sequence)

    def has_space(self) -> bool:
        """See `Runner.has_space`."""
        return self._cache.has_space()

    def prepare(self) -> None:
        """See `Runner.prepare`: prompts that are not in the cache yet."""
        for slot in range(len(self.sequences)):
            self._run_prompt(slot)

    def budgets(self, wanted: list[int]) -> list[int]:
        """See `Runner.budgets`."""
        return self._cache.budgets(wanted)

    def forward(self) -> None:
        """See `Runner.forward`."""
        device, sequences = self._target.device, self.sequences
        counts = [sequence.draft.num_nodes for sequence in sequences]
        self._cache.reserve(counts)
        width = self._cache.width(max(counts))
        tokens = np.empty((len(sequences), width), np.int64)
        positions = np.empty((len(sequences), width), np.int64)
        ancestors = np.zeros((len(sequences), width, width), bool)
        # What fills a draft up repeats the root, and sees nothing but itself and the past.
        ancestors[:, range(width), range(width)] = True
        for slot, sequence in enumerate(sequences):
            request, draft, count = sequence.request, sequence.draft, counts[slot]
            tokens[slot] = request.tokens[-1]
            tokens[slot, 1:count] = draft.tokens[1:]
            positions[slot] = request.position
            positions[slot, :count] += draft.tree.depths
            ancestors[slot, :count, :count] = draft.tree.mask()
            sequence.stats.forwards += 1
        layers = sorted({layer for sequence in sequences for layer in sequence.hidden_layers})
        parts = map(torch.from_numpy, (tokens, positions, ancestors))
        ids, places, seen = (sent(part, device) for part in parts)
        for slot, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            if (sketch := sequence.sketch) is not None:
                ids[slot, 1:count] = sketch.table[1, 1:]
                if not sketch.form.is_chain:  # Of chains the host knows as much.
                    places[slot, :count] = sketch.depths + sequence.request.position
                    seen[slot, :count, :count] = sketch.ancestors
        logits, hidden = self._run(ids, places, seen, layers, counts)
        for slot, sequence in enumerate(sequences):
            mine = None
            if wanted := sequence.hidden_layers:
                mine = tuple(hidden[layers.index(i)][slot, : counts[slot]] for i in wanted)
                before = self._before.pop(sequence.request.id, None)
                if before is not None:
                    mine = tuple(torch.cat(pair) for pair in zip(before, mine, strict=True))
            sequence.output = Output(logits[slot, : counts[slot]], mine, logits)

    def _run(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        seen: torch.Tensor,
        layers: list[int],
        counts: list[int],
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Run the target over all slots; a graph keeps its logits until it runs again."""
        target, cache, (count, width) = self._target, self._cache, ids.shape
        if self._graphs:
            cache.starts(target.device)  # A graph finds them where they are.

        more = {"counts": counts} if self.is_ragged else {}

        def forward(ids: torch.Tensor, places: torch.Tensor, seen: torch.Tensor) -> Any:
            return target.forward_slots(ids, places, seen, cache, layers, **more)

        def key() -> Hashable:
            return count, width, tuple(layers), cache.num_shown(width), cache.memory()

        found = self._graphs.run(key, forward, (ids, places, seen))
        check_slots(target, found, count, width)
        logits, hidden = found
        # Drafters keep states for longer than a step.
        return logits, tuple(states.clone() for states in hidden) if self._graphs else hidden

    def commit(self, sequences: list[Sequence]) -> None:
        """See `Runner.commit`."""
        slots = {sequence.request.id: slot for slot, sequence in enumerate(self.sequences)}
        drafts = [sequence.tree_run for sequence in sequences]
        verdicts = [sequence.verdict for sequence in sequences]
        self._cache.commit([slots[s.request.id] for s in sequences], drafts, verdicts)

    def roll_back(self, sequence: Sequence) -> None:
        """See `Runner.roll_back`."""
        self._before.pop(sequence.request.id, None)
        self._cache.drop(self.sequences.index(sequence))

    def remove(self, sequence: Sequence) -> None:
        """See `Runner.remove`."""
        slot = self.sequences.index(sequence)
        self._before.pop(sequence.request.id, None)
        self._cache.remove(slot, wipe=sequence.error is not None)
        last = self.sequences.pop()
        if last is not sequence:
            self.sequences[slot] = last

    def _run_prompt(self, slot: int) -> None:
        """Bring a slot up to the root; keep the hidden states of what had to be run."""
        sequence, cache = self.sequences[slot], self._cache
        tokens = sequence.request.tokens
        start, end = cache.lengths[slot], len(tokens) - 1
        if start == end:
            return
        if not sequence.hidden_layers:
            for other, donor in enumerate(self.sequences):
                # Several samples of one prompt: it is run once, and its entries are copied.
                is_same = donor.request.tokens[:end] == tokens[:end]
                if is_same and cache.lengths[other] >= end and cache.share(other, slot, end):
                    return
        device = self._target.device
        cache.aim(end - start, device, slot)
        ids = torch.tensor([tokens[start:end]], device=device)
        layers = sequence.hidden_layers
        _, hidden = self._target.forward(ids, None, None, cache, layers, num_logits=1)
        sequence.stats.forwards += 1
        cache.extend(slot, end)
        if hidden:
            self._before[sequence.request.id] = hidden
