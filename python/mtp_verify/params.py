"""Sampling parameters: how raw logits become the row that is sampled from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

from mtp_verify._core import CoreParams
from mtp_verify.errors import ParamsError

__all__ = ["Preset", "SamplingParams"]

Preset = Literal["transformers", "vllm"]

_CORE = ("temperature", "top_k", "top_p", "min_p", "preset")


@dataclass(frozen=True)
class SamplingParams:
    """How a row of logits is shaped before it is sampled from.

    The order of the steps and their rules for ties are those of the preset's library:
    ``"transformers"`` (temperature, top-k, top-p, min-p) or ``"vllm"`` (temperature, with less than
    1e-5 meaning greedy; min-p, top-k, top-p). Tokens tied at the top-k threshold all stay; among
    equal logits at the top-p cut the lower ids stay.

    Args:
        temperature: Divides the logits; 0 means greedy (lowest id among the maxima).
        top_k: How many tokens stay; 0 and -1 mean off.
        top_p: The smallest set with at least this mass stays, in (0, 1]; 1 means off.
        min_p: Tokens below this share of the largest probability go, in [0, 1]; 0 means off.
        repetition_penalty: Not supported yet; 1 means off.
        presence_penalty: Not supported yet; 0 means off.
        frequency_penalty: Not supported yet; 0 means off.
        no_repeat_ngram_size: Not supported yet; 0 means off.
        logit_bias: Not supported yet; added to the logits of the given tokens.
        banned: Not supported yet; token ids that are never emitted.
        min_new_tokens: Not supported yet; stop tokens are held back before this many.
        stop_ids: Token ids that end a sequence; honoured by the decoder.
        preset: Whose order and conventions are followed.

    Raises:
        ParamsError: A value is outside its range; the message names the field.

    Example:
        >>> SamplingParams(temperature=0.7, top_p=0.9).is_greedy
        False
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | None = None
    banned: Sequence[int] = field(default=())
    min_new_tokens: int = 0
    stop_ids: Sequence[int] = field(default=())
    preset: Preset = "transformers"

    def __post_init__(self) -> None:
        """Checks the ranges; the core's form is made once and kept."""
        for name, kind, wanted in (
            ("temperature", Real, "a number"),
            ("top_p", Real, "a number"),
            ("min_p", Real, "a number"),
            ("top_k", Integral, "an integer"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                message = f"{name}: found {value!r}, wanted {wanted}"
                raise ParamsError(message, slug="param_out_of_range")
        _ = self._core

    @cached_property
    def _core(self) -> CoreParams:
        return CoreParams(
            float(self.temperature),
            self.top_k,
            float(self.top_p),
            float(self.min_p),
            self.preset,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether rows are one-hot: temperature 0 (below 1e-5 under the vllm preset)."""
        return self._core.is_greedy

    @cached_property
    def unsupported(self) -> tuple[str, ...]:
        """The names of fields that ask for something that is not supported yet."""
        free = {*_CORE, "stop_ids"}
        return tuple(f.name for f in fields(self) if f.name not in free and self._is_set(f.name))

    def _is_set(self, name: str) -> bool:
        value: Any = getattr(self, name)
        if name in {"logit_bias", "banned"}:
            return value is not None and len(value) > 0
        return bool(value != (1.0 if name == "repetition_penalty" else 0))
