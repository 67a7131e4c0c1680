"""Faults that engines have had, each as a small engine of ours, and the same without the fault.

The faults were described in the engines' trackers; what is here is written from those descriptions.
Targets are tables, as those of `mutants`, so that laws are known exactly and samples cost little.
`FAULTS` names all of them; docs/reference/gallery.md says with how many samples each was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing.mutants import TableEngine, TableRun, next_place
from mtp_verify.verifier.intake import check_word
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = [
    "FAULTS",
    "CoarseEngine",
    "Fault",
    "FaultyEngine",
    "cdf_boundary",
    "cdf_boundary_fixed",
    "engine",
]


@dataclass(frozen=True)
class Fault:
    """A fault, where it was reported, and how it is looked for.

    Attributes:
        what: What is wrong, in words.
        trackers: Where it was reported: owner/repository#number.
        found_by: "samples", or "accept": too rare for any sample, and seen from inside.
        options: Options of `mtp-verify certify` with which it is looked for, where the usual ones
            (three tokens, `min_tv` 0.1) do not find it.
        settings: Arguments of the engine.
    """

    what: str
    trackers: tuple[str, ...]
    found_by: str = "samples"
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


FAULTS = {
    "shared-noise": Fault(
        "after a rejection the residual is drawn with the Gumbel noise that chose the draft",
        ("vllm-project/vllm#47386", "vllm-project/vllm#54282"),
        # With few tokens a residual has hardly two to choose from, and the noise hardly matters.
        options={"length": 2, "min_tv": 0.03},
        settings={"vocab": 8},
    ),
    "misdeclared-q": Fault(
        "drafts are drawn after top-k, and the rows before it are declared as q",
        ("huggingface/transformers#47932", "huggingface/transformers#47961"),
    ),
    "cdf-boundary": Fault(
        "a draft is accepted at u <= p: at u = 0 one of target probability 0",
        ("sgl-project/sglang#35771",),
        found_by="accept",
    ),
    "greedy": Fault(
        "verification takes the most likely token, whatever the temperature",
        ("sgl-project/sglang#32922",),
    ),
    "coarse-uniforms": Fault(
        "Gumbel noise of 24-bit uniforms ends at 17.3: unlikely tokens are drawn too seldom",
        ("vllm-project/vllm#51367",),
        options={"length": 1, "horizon": 1, "prompts": 1, "min_tv": 0.01},
    ),
    "bf16-draft": Fault(
        "drafts are drawn from bfloat16 logits, and the float32 rows are declared as q",
        ("deepseek-ai/DeepSpec#31",),
        options={"length": 2, "min_tv": 0.006},
    ),
    "flat-mask": Fault(
        "a tree's grammar masks are made as if its nodes were a chain",
        ("NVIDIA/TensorRT-LLM#18892",),
        settings={"grammar": "pairs"},
    ),
    "wrong-slice": Fault(
        "behind the second node of a tree the rows behind the first are read",
        ("NVIDIA/TensorRT-LLM#15098",),
        options={"min_tv": 0.05},
    ),
    "one-generator": Fault(
        "requests of a batch share one stream of noise",
        ("NVIDIA/TensorRT-LLM#19487",),
    ),
    "block-residual": Fault(
        "products of ratios decide on a block, and the residual is that of a single token",
        ("vllm-project/vllm-ascend#7807",),
    ),
}
_TOP_K = 2
# What model outputs are like before softmax: float32 does not notice, bfloat16 has steps of 1/8.
_OFFSET = 30.0
_BATCH = 4
# The law of "coarse-uniforms": one token, and all others this much less likely.
_GAP = 18.0
_COARSE_VOCAB = 1 << 16


@dataclass(frozen=True)
class FaultyEngine(TableEngine):
    """A sampler with a fault of `FAULTS`, or with it mended.

    Attributes:
        fault: Its name.
        is_fixed: Whether the fault is mended.
    """

    fault: str = ""
    is_fixed: bool = False

    def __call__(self, prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        """Draw n strings that follow `prompt`."""
        if self.fault == "one-generator" and not self.is_fixed:
            own = _FaultyRun(self, prompt, -(-n // _BATCH), seed).tokens()
            return np.repeat(own, _BATCH, axis=0)[:n]
        return _FaultyRun(self, prompt, n, seed).tokens()


@dataclass(frozen=True)
class CoarseEngine:
    """A sampler of tokens of a large vocabulary by Gumbel noise of 24-bit uniforms.

    Of the noise of the unlikely tokens only the largest matters; it is drawn as the maximum of as
    many uniforms, and which of them has it is uniform.

    Attributes:
        is_fixed: Whether the uniforms have all bits instead.
        length: Tokens of a string; all of them have one law.
    """

    is_fixed: bool = False
    length: int = 1
    params: SamplingParams = field(default_factory=SamplingParams)

    @staticmethod
    def rows(path: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the target's logits (V,), which are the same behind every path."""
        del path
        return np.where(np.arange(_COARSE_VOCAB) == 0, 0.0, -_GAP)

    @staticmethod
    def lost() -> float:
        """Return the share of the unlikely tokens' probability that the fault takes.

        Summed over the largest of their uniforms, of which only the last few steps can win.
        """
        others, steps = _COARSE_VOCAB - 1, 2**24
        below = np.arange(64)  # steps below the last
        is_largest = ((steps - below) / steps) ** others - ((steps - below - 1) / steps) ** others
        # What the top token's uniform must stay below.
        limits = np.exp(np.log1p(-(below + 0.5) / steps) * math.exp(_GAP))
        drawn = float(is_largest @ (np.ceil(limits * steps - 0.5) / steps))
        mass = others * math.exp(-_GAP)
        return 1 - drawn / (mass / (1 + mass))

    def __call__(self, prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        """Draw n strings (n, length)."""
        rng, shape = np.random.default_rng((seed, *prompt)), (n, self.length)
        others = _COARSE_VOCAB - 1
        uniforms = np.stack([rng.random(shape), rng.random(shape) ** (1 / others)])
        if not self.is_fixed:
            uniforms = (np.floor(uniforms * 2**24) + 0.5) / 2**24
        top, best = -np.log(-np.log(uniforms))
        return np.where(best - _GAP > top, rng.integers(1, others + 1, shape), 0)


def engine(fault: str, *, is_fixed: bool = False, **settings: Any) -> FaultyEngine | CoarseEngine:
    """Return the engine with a fault that samples show, or the same without it.

    Args:
        fault: A key of `FAULTS` that is found by samples.
        is_fixed: Whether the fault is mended.
        settings: Of a `FaultyEngine`, beside those that the fault needs.

    Raises:
        ParamsError: No such fault; lists the known ones.
    """
    known = [name for name, found in FAULTS.items() if found.found_by == "samples"]
    check_word("fault", fault, tuple(known))
    if fault == "coarse-uniforms":
        if settings.get("temperature", 1.0) != 1:
            message = f"temperature: found {settings['temperature']}; {fault} has 1 alone"
            raise ParamsError(message, slug="param_out_of_range")
        return CoarseEngine(is_fixed, settings.get("length", 1))
    given = {**FAULTS[fault].settings, **settings}
    return FaultyEngine(fault=fault, is_fixed=is_fixed, **given)


def cdf_boundary(p: Any, q: Any, tokens: Any, uniforms: Any) -> list[int]:
    """Accept drafts as the fault "cdf-boundary" does; arguments as those of `mutants.accept`."""
    return _accept(p, q, tokens, uniforms, lambda u, share: u <= share)


def cdf_boundary_fixed(p: Any, q: Any, tokens: Any, uniforms: Any) -> list[int]:
    """Accept drafts as `cdf_boundary` does without the fault."""
    return _accept(p, q, tokens, uniforms, lambda u, share: u < share)


def _accept(
    p: Any, q: Any, tokens: Any, uniforms: Any, is_kept: Callable[[float, float], bool]
) -> list[int]:
    """Keep a draft by the target's probability alone; else draw from all other tokens."""
    del q
    out: list[int] = []
    for row, token, u in zip(p, tokens, uniforms, strict=False):
        if not is_kept(float(u), float(row[token])):
            rest = np.array(row, np.float64)
            rest[token] = 0
            return [*out, _pick(rest, uniforms[-1])]
        out.append(int(token))
    return [*out, _pick(np.asarray(p[len(out)]), uniforms[-1])]


def _pick(weights: NDArray[np.float64], u: float) -> int:
    cumulative = np.cumsum(weights)
    place = int((cumulative <= u * cumulative[-1]).sum())
    return min(place, int(np.flatnonzero(weights)[-1]))


def _gumbel(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(rng.gumbel(size=shape))


def _log(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.log(weights)


def _bfloat16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to the nearest bfloat16, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32).astype(np.float64)


class _FaultyRun(TableRun):
    """One call of a `FaultyEngine`."""

    def __init__(self, engine: FaultyEngine, prompt: Sequence[int], n: int, seed: int) -> None:
        super().__init__(engine, prompt, n, seed)
        self.is_fixed = engine.is_fixed
        steps = {
            "shared-noise": self._shared_noise,
            "misdeclared-q": self._misdeclared,
            "bf16-draft": self._misdeclared,
            "greedy": self._greedy,
            "flat-mask": self._tree,
            "wrong-slice": self._tree,
            "block-residual": self._block,
        }
        self.fault = engine.fault
        self._take = steps.get(engine.fault, self._block)

    def step(self, rows: NDArray[np.int64], length: int) -> None:
        """Take one step of the strings `rows`."""
        del length
        self._take(rows)

    def _finish(self, rows: NDArray[np.int64], drafted: Any, kept: Any, residual: Any) -> None:
        """Emit accepted drafts with a bonus token behind, and what the residual gives elsewhere."""
        self.emit(rows[~kept], self.draw(rows[~kept], residual[~kept]))
        rows = rows[kept]
        self.emit(rows, drafted[kept])
        self.emit(rows, self.draw(rows, self.laws(self.target, rows)))

    def _shared_noise(self, rows: NDArray[np.int64]) -> None:
        p, q = self.laws(self.target, rows), self.laws(self.draft, rows)
        each, noise = np.arange(len(rows)), _gumbel(self.rng, p.shape)
        drafted = (_log(q) + noise).argmax(axis=1)
        kept = self.rng.random(len(rows)) * q[each, drafted] < p[each, drafted]
        again = _gumbel(self.rng, p.shape) if self.is_fixed else noise
        chosen = (_log(np.maximum(p - q, 0)) + again).argmax(axis=1)
        residual = np.zeros_like(p)
        residual[each, chosen] = 1
        self._finish(rows, drafted, kept, residual)

    def _misdeclared(self, rows: NDArray[np.int64]) -> None:
        """Draw drafts from other rows than those that are declared."""
        p, q = self.laws(self.target, rows), self.laws(self.draft, rows)
        if self.fault == "bf16-draft":
            weights = np.exp(_bfloat16(np.log(q) + _OFFSET) - _OFFSET)
        else:
            least = np.sort(q, axis=1)[:, -_TOP_K, None]
            weights = np.where(q >= least, q, 0)
        drawn_from = weights / weights.sum(axis=1, keepdims=True)
        declared = drawn_from if self.is_fixed else q
        each, drafted = np.arange(len(rows)), self.draw(rows, drawn_from)
        kept = self.rng.random(len(rows)) * declared[each, drafted] < p[each, drafted]
        self._finish(rows, drafted, kept, np.maximum(p - declared, 0))

    def _greedy(self, rows: NDArray[np.int64]) -> None:
        law = self.laws(self.target, rows)
        self.emit(rows, self.draw(rows, law) if self.is_fixed else law.argmax(axis=1))

    def _tree(self, rows: NDArray[np.int64]) -> None:
        """Draft two siblings; keep the one, if any, that the target draws, and a bonus token."""
        q, places = self.laws(self.draft, rows), self.places[rows]
        first, second = (self.draw(rows, q) for _ in range(2))
        token = self.draw(rows, self.laws(self.target, rows))
        self.emit(rows, token)
        is_first, is_second = token == first, (token == second) & (token != first)
        self.emit(rows[is_first], self.draw(rows[is_first], self.laws(self.target, rows[is_first])))
        behind = rows[is_second]
        law = self.laws(self.target, behind)
        if self.fault == "wrong-slice" and not self.is_fixed:
            law = self.target[next_place(places, first)[is_second]]
        elif self.engine.allowed is not None and not self.is_fixed:
            # The grammar, led along the nodes as along a chain, takes no second node that may not
            # follow the first: all rows from there on are not masked.
            is_lost = ~self.engine.allowed.matrix[first[is_second], second[is_second]]
            law[is_lost] = self.laws(self.target, behind, is_masked=False)[is_lost]
        self.emit(behind, self.draw(behind, law))

    def _block(self, rows: NDArray[np.int64]) -> None:
        """Draft a chain; keep the longest beginning whose ratios' product exceeds the uniforms'."""
        count, each = self.engine.num_drafts, np.arange(len(rows))
        places = np.repeat(self.places[rows, None], count + 1, axis=1)
        drafted = np.zeros((len(rows), count), np.int64)
        for depth in range(count):
            drafted[:, depth] = self.draw(rows, self.draft[places[:, depth]])
            places[:, depth + 1] = next_place(places[:, depth], drafted[:, depth])
        p, q = self.target[places], self.draft[places]
        index = each[:, None], np.arange(count), drafted
        ratios, uniforms = p[index] / q[index], self.rng.random((len(rows), count))
        if self.is_fixed or self.fault != "block-residual":
            passed = np.cumprod(uniforms < ratios, axis=1) > 0
        else:
            passed = np.cumprod(uniforms, axis=1) < np.cumprod(ratios, axis=1)
        # The longest beginning, even where a shorter one does not pass.
        lengths = np.where(passed, np.arange(1, count + 1), 0).max(axis=1)
        for depth in range(count):
            kept = lengths > depth
            self.emit(rows[kept], drafted[kept, depth])
        law = np.where(
            (lengths < count)[:, None],
            np.maximum(p[each, lengths] - q[each, lengths], 0),
            p[each, lengths],
        )
        self.emit(rows, self.draw(rows, law))
