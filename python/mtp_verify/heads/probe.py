"""`probe`: how well a head predicts its target's own text, and which reading of it is right.

Serving engines disagree on what some families feed and recycle. A wrong choice costs acceptance,
never exactness, and is not noticed; here each is measured, and the best is kept.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.console.report import Table
from mtp_verify.errors import ParamsError
from mtp_verify.models.hidden import HiddenStates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads.base import Head

__all__ = ["Probe", "Reading", "probe", "resolve_disputed"]

_OPTIONS: dict[str, tuple[Any, ...]] = {
    "feed": ("post", "pre"),
    "recycle": ("post", "pre"),
    "zero_first": (False, True),
    "target_norm": (False, True),
    "norm_before_residual": (False, True),
    "offset": ("place", "next"),
    "in_block": ("full", "causal", "sliding"),
}
_STANDARD_ERRORS = 3.0  # by so many must a reading be better before it replaces the engines' own
_NUM_STARTS = 4


@dataclass(frozen=True)
class Reading:
    """One way to read a head, measured."""

    choices: dict[str, Any]  # the fields of its spec that it sets
    # by depth, the share of greedy chains that agree with the target so far
    accepted: tuple[float, ...]
    counts: torch.Tensor  # (positions,) tokens of each chain that agree


@dataclass(frozen=True)
class Probe:
    """All readings of a head, that of its own spec first.

    Attributes:
        readings: what was measured.
        best: index of the reading to keep.
        num_positions: chains that each was measured with.
    """

    readings: tuple[Reading, ...]
    best: int
    num_positions: int

    def table(self) -> Table:
        """Return a table with a row for each reading."""
        names = list(self.readings[0].choices)
        depths = [f"depth {depth}" for depth in range(1, len(self.readings[0].accepted) + 1)]
        rows = tuple(
            (
                *(str(reading.choices[name]) for name in names),
                *(f"{share:.1%}" for share in reading.accepted),
                "kept" if index == self.best else "",
            )
            for index, reading in enumerate(self.readings)
        )
        title = f"Agreement with the target's own text, {self.num_positions} greedy chains"
        return Table(title, (*names, *depths, ""), rows, left=len(names))


def probe(
    head: Head,
    model: Any,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    num_tokens: int = 256,
    depth: int = 3,
) -> Probe:
    """Measure a head on text that its target writes greedily.

    Nothing is changed; `resolve_disputed` keeps the best reading.

    Args:
        head: attached to the target.
        model: the target, a transformers model.
        prompts: token ids to start from, best of the kind that will be served; None: a few single
            tokens.
        num_tokens: written in all.
        depth: of the chains.

    Returns:
        The reading of the head's own spec and, where `spec.disputed` names fields, all others.

    Raises:
        ParamsError: an empty prompt, or too few tokens to measure anything.

    Example:
        >>> print(mv.heads.probe(head, model).table().to_text())  # doctest: +SKIP
    """
    spec = head.spec
    generator = torch.Generator().manual_seed(0)
    some = torch.randint(spec.known_sizes.vocab_size, (_NUM_STARTS, 1), generator=generator)
    starts = prompts or some.tolist()
    if not all(starts) or num_tokens < len(starts) * (depth + 2):
        message = f"{num_tokens} tokens from {len(starts)} prompts are too few to measure a head"
        raise ParamsError(message, slug="bad_probe")
    own = {name: getattr(spec, name) for name in _OPTIONS if name in spec.disputed}
    options = itertools.product(*(_OPTIONS[name] for name in own))
    combinations = [dict(zip(own, values, strict=True)) for values in options]
    combinations.sort(key=lambda choices: choices != own)
    depth = min(depth, *(_max_depth(head, choices) or depth for choices in combinations))
    layers = {n for choices in combinations for n in spec.replace(**choices).hidden_layers}
    with torch.inference_mode():
        texts = [
            (*_written(model, start, num_tokens // len(starts), layers), len(start))
            for start in starts
        ]
        readings = []
        for choices in combinations:
            head.choose(**choices)
            try:
                counts = torch.cat([_agreement(head, *text, depth) for text in texts])
            finally:
                head.choose(**own)
            shares = tuple(float((counts >= d).float().mean()) for d in range(1, depth + 1))
            readings.append(Reading(choices, shares, counts))
    best = 0
    for index, reading in enumerate(readings[1:], 1):
        gain = (reading.counts - readings[0].counts).double()
        error = float(gain.std()) / len(gain) ** 0.5
        is_better = reading.counts.sum() > readings[best].counts.sum()
        if float(gain.mean()) > _STANDARD_ERRORS * error and is_better:
            best = index
    return Probe(tuple(readings), best, len(readings[0].counts))


def _max_depth(head: Head, choices: dict[str, Any]) -> int | None:
    """Return the deepest level that a head has when it is read so."""
    own = {name: getattr(head.spec, name) for name in choices}
    head.choose(**choices)
    try:
        return head.max_depth
    finally:
        head.choose(**own)


def resolve_disputed(head: Head, model: Any, **options: Any) -> Probe:
    """Probe a head (arguments as for `probe`) and keep the best reading: its spec changes."""
    found = probe(head, model, **options)
    head.choose(**found.readings[found.best].choices, disputed=())
    return found


def _written(
    model: Any, start: Sequence[int], count: int, layers: set[int]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Return a greedy text (T,), and the target's hidden states (T, d) over it by layer."""
    ids = torch.tensor([list(start)], device=next(model.parameters()).device)
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
        pad_token_id=0,
    )  # fmt: skip
    order = sorted(layers)
    with HiddenStates(model, order) as states:
        found = states.of(model(text, **states.options))
    return text[0], {layer: state[0] for layer, state in zip(order, found, strict=True)}


def _agreement(
    head: Head, text: torch.Tensor, states: dict[int, torch.Tensor], prompt_len: int, depth: int
) -> torch.Tensor:
    """Return for each root how many tokens of a greedy chain are the text's, up to a miss."""
    hidden = [states[layer] for layer in head.hidden_layers]
    state = head.new_state()
    counts: list[int] = []
    words = text.tolist()
    done = 0
    # Tokens of the prompt are not the target's choice: the first root is the prompt's last.
    for root in range(max(1, prompt_len - 1), len(words) - depth):
        row = head.read(state, [h[done:root] for h in hidden], text[done + 1 : root + 1])
        done, agreed = root, 0
        while head.token_at(state.context_tokens, int(row.argmax())) == words[root + 1 + agreed]:
            agreed += 1
            if agreed == depth:
                break
            row = head.step(state, [agreed - 1], text[root + agreed : root + agreed + 1])
        counts.append(agreed)
    return torch.tensor(counts)
