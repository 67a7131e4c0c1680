"""What caches of many sequences have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from mtp_verify.caches.base import DUMMY
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from mtp_verify._core import BlockTable, Draft, Verdict

__all__ = ["ManyCache", "SharedLayer", "Storage", "replace_layers"]


class Storage(ABC):
    """Where the entries of a decoder's requests are kept.

    Attributes:
        table: who holds which blocks; None where there are none.
        is_shared: requests share entries or compete for them, and so decide on each other's drafts.
    """

    table: BlockTable | None = None
    is_shared = False

    @abstractmethod
    def new_cache(self) -> ManyCache:
        """Return a cache of no sequences."""


class ManyCache(ABC):
    """A cache whose sequences come, go and grow independently, each in a slot of its own.

    Slots in use are 0 to `len(lengths) - 1`, `lengths` their numbers of entries. What a forward
    wrote counts only after `commit` or `extend`: one that failed has changed nothing. Defaults are
    those of a cache that can always grow. `kv` is for the model's forward, with the layers of this
    cache.
    """

    is_recurrent = False  # No layer of the kinds that can be shared has a recurrent state.

    def __init__(self, kv: Any) -> None:
        self.kv = kv
        self.lengths: list[int] = []

    @property
    @abstractmethod
    def length(self) -> int:
        """Entries of the slot that the next forward writes behind, where `aim` named one."""

    @property
    def windows(self) -> tuple[bool, int | None]:
        """Whether some layer sees everything, and the width of sliding layers (None: no such)."""
        layers = self.kv.layers
        widths = [layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)]
        return len(widths) < len(layers), widths[0] if widths else None

    def starts(self, device: torch.device) -> torch.Tensor:
        """Return `lengths` as a tensor (B,) int64 on a device."""
        return torch.tensor(self.lengths, device=device)

    def num_shown(self, width: int) -> int:
        """Return how many entries of each slot a forward of `width` tokens shows."""
        return max(self.lengths) + width

    def width(self, num_nodes: int) -> int:
        """Return how wide a forward is over drafts of so many nodes at most."""
        return num_nodes

    def memory(self) -> Hashable:
        """Return where the entries lie: forwards of one shape over the same memory are alike."""
        return None

    @abstractmethod
    def add(self, tokens: Sequence[int], *, is_known: bool) -> None:
        """Take a sequence into a new, last slot; its length may be greater than 0 already.

        `tokens` are those that it is to hold entries of before its first draft. With `is_known`
        their entries may be taken from other sequences.

        Raises:
            OutOfBlocksError: there is no space; nothing has changed.
        """

    @abstractmethod
    def remove(self, slot: int, *, wipe: bool = False) -> None:
        """Free a slot, for the last one to move in; `wipe` what may hold NaN for its next user."""

    @abstractmethod
    def share(self, source: int, target: int, length: int) -> bool:
        """Give slot `target` the first `length` entries of slot `source`, and no others.

        Return whether that could be done; if not, they have to be computed.
        """

    def has_space(self) -> bool:
        """Return whether every slot can take one more entry."""
        return True

    def budgets(self, wanted: Sequence[int]) -> list[int]:
        """Return how many draft nodes, of those wanted, each slot may have so that all fit.

        Raises:
            OutOfBlocksError: there is not even space for the roots.
        """
        return list(wanted)

    def reserve(self, counts: Sequence[int]) -> None:  # noqa: B027
        """Make space for a draft of so many nodes in each slot.

        Raises:
            OutOfBlocksError: there is no space; nothing has changed.
        """

    def drop(self, slot: int) -> None:  # noqa: B027
        """Take back what was reserved for a slot."""

    @abstractmethod
    def aim(self, width: int, device: torch.device, slot: int | None = None) -> None:
        """Say where the next forward writes: `width` tokens behind one slot, or behind each."""

    def writing(self, count: int) -> AbstractContextManager[None]:
        """Return a context for a forward over one slot."""
        del count
        return nullcontext()

    def extend(self, slot: int, length: int) -> None:
        """Count the entries of a forward over one slot."""
        self.lengths[slot] = length

    @abstractmethod
    def commit(
        self, slots: Sequence[int], drafts: Sequence[Draft], verdicts: Sequence[Verdict]
    ) -> None:
        """Keep the root and the accepted path of each draft."""


class SharedLayer(DynamicLayer):
    """What a layer that holds many sequences tells the library, which knows of one.

    A sliding-window layer keeps its whole past too: which part of it a node sees is the mask's
    business, and no rollback can need an entry that is gone.
    """

    def __init__(self, sliding_window: int | None, start: Callable[[], int]) -> None:
        super().__init__()
        self._start = start
        if sliding_window is not None:
            self.is_sliding = True
            self.sliding_window = sliding_window

    def get_seq_length(self) -> int:
        """Return the entries before this forward; asked for where one sequence runs alone."""
        return self._start()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many entries are shown, and the place of the first one."""
        return self.get_seq_length() + query_length, 0


def replace_layers(
    cache: DynamicCache, make: Callable[[int | None], SharedLayer]
) -> list[SharedLayer]:
    """Replace the layers of an empty cache, and return the new ones.

    `make` is given the width of a sliding window, or None.

    Raises:
        UnsupportedModelError: a layer that is neither of full nor of sliding-window attention.
    """
    layers: list[Any] = []
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            layers.append(make(None))
        elif type(layer) is DynamicSlidingWindowLayer:
            layers.append(make(int(layer.sliding_window)))
        elif isinstance(layer, DUMMY):
            layers.append(layer)
        else:
            message = (
                f"cache layer {index} is a {type(layer).__name__}; requests share a forward "
                "only where all layers are of full or sliding-window attention"
            )
            raise UnsupportedModelError(message, slug="unsupported_cache")
    cache.layers = layers
    return [layer for layer in layers if isinstance(layer, SharedLayer)]
