"""Whether a recurrent model can go on from a state by several tokens at once, by trying.

Some models of transformers go on exactly by one token and wrongly by two (Mamba, Jamba and Zamba2
in 5.23 start again from nothing, or nearly so), and some keep a state outside of the cache, where
it cannot be put back. Both would change the output's law in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from mtp_verify.caches.compiled import name_of, uncompiled
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from mtp_verify.caches.model import ModelCache

__all__ = ["inexact", "refuse_inexact"]

# Largest difference, relative to the largest value: far above rounding (4e-3 in float32, 7e-2 in
# bfloat16 seen), far below a state that was lost (4e-1 and more).
_TOLERANCES = {torch.float32: 2e-2, torch.float64: 2e-2}
_TOLERANCE_OF_HALVES = 0.2
_NUM_TOKENS = 10  # Longer than the kernels of short convolutions, which are 3 or 4 wide.

# Models that were tried; the answer is theirs and does not change.
_obstacles: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def refuse_inexact(target: Any) -> None:
    """Compare two tokens in one forward with the same two one by one, after a rollback.

    Args:
        target: a `TransformersTarget` (a layer above this one).

    Raises:
        UnsupportedModelError: they differ, or the model cannot be run on its cache.
    """
    model = target.model
    if model not in _obstacles:
        with uncompiled(model):
            _obstacles[model] = _find_obstacle(target)
    if _obstacles[model]:
        raise inexact(model, _obstacles[model])


def inexact(model: Any, obstacle: str) -> UnsupportedModelError:
    """Return the refusal of a model whose rows are not those of plain decoding.

    Args:
        model: of transformers, which knows by itself whether it keeps a state.
        obstacle: what was found when it was tried.
    """
    kind = ""
    if getattr(model, "_is_stateful", False):
        kind = "it is a recurrent model, whose state cannot be rolled back after a rejected draft: "
    msg = f"{name_of(model)} cannot decode speculatively: {kind}{obstacle}"
    return UnsupportedModelError(msg, slug="stateful_model")


@torch.inference_mode()
def _find_obstacle(target: Any) -> str:
    tokens = (torch.arange(_NUM_TOKENS, device=target.device) * 7 + 1) % (target.vocab_size or 8)
    cuts = [_NUM_TOKENS - 2, _NUM_TOKENS - 1, _NUM_TOKENS]
    try:
        stepwise, state = _run(target, tokens, cuts, target.new_cache())
        cache = target.new_cache()
        # Something else in between, rolled back.
        _run(target, tokens, cuts[:1], cache)
        cache.crop(cuts[0])
        target.forward(tokens[None, :2], None, None, cache, num_logits=1)
        cache.crop(cuts[0])
        at_once, other = _run(target, tokens, cuts[-1:], cache)
    except Exception as error:  # noqa: BLE001 - a model with a cache of its own may raise anything
        return f"its forward fails on a cache of the library's own layers ({error})"
    hidden = (getattr(module, "recurrent_states", None) for module in target.model.modules())
    if any(isinstance(state, torch.Tensor) for state in hidden):
        return "it keeps a recurrent state outside of the cache, which cannot be rolled back"
    tolerance = _TOLERANCES.get(next(target.model.parameters()).dtype, _TOLERANCE_OF_HALVES)
    pairs = [(stepwise, at_once), *zip(state, other, strict=True)]
    worst = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)
    if worst > tolerance:
        return (
            "two tokens in one forward give it another state than the same two one by one "
            f"(relative difference {worst:.1e})"
        )
    return ""


def _run(
    target: Any, tokens: torch.Tensor, ends: list[int], cache: ModelCache
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run the tokens up to each end; return the last row and the recurrent states."""
    row = torch.empty(0)
    for end in ends:
        row, _ = target.forward(tokens[None, cache.length : end], None, None, cache, num_logits=1)
    states = [
        state.float()
        for layer in cache.kv.layers
        for name in ("conv_states", "recurrent_states")
        for state in getattr(layer, name, {}).values()
        if state is not None
    ]
    return row.float(), states
