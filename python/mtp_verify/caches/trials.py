"""What the rows of a model depend on besides their own text, found by trying.

Speculation runs several tokens in one forward. That is exact only where the row after each of them
is the row of plain decoding, whatever else is in the forward: other tokens of a chain, siblings of
a tree, other requests of a batch. Some models choose their rotary frequencies by the last position
of the forward (longrope); some hide or weigh tokens by their index in it, which in a tree or a
batch is not their position (GPT-Neo, ALiBi as Falcon has it); some fail on a mask of their own
shape. No configuration tells, so each model is tried before it is used: about ten forwards, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch

from mtp_verify.caches.compiled import name_of, uncompiled
from mtp_verify.caches.names import cache_name
from mtp_verify.caches.stretch import attending, copied, spans_of, stretch
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtp_verify.caches.model import ModelCache

__all__ = ["Traits", "inexact", "state_obstacle", "static_obstacle", "traits_of"]

_NUM_PROMPT = 8
_NUM_CHAIN = 3
_NUM_END = 4  # tokens of the prompt that are replaced to see whether others notice
# Between the root and its last child in the tree that is tried: index and depth differ by as many.
_NUM_SIBLINGS = 12
# Contexts are extended by less than this, so that so many parts of one lie within the original.
_LARGEST_EXTENSION = 512
_HALF = torch.float16  # Stands for all dtypes of less than 32 bits.
# Root mean square distance of two rows, relative to the spread of their logits, that the rounding
# of differently shaped forwards may explain: 4e-3 in full and 0.08 in half precision were seen.
_TOLERANCES = {torch.float64: 1e-2, torch.float32: 2e-2, _HALF: 0.15}
# The same where shapes are equal and only other tokens differ. No bit changes then, except where
# tokens choose experts: those run in shapes of their own.
_SAME_SHAPE = {torch.float64: 1e-6, torch.float32: 1e-4, _HALF: 5e-3}
_SAME_SHAPE_WITH_EXPERTS = {torch.float64: 1e-6, torch.float32: 1e-2, _HALF: 0.05}
# Largest difference of recurrent states, relative to the largest value: far above rounding (4e-3 in
# float32, 7e-2 in bfloat16 seen), far below a state that was lost (4e-1 and more).
_STATE_TOLERANCES = {torch.float64: 2e-2, torch.float32: 2e-2, _HALF: 0.2}
_NUM_STATE_TOKENS = 10  # Longer than the kernels of short convolutions, which are 3 or 4 wide.
_Answer = TypeVar("_Answer")
_known: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Traits:
    """What may share a forward of a model: None, or why not."""

    chains: str | None = None  # even the tokens of a chain
    trees: str | None = None
    batches: str | None = None  # several requests
    # Texts of more tokens than this are read in another way, all of their tokens at once. Then the
    # library's own generation computes all entries anew (Phi-3), or goes on from the old ones.
    switch: int | None = None
    forgets: bool = False
    max_length: int | None = None  # most tokens of a text for which all that holds


def traits_of(target: Any, *, trees: bool, batches: bool) -> Traits:
    """Try a `TransformersTarget`, unless it has been tried as it is configured now.

    Trees and batches are left out where they are refused anyway.
    """
    key = ("traits", trees, batches)
    return _remembered(target, key, lambda: _Trials(target).run(trees=trees, batches=batches))


def static_obstacle(target: Any, capacity: int) -> str | None:
    """Return why the model cannot run on a cache of a fixed size, or None if it can."""
    key = ("static", capacity)
    return _remembered(target, key, lambda: _Trials(target).find_static_obstacle(capacity))


def state_obstacle(target: Any) -> str | None:
    """Return why a recurrent model cannot go on by two tokens at once, or None if it can.

    Two tokens in one forward are compared with the same two one by one, after a rollback. Mamba,
    Jamba and Zamba2 of transformers 5.23 start again from nothing, or nearly so; others keep a
    state outside of the cache, where it cannot be put back.
    """
    return _remembered(target, "state", lambda: _find_state_obstacle(target))


def inexact(model: Any, obstacle: str) -> UnsupportedModelError:
    """Return the refusal of a model whose rows are not those of plain decoding.

    `obstacle` is what was found when it was tried.
    """
    kind = ""
    if getattr(model, "_is_stateful", False):
        kind = "it is a recurrent model, whose state cannot be rolled back after a rejected draft: "
    message = f"{name_of(model)} cannot decode speculatively: {kind}{obstacle}"
    return UnsupportedModelError(message, slug="stateful_model")


def _remembered(target: Any, what: Any, find: Callable[[], _Answer]) -> _Answer:
    """Return what was found for this model, as it is configured and run, or find it."""
    key = (what, target.max_length, target.fingerprint)
    answers: dict[Any, _Answer] = _known.setdefault(target.model, {})
    if key not in answers:
        # Each trial has shapes of its own, which would be compiled each for itself.
        with torch.no_grad(), uncompiled(target.model):
            answers[key] = find()
    return answers[key]


class _Trials:
    """A few tokens, and the forwards over them."""

    def __init__(self, target: Any) -> None:
        self._target = target
        dtype = _dtype_of(target.model)
        has_experts = any("expert" in name for name, _ in target.model.named_modules())
        self._tolerance = _TOLERANCES[dtype]
        self._same_shape = (_SAME_SHAPE_WITH_EXPERTS if has_experts else _SAME_SHAPE)[dtype]
        # In half precision rounding may make a row choose another expert: one may be off.
        self._num_excused = int(has_experts and dtype == _HALF)
        self._limit = target.max_length or 1 << 15
        num_prompt = min(_NUM_PROMPT, self._limit - _NUM_CHAIN - 1)
        self._is_possible = num_prompt >= _NUM_END + 2
        vocab = target.vocab_size or 8
        ids = [(7 * i + i * i // 3 + 1) % vocab for i in range(_NUM_PROMPT + 3 * _NUM_CHAIN)]
        self._prompt = ids[:num_prompt]
        self._stride = max(1, self._limit // _LARGEST_EXTENSION // _NUM_PROMPT)
        self._chain = ids[_NUM_PROMPT : _NUM_PROMPT + _NUM_CHAIN]
        self._others = ids[_NUM_PROMPT + _NUM_CHAIN :]
        # Models that look for padding in what they are given would take it for that.
        padding = getattr(target.model.config.get_text_config(decoder=True), "pad_token_id", None)
        if isinstance(padding, int) and 0 <= padding < vocab:
            self._chain[1] = padding

    def run(self, *, trees: bool, batches: bool) -> Traits:
        """Try all that is wanted."""
        if not self._is_possible:
            return Traits()
        try:
            cache, rows = self.start()
            if not bool(rows.amax(-1).isfinite().all()):
                return Traits(chains="its rows hold NaN or infinity")
            depends, switch, max_length = self._depends_on_what_follows(rows)
            if depends:
                return Traits(chains="its rows depend on the tokens that come behind them")
            self._limit = switch or max_length or self._limit
            starts = copied(cache)
            cache.crop(cache.length)
            spans = spans_of(self._target.model, cache)
            length = stretch(cache, spans, self._limit - _NUM_CHAIN - 1)
            alone = torch.cat([self._forward(cache, [token]) for token in self._chain])
            cache.crop(length)
            together = self._forward(cache, self._chain)
            cache.crop(length)
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
            return Traits(chains=f"its forward fails on a few tokens ({_said(error)})")
        wrong = "several tokens in one forward give it other rows than the same ones one by one"
        if chain := self._compare(wrong, (together, alone)):
            return Traits(chains=chain)
        tree = self._tree_obstacle(cache, length, alone) if trees else None
        batch = None
        if switch is not None:
            effect = "changes how it reads all others of the forward"
            batch = f"a request of more than {switch} tokens {effect}"
        elif batches:
            # What takes an index for a position does so in a batch, too.
            batch = tree or self._batch_obstacle(cache, starts, rows, alone)
        forgets = switch is not None and self._forgets(switch)
        return Traits(None, tree, batch, switch, forgets, max_length)

    def _forgets(self, switch: int) -> bool:
        """Return whether the model's own preparation of a forward drops the cache at the switch."""
        cache, _ = self.start()
        ids = torch.zeros((1, switch + 1), dtype=torch.int64, device=self._target.device)
        prepare = self._target.model.prepare_inputs_for_generation
        options = {"attention_mask": torch.ones_like(ids), cache_name(prepare) or "": cache.kv}
        try:
            prepared = prepare(ids, **options)
        except Exception:  # noqa: BLE001 - a model's own code may raise anything
            return False
        return not any(value is cache.kv for value in prepared.values())

    def start(self) -> tuple[ModelCache, torch.Tensor]:
        """Run the prompt; return its cache, before anything has left a window, and all rows."""
        cache = self._target.new_cache()
        return cache, self._forward(cache, self._prompt)

    def find_static_obstacle(self, capacity: int) -> str | None:
        """Compare the prompt on a cache of fixed size, longer than it, with the prompt alone."""
        from transformers import StaticCache

        from mtp_verify.caches.model import ModelCache

        if not self._is_possible or capacity < 2 * _NUM_PROMPT:
            return None
        target = self._target
        try:
            growing, rows = self.start()
            size = max([*spans_of(target.model, growing), 0]) + 2 * _NUM_PROMPT
            kv = StaticCache(config=target.model.config, max_cache_len=min(size, capacity))
            cache = ModelCache(kv)
            found = [self._forward(cache, part) for part in (self._prompt[:2], self._prompt[2:])]
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
            return f"its forward fails on one ({_said(error)})"
        wrong = "on one its rows are others than on a growing cache"
        return self._compare(wrong, (torch.cat(found), rows))

    def _read(self, end: list[int], last: int) -> torch.Tensor:
        """Return the rows of the prompt's tokens but the last ones, which `end` replaces.

        The last token stands at `last`, the others near the beginning, yet far enough from each
        other that another frequency shows.
        """
        positions = None
        if self._target.takes_positions:
            positions = self._stride * torch.arange(len(self._prompt), device=self._target.device)
            positions[-1] = last
            positions = positions[None]
        ids = [*self._prompt[:-_NUM_END], *end]
        return self._forward(self._target.new_cache(), ids, positions)[:-_NUM_END]

    def _depends_on_what_follows(self, rows: torch.Tensor) -> tuple[bool, int | None, int | None]:
        """Replace the prompt's end, and put the last token as far away as one can stand.

        Return whether that changes the rows before it; if not, `switch` and `max_length`.
        """
        end, other = self._prompt[-_NUM_END:], self._others[:_NUM_END]
        low = high = self._stride * (len(self._prompt) - 1)
        if self._target.max_length is not None:
            high = self._limit - 1

        def is_near(last: int) -> bool:
            return self._gap(self._read(other, last), near) <= self._same_shape

        near = rows[:-_NUM_END] if self._stride == 1 else self._read(end, low)
        if is_near(high):
            return False, None, None
        if not is_near(low):
            return True, None, None
        far = self._read(other, high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_near(middle) else (low, middle)
        if self._gap(self._read(other, high), far) > self._same_shape:
            # Not one other way of reading, but many.
            return False, None, high
        return False, high, None

    def _forward(
        self,
        cache: ModelCache,
        ids: list[int],
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the rows (n, V) of some tokens behind a cache, which takes them in."""
        tokens = torch.tensor([ids], device=self._target.device)
        rows: torch.Tensor
        rows, _ = self._target.forward(tokens, positions, mask, cache, num_logits=len(ids))
        return rows

    def _tree_obstacle(self, cache: ModelCache, length: int, alone: torch.Tensor) -> str | None:
        """Run the chain as the last path of a tree, behind siblings of its second token."""
        root, *path = self._chain
        siblings = [*self._others[: _NUM_SIBLINGS // 2], *[path[0]] * (_NUM_SIBLINGS // 2)]
        count = 1 + len(siblings) + len(path)
        nodes = [0, *range(1 + len(siblings), count)]
        depths = torch.ones(count, dtype=torch.int64)
        depths[nodes] = torch.arange(len(nodes))
        mask = torch.eye(count, dtype=torch.bool)
        mask[:, 0] = True
        for place, node in enumerate(nodes):
            mask[node, nodes[:place]] = True
        positions = (length + depths)[None].to(self._target.device)
        try:
            rows = self._forward(cache, [root, *siblings, *path], positions, mask)
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
            return f"its forward fails on the mask of a tree ({_said(error)})"
        finally:
            cache.crop(length)
        return self._compare("beside siblings its rows are others than alone", (rows[nodes], alone))

    def _batch_obstacle(
        self, cache: ModelCache, starts: list[Any], rows: torch.Tensor, alone: torch.Tensor
    ) -> str | None:
        """Run the chain behind a cache in one forward with another request, of a shorter past.

        `starts` are the prompt's keys and values, `rows` its rows, `alone` those of the chain.
        """
        from mtp_verify.caches.slots import SlotCache

        target = self._target
        device = target.device
        try:
            slots = SlotCache(target.new_kv())
            # The other's past is the prompt's beginning, and its draft is what follows that.
            width = min(_NUM_CHAIN, len(self._prompt) - 2)
            lengths = [cache.length, len(self._prompt) - width]
            for slot, length in enumerate(lengths):
                slots.add()
                slots.aim(length, device, slot)
                entries = copied(cache) if slot == 0 else starts
                for layer, pair in zip(attending(slots.kv), entries, strict=True):
                    layer.update(*(states[:, :, :length] for states in pair))
                slots.extend(slot, length)
            ids = torch.tensor([self._chain[:width], self._prompt[-width:]], device=device)
            positions = (torch.tensor(lengths)[:, None] + torch.arange(width)).to(device)
            ancestors = torch.ones((2, width, width), dtype=torch.bool).tril_().to(device)
            found, _ = target.forward_slots(ids, positions, ancestors, slots)
        except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
            return f"its forward over several fails ({_said(error)})"
        pairs = (found[0], alone[:width]), (found[1], rows[-width:])
        return self._compare("beside others its rows are not those alone", *pairs)

    def _compare(self, wrong: str, *pairs: tuple[torch.Tensor, torch.Tensor]) -> str | None:
        """Return what is wrong if the rows of a pair are not the same, or None."""
        gap = max(self._gap(found, wanted) for found, wanted in pairs)
        return f"{wrong} (relative difference {gap:.1e})" if gap > self._tolerance else None

    def _gap(self, found: torch.Tensor, wanted: torch.Tensor) -> float:
        """Return the largest distance of rows (n, V), n >= 2, over their spread, from those wanted.

        With experts in half precision it is the second largest.
        """
        found, wanted = found.double(), wanted.double()
        spread = wanted.std(dim=-1).clamp_min(1e-30)
        gaps = (found - wanted).pow(2).mean(dim=-1).sqrt() / spread
        if not bool(gaps.isfinite().all()):
            return math.inf
        return float(gaps.sort().values[-1 - self._num_excused])


def _dtype_of(model: Any) -> torch.dtype:
    dtype: torch.dtype = next(model.parameters()).dtype
    return dtype if dtype in _TOLERANCES else _HALF


def _said(error: Exception) -> str:
    """Return the error of a model's forward in words; raise it if there is no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        raise error
    return f"{type(error).__name__}: {error}"


def _find_state_obstacle(target: Any) -> str | None:
    vocab = target.vocab_size or 8
    tokens = (torch.arange(_NUM_STATE_TOKENS, device=target.device) * 7 + 1) % vocab
    cuts = [_NUM_STATE_TOKENS - 2, _NUM_STATE_TOKENS - 1, _NUM_STATE_TOKENS]
    try:
        stepwise, state = _run_to(target, tokens, cuts, target.new_cache())
        cache = target.new_cache()
        # Something else in between, rolled back.
        _run_to(target, tokens, cuts[:1], cache)
        cache.crop(cuts[0])
        target.forward(tokens[None, :2], None, None, cache, num_logits=1)
        cache.crop(cuts[0])
        at_once, other = _run_to(target, tokens, cuts[-1:], cache)
    except Exception as error:  # noqa: BLE001 - a model with a cache of its own may raise anything
        return f"its forward fails on a cache of the library's own layers ({error})"
    hidden = (getattr(module, "recurrent_states", None) for module in target.model.modules())
    if any(isinstance(state, torch.Tensor) for state in hidden):
        return "it keeps a recurrent state outside of the cache, which cannot be rolled back"
    pairs = [(stepwise, at_once), *zip(state, other, strict=True)]
    worst = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)
    if worst > _STATE_TOLERANCES[_dtype_of(target.model)]:
        wrong = "two tokens in one forward give it another state than the same two one by one"
        return f"{wrong} (relative difference {worst:.1e})"
    return None


def _run_to(
    target: Any, tokens: torch.Tensor, ends: list[int], cache: ModelCache
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the tokens up to each end; return the last row and the recurrent states."""
    row = torch.empty(0)
    for end in ends:
        row, _ = target.forward(tokens[None, cache.length : end], None, None, cache, num_logits=1)
    states = [
        state.float()
        for layer in cache.kv.layers
        for name in ("conv_states", "recurrent_states")
        for state in getattr(layer, name, {}).values()
        if state is not None
    ]
    return row.float(), states
