"""How one request is decoded: the arguments of `Decoder.generate`, checked once."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from mtp_verify import _core
from mtp_verify.decoder.constraints import Constraint
from mtp_verify.decoder.prompts import as_tensor
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.api import derive_seed
from mtp_verify.verifier.intake import as_count, as_list, check_instance, shown
from mtp_verify.verifier.params import SamplingParams
from mtp_verify.verifier.processors import check_processors, keeps_state

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.drafters.base import Drafter
    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.words import Rule

__all__ = ["Options", "as_ids", "per_sequence", "rule_of_request", "says_stop"]

_MOST_TOKENS = (1 << 63) - 1
_LAST_TOKEN = (1 << 32) - 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Options:
    """One request's part of the arguments of `Decoder.generate`, which documents them."""

    drafter: Drafter | None  # None decodes plainly
    rule: Rule  # of all its steps; "auto" is the best one for the law of each draft
    lossy: Lossy | None  # None where nothing is drafted: plain decoding is lossless
    params: SamplingParams
    constraint: Constraint | None
    seed: int
    max_new_tokens: int
    eos_ids: tuple[int, ...]
    criteria: list[Callable[..., Any]]
    output_logits: bool
    processors: list[Any]  # its own where they keep state
    top_logprobs: int

    @classmethod
    def each(
        cls,
        count: int,
        *,
        drafter: Drafter | None,
        rule: Rule,
        lossy: Lossy | None,
        speculate: bool = True,
        params: Any,
        constraint: Any,
        seed: Any,
        max_new_tokens: Any,
        eos_ids: Any,
        criteria: Any,
        output_logits: bool,
        processors: Any,
        top_logprobs: Any,
    ) -> list[Options]:
        """Check the arguments of a call for `count` requests, and return those of each.

        Raises:
            ParamsError, TypeError: names the argument.
            RuleError: the rule cannot verify what is drafted, or not at this temperature.
        """
        limit = as_count("max_new_tokens", max_new_tokens, most=_MOST_TOKENS)
        num_listed = as_count("top_logprobs", top_logprobs, 0)
        stops = as_ids(eos_ids)
        given = zip(
            per_sequence(params, SamplingParams, count, "params"),
            per_sequence(constraint, Constraint | None, count, "constraint"),
            _seeds(seed, count),
            _criteria(criteria, count),
            _processors(processors, count),
            strict=True,
        )
        return [
            cls(
                drafter=drafter if speculate else None,
                rule=rule_of_request(rule, drafter, shaping, lossy),
                lossy=lossy if speculate and drafter is not None else None,
                params=shaping,
                constraint=grammar,
                seed=own_seed,
                max_new_tokens=limit,
                eos_ids=stops,
                criteria=judges,
                output_logits=output_logits,
                processors=functions,
                top_logprobs=num_listed,
            )
            for shaping, grammar, own_seed, judges, functions in given
        ]


def rule_of_request(
    rule: Rule, drafter: Drafter | None, params: SamplingParams, lossy: Lossy | None = None
) -> Rule:
    """Return the rule of all steps of a request; refuse one that cannot verify what is drafted.

    That is the rule that was asked for, but "coupled" for "auto" where a draft may have that law:
    what a coupled draft shows is noise that the rule "coupled" has still to use, so no other rule
    may take turns with it, and a rule that was chosen after a look at the draft would be biased
    (docs/explanation/lossless-loops.md).

    Raises:
        RuleError: no such rule; not lossless for a law that the drafter may hand out, or not at
            this temperature; `lossy` with another rule than "auto", or at temperature 0.
    """
    laws = () if drafter is None else drafter.laws_for(params, rule)
    if drafter is not None and rule == "auto" and lossy is None and "coupled" in laws:
        rule = "coupled"
        laws = drafter.laws_for(params, rule)
    _core.check_rule(rule, laws, params._core, lossy)
    return rule


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return one seed per sequence; None takes one draw from torch's global generator."""
    if seed is None:
        seed = int(torch.randint(0, 2**63 - 1, ()).item())
    if isinstance(seed, (list, tuple, np.ndarray, torch.Tensor)) and np.ndim(seed):
        if len(seed) != count:
            message = f"seed: found {len(seed)} seeds, wanted {count}, one per sequence"
            raise ParamsError(message, slug="bad_seed")
        return [_as_seed(value) for value in seed]
    return [derive_seed(_as_seed(seed), index) for index in range(count)]


def _as_seed(seed: Any) -> int:
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value < 2**64:
        message = f"seed: found {shown(seed)}, wanted an integer of 0 to 2**64 - 1"
        raise ParamsError(message, slug="bad_seed")
    return value


def per_sequence(value: Any, kind: Any, count: int, name: str) -> list[Any]:
    """Return one value of a type, or a union, per sequence: the same for all, or a list of `count`.

    Raises:
        ParamsError: a list of another length, or with something else in it; names the argument.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count or not all(isinstance(item, kind) for item in values):
        names = [getattr(part, "__name__", str(part)) for part in get_args(kind) or (kind,)]
        wanted = " or ".join(names).replace("NoneType", "None")
        message = f"{name}: found {shown(value)}, wanted one {wanted}, or a list of {count}"
        raise ParamsError(message, slug=f"bad_{name}")
    return values


def _processors(value: Any, count: int) -> list[list[Any]]:
    """Return each sequence's own processors, from a list for all or one list per sequence."""
    listed = as_list("processors", value)
    is_by_row = listed and all(isinstance(item, (list, tuple)) for item in listed)
    lists = [list(item) for item in listed] if is_by_row else [listed] * count
    if len(lists) != count:
        message = f"processors: found {len(lists)} lists, wanted {count}, one per sequence"
        raise ParamsError(message, slug="bad_processor")
    for functions in lists:
        check_processors(functions)
    shared = count > 1 and lists[0] is lists[-1]
    return [[_own(processor, shared=shared) for processor in functions] for functions in lists]


def _own(processor: Any, *, shared: bool) -> Any:
    if not keeps_state(processor):
        return processor
    if hasattr(processor, "fork"):
        return processor.fork()
    if shared:
        message = (
            f"processor {type(processor).__name__} keeps state and has no fork: it serves a single "
            "sequence; pass one list per sequence"
        )
        raise ParamsError(message, slug="bad_processor")
    return processor


def as_ids(value: int | Iterable[int]) -> tuple[int, ...]:
    """Return one id, several, or a tensor of them, as a tuple.

    Raises:
        ParamsError, TypeError: something else, by the name of `eos_token_id`.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        value = as_tensor(value, "eos_token_id").reshape(-1).tolist()
    is_one = not isinstance(value, Iterable) and hasattr(value, "__index__")
    ids = [value] if is_one else as_list("eos_token_id", value)
    return tuple(as_count("eos_token_id", token, 0, _LAST_TOKEN) for token in ids)


def _criteria(value: Any, count: int) -> list[list[Callable[..., Any]]]:
    """Return each sequence's criteria, from none, one, a list for all, or one list per sequence."""
    is_by_row = isinstance(value, list | tuple) and any(
        isinstance(item, list | tuple) and not callable(item) for item in value
    )
    lists = value if is_by_row else [value] * count
    if len(lists) != count:
        message = f"stopping_criteria: found {len(lists)} lists, wanted {count}, one per sequence"
        raise ParamsError(message, slug="bad_stopping_criteria")
    return [_listed_criteria(item) for item in lists]


def _listed_criteria(value: Any) -> list[Callable[..., Any]]:
    if value is None:
        return []
    # A StoppingCriteriaList is callable as well as a list; its members are evaluated one by one.
    is_several = isinstance(value, Iterable) and (
        isinstance(value, list | tuple) or not callable(value)
    )
    listed = as_list("stopping_criteria", value) if is_several else [value]
    for index, criterion in enumerate(listed):
        name = f"stopping_criteria[{index}]" if is_several else "stopping_criteria"
        check_instance(name, criterion, ["__call__"], "a function of tokens and scores")
    return listed


def says_stop(answer: Any) -> bool:
    """Return whether a criterion's answer, a bool or a tensor of one, ends the sequence."""
    return bool(answer.all()) if isinstance(answer, torch.Tensor) else bool(answer)
