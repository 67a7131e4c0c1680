"""What an engine is put into while it is certified, beside how rows are shaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing.laws import ENDED
from mtp_verify.testing.mutants import Follow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["CACHES", "GRAMMARS", "Setting", "filled_up"]

CACHES = {
    "": "room for each sequence as it grows",
    "paged": "blocks of one pool, equal beginnings shared",
    "tight": "a pool in which drafts find no room and rows wait for each other",
    "static": "fixed sizes, with no room for drafts near the end",
}
GRAMMARS = {
    "": "any token may follow any other",
    "pairs": "half of the tokens may follow each token",
    "dead-ends": "the same, but behind one token none may",
}


@dataclass(frozen=True)
class Setting:
    """What an engine is told, and what it runs on.

    Attributes:
        num: Tokens that are generated; engines shorten drafts near the end, which should lie
            beyond those that are compared.
        batch: Strings that this package's loops draw together; 0 means one at a time.
        eos: The token at which strings end, or None.
        grammar: A key of `GRAMMARS`.
        cache: A key of `CACHES`.
        sharpness: The logits of target and drafter are that much larger than usual.
    """

    num: int
    batch: int = 0
    eos: int | None = None
    grammar: str = ""
    cache: str = ""
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        for what, value, known in (
            ("grammar", self.grammar, GRAMMARS),
            ("cache", self.cache, CACHES),
        ):
            if value not in known:
                wanted = ", ".join(filter(None, known))
                message = f"{what}: found {value!r}, wanted one of: {wanted}; or nothing"
                raise ParamsError(message, slug="bad_options")
        if self.cache == "static" and self.batch:
            message = "cache: a static one serves a single sequence; leave out the batch"
            raise ParamsError(message, slug="bad_options")

    def allowed(self, vocab: int) -> Follow | None:
        """The grammar over a vocabulary, or None."""
        made = {"pairs": Follow.pairs, "dead-ends": Follow.dead_ends}
        return made[self.grammar](vocab) if self.grammar else None

    def refuse(self, engine: str, *names: str) -> None:
        """Refuse what an engine cannot be put into.

        Raises:
            ParamsError: One of the names has another value than usual.
        """
        for name in names:
            if getattr(self, name) != getattr(Setting(0), name):
                message = f"{engine}: it has no {name} to set; leave it out"
                raise ParamsError(message, slug="bad_options")


def filled_up(rows: Sequence[Sequence[int]], num: int) -> NDArray[np.int64]:
    """Strings of at most `num` tokens as one array, those that have ended filled up."""
    return np.array([[*row, *[ENDED] * (num - len(row))] for row in rows], np.int64)
