"""Measured times of forwards on disk: one small JSON file for each model, device and version.

What a forward costs, and what it costs at several thread counts, are kept in the same form.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.console.folders import cache_folder
from mtp_verify.verifier.api import build_info
from mtp_verify.verifier.files import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtp_verify.models.target import Target

__all__ = ["key_of", "load", "path_of", "save"]

_FORMAT = 3


def key_of(target: Target, **more: Any) -> dict[str, Any] | None:
    """Return all that measured times of a target depend on; None if its identity is not known."""
    import torch

    from mtp_verify.models.cpu.fused import fused_model
    from mtp_verify.models.cpu.packing import is_prepacked

    model: Any = getattr(target, "model", None)
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    settings = json.dumps(config.to_dict(), sort_keys=True, default=str)
    weights = next(iter(model.parameters()))
    on_gpu = weights.device.type == "cuda"
    return {
        "format": _FORMAT,
        "mtp_verify": build_info()["version"],
        "torch": str(torch.__version__),
        "transformers": importlib.metadata.version("transformers"),
        "device": torch.cuda.get_device_name(weights.device) if on_gpu else _processor(),
        "model": hashlib.sha256(settings.encode()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(weights.dtype),
        "is_prepacked": is_prepacked(model),
        "is_fused": fused_model(model) is not None,
        "attention": str(getattr(config, "_attn_implementation", "")),
        **more,
    }


def path_of(key: Mapping[str, Any]) -> Path:
    """Return the file of a key; it need not exist."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder() / "costs" / f"{name}.json"


def load(key: Mapping[str, Any]) -> dict[int, dict[int, float]]:
    """Return the times of a key, as `save` took them; none if there is no usable file."""
    try:
        found = json.loads(read_text(path_of(key)))
        if found["key"] != key:
            return {}
        return {
            int(count): {int(width): float(value) for width, value in times.items()}
            for count, times in found["seconds"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Missing, damaged or of another program: it is measured again.
        return {}


def save(key: Mapping[str, Any], seconds: Mapping[int, Mapping[int, float]]) -> None:
    """Write the times of a key, by batch (or threads) and width; warns if that cannot be done.

    The file appears in one rename: a reader never sees half of it.
    """
    path = path_of(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump({"key": dict(key), "seconds": seconds}, file, indent=1)
        Path(scratch).replace(path)
    except OSError as error:
        warnings.warn(
            f"{path.parent} cannot be written ({error}): the times of a forward will be measured "
            "again; MTP_VERIFY_CACHE names another folder",
            stacklevel=2,
        )


def _processor() -> str:
    """Return the processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.machine()
