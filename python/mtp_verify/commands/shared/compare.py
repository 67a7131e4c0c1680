"""Speculative against plain decoding, side by side: speed, and identity of the output.

Speed and identity are separate questions. Forwards of different widths round differently, so in
bfloat16 two correct runs drift apart after a near-tie; float32 is what identity is checked in.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from mtp_verify.decoder.decode import Decoder
    from mtp_verify.decoder.generation import Stats
    from mtp_verify.verifier.params import SamplingParams

__all__ = ["Identity", "Race", "identical", "library_generate", "race"]


@dataclass(frozen=True)
class Race:
    """Speeds of three ways to generate from one prompt.

    Attributes:
        tokens_per_second: of `transformers` (its `generate`), `plain` and `speculative` (ours);
            emitted tokens over wall time, prompt included, best of the repeats.
        stats: of the fastest speculative run.
        tokens: emitted by it.
    """

    tokens_per_second: dict[str, float]
    stats: Stats
    tokens: list[int]

    def speedup_over(self, way: str) -> float:
        """Return the speculative speed over that of `plain` or `transformers`."""
        return self.tokens_per_second["speculative"] / self.tokens_per_second[way]


@dataclass(frozen=True)
class Identity:
    """Whether speculation changed the tokens.

    Attributes:
        is_identical: all tokens are equal.
        num_tokens: emitted by plain decoding.
        first_difference: index among the emitted tokens, or None.
        gap: at the first difference of a greedy run, the distance of the two tokens' logits;
            rounding explains a difference where it is tiny beside `scale`. None otherwise.
        scale: spacing of the model's dtype at those logits.
    """

    is_identical: bool
    num_tokens: int
    first_difference: int | None = None
    gap: float | None = None
    scale: float | None = None

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone explains it: the gap is within 32 units of the last place."""
        return self.gap is not None and self.scale is not None and self.gap <= 32.0 * self.scale


def race(
    model: Any,
    decoder: Decoder,
    input_ids: torch.Tensor,
    *,
    max_new_tokens: int,
    seed: int = 0,
    repeats: int = 1,
) -> Race:
    """Time transformers' `generate`, our plain loop and the speculative one on a prompt.

    The three take turns `repeats` times and each keeps its best time.

    Args:
        model: the decoder's target, a transformers causal language model in evaluation mode.
        decoder: with the drafter, and the parameters of all three.
        input_ids: (1, T) int64.
        max_new_tokens: of each run; an EOS token may end it earlier.
        seed: of our runs, and of torch's generator for transformers' ones (set for the run only).
        repeats: at least 1.

    Raises:
        ParamsError, UnsupportedModelError: as `Decoder.generate`.
    """
    best = {"transformers": 0.0, "plain": 0.0, "speculative": 0.0}
    winner = None
    for _ in range(max(repeats, 1)):
        start = perf_counter()
        made = library_generate(model, input_ids, decoder.params, max_new_tokens, seed)
        speed = (made.shape[1] - input_ids.shape[1]) / (perf_counter() - start)
        best["transformers"] = max(best["transformers"], speed)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
        plain, fast = (decoder.generate(input_ids, **options, speculate=s) for s in (False, True))
        best["plain"] = max(best["plain"], plain.stats.tokens_per_second)
        if winner is None or fast.stats.tokens_per_second > best["speculative"]:
            best["speculative"], winner = fast.stats.tokens_per_second, fast
    return Race(best, winner.stats, winner.tokens[0])  # type: ignore[union-attr]


def identical(
    model: Any, decoder: Decoder, input_ids: torch.Tensor, *, max_new_tokens: int, seed: int = 0
) -> Identity:
    """Compare the tokens of plain and speculative decoding: greedy, or with the rule "coupled".

    Other rules give the same distribution, but not the same tokens. Arguments as those of `race`;
    the model is in float32 if identity is expected.
    """
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
    runs = [decoder.generate(input_ids, **options, speculate=s) for s in (False, True)]
    plain, fast = (run.tokens[0] for run in runs)
    if plain == fast:
        return Identity(is_identical=True, num_tokens=len(plain))
    pairs = zip(plain, fast, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(plain), len(fast)))
    gap = scale = None
    if decoder.params.is_greedy and index < min(len(plain), len(fast)):
        with torch.inference_mode():
            prefix = runs[0].sequences[:, : input_ids.shape[-1] + index].to(model.device)
            row = model(input_ids=prefix).logits[0, -1]
        two = row[[plain[index], fast[index]]].double()
        gap = float((two[0] - two[1]).abs())
        scale = float(torch.finfo(row.dtype).eps * two.abs().max())
    return Identity(False, len(plain), index, gap, scale)  # noqa: FBT003


def library_generate(
    model: Any,
    input_ids: torch.Tensor,
    params: SamplingParams,
    max_new_tokens: int,
    seed: int,
    **options: Any,
) -> torch.Tensor:
    """Run transformers' own loop with the same settings; `options` are further ones of `generate`.

    Returns:
        (1, T + n) int64, prompt and new tokens. The seed of torch's generator is set for the run.
    """
    options["do_sample"] = not params.is_greedy
    if not params.is_greedy:
        options |= {
            "temperature": params.temperature,
            "top_k": max(params.top_k, 0),
            "top_p": params.top_p,
            "min_p": params.min_p or None,
        }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output: torch.Tensor = model.generate(
            input_ids.to(model.device),
            attention_mask=torch.ones_like(input_ids, device=model.device),
            max_new_tokens=max_new_tokens,
            **options,
        )
    return output
