"""What SGLang loads at start: hooks, where the environment asks for them."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import MtpVerifyError
from mtp_verify.integrations.gate import ENGINES
from mtp_verify.integrations.sglang.eagle import eagle_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["register", "sample", "watch_worker"]

_GATE = ENGINES["sglang"]
_SAMPLER = f"sglang.srt.speculative.eagle_utils.{_GATE.function}"
_WORKERS = "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.create_worker"
# Modules whose workers let `eagle_sample` decide all that they emit.
_COVERED = {
    "eagle_worker_v2",
    "frozen_kv_mtp_worker_v2",
    "multi_layer_eagle_worker_v2",
    "ngram_worker",
    "standalone_worker_v2",
}


def register() -> None:
    """Register the hooks with SGLang if `MTP_VERIFY_SGLANG` says so; the engine calls this.

    Another version than those known, another signature or another value of the variable: a warning,
    and nothing is registered.
    """
    try:
        if _GATE.switch() is None:
            return
        import sglang

        _GATE.check(str(sglang.__version__), {_GATE.function: _found()})
    except MtpVerifyError as error:
        warn(f"{_GATE.variable}: {error}")
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(_SAMPLER, sample, HookType.AROUND)
    HookRegistry.register(_WORKERS, watch_worker, HookType.AFTER)


def _found() -> Any:
    """Return the function that is to be replaced; None if the engine has none."""
    try:
        module = import_module(_SAMPLER.rpartition(".")[0])
    except ImportError:
        return None
    return getattr(module, _GATE.function, None)


def sample(
    engine_sample: Callable[..., tuple[Tensor, Tensor, Tensor]],
    verify_input: Any,
    batch: Any,
    logits_output: Any,
    grammar_mask: Any = None,
    uno_target_max_top_k: int | None = None,
    *,
    watermark_state: Any = None,
    watermark_full_mask: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Call `eagle_sample`, or the engine's own where what is asked for is not exact.

    Acceptance thresholds below 1, watermarks and simulated acceptance are the engine's, unchanged;
    a warning, once, says that its output has another distribution then.
    """
    arguments = (verify_input, batch, logits_output, grammar_mask, uno_target_max_top_k)
    options = {"watermark_state": watermark_state, "watermark_full_mask": watermark_full_mask}
    if not batch.forward_mode.is_idle() and (names := _lossy(batch, watermark_state)):
        warn(
            f"SGLang: {' and '.join(names)}: left to the engine's own function, whose output is "
            "lossy: its distribution is not the target's"
        )
        return engine_sample(*arguments, **options)
    return eagle_sample(*arguments, **options)


def watch_worker(worker: Any, algorithm: Any, *_: Any) -> None:
    """Warn where the worker that the engine will use decides something elsewhere."""
    module = str(getattr(worker, "__module__", ""))
    if module.rpartition(".")[2] not in _COVERED:
        name = getattr(algorithm, "name", algorithm)
        warn(
            f"{_GATE.variable}: the algorithm {name} does not draw all of its tokens by "
            f"{_GATE.function}: mtp-verify does not cover it, and its output is the engine's own"
        )


def _lossy(batch: Any, watermark_state: Any) -> list[str]:
    """Name what is set that changes the distribution of the output."""
    from sglang.srt.runtime_context import get_spec
    from sglang.srt.speculative.spec_utils import SIMULATE_ACC_LEN

    settings = get_spec()
    found = {
        "--speculative-accept-threshold-single below 1": (
            settings.speculative_accept_threshold_single < 1
        ),
        "--speculative-accept-threshold-acc below 1": settings.speculative_accept_threshold_acc < 1,
        "a watermark": (
            watermark_state is not None and batch.sampling_info.has_watermark_candidates
        ),
        "simulated acceptance": SIMULATE_ACC_LEN > 0,
    }
    return [name for name, is_set in found.items() if is_set]


@cache
def warn(message: str) -> None:
    """Warn of something the first time."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)
