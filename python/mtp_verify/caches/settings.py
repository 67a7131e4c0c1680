"""Settings of caches, for those who have not imported transformers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Paged"]


@dataclass(frozen=True)
class Paged:
    """Settings of a paged cache: `Decoder(model, cache=Paged(num_blocks=256))`.

    Attributes:
        num_blocks: blocks of the pool, at least 1.
        block_size: entries of a block, at least 1.
        prefix_cache: full blocks of known tokens are found again by later requests.
    """

    num_blocks: int = 1024
    block_size: int = 16
    prefix_cache: bool = False
