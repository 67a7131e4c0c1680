"""Where vLLM's samplers are replaced, and what says so when a replacement does nothing."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtp_verify.integrations.gate import ENGINES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["GATE", "PLAIN", "RULES", "SHAPING", "V1", "V2", "Seam", "warn_once"]

GATE = ENGINES["vllm"]
# For drafts with probabilities; without them every rule but "coupled" samples and compares.
RULES = ("auto", *GATE.choices)

_ORIGINAL = "_mtp_verify_original"
_IS_OURS = "_mtp_verify_is_ours"


@dataclass(frozen=True)
class Seam:
    """A method of a class of vLLM.

    Attributes:
        runner: The module of the model runner that samples by it.
        module: That of the class.
        owner: The class.
        method: What is replaced.
    """

    runner: str
    module: str
    owner: str
    method: str

    @property
    def name(self) -> str:
        """What the gate calls it."""
        return f"{self.owner}.{self.method}"

    def find(self) -> Any:
        """Return the class; None where its module cannot be imported, as without Triton."""
        try:
            return getattr(import_module(self.module), self.owner, None)
        except ImportError:
            return None

    def original(self) -> Any:
        """Return vLLM's own function; None if there is none."""
        function = getattr(self.find(), self.method, None)
        return getattr(function, _ORIGINAL, function)

    def put(self, function: Callable[..., Any], *, is_ours: bool) -> None:
        """Replace the method; `is_ours` says whether this package then verifies."""
        setattr(function, _ORIGINAL, self.original())
        setattr(function, _IS_OURS, is_ours)
        setattr(self.find(), self.method, function)

    def restore(self) -> None:
        """Give vLLM its own method back."""
        owner = self.find()
        if owner is not None and self.original() is not None:
            setattr(owner, self.method, self.original())

    @property
    def is_loaded(self) -> bool:
        """Whether the runner is in this process."""
        return self.runner in sys.modules

    @property
    def is_ours(self) -> bool:
        """Whether the class that the runner builds verifies with this package."""
        owner = self.find()
        runner = sys.modules.get(self.runner)
        is_built = runner is None or getattr(runner, self.owner, owner) is owner
        return is_built and getattr(getattr(owner, self.method, None), _IS_OURS, False)


# vLLM 0.34 has no such runner any more.
V1 = Seam(
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.sample.rejection_sampler",
    "RejectionSampler",
    "forward",
)
V2 = Seam(
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.worker.gpu.spec_decode.rejection_sampler",
    "RejectionSampler",
    "_verify",
)
# Of requests without drafts, in the same runner.
PLAIN = Seam(
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.worker.gpu.sample.sampler",
    "Sampler",
    "sample",
)
# Called by both, and left as it is.
SHAPING = replace(PLAIN, method="apply_sampling_params")


@cache
def warn_once(reason: str) -> None:
    """Say why vLLM's own sampler runs although the plug-in is on, or what else is amiss."""
    warnings.warn(f"{GATE.variable}: {reason}", RuntimeWarning, stacklevel=3)
