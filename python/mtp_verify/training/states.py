"""The state of a run on disk: one safetensors file whose header holds the JSON part.

One file, renamed into place, so that a kill at any moment leaves the old state or the new one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.tensors import TensorFile, bad_checkpoint, write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import nn

__all__ = ["load_state", "save_state"]


def save_state(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    progress: Mapping[str, Any],
) -> None:
    """Write modules, optimizers without their rates, which each step sets, and progress, as JSON.

    OSError: the disk is full or cannot be written; the old state stays.
    """
    tensors = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"{name}.{index}.{key}"] = value
    write_tensors(path, tensors, {"progress": json.dumps(progress)})


def load_state(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Read what `save_state` wrote into modules and optimizers; return the progress.

    UnsupportedModelError: a damaged file, or one of another run.
    """
    file = TensorFile(path)
    try:
        progress: dict[str, Any] = json.loads(file.metadata["progress"])
        for name, module in modules.items():
            module.load_state_dict({key: file.read(f"{name}.{key}") for key in module.state_dict()})
    except (KeyError, ValueError, RuntimeError) as error:
        bad_checkpoint(path, f"it does not hold the state of such a run: {error}")
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key in file.tensors:
            owner, _, rest = key.partition(".")
            if owner == name:
                index, _, field = rest.partition(".")
                state.setdefault(int(index), {})[field] = file.read(key)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return progress
