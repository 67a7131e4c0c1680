"""Fill the arrays of a step on the host; one copy takes them to the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from mtp_verify import _core
from mtp_verify.errors import DraftError, MtpVerifyError, ParamsError, RuleError
from mtp_verify.verifier.intake import as_list, check_history
from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.layout import COUPLED, LIFTED, Nodes, Requests, Shaping
from mtp_verify.verifier.kernels.device.shadow import Changes
from mtp_verify.verifier.kernels.edits import Edits
from mtp_verify.verifier.params import as_params

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mtp_verify._core import CoreParams, Draft, DraftBatch, _Tables
    from mtp_verify.verifier.kernels.device.arena import Arena, Field
    from mtp_verify.verifier.kernels.device.layout import Capacity
    from mtp_verify.verifier.words import RuleName

__all__ = ["Plan", "edits_of", "fields", "fill", "nodes_of", "requests_of", "shaping_of"]

_MOST_POSITION = (1 << 32) - 2  # As the core: a position and what follows it fit 32 bits.
# What is not int32.
_OF_REQUESTS = dict.fromkeys(("seed", "position", "start"), torch.int64)
_OF_SHAPING = {
    "temperature": torch.float32,
    **dict.fromkeys(("top_p", "min_p", "log_min_p"), torch.float64),
}


class Plan(NamedTuple):
    """What the host knows of the drafts of a step.

    Attributes:
        offsets: (B+1,) int64, where each request's nodes begin.
        rules: B names.
        nodes: The most nodes of a tree.
        depth: The deepest level.
        children: The most children of a node.
        rounds: How many rounds of masses it needs.
        height: How many rows of logits it reads at least.
        reads_drafter: Whether a node was sampled, and a rule reads the drafter's rows.
        truncates: Whether top-k, top-p or min-p is on for a row, of the target or the drafter.
        races: Whether a request is of the core COUPLED.
        changes: What penalties, biases and bans change in rows; None for nothing.
    """

    offsets: NDArray[np.int64]
    rules: list[RuleName]
    nodes: int
    depth: int
    children: int
    rounds: int
    height: int
    reads_drafter: bool
    truncates: bool
    races: bool
    changes: Changes | None


def fields(capacity: Capacity) -> dict[str, Field]:
    """Return the tensors that a step takes from the host; each begins where wide loads may."""
    return {
        **_group("nodes", Nodes, capacity.rows, {}),
        **_group("requests", Requests, capacity.requests, _OF_REQUESTS),
        **_group("target", Shaping, capacity.rows, _OF_SHAPING),
        **_group("drafter", Shaping, capacity.drafted, _OF_SHAPING),
    }


def _group(name: str, kind: Any, size: int, dtypes: Mapping[str, torch.dtype]) -> dict[str, Field]:
    return {f"{name}.{part}": ((size,), dtypes.get(part, torch.int32)) for part in kind._fields}


def _parts(tensors: Mapping[str, Any], name: str, kind: Any) -> Any:
    return kind(*(tensors[f"{name}.{part}"] for part in kind._fields))


def nodes_of(tensors: Mapping[str, Any]) -> Nodes:
    """Return the nodes of an arena's tensors."""
    found: Nodes = _parts(tensors, "nodes", Nodes)
    return found


def requests_of(tensors: Mapping[str, Any]) -> Requests:
    """Return the requests of an arena's tensors."""
    found: Requests = _parts(tensors, "requests", Requests)
    return found


def shaping_of(tensors: Mapping[str, Any], side: str) -> Shaping:
    """Return the shaping of the "target"'s or the "drafter"'s rows."""
    found: Shaping = _parts(tensors, side, Shaping)
    return found


def fill(
    arena: Arena,
    capacity: Capacity,
    drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
    params: CoreParams | Sequence[CoreParams],
    rule: str | Sequence[str],
    *,
    seeds: Sequence[int],
    positions: Sequence[int],
    starts: Sequence[int] | None,
    height: int | None,
    edits: Sequence[Edits | None],
) -> Plan:
    """Check the drafts of a step, and write them into the arena's arrays on the host.

    Args:
        arena: With `fields` of the capacity.
        capacity: What the drafts must fit.
        drafts: B drafts.
        params: Of the target's rows, one or B.
        rule: One name or B.
        seeds: B.
        positions: B.
        starts: B, or None for 0.
        height: How many rows of logits each request has where they are padded, (B, M, V); None if
            they follow each other.
        edits: B, of which histories are used; empty where there are none.

    Raises:
        DraftError, RuleError, ParamsError: What does not fit, with its request as ``sequence``.
    """
    nodes, requests, shaping, rules, sizes = _tables(drafts, params, rule)
    count, total = requests.shape[1], nodes.shape[1]
    largest = int(requests[1].max(initial=0))
    if isinstance(drafts, DeviceDrafts) and drafts.table is not None:
        sizes = _bounds(drafts.bounds, sizes, requests)
    depth = sizes[0]
    reads_drafter = bool(((nodes[8] > 0) & (requests[2][nodes[0]] > COUPLED)).any())
    found = (count, total, largest, *sizes)
    most = (
        capacity.requests,
        capacity.rows,
        capacity.nodes,
        capacity.depth,
        capacity.children,
        capacity.rounds,
    )
    for name, have, limit in zip(_SIZES, found, most, strict=True):
        if have > limit:
            message = (
                f"{name}: found {have}, wanted at most {limit}: what the verifier was made for"
            )
            raise DraftError(message, slug="shape_mismatch")
    _check_cores(requests[2], rules)
    if not _hides_tokens(drafts):
        _check_tokens(nodes, capacity.vocab)
    _check_height(requests[1], height)
    _check_words("seeds", seeds, count)
    _check_words("positions", positions, count)
    for request, position in enumerate(positions):
        if position > _MOST_POSITION - depth:
            message = f"positions: {position} overflows; wanted at most {_MOST_POSITION - depth}"
            raise ParamsError(message, slug="overflow", sequence=request)
    changes = _changes(drafts, nodes, params, edits, capacity.vocab)
    rows = _drafted(drafts, nodes, capacity, reads=reads_drafter)
    _write(nodes_of(arena.host), [*nodes, rows, _places(nodes, height)], rest=-1)
    # A row that is there, for those who read all and look later.
    nodes_of(arena.host).place[total:] = 0
    words = np.asarray(seeds, np.uint64).view(np.int64)
    entries = np.zeros(count, np.int64) if starts is None else starts
    _write(requests_of(arena.host), [*requests, words, positions, entries], rest=-1)
    _write_shaping(arena, "target", shaping[:, nodes[0]])
    is_cut = truncates(shaping)
    if isinstance(drafts, DeviceDrafts) and drafts.logits is not None:
        alike = _shaping_of_all(drafts.params)
        _write_shaping(arena, "drafter", np.repeat(alike, capacity.drafted, axis=1))
        is_cut = is_cut or (reads_drafter and truncates(alike))
    needed = total if height is None else count * height
    offsets = np.append(requests[0], total).astype(np.int64)
    races = bool((requests[2] == COUPLED).any())
    return Plan(
        offsets, rules, largest, *sizes, needed, reads_drafter, is_cut, races, changes
    )  # fmt: skip


def _bounds(
    bounds: tuple[int, int], sizes: tuple[int, int, int], requests: NDArray[np.int32]
) -> tuple[int, int, int]:
    """Return depth, children and rounds of trees that only the device knows."""
    depth, children = (max(pair) for pair in zip(bounds, sizes, strict=False))
    lifted = requests[1][requests[2] == LIFTED]
    # Along a path each sibling waits for those before it: for as many as there are nodes at most.
    return depth, children, max(sizes[2], int(lifted.max(initial=1)) - 1)


_SIZES = ("requests", "nodes", "nodes of a tree", "depth", "children of a node", "passes")


def truncates(shaping: NDArray[np.float64]) -> bool:
    """Return whether a step after the temperature is on in rows that are not greedy."""
    temperature, top_k, top_p, min_p, _, _ = shaping
    return bool(((temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))).any())


def _tables(
    drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
    params: CoreParams | Sequence[CoreParams],
    rule: str | Sequence[str],
) -> _Tables:
    if not isinstance(drafts, DeviceDrafts):
        return _core.tables_of_drafts(drafts, params, rule)
    given = drafts
    if given.tokens is None and given.table is None:
        message = "tokens: found None, wanted those of the nodes, or a table"
        raise DraftError(message, slug="shape_mismatch")
    tokens = None if _hides_tokens(given) else given.tokens
    parts = given.offsets, given.parents, tokens, given.law, given.sampled
    return _core.tables_of_trees(*parts, params, rule)


def _hides_tokens(drafts: DeviceDrafts | DraftBatch | Sequence[Draft]) -> bool:
    """Return whether the device alone knows the drafted tokens."""
    if not isinstance(drafts, DeviceDrafts):
        return False
    is_away = isinstance(drafts.tokens, torch.Tensor) and not drafts.tokens.is_cpu
    return is_away or drafts.table is not None


def _changes(
    drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
    nodes: NDArray[np.int32],
    params: CoreParams | Sequence[CoreParams],
    edits: Sequence[Edits | None],
    vocab: int,
) -> Changes | None:
    """Return what penalties, biases and bans change in the rows of all nodes."""
    listed = [params] if isinstance(params, _core.CoreParams) else params
    if not any(own.changes_logits for own in listed):
        return None
    if _hides_tokens(drafts):
        message = "params: found penalties, biases or bans; wanted drafts with tokens on the host"
        raise ParamsError(message, slug="not_supported")
    changes = Changes(*_core.changes_of_rows(nodes, params, edits, vocab))
    return changes if len(changes.rows) else None


def edits_of(
    drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
    positions: Sequence[int],
    histories: Sequence[Sequence[int] | None] | None,
    prompt_lens: Sequence[int] | None,
) -> list[Edits | None]:
    """Return the histories of all requests, checked; an empty list if there are none.

    Raises:
        ParamsError: One does not lead to its root, with its request as ``sequence``.
    """
    if histories is None:
        return []
    count = _count(drafts)
    texts = as_list("histories", histories)
    lengths = [0] * count if prompt_lens is None else as_list("prompt_lens", prompt_lens)
    _check_words("histories", texts, count)
    _check_words("prompt_lens", lengths, count)
    _check_words("positions", positions, count)
    edits: list[Edits | None] = []
    for request, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        if text is None:
            edits.append(None)
            continue
        # A root's token is not read from `DeviceDrafts`.
        root = -1 if isinstance(drafts, DeviceDrafts) else int(drafts[request].tokens[0])
        try:
            check_history(text, length, root=root, position=positions[request])
        except MtpVerifyError as error:
            raise error.in_sequence(request) from None
        edits.append(Edits(text, length))
    return edits


def _shaping_of_all(params: Any) -> NDArray[np.float64]:
    """Return (6, 1), the shaping of one request's rows."""
    core = as_params(params)._core
    return _core.tables_of_trees([0, 1], [-1], None, "deterministic", None, core, "auto")[2]


def _check_cores(cores: NDArray[np.int32], rules: Sequence[str]) -> None:
    for request, core in enumerate(cores):
        if core > LIFTED:
            message = f"rule: {rules[request]} runs on the host alone; use mtp_verify.verify_batch"
            raise RuleError(message, slug="not_supported", sequence=request)


def _check_tokens(nodes: NDArray[np.int32], vocab: int) -> None:
    is_wrong = (nodes[7] >= vocab) & (nodes[1] > 0)
    if is_wrong.any():
        row = int(is_wrong.argmax())
        node = int(nodes[1][row])
        message = f"node {node}: token {nodes[7][row]} is outside the vocabulary of {vocab}"
        error = DraftError(message, slug="token_out_of_vocabulary", node=node)
        raise error.in_sequence(int(nodes[0][row]))


def _check_height(counts: NDArray[np.int32], height: int | None) -> None:
    if height is not None and (counts > height).any():
        request = int((counts > height).argmax())
        message = f"logits: found {height} rows, wanted {counts[request]}, one for each node"
        raise DraftError(message, slug="shape_mismatch").in_sequence(request)


def _count(drafts: DeviceDrafts | DraftBatch | Sequence[Draft]) -> int:
    if isinstance(drafts, DeviceDrafts):
        return len(np.asarray(drafts.offsets)) - 1
    return len(drafts)


def _check_words(name: str, values: Sequence[int], count: int) -> None:
    if len(values) != count:
        message = f"{name}: found {len(values)} entries, wanted {count}, one for each draft"
        raise ParamsError(message, slug="param_out_of_range")


def _drafted(
    drafts: DeviceDrafts | DraftBatch | Sequence[Draft],
    nodes: NDArray[np.int32],
    capacity: Capacity,
    *,
    reads: bool,
) -> NDArray[np.int32]:
    """Return the drafter's row of each node, checked; -1 everywhere if none is read."""
    total = nodes.shape[1]
    none = np.full(total, -1, np.int32)
    if not reads:
        return none
    matrix = drafts.probs if isinstance(drafts, DeviceDrafts) else None
    if isinstance(drafts, DeviceDrafts) and matrix is None:
        matrix = drafts.logits
    if not isinstance(drafts, DeviceDrafts) or matrix is None:
        message = (
            "drafts: sampled tokens need the drafter's rows on the device; pass DeviceDrafts with "
            "probs or logits"
        )
        raise DraftError(message, slug="law_data")
    available = len(matrix)
    if drafts.rows is None:
        rows = np.where(np.arange(total) < available, np.arange(total), -1).astype(np.int32)
    else:
        rows = np.asarray(drafts.rows).astype(np.int32)
    if rows.shape != (total,):
        message = f"rows: found {rows.shape}, wanted ({total},), one for each node"
        raise DraftError(message, slug="shape_mismatch")
    above = rows[nodes[2]]
    is_missing = (nodes[8] > 0) & ((above < 0) | (above >= available))
    if is_missing.any():
        row = int(is_missing.argmax())
        message = f"rows: node {nodes[1][row]} was sampled, and its parent has row {above[row]}"
        error = DraftError(message, slug="missing_row", node=int(nodes[1][row]))
        raise error.in_sequence(int(nodes[0][row]))
    if available > capacity.drafted:
        message = f"probs: found {available} rows, wanted at most {capacity.drafted}"
        raise DraftError(message, slug="shape_mismatch")
    return rows


def _places(nodes: NDArray[np.int32], height: int | None) -> NDArray[np.int32]:
    """Return which row of the logits follows each node."""
    if height is None:
        return np.arange(nodes.shape[1], dtype=np.int32)
    places: NDArray[np.int32] = nodes[0] * height + nodes[1]
    return places


def _write(group: Any, columns: Sequence[Any], *, rest: int) -> None:
    """Write columns into the arrays of a group, and `rest` behind them."""
    for array, column in zip(group, columns, strict=True):
        array[: len(column)] = column
        array[len(column) :] = rest


def _write_shaping(arena: Arena, side: str, shaping: NDArray[np.float64]) -> None:
    for array, column in zip(shaping_of(arena.host, side), shaping, strict=True):
        array[: len(column)] = column
