"""Kinds of caches for many sequences, as users choose them; transformers need not be imported.

A new kind is a file with its `Storage` and a record here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers.cache_utils import DynamicCache

    from mtp_verify.caches.many import Storage

__all__ = ["KINDS", "CacheKind", "CacheSettings", "Growing", "Paged", "Static", "as_settings"]


class CacheSettings(ABC):
    """Settings of one kind of cache.

    Attributes:
        is_on_device: drafts are verified where the model is, also where that is the CPU.
    """

    is_on_device: ClassVar[bool] = False

    @abstractmethod
    def open(self, new_kv: Callable[[], DynamicCache]) -> Storage:
        """Return where the entries of a decoder's requests are kept; see `BatchTarget.new_kv`."""


@dataclass(frozen=True)
class Growing(CacheSettings):
    """Every sequence has a slot of its own, which grows with it."""

    def open(self, new_kv: Callable[[], DynamicCache]) -> Storage:
        """See `CacheSettings.open`."""
        from mtp_verify.caches.slots import SlotCache, SlotStorage

        return SlotStorage(new_kv, SlotCache)


@dataclass(frozen=True)
class Static(CacheSettings):
    """As `Growing`, in forwards of few shapes, with steps that read the model's device once.

    What a model on a GPU has where nothing else is asked for. On a CPU it runs the same steps there
    (slower than `Growing`, which shows no more entries than there are).

    Attributes:
        graphs: capture the forwards of submitted requests in CUDA graphs, one for each number of
            requests, width and size. Not tried on a GPU yet, and so left to you.
    """

    is_on_device: ClassVar[bool] = True

    graphs: bool = False

    def open(self, new_kv: Callable[[], DynamicCache]) -> Storage:
        """See `CacheSettings.open`."""
        from mtp_verify.caches.slots import SlotStorage, StaticSlots

        return SlotStorage(new_kv, StaticSlots)


@dataclass(frozen=True)
class Paged(CacheSettings):
    """Settings of a paged cache: `Decoder(model, cache=Paged(num_blocks=256))`.

    Attributes:
        num_blocks: blocks of the pool, at least 1.
        block_size: entries of a block, at least 1.
        prefix_cache: full blocks of known tokens are found again by later requests.
    """

    num_blocks: int = 1024
    block_size: int = 16
    prefix_cache: bool = False

    def open(self, new_kv: Callable[[], DynamicCache]) -> Storage:
        """See `CacheSettings.open`."""
        from mtp_verify.caches.paged import PagePool

        return PagePool(new_kv(), self)


# The names that `Decoder(cache=...)` takes.
CacheKind = Literal["paged", "static"]
KINDS: dict[CacheKind, type[CacheSettings]] = {"paged": Paged, "static": Static}


def as_settings(cache: Any) -> CacheSettings | None:
    """Return the settings that a name or a record stands for; None stays None.

    Raises:
        ParamsError: neither.
    """
    if cache is None or isinstance(cache, CacheSettings):
        return cache
    for name, kind in KINDS.items():
        if isinstance(cache, str) and cache == name:
            return kind()
    names = ", ".join(f'"{name}"' for name in KINDS)
    message = f"cache: found {shown(cache)}, wanted None, {names}, or settings such as Paged()"
    raise ParamsError(message, slug="param_out_of_range")
