"""What a generation gives back: its tokens, and figures of how it went."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch

from mtp_verify.errors import ParamsError
from mtp_verify.verifier.arrays import is_equal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mtp_verify.verifier.logprobs import TopLogprobs
    from mtp_verify.verifier.words import FinishReason

__all__ = ["Generation", "Stats", "StatsRecord"]

_PREFIX = "vllm:spec_decode_"
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class StatsRecord(TypedDict):
    """What `Stats.as_dict` returns: the fields of `Stats`, and what is derived from them."""

    steps: int
    forwards: int
    drafted: int
    accepted: int
    emitted: int
    attempted: list[int]
    accepted_at: list[int]
    lengths: list[int]
    budgets: list[int]
    probes: int
    seconds: dict[str, float]
    total_seconds: float
    lossless: bool
    tau: float
    tokens_per_second: float


@dataclass
class Stats:
    """Counts and times of one generation, or of several merged.

    Attributes:
        steps: of propose, forward, verify, commit.
        forwards: target forwards; one more than `steps` where a prompt needed one of its own. One
            that requests share counts for each of them.
        drafted: draft nodes proposed, roots excluded.
        accepted: draft tokens kept.
        emitted: tokens output.
        attempted: entry d counts the drafts that reached depth d + 1 with their path accepted.
        accepted_at: entry d counts those whose node at depth d + 1 was accepted.
        lengths: entry n counts the steps that emitted n tokens.
        budgets: entry n counts the steps for which a planner, if any, chose a budget of n nodes.
        probes: steps that a planner drafted in to learn, not because it promised to pay.
        seconds: time in `draft`, `target`, `verify`, `commit`; requests share that of a common step
            evenly, so that the sum over a batch is the time that passed.
        total_seconds: time of all steps, prompt included.
        lossless: False if a lossy acceptance decided.
    """

    steps: int = 0
    forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    emitted: int = 0
    attempted: list[int] = field(default_factory=list)
    accepted_at: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    probes: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"draft": 0.0, "target": 0.0, "verify": 0.0, "commit": 0.0}
    )
    total_seconds: float = 0.0
    lossless: bool = True

    @property
    def tau(self) -> float:
        """Mean emitted tokens per step; 0 before the first."""
        return self.emitted / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens over the whole time, prompt included."""
        return self.emitted / self.total_seconds if self.total_seconds else 0.0

    def share(self, part: str) -> float:
        """Return the part of the total time spent in `part`: a key of `seconds`, or `other`."""
        if not self.total_seconds:
            return 0.0
        known = sum(self.seconds.values())
        spent = self.total_seconds - known if part == "other" else self.seconds[part]
        return spent / self.total_seconds

    def record(self, depth: int, num_nodes: int, num_accepted: int, num_emitted: int) -> None:
        """Count one step: the draft's depth, its nodes but the root, and tokens after any cut."""
        self.steps += 1
        self.drafted += num_nodes
        self.accepted += num_accepted
        self.emitted += num_emitted
        _pad(self.attempted, depth)
        _pad(self.accepted_at, depth)
        for level in range(min(num_accepted + 1, depth)):
            self.attempted[level] += 1
            self.accepted_at[level] += level < num_accepted
        _pad(self.lengths, num_emitted + 1)
        self.lengths[num_emitted] += 1

    def record_plan(self, budget: int, *, is_probe: bool) -> None:
        """Count one decision of a planner; see `budgets` and `probes`."""
        _pad(self.budgets, budget + 1)
        self.budgets[budget] += 1
        self.probes += is_probe

    def merge(self, other: Stats) -> None:
        """Add another generation's figures to these."""
        for name, theirs in vars(other).items():
            mine = getattr(self, name)
            if isinstance(mine, list):
                mine[:] = map(sum, zip_longest(mine, theirs, fillvalue=0))
            elif isinstance(mine, dict):
                mine |= {key: mine.get(key, 0.0) + value for key, value in theirs.items()}
            else:
                setattr(self, name, mine and theirs if name == "lossless" else mine + theirs)

    def as_dict(self) -> StatsRecord:
        """Return all figures, derived ones included, ready for JSON."""
        seconds = {**self.seconds, "other": self.share("other") * self.total_seconds}
        derived = {"tau": self.tau, "tokens_per_second": self.tokens_per_second}
        return cast("StatsRecord", {**vars(self), "seconds": seconds, **derived})

    def as_prometheus(self, labels: Mapping[str, str] | None = None) -> str:
        """Return the counters of speculation under vLLM's names, in Prometheus's text format.

        They are `vllm:spec_decode_num_drafts_total`, `..._num_draft_tokens_total`,
        `..._num_accepted_tokens_total` and, by `position` from 0,
        `..._num_accepted_tokens_per_pos_total`, so that a dashboard for vLLM shows a loop of yours,
        too. Counters only grow: merge the figures of all generations, and return those.

        Args:
            labels: Of every counter, as `{"model_name": "mine"}`.

        Raises:
            ParamsError: A label whose name Prometheus does not take.

        Example:
            >>> stats = Stats()
            >>> stats.record(depth=3, num_nodes=3, num_accepted=2, num_emitted=3)
            >>> print(stats.as_prometheus({"model_name": "mine"}).splitlines()[-1])
            vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="mine",position="2"} 0.0
        """
        given = {} if labels is None else labels
        for name in given:
            if not _LABEL.fullmatch(str(name)) or name == "position":
                message = f"labels: found {name!r}, wanted letters, digits and _, not position"
                raise ParamsError(message, slug="param_out_of_range")
        # A draft without nodes is none for vLLM either.
        counts: dict[str, list[tuple[dict[str, str], int]]] = {
            "num_drafts": [({}, self.attempted[0] if self.attempted else 0)],
            "num_draft_tokens": [({}, self.drafted)],
            "num_accepted_tokens": [({}, self.accepted)],
            "num_accepted_tokens_per_pos": [
                ({"position": str(level)}, count) for level, count in enumerate(self.accepted_at)
            ],
        }
        lines = []
        for name, samples in counts.items():
            lines.append(f"# TYPE {_PREFIX}{name}_total counter")
            lines += [
                f"{_PREFIX}{name}_total{_braced({**given, **own})} {float(count)}"
                for own, count in samples
            ]
        return "\n".join(lines) + "\n"


def _braced(labels: Mapping[str, str]) -> str:
    """Write labels as Prometheus does; nothing if there are none."""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    parts = (f'{name}="{str(value).translate(escapes)}"' for name, value in labels.items())
    return "{" + ",".join(parts) + "}" if labels else ""


def _pad(counts: list[int], length: int) -> None:
    counts.extend([0] * (length - len(counts)))


@dataclass(eq=False, repr=False)
class Generation:
    """The result of `Decoder.generate`; lists have one entry per sequence.

    Attributes:
        sequences: (B, L) int64, prompts as given (padding included) and emitted tokens.
        tokens: the emitted tokens.
        finish_reasons: `stop` (an EOS token), `length`, `criteria` (a stopping criterion),
            `cancelled`, or `error`.
        logprobs: (n,) float32, log-probability of each emitted token under the target's shaped row.
        stats: figures of the run.
        past_key_values: the target's cache; it holds all tokens of `sequences` but the last. None
            where several sequences share one.
        logits: (n, V) float32 raw rows that the emitted tokens come from, or None if not asked for.
        top_logprobs: the most likely tokens behind each emitted one, or None if not asked for.
        errors: what each failed with; None where it did not.
    """

    sequences: torch.Tensor
    tokens: list[list[int]]
    finish_reasons: list[FinishReason]
    logprobs: list[NDArray[np.float32]]
    stats: Stats
    past_key_values: Any
    logits: list[torch.Tensor] | None = None
    top_logprobs: list[TopLogprobs] | None = None
    errors: list[Exception | None] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        """Whether the same was generated; figures and caches are not compared."""
        if not isinstance(other, Generation):
            return NotImplemented
        names = {item.name for item in fields(self)} - {"stats", "past_key_values"}
        return all(is_equal(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # type: ignore[assignment]  # It can be changed.

    def __repr__(self) -> str:
        """Sizes, and how the sequences ended."""
        sizes = f"{len(self.tokens)} sequences, {sum(map(len, self.tokens))} tokens"
        ends = f"finish_reasons={self.finish_reasons}, tau={self.stats.tau:.2f}"
        return f"Generation({sizes}, {ends})"

    @classmethod
    def merge(cls, parts: Sequence[Generation], pad_token_id: int) -> Generation:
        """Put the generations of a batch together, prompts aligned at their ends."""
        leads = [part.sequences.shape[1] - len(part.tokens[0]) for part in parts]
        width = max(leads) + max(len(part.tokens[0]) for part in parts)
        sequences = torch.full((len(parts), width), pad_token_id, dtype=torch.int64)
        stats = Stats()
        for index, (part, lead) in enumerate(zip(parts, leads, strict=True)):
            start = max(leads) - lead
            sequences[index, start : start + part.sequences.shape[1]] = part.sequences[0]
            stats.merge(part.stats)
        has_logits = parts[0].logits is not None
        return cls(
            sequences=sequences,
            tokens=[part.tokens[0] for part in parts],
            finish_reasons=[part.finish_reasons[0] for part in parts],
            logprobs=[part.logprobs[0] for part in parts],
            stats=stats,
            past_key_values=None,
            logits=[part.logits[0] for part in parts if part.logits] if has_logits else None,
            top_logprobs=[top for part in parts for top in part.top_logprobs or ()] or None,
            errors=[part.errors[0] for part in parts],
        )
