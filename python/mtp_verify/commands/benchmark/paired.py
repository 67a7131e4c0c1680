"""Compares drafters at the same places of one text.

Runs of two drafters differ in their texts, and so in much that is not the drafters' doing. Here all
draft at the same places of the plain run's text, and what the target would accept of a draft is
computed exactly (`mv.expected_accepted`). What is left is the noise of drawn tokens, which several
draws make small, and that of the texts, which differences between drafters share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtp_verify.drafters.base import Request
from mtp_verify.models.target import as_target
from mtp_verify.verifier.api import derive_seed, expected_accepted
from mtp_verify.verifier.kernels import to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify._core import Draft
    from mtp_verify.commands.shared.entrants import Entrant
    from mtp_verify.models.target import Target
    from mtp_verify.verifier.params import SamplingParams

__all__ = ["Expectation", "expectations"]

_STRIDE = 8  # Tokens from one place to the next: neighbours would say nearly the same.
_MOST_NODES = 64


@dataclass(frozen=True)
class Expectation:
    """What to expect of a drafter's drafts at the places of a text, the mean over its draws.

    Attributes:
        entrant: its name.
        accepted: for each place, the mean number of accepted tokens.
        drafted: for each place, the mean number of drafted nodes.
    """

    entrant: str
    accepted: list[float]
    drafted: list[float]


@torch.inference_mode()
def expectations(
    model: Any,
    prompt: Sequence[int],
    text: Sequence[int],
    entrants: Sequence[Entrant],
    params: SamplingParams,
    *,
    head: Any | None = None,
    draws: int = 3,
    seed: int = 0,
) -> list[Expectation]:
    """Return what the target would accept of each entrant's drafts behind tokens of a text.

    `text` is what was emitted after the prompt; its first token is the first place. Drafts are
    verified by the rule that "auto" takes. At temperature 0, where nothing is drawn, one draw does.
    """
    target = as_target(model)
    tokens = [*prompt, *text]
    reader = _Reader(target, tokens)
    count = 1 if params.is_greedy else draws
    sides = []
    for entrant in entrants:
        requests = [
            Request(
                id=draw,
                tokens=list(prompt),
                prompt_len=len(prompt),
                params=params,
                seed=derive_seed(seed, draw),
                eos_ids=frozenset(target.eos_ids),
            )
            for draw in range(count)
        ]
        sides.append(_Side(entrant.make(model, head), requests))
    layers = sorted({layer for side in sides for layer in side.layers})
    found = [Expectation(entrant.name, [], []) for entrant in entrants]
    for place in range(len(prompt), len(tokens), _STRIDE):
        states = dict(zip(layers, reader.read(place, layers), strict=True))
        for side, expectation in zip(sides, found, strict=True):
            drafts = side.drafts(tokens[: place + 1], states)
            accepted = [
                expected_accepted(draft, reader.rows(draft), params) if draft.num_nodes > 1 else 0.0
                for draft in drafts
            ]
            expectation.accepted.append(float(np.mean(accepted)))
            expectation.drafted.append(float(np.mean([draft.num_nodes - 1 for draft in drafts])))
    return found


class _Side:
    """A drafter with requests that differ in their noise alone."""

    def __init__(self, drafter: Any, requests: list[Request]) -> None:
        self._drafter, self._requests = drafter, requests
        self.layers: tuple[int, ...] = drafter.hidden_layers
        for request in requests:
            drafter.start(request)
        drafter.propose(requests, [0] * len(requests))

    def drafts(self, tokens: list[int], states: dict[int, torch.Tensor]) -> list[Draft]:
        """Return a draft of each request once it has read the text up to a place."""
        for request in self._requests:
            request.tokens[:] = tokens
        count = len(self._requests)
        own = tuple(states[layer] for layer in self.layers)
        nothing: Any = [None] * count  # No draft of an earlier place was part of the text.
        self._drafter.commit(nothing, [own] * count)
        found: list[Draft] = self._drafter.propose(self._requests, [_MOST_NODES] * count)
        return found


class _Reader:
    """The target, which reads a text and looks at drafts behind its tokens."""

    def __init__(self, target: Target, tokens: list[int]) -> None:
        self._target, self._tokens = target, tokens
        self._cache = target.new_cache()
        self._seen: dict[tuple[bytes, bytes], torch.Tensor] = {}  # Rows of drafts at this place.

    def read(self, place: int, layers: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Read up to a place, its token excluded; return the states of what was new, by layer."""
        self._seen.clear()
        pending = self._tokens[self._cache.length : place]
        _, states = self._forward(pending, None, None, layers, 1)
        return states or ()

    def rows(self, draft: Draft) -> torch.Tensor:
        """Return the rows behind the place's token and the draft's nodes, on the host."""
        parents, tokens = np.asarray(draft.tree.parents), np.asarray(draft.tokens)
        key = parents.tobytes(), tokens[1:].tobytes()
        if key not in self._seen:
            place = self._cache.length
            positions = mask = None
            if not draft.tree.is_chain:
                positions = place + torch.from_numpy(np.asarray(draft.tree.depths))[None]
                positions = positions.to(self._target.device)
                mask = torch.from_numpy(np.asarray(draft.tree.mask()))
            ids = [self._tokens[place], *tokens[1:].tolist()]
            logits, _ = self._forward(ids, positions, mask, (), len(ids))
            self._cache.crop(place)
            self._seen[key] = to_host(logits)
        return self._seen[key]

    def _forward(
        self,
        tokens: list[int],
        positions: torch.Tensor | None,
        mask: torch.Tensor | None,
        layers: Sequence[int],
        num_logits: int,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        ids = torch.tensor([tokens], device=self._target.device)
        return self._target.forward(
            ids, positions, mask, self._cache, layers, num_logits=num_logits
        )
