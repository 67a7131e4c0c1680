"""Sampling parameters: how raw logits become the row that is sampled from."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from functools import cached_property
from numbers import Integral
from typing import Any, get_args

from mtp_verify._core import CoreParams
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.intake import as_float, as_list, check_word, shown
from mtp_verify.verifier.words import Preset

__all__ = ["SamplingParams", "as_params"]

_NUMBERS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
_MOST_SHOWN = 16
_INTEGERS = ("top_k", "no_repeat_ngram_size", "min_new_tokens")


@dataclass(frozen=True)
class SamplingParams:
    """How a row of logits is shaped before it is sampled from.

    The order of the steps and their rules for ties are those of the preset's library:
    ``"transformers"`` (temperature, top-k, top-p, min-p) or ``"vllm"`` (temperature, with less than
    1e-5 meaning greedy; min-p, top-k, top-p). Tokens tied at the top-k threshold all stay; among
    equal logits at the top-p cut the lower ids stay.

    Everything from ``repetition_penalty`` on comes before that, shapes the target's rows alone (a
    draft's law is what it says), and is evaluated for each node with that node's own path behind
    the history.

    Args:
        temperature: Divides the logits; 0 means greedy (lowest id among the maxima).
        top_k: How many tokens stay; 0 and -1 mean off.
        top_p: The smallest set with at least this mass stays, in (0, 1]; 1 means off.
        min_p: Tokens below this share of the largest probability go, in [0, 1]; 0 means off.
        repetition_penalty: Divides positive logits of tokens in prompt, output or path, and
            multiplies negative ones, > 0; 1 means off.
        presence_penalty: Taken off the logits of tokens in output or path; 0 means off.
        frequency_penalty: Taken off as often as the token stands there; 0 means off.
        no_repeat_ngram_size: No n-gram of this length comes twice, the prompt's included; 0 means
            off.
        logit_bias: A mapping from tokens to what is added to their logits, before the penalties;
            -inf bans.
        banned: Token ids that are never emitted.
        min_new_tokens: ``stop_ids`` are held back before this many tokens.
        stop_ids: Token ids that end a sequence; the decoder cuts there, ``verify`` does not.
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
        """Check the ranges; collections are copied, and the core's form is made once and kept."""
        for name in _INTEGERS:
            _check(name, getattr(self, name), Integral, "an integer")
        check_word("preset", self.preset, get_args(Preset))
        for name in ("banned", "stop_ids"):
            tokens = as_list(name, getattr(self, name))
            for token in tokens:
                _check(name, token, Integral, "token ids")
            object.__setattr__(self, name, tuple(int(token) for token in tokens))
        if self.logit_bias is not None:
            # A list of pairs could name a token twice, and what that means differs from library to
            # library.
            _check("logit_bias", self.logit_bias, Mapping, "a mapping from token ids to numbers")
            for token in self.logit_bias:
                _check("logit_bias", token, Integral, "token ids")
            biases = {int(t): as_float("logit_bias", b) for t, b in self.logit_bias.items()}
            object.__setattr__(self, "logit_bias", biases)
        _ = self._core

    def __hash__(self) -> int:
        """Equal parameters hash alike, whatever collections they were given."""
        biases = None if self.logit_bias is None else frozenset(self.logit_bias.items())
        values = {f.name: getattr(self, f.name) for f in fields(self)} | {"logit_bias": biases}
        return hash(tuple(values.values()))

    def __reduce__(self) -> tuple[type["SamplingParams"], tuple[Any, ...]]:
        """Through the constructor: what comes out of a pickle is checked like any other input."""
        return type(self), tuple(getattr(self, f.name) for f in fields(self))

    def __repr__(self) -> str:
        """Show what differs from the defaults, long collections by their lengths."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        own = {name: value for name, value in values.items() if value != _DEFAULTS[name]}
        texts = [f"{name}={_text(value)}" for name, value in own.items()]
        return f"SamplingParams({', '.join(texts)})"

    @cached_property
    def _core(self) -> CoreParams:
        temperature, top_p, min_p, repetition, presence, frequency = (
            as_float(name, getattr(self, name)) for name in _NUMBERS
        )
        return CoreParams(
            temperature,
            self.top_k,
            top_p,
            min_p,
            self.preset,
            repetition_penalty=repetition,
            presence_penalty=presence,
            frequency_penalty=frequency,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            logit_bias=list((self.logit_bias or {}).items()),
            banned=self.banned,
            min_new_tokens=self.min_new_tokens,
            stop_ids=self.stop_ids,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether rows are one-hot: temperature 0 (below 1e-5 under the vllm preset)."""
        return self._core.is_greedy

    @property
    def needs_history(self) -> bool:
        """Whether rows depend on the tokens before them, which ``verify`` then must be given."""
        return self._core.needs_history is not None


def as_params(params: SamplingParams | None, name: str = "params") -> SamplingParams:
    """Return the parameters themselves, or ``SamplingParams()`` for None.

    Raises:
        ParamsError: Anything else, by the name of the argument.
    """
    if params is None:
        return _NEUTRAL
    if not isinstance(params, SamplingParams):
        message = f"{name}: found {shown(params)}, wanted a SamplingParams, or None"
        raise ParamsError(message, slug="param_out_of_range")
    return params


def _text(value: Any) -> str:
    is_long = isinstance(value, Sized) and not isinstance(value, str) and len(value) > _MOST_SHOWN
    return f"<{len(value)} tokens>" if is_long else repr(value)


def _check(name: str, value: Any, kind: type, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        message = f"{name}: found {shown(value)}, wanted {wanted}"
        raise ParamsError(message, slug="param_out_of_range")


_DEFAULTS = {f.name: f.default for f in fields(SamplingParams)}
_NEUTRAL = SamplingParams()
