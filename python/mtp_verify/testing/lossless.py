"""Assert that a whole decoder, with your own target and drafters, keeps the target's law."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mtp_verify.decoder.decode import Decoder
from mtp_verify.errors import ParamsError
from mtp_verify.testing.asserts import assert_sampler_has_law
from mtp_verify.testing.laws import exact_law
from mtp_verify.testing.loops import loop_law
from mtp_verify.testing.target import fresh_row
from mtp_verify.verifier.intake import as_list, check_callable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["assert_lossless"]

_BATCH = 256  # sampled texts of one call


def assert_lossless(
    make: Callable[[], Decoder],
    prompt: Sequence[int],
    length: int = 3,
    *,
    max_tv: float = 1e-4,
    sample: bool = False,
    min_tv: float = 0.05,
    alpha: float = 1e-9,
) -> float:
    """Fail unless the texts of a decoder have the law of its target, token by token.

    The loop is run once for each branch of its chance (`loop_law`), so that the law is exact: no
    sampling error, seconds for a few tokens. That needs a drafter that is deterministic or draws by
    `mv.growers`; for one that draws by a generator of its own say `sample=True`.

    Args:
        make: Makes the decoder, with a drafter that has seen nothing. A small target: what is
            enumerated grows fast with its vocabulary, and with the size of drafts.
        prompt: Where texts begin.
        length: Tokens that are compared; take more than a draft has.
        max_tv: Most total variation that rounding may explain: forwards of different widths round
            differently. One whose float32 rows are the same at each width stays below 1e-6.
        sample: Draw texts with seeds 0, 1, .. instead of enumerating them.
        min_tv: With `sample`, the bias that must not be missed.
        alpha: With `sample`, both error rates.

    Returns:
        The total variation that was found; with `sample` 0 if no bias was.

    Raises:
        AssertionError: The law differs; says by how much.
        ParamsError: Too many branches or strings; an empty prompt.
        TypeError: `make` makes no decoder.
    """
    check_callable("make", make)
    decoder = make()
    if not isinstance(decoder, Decoder):
        message = f"make: found {type(decoder).__name__} from make(), wanted a mv.Decoder"
        raise TypeError(message)
    prompt = as_list("prompt", prompt)
    if not prompt:
        message = "prompt: found no tokens, wanted at least one"
        raise ParamsError(message, slug="param_out_of_range")
    target = decoder.target

    def row(path: tuple[int, ...]) -> NDArray[np.float64]:
        with torch.inference_mode():
            return np.asarray(fresh_row(target, path).double().cpu().numpy())

    law = exact_law(row, prompt, length, decoder.params)
    if sample:
        assert_sampler_has_law(_sampler(decoder, prompt, length), law, min_tv=min_tv, alpha=alpha)
        return 0.0

    def text() -> tuple[int, ...]:
        made = make().generate(list(prompt), max_new_tokens=length, seed=0, eos_token_id=())
        return tuple(made.tokens[0])

    found = loop_law(text)
    probs = np.zeros(len(law.probs))
    np.add.at(probs, law.indices(list(found)), list(found.values()))
    distance = float(np.abs(probs - law.probs).sum() / 2)
    if distance > max_tv:
        message = (
            f"the law differs: total variation {distance:.3g}, wanted at most {max_tv:.3g}, over "
            f"{len(found)} texts of {length} tokens. (A drafter with a random generator of its own "
            "needs sample=True.)"
        )
        raise AssertionError(message)
    return distance


def _sampler(
    decoder: Decoder, prompt: Sequence[int], length: int
) -> Callable[[int, int], NDArray[np.int64]]:
    def draw(start: int, count: int) -> NDArray[np.int64]:
        texts: list[list[int]] = []
        for first in range(start, start + count, _BATCH):
            seeds = list(range(first, min(first + _BATCH, start + count)))
            many = [list(prompt)] * len(seeds)
            made = decoder.generate(many, max_new_tokens=length, seed=seeds, eos_token_id=())
            texts += made.tokens
        return np.array(texts, np.int64)

    return draw
