"""Growers on a device: the drafts of `verifier.growers`, from rows that stay where they are.

The host knows how many places each level has, and nothing else: which of them hold a node, and with
which number, token and parent, is on the device. A grower is led like those of the host: it asks
for the rows of the places in its frontier, level by level.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mtp_verify.drafters.sketch import Sketch, bounds_of, star
from mtp_verify.verifier.kernels.device.arena import sent
from mtp_verify.verifier.kernels.device.forest import BAD_ROW, NO_NODE
from mtp_verify.verifier.kernels.device.torch_.source import Source, draft_noise, race_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify._core import TokenTree
    from mtp_verify.drafters.base import Request
    from mtp_verify.verifier.params import SamplingParams
    from mtp_verify.verifier.words import Law

__all__ = ["FixedForm", "Form", "Ranked", "confidence"]


class Form:
    """The base of growers on a device.

    Args:
        params: how rows are shaped.
        request: whose draft it is.
        vocab: (columns,) int64 on the device, the token of each column; None where they are tokens.
        device: where rows are.

    Attributes:
        above: which place of the last frontier each place of this one is below: on the host, or
            (n,) int64 where only the device knows.
        tokens: (n,) int64, what is in these places; any token where there is no node.
        size: how many places the frontier has; 0 when the draft is grown.
    """

    above: Sequence[int] | torch.Tensor = ()
    tokens: torch.Tensor
    size = 1  # The root.

    def __init__(
        self,
        params: SamplingParams,
        request: Request,
        vocab: torch.Tensor | None,
        device: torch.device,
    ) -> None:
        self._params = params
        self._vocab = vocab
        self._ends = _ids(sorted(request.eos_ids), device)
        self._is_cut = torch.zeros((), dtype=torch.bool, device=device)  # By a bad row.

    def extend(self, rows: torch.Tensor) -> None:
        """Grow by the rows (size, columns) of the frontier."""
        raise NotImplementedError

    def finish(self) -> Sketch:
        """Return the draft; the host's `vocab` is for the caller to add."""
        raise NotImplementedError

    def _close(self, rows: torch.Tensor, is_open: torch.Tensor) -> torch.Tensor:
        """Return which places of a frontier stay open: none where a row of one is no distribution.

        All of them, so that paths of one length stay so, as on the host.
        """
        is_bad = is_open & ~rows.amax(1).isfinite()
        self._is_cut = self._is_cut | is_bad.any()
        return is_open & ~self._is_cut

    @property
    def _no_node(self) -> torch.Tensor:
        """What marks a place without a node."""
        return torch.where(self._is_cut, BAD_ROW, NO_NODE)

    def _tokens_of(self, columns: torch.Tensor) -> torch.Tensor:
        return columns if self._vocab is None else self._vocab[columns]

    def _is_end(self, tokens: torch.Tensor) -> torch.Tensor:
        return (tokens[..., None] == self._ends).any(-1)


class FixedForm(Form):
    """A shape decided beforehand, filled level by level: `growers.Fixed`, `Coupled` and `Chain`.

    Args:
        tree: the shape, nodes level by level.
        law: of the draft.
        params, request, vocab, device: see `Form`.
        min_path: of a chain: nothing is drafted below a path of a smaller probability.
        min_confidence: of a chain: a row whose largest probability before truncation is below this
            ends it.
    """

    def __init__(
        self,
        tree: TokenTree,
        law: Law,
        params: SamplingParams,
        request: Request,
        vocab: torch.Tensor | None,
        device: torch.device,
        *,
        min_path: float = 0.0,
        min_confidence: float = 0.0,
    ) -> None:
        super().__init__(params, request, vocab, device)
        self._tree, self._law, self._device = tree, law, device
        self._seed, self._position = request.seed, request.position
        self._min_path, self._min_confidence = min_path, min_confidence
        self._noise = torch.empty(0)
        if law in _DRAWN:
            count = tree.num_nodes - 1
            self._noise = sent(draft_noise(request.seed, request.position, count), device)
        self._inner = [0]  # The nodes of the shape whose places are the frontier.
        self._number = torch.zeros(1, dtype=torch.int64, device=device)  # Of what is in them.
        self._is_open = torch.ones(1, dtype=torch.bool, device=device)
        self._next = torch.ones((), dtype=torch.int64, device=device)  # The next node's number.
        self._path = torch.ones((), device=device)
        self._grown: list[tuple[torch.Tensor, ...]] = []  # Of each level, flat.
        self._rows: list[torch.Tensor] = []
        self._holders: list[torch.Tensor] = []  # The node that each row follows.

    def extend(self, rows: torch.Tensor) -> None:
        """See `Form.extend`."""
        counts = [len(self._tree.children(node)) for node in self._inner]
        most, device = max(counts), self._device
        limit = _ids(counts, device)
        source = Source(rows, self._params)
        self._is_open = self._close(rows, self._is_open)
        if self._min_confidence:
            is_sure = confidence(rows, self._params) >= self._min_confidence
            self._is_open = self._is_open & is_sure
        columns, grown, sampled = self._children(source, most, limit)
        first = self._next + grown.cumsum(0) - grown
        self._next = self._next + grown.sum()
        places = torch.arange(most, device=device)
        number = torch.where(places < grown[:, None], first[:, None] + places, -1)
        tokens = self._tokens_of(columns)
        level = number, self._number[:, None].expand(-1, most), tokens, sampled
        flat = [i * most + place for i, count in enumerate(counts) for place in range(count)]
        taken = _ids(flat, device)
        self._grown.append(tuple(part.reshape(-1)[taken] for part in level))
        if self._law in _DRAWN:
            self._rows.append(rows)
            self._holders.append(torch.where(grown > 0, self._number, -1))
        is_open = (number >= 0) & ~self._is_end(tokens)
        if self._min_path:
            self._path = self._path * source.probability(columns)[0, 0]
            is_open = is_open & (self._path >= self._min_path)

        below = [child for node in self._inner for child in self._tree.children(node)]
        inner = [n for n, child in enumerate(below) if self._tree.children(child)]
        self._inner, self.size = [below[n] for n in inner], len(inner)
        self.above = [flat[n] // most for n in inner]
        places = _ids([flat[n] for n in inner], device)
        self.tokens, self._number = tokens.reshape(-1)[places], number.reshape(-1)[places]
        self._is_open = is_open.reshape(-1)[places]

    def _children(
        self, source: Source, most: int, limit: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return columns (F, most), how many of them there are (F,), which were sampled."""
        law, zero = self._law, torch.zeros((), dtype=torch.int64, device=self._device)
        if law in ("chain", "iid"):
            possible = limit
        elif most == 1:
            possible = torch.ones_like(limit)
        else:
            possible = torch.minimum(source.num_possible, limit)
        grown = torch.where(self._is_open, possible, zero)
        if law == "deterministic":
            columns = source.best(most)
        elif law == "coupled":
            tokens = torch.arange(source.weights.shape[1], device=self._device)
            place = self._position + 1 + int(self._tree.depths[self._inner[0]])
            noise = race_noise(self._seed, place, self._tokens_of(tokens))
            columns = source.race(most, noise)
        else:
            columns = self._draw(source, most, limit, grown)
        sampled = torch.full_like(columns, int(law in _DRAWN))
        if law == "top_plus_one":
            # Where the likely tokens are all that there are, none is drawn.
            sampled[:, 1:] = 0
            sampled[:, :1] = (source.num_possible >= limit)[:, None]
        return columns, grown, sampled

    def _draw(
        self, source: Source, most: int, limit: torch.Tensor, grown: torch.Tensor
    ) -> torch.Tensor:
        first = self._next + grown.cumsum(0) - grown
        places = torch.arange(most, device=self._device)
        numbers = (first[:, None] + places).clamp(max=len(self._noise))
        u = self._noise[numbers - 1]
        if self._law in ("chain", "iid"):
            return source.draw(u)
        if self._law == "top_plus_one":
            if most == 1:
                return source.draw(u)
            likely = source.best(most - 1)
            taken = torch.where(places[:-1] < (limit - 1)[:, None], likely, -1)
            drawn = source.draw(u[:, :1], taken)
            spare = torch.cat([likely, likely[:, -1:]], dim=1)
            has_drawn = (source.num_possible >= limit)[:, None]
            return torch.where(has_drawn, torch.cat([drawn, likely], dim=1), spare)
        columns = source.draw(u[:, :1])
        for place in range(1, most):
            columns = torch.cat([columns, source.draw(u[:, place : place + 1], columns)], dim=1)
        return columns

    def finish(self) -> Sketch:
        """See `Form.finish`."""
        number, parent, token, sampled = map(torch.cat, zip(*self._grown, strict=True))
        count = self._tree.num_nodes
        table = number.new_full((4, count + 1), -1)
        table[0, 1:], table[1:3] = self._no_node, 0
        place = torch.where(number >= 0, number, count)
        table[0, place], table[1, place], table[2, place] = parent, token, sampled
        logits = None
        if self._rows:
            logits, holder = torch.cat(self._rows), torch.cat(self._holders)
            rows = torch.arange(len(logits), device=self._device)
            table[3, torch.where(holder >= 0, holder, count)] = rows
        bounds = bounds_of(self._tree)
        params = None if logits is None else self._params
        return Sketch(table[:, :count], self._law, self._tree, bounds, logits, params)


class Ranked(Form):
    """The nodes of largest path probability: `growers.Heap`.

    Args:
        max_nodes: most drafted nodes.
        max_depth: most levels.
        max_children: most children of a node.
        params, request, vocab, device: see `Form`.
        min_score: nodes of a smaller path probability are left out.
    """

    def __init__(
        self,
        max_nodes: int,
        max_depth: int,
        max_children: int,
        params: SamplingParams,
        request: Request,
        vocab: torch.Tensor | None,
        device: torch.device,
        *,
        min_score: float = 0.0,
    ) -> None:
        super().__init__(params, request, vocab, device)
        self._max_nodes, self._max_depth = max_nodes, max_depth
        self._most = min(max_children, max_nodes)
        self._floor = math.log(min_score) if min_score > 0 else -math.inf
        self._depth = 0
        self._children = 0
        # Of the places of the frontier: the candidate that is there, its score, if it is open.
        self._candidate = torch.full((1,), -1, dtype=torch.int64, device=device)
        self._score = torch.zeros(1, device=device)
        self._is_open = torch.ones(1, dtype=torch.bool, device=device)
        # Of all candidates.
        self._parents: list[torch.Tensor] = []
        self._words: list[torch.Tensor] = []
        self._scores: list[torch.Tensor] = []
        self._best = torch.empty(0)
        self._is_there = torch.empty(0)

    def extend(self, rows: torch.Tensor) -> None:
        """See `Form.extend`."""
        device, most = rows.device, min(self._most, rows.shape[1])
        self._children = max(self._children, most)
        source = Source(rows, self._params)
        columns = source.best(most)
        places = torch.arange(most, device=device)
        self._is_open = self._close(rows, self._is_open)
        exists = self._is_open[:, None] & (places < source.num_possible[:, None])
        scores = self._score[:, None] + source.probability(columns).log()
        scores = torch.where(exists & (scores >= self._floor), scores, -math.inf).flatten()
        tokens = self._tokens_of(columns).flatten()
        begin = sum(map(len, self._words))
        self._parents.append(self._candidate.repeat_interleave(most))
        self._words.append(tokens)
        self._scores.append(scores)

        everything = torch.cat(self._scores)
        falling, order = torch.sort(everything, descending=True, stable=True)
        self._best = order[: self._max_nodes]
        self._is_there = falling[: self._max_nodes] > -math.inf
        is_kept = torch.zeros_like(everything, dtype=torch.bool)
        is_kept[self._best] = self._is_there
        self._depth += 1
        # Above a node of this level stands one of each level before.
        self.size = min(len(tokens), self._max_nodes - self._depth + 1)
        if self._depth >= self._max_depth or self.size < 1:
            self.size = 0
            return
        is_open = is_kept[begin:] & ~self._is_end(tokens)
        chosen = torch.sort((~is_open).byte(), stable=True).indices[: self.size]
        self.above = chosen // most
        self.tokens, self._is_open = tokens[chosen], is_open[chosen]
        self._candidate, self._score = begin + chosen, scores[chosen]

    def finish(self) -> Sketch:
        """See `Form.finish`."""
        best, is_there, count = self._best, self._is_there, len(self._best)
        ranks = torch.arange(1, count + 1, device=best.device)
        # By candidate, behind the root's.
        number = best.new_zeros(sum(map(len, self._words)) + 1)
        number[best + 1] = ranks
        parents = number[torch.cat(self._parents)[best] + 1]
        table = best.new_full((4, count + 1), -1)
        table[0, 1:] = torch.where(is_there, parents, self._no_node)
        table[1, 1:] = torch.cat(self._words)[best]
        table[2] = 0
        bounds = min(self._depth, count), min(self._children, count)
        return Sketch(table, "deterministic", star(count), bounds)


_DRAWN = ("chain", "iid", "swor", "top_plus_one")


def _ids(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return sent(torch.tensor(values, dtype=torch.int64), device)


def confidence(rows: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the largest probability of each row at its temperature, at 1 where that is greedy."""
    scaled = rows.float() / (1.0 if params.is_greedy else params.temperature)
    return torch.exp(scaled.amax(1) - torch.logsumexp(scaled, 1))
