"""Past texts that requests share, to copy from: bounded, each tenant's apart.

A text enters when its request ends, so that nothing in the store was undecided. Two requests with
one seed draw with the same numbers: what one has drawn must not steer what is drafted for the other
(docs/explanation/lossless-loops.md). So of the sampled requests with one seed only the first reads
and writes a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np

from mtp_verify import _core
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.verifier.files import check_file
from mtp_verify.verifier.intake import as_count, as_list, as_path, check_type, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mtp_verify.drafters.base import Request

__all__ = ["Shelf", "SuffixStore", "shelf_of"]

_KIND = "mtp_verify.suffix_store"
_MOST_NAME = 128  # bytes
_MOST_SEEDS = 1 << 20
# The tensors of a file: one dimension each.
_TENSORS = {"tokens": "U32", "lengths": "I64", "owners": "I64", "seeds": "U64", "names": "U8",
            "name_lengths": "I64"}  # fmt: skip


@dataclass
class _Visit:
    """What a request may do with a store."""

    is_admitted: bool
    ticket: int | None  # None for a request that draws nothing.
    num_kept: int  # Tokens of its text that are in the store, or are prompt.


class SuffixStore:
    """Past texts for `Suffix(store=...)`, shared by the requests and threads of a process.

    What was used longest ago makes way for what comes in. Look-ups run side by side, outside of
    Python's lock; a text is added or dropped in between. Drafts that copy are deterministic, so
    that every lossless rule stays lossless.

    A tenant's texts are drafted for that tenant alone, unless a drafter names it in `reads`.

    Of the sampled requests that have one seed only the first uses a store (the others would draft
    from their own noise); requests at temperature 0 always do. After 2**20 seeds the store
    is emptied and begins anew.

    Args:
        max_tokens: most tokens, 256 to 2**28; a text counts 16 more than it has. A token takes
            about 16 bytes, at most 40.
        max_context: longest match, 1 to 256; drafts are at most as deep.

    Raises:
        ParamsError: a parameter is out of range.

    Example:
        >>> from mtp_verify.drafters import Request, Suffix, SuffixStore
        >>> store = SuffixStore()
        >>> store.add([5, 6, 7, 8, 9], tenant="a")
        >>> request = Request(id=0, tokens=[1, 5, 6], prompt_len=3, seed=1)
        >>> for tenant in ("a", "b"):
        ...     drafter = Suffix(store=store, tenant=tenant)
        ...     print(drafter.propose([request], [8])[0].tokens.tolist())
        [6, 7, 8]
        [6]

    References:
        SuffixDecoding, arXiv 2411.04975 (a tree of past outputs beside one of the request's own).
    """

    def __init__(self, max_tokens: int = 1 << 20, *, max_context: int = 32) -> None:
        self._core = _core.SuffixStore(
            as_count("max_tokens", max_tokens), as_count("max_context", max_context)
        )
        self._visits: WeakKeyDictionary[Request, _Visit] = WeakKeyDictionary()
        self._lock = Lock()

    def __repr__(self) -> str:
        """Show its limits and how much it holds."""
        size = f"max_tokens={self.max_tokens}, max_context={self.max_context}"
        return f"SuffixStore({size}, num_tokens={self.num_tokens}, num_texts={self.num_texts})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a copy would be another store."""
        message = "SuffixStore: cannot be pickled or copied: threads share it; use save(path)"
        raise TypeError(message)

    @property
    def max_tokens(self) -> int:
        """The most tokens that it holds, each text counted as 16 more than it has."""
        return self._core.limits[0]

    @property
    def max_context(self) -> int:
        """The longest match in tokens, and the greatest depth of a draft."""
        return self._core.limits[1]

    @property
    def num_texts(self) -> int:
        """Texts held."""
        return self._core.size[0]

    @property
    def num_tokens(self) -> int:
        """Tokens held."""
        return self._core.size[1]

    @property
    def num_bytes(self) -> int:
        """Bytes that the texts, their order and the seeds take."""
        return self._core.size[2]

    @property
    def num_lookups(self) -> int:
        """How often a draft was looked up."""
        return self._core.lookups_and_hits[0]

    @property
    def num_hits(self) -> int:
        """How often the store had one, by a longer match than the request's own text has."""
        return self._core.lookups_and_hits[1]

    def add(self, tokens: Sequence[int] | NDArray[np.integer[Any]], *, tenant: str = "") -> None:
        """Take in a text that no request's noise decided: a document, an answer from a log.

        Args:
            tokens: token ids. Of more than `max_tokens` the last are kept; one alone is left out.
            tenant: whose it is; any name of at most 128 bytes.

        Raises:
            ParamsError: a token is no id, or the name is too long.
        """
        self._core.add(_as_tenant("tenant", tenant), tokens, None)

    def forget(self, tenant: str) -> None:
        """Drop all texts of a tenant; of one that has none nothing."""
        self._core.forget(_as_tenant("tenant", tenant))

    def clear(self) -> None:
        """Drop all texts and seeds; sampled requests in flight do not use the store any more."""
        self._core.clear()

    def save(self, path: str | Path) -> None:
        """Write texts, tenants and seeds to a safetensors file; needs torch.

        The file appears in one rename: a reader never sees half of it.
        """
        import torch

        from mtp_verify.checkpoints.tensors import write_tensors

        texts, seeds = self._core.contents()
        owners = {tenant: 0 for tenant, _ in texts}
        owners = {tenant: number for number, tenant in enumerate(owners)}
        names = [name.encode() for name in owners]
        arrays: dict[str, NDArray[Any]] = {
            "tokens": np.concatenate([np.empty(0, np.uint32), *(tokens for _, tokens in texts)]),
            "lengths": np.array([len(tokens) for _, tokens in texts], np.int64),
            "owners": np.array([owners[tenant] for tenant, _ in texts], np.int64),
            "seeds": seeds,
            "names": np.frombuffer(b"".join(names), np.uint8).copy(),
            "name_lengths": np.array([len(name) for name in names], np.int64),
        }
        about = {"kind": _KIND, "version": "1", "max_context": str(self.max_context)}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        write_tensors(as_path("path", path), tensors, about)

    @classmethod
    def load(cls, path: str | Path, max_tokens: int = 1 << 20) -> SuffixStore:
        """Make a store of what `save` wrote; needs torch. Nothing in the file is run.

        Args:
            path: the file.
            max_tokens: limit of the new store. What was used longest ago is left out if the texts
                count more.

        Raises:
            FileNotFoundError: there is no such file.
            ParamsError: it is no such file, what it says does not fit together, or it has more
                tokens than `max_tokens`.
        """
        source = as_path("path", path)
        max_tokens = as_count("max_tokens", max_tokens)
        arrays, max_context = _read(source, max_tokens)
        store = cls(max_tokens, max_context=max_context)
        names = _names(source, arrays["names"].tobytes(), arrays["name_lengths"])
        lengths, owners = arrays["lengths"], arrays["owners"]
        num_tokens = len(arrays["tokens"])
        if len(lengths) != len(owners) or not _add_up(lengths, num_tokens, least=2):
            _bad_file(source, f"its lengths do not divide {num_tokens} tokens among its texts")
        if len(owners) and not 0 <= owners.min() <= owners.max() < len(names):
            _bad_file(source, f"a text's owner is not one of its {len(names)} tenants")
        tokens = arrays["tokens"].astype(np.int64)
        cuts = accumulate(lengths.tolist(), initial=0)
        for (start, end), owner in zip(pairwise(cuts), owners.tolist(), strict=True):
            store.add(tokens[start:end], tenant=names[owner])
        for seed in arrays["seeds"].tolist():
            store._core.admit(seed)
        return store


class Shelf:
    """A store as one tenant's drafter uses it: its own texts, and those that it may read."""

    def __init__(self, store: SuffixStore, tenant: str, reads: Sequence[str]) -> None:
        self._store, self._core = store, store._core
        self._tenant = _as_tenant("tenant", tenant)
        self._tenants = [
            self._tenant,
            *(_as_tenant("reads", name) for name in as_list("reads", reads)),
        ]

    def propose(
        self,
        request: Request,
        index: _core.SuffixIndex,
        max_nodes: int,
        max_depth: int,
        stop: Sequence[int],
    ) -> tuple[list[int], list[int]] | None:
        """Return a draft where the store has a longer match than the request's own text."""
        visit = self._visit(request)
        if not visit.is_admitted:
            return None
        return self._core.propose(index, self._tenants, visit.ticket, max_nodes, max_depth, stop)

    def keep(self, request: Request) -> None:
        """Take in what was emitted for a request since it was last kept, and what led to it."""
        visit = self._visit(request)
        start, visit.num_kept = visit.num_kept, len(request.tokens)
        if visit.is_admitted and len(request.tokens) > start:
            text = request.tokens[max(start - self._store.max_context, 0) :]
            self._core.add(self._tenant, text, visit.ticket)

    def _visit(self, request: Request) -> _Visit:
        """Return what a request may do; one that comes back (it was preempted) goes on."""
        with self._store._lock:
            visit = self._store._visits.get(request)
            if visit is None:
                is_greedy = request.params.is_greedy
                ticket = None if is_greedy else self._core.admit(request.seed)
                visit = _Visit(is_greedy or ticket is not None, ticket, request.prompt_len)
                self._store._visits[request] = visit
            return visit


def shelf_of(store: SuffixStore | None, tenant: str, reads: Sequence[str]) -> Shelf | None:
    """Return a store as one tenant uses it; None without a store.

    Raises:
        ParamsError: a name is too long, or there is one and no store.
        TypeError: the store is none, or a name is no text.
    """
    tenant = _as_tenant("tenant", tenant)
    reads = [_as_tenant("reads", name) for name in as_list("reads", reads)]
    if store is not None:
        check_type("store", store, SuffixStore)
        return Shelf(store, tenant, reads)
    if tenant or reads:
        message = "tenant, reads: found names without a store, wanted store=SuffixStore(...) too"
        raise ParamsError(message, slug="param_out_of_range")
    return None


def _as_tenant(name: str, value: Any) -> str:
    check_type(name, value, str)
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = _MOST_NAME + 1
    if size > _MOST_NAME:
        message = f"{name}: found {shown(value)}, wanted a name of at most {_MOST_NAME} bytes"
        raise ParamsError(message, slug="param_out_of_range")
    return str(value)


def _read(path: Path, max_tokens: int) -> tuple[Mapping[str, NDArray[Any]], int]:
    """Return the tensors of a file and the longest match; sizes are checked before."""
    from mtp_verify.checkpoints.tensors import TensorFile

    check_file(path)
    try:
        file = TensorFile(path)
        about = file.metadata
        if about.get("kind") != _KIND or about.get("version") != "1":
            _bad_file(path, "it was not written by SuffixStore.save, version 1")
        found = {name: (info.dtype, len(info.shape)) for name, info in file.tensors.items()}
        if found != {name: (dtype, 1) for name, dtype in _TENSORS.items()}:
            _bad_file(path, "it has other tensors than SuffixStore.save writes")
        counts = {name: info.shape[0] for name, info in file.tensors.items()}
        most = {
            "tokens": max_tokens, "seeds": _MOST_SEEDS, "lengths": counts["tokens"] // 2,
            "name_lengths": counts["lengths"], "names": counts["name_lengths"] * _MOST_NAME,
            "owners": counts["lengths"],
        }  # fmt: skip
        for name, limit in most.items():
            if counts[name] > limit:
                _bad_file(path, f"found {counts[name]} {name}, wanted at most {limit}")
        context = about.get("max_context", "")
        if not (context.isascii() and context.isdigit() and len(context) <= 3):
            _bad_file(path, "its max_context is no number")
        return {name: file.read(name).numpy() for name in _TENSORS}, int(context)
    except UnsupportedModelError as error:
        raise ParamsError(str(error), slug="bad_store_file") from None


def _names(path: Path, text: bytes, lengths: NDArray[np.int64]) -> list[str]:
    if not _add_up(lengths, len(text), least=0):
        _bad_file(path, "its name_lengths do not divide the names")
    cuts = accumulate(lengths.tolist(), initial=0)
    try:
        names = [_as_tenant("names", text[start:end].decode()) for start, end in pairwise(cuts)]
    except (UnicodeDecodeError, ParamsError):
        _bad_file(path, f"its names are not texts of at most {_MOST_NAME} bytes")
    return names


def _add_up(lengths: NDArray[np.int64], total: int, least: int) -> bool:
    """Return whether lengths of at least `least` each sum to a total; none of them can overflow."""
    if not len(lengths):
        return total == 0
    is_possible = least <= lengths.min() <= lengths.max() <= total
    return bool(is_possible and sum(lengths.tolist()) == total)


def _bad_file(path: Path, what: str) -> NoReturn:
    message = f"{path}: {what}"
    raise ParamsError(message, slug="bad_store_file")
