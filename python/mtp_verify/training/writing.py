"""Self-distillation: the target writes text, and what a head learns from is kept on the way.

The recorder is a drafter that drafts nothing: a decoder hands it the hidden states and rows of each
step, so that no second pass over the text is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify._core import Draft, TokenTree, Verdict
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters.base import Drafter
from mtp_verify.training.shards import Text
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.drafters.base import Request

__all__ = ["LEAST", "Recorder", "stop_at", "write_texts"]

LEAST = 8  # tokens of a text, however late it is: fewer teach nothing
_AT_ONCE = 8  # rows that are looked at together: their probabilities stay in the cache
_TOP = 24  # tokens of a row that are kept: a soft target over them trains as well as the full row


@dataclass
class _Notes:
    hidden: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    top_ids: list[torch.Tensor] = field(default_factory=list)
    top_probs: list[torch.Tensor] = field(default_factory=list)


class Recorder(Drafter):
    """Keeps what the target computes about each request; drafts nothing."""

    def __init__(self, hidden_layers: Sequence[int]) -> None:
        self.hidden_layers = tuple(hidden_layers)
        self._notes: dict[int, _Notes] = {}
        self._last: list[Request] = []
        self._empty = Draft(TokenTree([-1]), [-1])
        self.texts: list[Text] = []

    def start(self, request: Request) -> None:
        """Begin a request."""
        self._notes[request.id] = _Notes()

    def propose(self, requests: Sequence[Request], budgets: Sequence[int]) -> list[Draft]:
        """Draft nothing."""
        del budgets
        self._last = list(requests)
        return [self._empty] * len(requests)

    def observe(
        self, requests: Sequence[Request], drafts: Sequence[Draft], logits: Sequence[Any]
    ) -> None:
        """Keep the most likely tokens of each row, with their probabilities at temperature 1."""
        del drafts
        for start in range(0, len(requests), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            rows = torch.cat([row[-1:] for row in logits[some]])
            top = rows.softmax(1, dtype=torch.float32).topk(min(_TOP, rows.shape[1]), dim=1)
            for request, ids, probs in zip(requests[some], top.indices, top.values, strict=True):
                notes = self._notes[request.id]
                notes.top_ids.append(ids)
                notes.top_probs.append(probs)

    def commit(self, verdicts: Sequence[Verdict], hidden: Any | None) -> None:
        """Keep the hidden states."""
        del verdicts
        alive = [request for request in self._last if request.id in self._notes]
        for request, states in zip(alive, hidden or (), strict=True):
            # Copies: the states are views of the whole batch's.
            self._notes[request.id].hidden.append(tuple(layer.clone() for layer in states))

    def release(self, request: Request) -> None:
        """Turn what was kept of a finished request into a text."""
        notes = self._notes.pop(request.id, None)
        if notes is None or not notes.hidden:
            return
        hidden = tuple(torch.cat(layer) for layer in zip(*notes.hidden, strict=True))
        count = hidden[0].shape[0]
        ids, probs = torch.stack(notes.top_ids), torch.stack(notes.top_probs)
        prompt = count - ids.shape[0]
        ids, probs = (torch.cat((x.new_zeros(prompt, x.shape[1]), x)) for x in (ids, probs))
        tokens = torch.tensor(request.tokens[1 : count + 1])
        self.texts.append(Text(hidden, tokens, ids, probs, request.params.temperature))


def write_texts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    hidden_layers: Sequence[int],
    *,
    temperatures: Sequence[float],
    max_new_tokens: int,
    seed: int,
    deadline: float = inf,
) -> list[Text]:
    """Let the target answer prompts, each at a temperature of its own.

    What the head reads, `hidden_layers`, is kept. At `deadline`, of `time.monotonic()`, the texts
    end, after `LEAST` tokens at least.
    """
    recorder = Recorder(hidden_layers)
    decoder = Decoder(model, recorder, max_batch=len(prompts))
    params = [SamplingParams(temperature=temperature) for temperature in temperatures]
    decoder.generate(
        [list(prompt) for prompt in prompts], max_new_tokens=max_new_tokens, seed=seed,
        params=params, stopping_criteria=stop_at(prompts, deadline),
    )  # fmt: skip
    return recorder.texts


def stop_at(prompts: Sequence[Sequence[int]], deadline: float) -> Any:
    """Return stopping criteria for each prompt, as `Decoder.generate` takes them.

    A text ends at its first token after `deadline`, of `time.monotonic()`, which all processes of a
    machine share; but not before `LEAST` tokens.
    """

    def ends(least: int) -> Callable[[Any, Any], bool]:
        return lambda ids, _: ids.shape[1] >= least and monotonic() >= deadline

    return [[ends(len(prompt) + LEAST)] for prompt in prompts]
