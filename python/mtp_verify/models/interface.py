"""What the decoder asks of a model: `Target`, its `TargetCache`, and checks of what they answer.

Any object with these methods is a target. A class that derives from `Target` or `TargetCache` has
defaults for what most models answer alike (docs/howto/own-target.md writes one).
"""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from mtp_verify.errors import CacheError, UnsupportedModelError
from mtp_verify.verifier.intake import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers.cache_utils import DynamicCache

    from mtp_verify._core import CommitPlan
    from mtp_verify.caches.many import ManyCache

__all__ = [
    "BatchTarget",
    "Target",
    "TargetCache",
    "check_cache",
    "check_commit",
    "check_facts",
    "check_forward",
    "check_slots",
    "missing_parts",
]

# What the verifier reads.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_NO_TREES = "the target does not say that it attends along one (tree_obstacle = None says it)"


@runtime_checkable
class TargetCache(Protocol):
    """What a target remembers of one sequence: an entry for each token that was run.

    Entries stand in the order in which tokens were run: those of the text, then a step's root, then
    its draft nodes. Whatever depends on a token has to go with its entry: keys and values, and all
    other state as well. What cannot be cut anywhere (a recurrent state) says `is_recurrent = True`
    and goes back further: the decoder runs the tokens between again.

    Attributes:
        capacity: the most entries that it can hold, or None.
        is_recurrent: where entries are dropped, `length` may become less than was asked for. The
            prompt is then run apart from the first draft.
    """

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of entries."""

    @property
    def capacity(self) -> int | None:
        """See above; None unless said otherwise."""
        return None

    @property
    def is_recurrent(self) -> bool:
        """See above; False unless said otherwise."""
        return False

    @abstractmethod
    def commit(self, plan: CommitPlan) -> None:
        """Keep the root and the accepted path: apply the plan's moves, keep `plan.length` entries.

        `plan.moves` is (M, 2) int64, from entry to entry, carried out in order: no entry is read
        after it was written. A draft that is a chain has none.
        """

    @abstractmethod
    def crop(self, length: int) -> None:
        """Keep the first `length` entries; `length` is at most that of the cache."""

    def finish(self, num_padding: int = 0) -> object:
        """Return what the user gets as `past_key_values`, None unless said otherwise.

        `num_padding` masked entries are to be put in front.
        """
        del num_padding
        return None


@runtime_checkable
class Target(Protocol):
    """A model that gives next-token logits: what `mv.Decoder` runs.

    Its rows are the distribution that is kept. The row after a token is a function of the tokens up
    to it: not of tokens behind it, of siblings in a tree, of other sequences, of earlier calls, or,
    but for rounding, of how many tokens one forward runs. `mv.testing.assert_target` tries all of
    that.

    Attributes:
        vocab_size: size V of a row, or None if only a forward tells.
        max_length: most tokens that a sequence may have, or None.
        eos_ids: tokens that end a sequence unless the user says otherwise.
        tree_obstacle: why it cannot attend along a tree, or None if it can. A class that derives
            from this one cannot unless it says so.
    """

    vocab_size: int | None
    max_length: int | None = None
    eos_ids: tuple[int, ...] = ()
    tree_obstacle: str | None = _NO_TREES

    @property
    def device(self) -> torch.device:
        """Where its tokens live: the CPU unless said otherwise."""
        return torch.device("cpu")

    @abstractmethod
    def new_cache(self, past: Any | None = None) -> TargetCache:
        """Return an empty cache, or wrap the user's own: what was given as `past_key_values`."""

    @abstractmethod
    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        cache: Any,
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """Append `tokens` to the cache and return the rows after the last `num_logits` of them.

        Args:
            tokens: (1, n) int64, n >= 1.
            positions: (1, n) int64, or None for the next n positions. Given where there is a tree:
                the root's position plus each node's depth.
            tree_mask: (n, n) bool, node i sees node j of the same call where entry (i, j) is set,
                and all that the cache held before; None for a causal chain.
            cache: from `new_cache`; its length grows by n.
            hidden_layers: layers whose hidden states are wanted, as `mtp_verify.models.hidden`
                numbers them. Empty unless the drafter asks for some (`Heads`).
            num_logits: of 1 to n.

        Returns:
            Logits (num_logits, V), float32, float16 or bfloat16, on the model's device; the caller
            may keep them while others run. And (n, d) hidden states for each layer, or None.
        """


@runtime_checkable
class BatchTarget(Target, Protocol):
    """A target that can run many sequences in one forward.

    Attributes:
        batch_obstacle: why it cannot after all, or None.
        is_ragged: whether `forward_slots` takes `counts`, and rows beyond them cost next to
            nothing; a target without this attribute takes none.
    """

    batch_obstacle: str | None

    def new_kv(self) -> DynamicCache:
        """Return an empty cache of the library, whose layers a cache of many sequences replaces."""

    def forward_slots(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        ancestors: torch.Tensor,
        cache: ManyCache,
        hidden_layers: Sequence[int] = (),
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Write one tree behind each sequence of the cache and return the rows of all nodes.

        Args:
            tokens: (B, W) int64, B the sequences of the cache.
            positions: (B, W) int64.
            ancestors: (B, W, W) bool; entry (b, i, j) is set where node i sees node j.
            cache: its lengths grow by `commit` only.
            hidden_layers: as in `Target.forward`.

        One that is ragged has one argument more, `counts`: B numbers of nodes, or None for W each.
        What it returns for the nodes from there on is not read.

        Returns:
            Logits (B, W, V) on the model's device, and (B, W, d) hidden states per layer.
        """


def missing_parts(model: Any) -> list[str]:
    """Return the methods and attributes of a `Target` that an object lacks."""
    return _missing(model, ("new_cache", "forward"), (*_FACTS, "device"))


def _missing(value: Any, calls: tuple[str, ...], facts: tuple[str, ...]) -> list[str]:
    lacks = [f"{name}()" for name in calls if not callable(getattr(value, name, None))]
    return lacks + [name for name in facts if not hasattr(value, name)]


def _bad(owner: Any, name: str, found: str, wanted: str) -> UnsupportedModelError:
    message = f"{type(owner).__name__}.{name}: found {found}, wanted {wanted}"
    return UnsupportedModelError(message, slug="bad_target")


def check_facts(target: Target) -> None:
    """Refuse attributes of a target that cannot be right.

    Raises:
        UnsupportedModelError: names the first of them, what was found and what was wanted.
    """
    for name, (test, wanted) in _FACTS.items():
        if not test(value := getattr(target, name)):
            raise _bad(target, name, shown(value), wanted)


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, Integral) and int(value) > 0)


def _are_ids(value: Any) -> bool:
    is_collection = isinstance(value, tuple | list | set | frozenset)
    return is_collection and all(isinstance(item, Integral) for item in value)


_FACTS = {
    "vocab_size": (_is_size, "a number of tokens, or None"),
    "max_length": (_is_size, "a number of tokens, or None"),
    "eos_ids": (_are_ids, "a tuple of token ids"),
    "tree_obstacle": (lambda v: isinstance(v, str | None), "a reason in words, or None"),
}


def check_cache(target: Target, cache: Any) -> None:
    """Refuse what `new_cache` returned if it is no `TargetCache`.

    Raises:
        UnsupportedModelError: names what is missing.
    """
    facts = ("length", "capacity", "is_recurrent")
    if missing := _missing(cache, ("commit", "crop", "finish"), facts):
        found = f"{shown(cache)} without {', '.join(missing)}"
        raise _bad(target, "new_cache", found, "a mv.TargetCache")


def check_forward(
    target: Target, found: Any, num_logits: int, num_new: int, grown: int, num_layers: int
) -> None:
    """Refuse what a forward returned if it is not what `Target.forward` promises.

    `num_logits` rows were asked for of `num_new` tokens, and hidden states of `num_layers` layers;
    the cache has `grown` by so many entries.

    Raises:
        UnsupportedModelError: names the method, what was found and what was wanted.
    """
    name = "forward"
    logits, hidden = _pair(target, name, found, "hidden states or None")
    _check_logits(target, name, logits, (num_logits,), "num_logits rows of vocab_size")
    if grown != num_new:
        entries = f"a cache that has grown by {grown} entries"
        raise _bad(target, name, entries, f"{num_new}: one for each token")
    # None is an answer: the drafter says what it needs them for.
    if num_layers and hidden is not None and [len(h) for h in hidden] != [num_new] * num_layers:
        found = f"hidden states {[tuple(states.shape) for states in hidden]}"
        raise _bad(target, name, found, f"{num_layers} of shape ({num_new}, d)")


def check_slots(target: BatchTarget, found: Any, num_slots: int, width: int) -> None:
    """Refuse what a forward over many sequences returned if its rows are not those of all nodes.

    Raises:
        UnsupportedModelError: names the method, what was found and what was wanted.
    """
    name, shape = "forward_slots", (num_slots, width)
    logits, _ = _pair(target, name, found, "a tuple of hidden states")
    _check_logits(target, name, logits, shape, "a row of vocab_size for each node")


def _pair(target: Target, name: str, found: Any, second: str) -> tuple[Any, Any]:
    if not (isinstance(found, tuple) and len(found) == 2):
        raise _bad(target, name, shown(found), f"a pair: logits, and {second}")
    return found


def _check_logits(
    target: Target, name: str, logits: Any, shape: tuple[int, ...], meaning: str
) -> None:
    width = target.vocab_size
    is_tensor = isinstance(logits, torch.Tensor) and logits.dtype in _DTYPES
    is_right = is_tensor and logits.dim() > 1 and logits.shape[:-1] == shape
    if is_right and width in (None, logits.shape[-1]):
        return
    seen = shown(logits)
    if isinstance(logits, torch.Tensor):
        seen = f"{tuple(logits.shape)} {str(logits.dtype).removeprefix('torch.')}"
    sizes = ", ".join(map(str, (*shape, "V" if width is None else width)))
    wanted = f"a tensor ({sizes}) of float32, float16 or bfloat16: {meaning}"
    raise _bad(target, name, f"logits {seen}", wanted)


def check_commit(cache: TargetCache, plan: CommitPlan) -> None:
    """Refuse a cache that is not as long as a commit has left it.

    Raises:
        CacheError: names the cache, what was found and what was wanted.
    """
    found = cache.length
    if found != plan.length and not (cache.is_recurrent and found < plan.length):
        message = f"{type(cache).__name__}.commit: found {found} entries, wanted {plan.length}"
        raise CacheError(message, slug="bad_target")
