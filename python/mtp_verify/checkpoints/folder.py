"""A checkpoint: a folder of safetensors files, with or without an index, and its configuration."""

from __future__ import annotations

from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from mtp_verify.checkpoints.tensors import (
    TensorFile,
    TensorInfo,
    bad_checkpoint,
    listed,
    open_checked,
    read_json,
)
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["INDEX", "Checkpoint", "is_plain"]

INDEX = ".safetensors.index.json"
_MAX_NAME = 255  # bytes, of every common file system
_PICKLES = (".pt", ".pth", ".bin")
_HOW_TO_CONVERT = (
    "a pickle can run code when it is opened. To convert it where you trust it: "
    'tensors = torch.load("{name}", map_location="cpu", weights_only=True); '
    'safetensors.torch.save_file(tensors, "model.safetensors"). To have it read here by torch\'s '
    "weights-only loader, say allow_pickle=True"
)


class Checkpoint:
    """The tensors and the configuration of a model or head on disk.

    Headers are read and checked at once, tensors when asked for. Arguments and errors are those of
    `mtp_verify.heads.load`.

    Attributes:
        folder: that holds it.
        config: of `config.json`; empty if there is none.
        tensors: what the headers say, by name.
        files: name of a tensor -> name of its file.
    """

    def __init__(self, path: str | Path, *, allow_pickle: bool = False) -> None:
        path = Path(path)
        if not path.exists():
            message = f"{path}: no such file or folder"
            raise FileNotFoundError(message)
        self.folder = path if path.is_dir() else path.parent
        self._open: dict[str, TensorFile] = {}
        self._loaded: dict[str, torch.Tensor] = {}
        config = self.folder / "config.json"
        self.config: dict[str, Any] = read_json(config) if lexists(config) else {}
        self.files: dict[str, str] = {}
        if path.is_dir():
            self._find(allow_pickle=allow_pickle)
        elif path.suffix in _PICKLES:
            self._unpickle(path, allow_pickle=allow_pickle)
        else:
            self._add(path.name)
        self.tensors: dict[str, TensorInfo] = {
            name: self._open[file].tensors[name] for name, file in self.files.items() if file
        } | {
            name: TensorInfo(str(tensor.dtype), tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in self._loaded.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor; UnsupportedModelError if there is none of this name."""
        if name in self._loaded:
            return self._loaded[name]
        if name not in self.files:
            bad_checkpoint(self.folder, f"it holds no tensor {name}")
        return self._open[self.files[name]].read(name)

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model, which may be a part of the whole's."""
        return self.text_part(self.config)

    @property
    def num_layers(self) -> int:
        """Layers of the language model, by the configuration."""
        found = self.text_config.get("num_hidden_layers")
        if type(found) is not int:
            bad_checkpoint(self.folder, "config.json does not give the number of layers")
        return found

    @staticmethod
    def text_part(config: dict[str, Any]) -> dict[str, Any]:
        """Return the table about the language model in a configuration: a part of it, or all."""
        for key in ("text_config", "llm_config"):
            if isinstance(config.get(key), dict):
                return cast("dict[str, Any]", config[key])
        return config

    def _find(self, *, allow_pickle: bool) -> None:
        indices = sorted(self.folder.glob(f"*{INDEX}"))
        if len(indices) > 1:
            bad_checkpoint(self.folder, f"it has {len(indices)} indices: {indices[0].name}, ...")
        if indices:
            self._follow(indices[0])
        elif found := sorted(self.folder.glob("*.safetensors")):
            for path in found:
                self._add(path.name)
        elif pickles := sorted(p for p in self.folder.iterdir() if p.suffix in _PICKLES):
            for path in pickles:
                self._unpickle(path, allow_pickle=allow_pickle)
        else:
            bad_checkpoint(self.folder, "it holds no safetensors files")

    def _follow(self, index: Path) -> None:
        where = read_json(index).get("weight_map")
        if not isinstance(where, dict) or not all(is_plain(file) for file in where.values()):
            bad_checkpoint(index, "its weight_map does not say which file holds each tensor")
        shards = sorted(set(where.values()))
        if missing := [shard for shard in shards if not lexists(self.folder / shard)]:
            bad_checkpoint(index, f"shards are missing: {listed(missing)}")
        self._open = {shard: TensorFile(self.folder / shard) for shard in shards}
        if astray := sorted(n for n, file in where.items() if n not in self._open[file].tensors):
            bad_checkpoint(index, f"tensors are not in the file it names: {listed(astray)}")
        self.files = dict(where)

    def _add(self, file: str) -> None:
        self._open[file] = opened = TensorFile(self.folder / file)
        if twice := sorted(set(opened.tensors) & set(self.files)):
            bad_checkpoint(self.folder, f"several files hold the same tensors: {listed(twice)}")
        self.files |= dict.fromkeys(opened.tensors, file)

    def _unpickle(self, path: Path, *, allow_pickle: bool) -> None:
        if not allow_pickle:
            bad_checkpoint(path, _HOW_TO_CONVERT.format(name=path.name), "pickle_refused")
        try:
            with open_checked(path) as file:
                found: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except UnsupportedModelError:
            raise
        except Exception as error:  # noqa: BLE001 - a hostile pickle may raise anything
            bad_checkpoint(path, f"torch's weights-only loader refuses it: {str(error)[:200]}")
        if not isinstance(found, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor)
            for name, tensor in found.items()
        ):
            bad_checkpoint(path, "it is not a table of tensors")
        self._loaded |= found
        self.files |= dict.fromkeys(found, "")


def is_plain(file: object) -> bool:
    """Return whether this can only be the name of a file in the folder itself."""
    if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
        return False
    return len(file.encode("utf-8", "replace")) <= _MAX_NAME
