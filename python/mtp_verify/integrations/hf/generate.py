"""`model.generate` with all its arguments, drafted and verified by this package."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from transformers import StoppingCriteriaList, StopStringCriteria

from mtp_verify.caches.compiled import without_compiler
from mtp_verify.caches.settings import CacheSettings
from mtp_verify.drafters import Model, NGram
from mtp_verify.errors import ParamsError
from mtp_verify.integrations.hf.speculative import speculative
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.decoder.constraints import Constraint
    from mtp_verify.decoder.generation import Stats
    from mtp_verify.decoder.planning import Planner
    from mtp_verify.drafters.base import Drafter
    from mtp_verify.verifier.lossy import Lossy
    from mtp_verify.verifier.words import Rule

__all__ = ["generate"]

# What `generate` asks of an assistant that says nothing else, as transformers does.
_NUM_ASSISTANT_TOKENS, _CONFIDENCE = 20, 0.4
# Arguments that this function handles itself.
_TAKEN = ("stop_strings", "prompt_lookup_num_tokens", "max_matching_ngram_size")
# Arguments of other ways to generate, with what takes their place here.
_REFUSED = {
    "custom_generate": "this function sets it; call model.generate for another one",
    "use_mtp": "give drafter=mv.drafters.Heads(...), or call model.generate inside mv.hf.patch()",
    "assistant_tokenizer": "give drafter=mv.drafters.Model(model, translation=...)",
    "synced_gpus": "every process would have to take the same steps",
}


def generate(
    model: Any,
    inputs: Any = None,
    *,
    drafter: Drafter | None = None,
    rule: Rule = "auto",
    seed: int | None = None,
    stats: Stats | None = None,
    lossy: Lossy | None = None,
    constraint: Constraint | Sequence[Constraint | None] | None = None,
    planner: Planner | Literal["auto"] | None = None,
    **settings: Any,
) -> Any:
    """Generate with drafts: `model.generate` with `mv.hf.speculative` and all arguments.

    `generate` keeps some of its arguments from a `custom_generate` (`stop_strings` needs a
    `tokenizer` that it drops first). Here each has its effect, or is refused by name.

    Args:
        model: a transformers causal language model; one given to `torch.compile` runs compiled.
        inputs: token ids (B, T), or what a tokenizer returns, a mapping.
        drafter: where guesses come from. None takes `assistant_model` or `prompt_lookup_num_tokens`
            if one is given, and else decodes plainly.
        rule: as `Decoder`, as the others.
        seed: of all noise; None takes one draw from torch's global generator.
        stats: is filled with the figures of the run.
        lossy: as `Decoder`.
        constraint: as `Decoder.generate`.
        planner: as `Decoder`.
        settings: everything that `model.generate` takes. `assistant_model` drafts chains as long
            and as confident as its generation config says. `cache` may also be "paged" or a
            `Paged`.

    Returns:
        What `generate` returns: sequences (B, L), or its output object.

    Raises:
        ParamsError: a setting that is not supported; nothing has been generated.
        UnsupportedModelError: a model or cache that cannot work.

    Example:
        >>> inputs = tokenizer("Once", return_tensors="pt")  # doctest: +SKIP
        >>> mv.hf.generate(  # doctest: +SKIP
        ...     model, inputs, drafter=mv.drafters.NGram(), stop_strings=["."], tokenizer=tokenizer
        ... )
    """
    for name, instead in _REFUSED.items():
        if settings.pop(name, None):
            message = f"{name} is not supported by mv.hf.generate: {instead}"
            raise ParamsError(message, slug="unsupported_setting")
    if settings.get("cache_implementation") == "paged":
        # transformers would run a loop of its own, and no custom code.
        message = (
            'cache_implementation="paged" is not supported by mv.hf.generate: give cache="paged"'
        )
        raise ParamsError(message, slug="unsupported_setting")
    pool = settings.pop("cache") if isinstance(settings.get("cache"), str | CacheSettings) else None
    streamer = settings.pop("streamer", None)
    taken, settings = _take(settings, model.generation_config)
    settings["stopping_criteria"] = _criteria(settings, taken["stop_strings"])
    drafter = _drafter(drafter, taken, settings, model.generation_config)
    if isinstance(inputs, Mapping):
        inputs, settings = None, {**inputs, **settings}
    call = speculative(
        drafter, rule, seed, streamer, stats, lossy, constraint, planner=planner, cache=pool
    )
    if without_compiler(model) is not model:
        # `generate` of a compiled module is that of the model inside, which knows of no compiler.
        settings["compiled_model"] = model
    prompt = () if inputs is None else (inputs,)  # some models call it otherwise
    return model.generate(*prompt, custom_generate=call, **settings)


def _take(settings: dict[str, Any], own: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that this function handles itself, and the settings without them."""
    for name in _TAKEN:
        if getattr(own, name, None) is not None:
            message = (
                f"{name}: found it in the model's generation config, from where transformers takes "
                f"it; set model.generation_config.{name} = None and give it to mv.hf.generate"
            )
            raise ParamsError(message, slug="unsupported_setting")
    config = settings.get("generation_config")
    left = {name: value for name, value in settings.items() if name not in _TAKEN}
    taken = {name: settings.get(name) for name in _TAKEN}
    kept = {name: getattr(config, name, None) for name in _TAKEN}
    if any(value is not None for value in kept.values()):
        left["generation_config"] = copy.deepcopy(config)
        left["generation_config"].update(**dict.fromkeys(_TAKEN))
    return {name: kept[name] if taken[name] is None else taken[name] for name in _TAKEN}, left


def _criteria(settings: dict[str, Any], strings: Any) -> StoppingCriteriaList:
    """Return the caller's stopping criteria, and one for `stop_strings`."""
    tokenizer = settings.pop("tokenizer", None)
    criteria = StoppingCriteriaList(settings.pop("stopping_criteria", None) or [])
    if strings:
        if tokenizer is None:
            message = "stop_strings: found no tokenizer to read them by, wanted tokenizer=..."
            raise ParamsError(message, slug="no_tokenizer")
        criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=strings))
    return criteria


def _drafter(
    drafter: Drafter | None, taken: dict[str, Any], settings: dict[str, Any], own: Any
) -> Drafter | None:
    """Return the one drafter that is named: itself, an assistant, or prompt lookup."""
    assistant, lookup = settings.pop("assistant_model", None), taken["prompt_lookup_num_tokens"]
    named = {"drafter": drafter, "assistant_model": assistant, "prompt_lookup_num_tokens": lookup}
    given = [name for name, value in named.items() if value is not None]
    if len(given) > 1:
        names = " and ".join(given)
        message = f"{names} are ways to draft; give one of them, or mv.drafters.Combined"
        raise ParamsError(message, slug="bad_drafters")
    if lookup is not None:
        return NGram(num_tokens=lookup, max_ngram=taken["max_matching_ngram_size"] or 2)
    if assistant is None:
        return drafter
    config = settings.get("generation_config") or own
    theirs = assistant.generation_config
    is_sampled = settings.get("do_sample", config.do_sample)
    temperature = settings.get("temperature", config.temperature)
    params = SamplingParams(temperature=1.0 if temperature is None else temperature)
    count, confidence = theirs.num_assistant_tokens, theirs.assistant_confidence_threshold
    return Model(
        assistant,
        num_tokens=_NUM_ASSISTANT_TOKENS if count is None else int(count),
        params=params if is_sampled else None,
        min_confidence=_CONFIDENCE if confidence is None else float(confidence),
    )
