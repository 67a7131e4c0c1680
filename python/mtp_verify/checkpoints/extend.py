"""A checkpoint with further tensors: shards that do not change are linked, not copied."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.folder import INDEX
from mtp_verify.checkpoints.tensors import publish, write_tensors
from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from mtp_verify.checkpoints.folder import Checkpoint

__all__ = ["extend", "write_folder"]

_TENSOR_FILES = (".safetensors", ".bin", ".pt", ".pth", INDEX)


def write_folder(out: str | Path, fill: Callable[[Path], None]) -> None:
    """Make a folder that appears in one rename, complete; `fill` writes a temporary one beside it.

    ParamsError: `out` is there and not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        message = f"{out} is not empty; give a new folder"
        raise ParamsError(message, slug="folder_not_empty")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        fill(temporary)
        if out.exists():
            out.rmdir()
        publish(temporary, out, 0o777)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def extend(
    base: Checkpoint, tensors: Mapping[str, torch.Tensor], out: str | Path, config: dict[str, Any]
) -> None:
    """Write a copy of a checkpoint with more tensors, in a shard of their own, and a new config.

    Shards of the base are hard links (copies on another disk) and are never rewritten, unless they
    hold a tensor of the same name, which is replaced. `out` is as for `write_folder`.
    """
    taken = set(base.files.values())
    names = (f"mtp-{number:05}.safetensors" for number in count(1))
    shard = next(name for name in names if name not in taken)

    def fill(folder: Path) -> None:
        for path in sorted(base.folder.iterdir()):
            skipped = path.name == "config.json" or path.name.endswith(_TENSOR_FILES)
            if path.is_file() and not skipped:
                shutil.copy2(path, folder / path.name)
        where: dict[str, str] = {}
        for file in sorted(taken):
            names = [name for name, holder in base.files.items() if holder == file]
            others = [name for name in names if name not in tensors]
            if others == names:
                try:
                    os.link((base.folder / file).resolve(), folder / file)
                except OSError:
                    shutil.copy2(base.folder / file, folder / file)
            elif others:
                write_tensors(folder / file, {name: base.read(name) for name in others})
            where |= dict.fromkeys(others, file)
        write_tensors(folder / shard, tensors)
        where |= dict.fromkeys(tensors, shard)
        size = sum((folder / file).stat().st_size for file in set(where.values()))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / f"model{INDEX}").write_text(json.dumps(index, indent=2))
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    write_folder(out, fill)
