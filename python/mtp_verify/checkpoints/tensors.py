"""Safetensors files, read and written; everything that a file says is checked.

The format is eight bytes with the length of a JSON header, the header, and the tensors' bytes. A
header is refused unless names, dtypes, shapes and offsets agree with each other and with the size
of the file, so that no allocation is larger than the file itself justifies.

References:
    https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.verifier.files import open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from io import BufferedReader

__all__ = ["TensorFile", "TensorInfo", "bad_checkpoint", "listed", "open_checked", "publish",
           "read_json", "write_atomically", "write_tensors"]  # fmt: skip

_MAX_HEADER = 100_000_000  # the format's own limit
_MAX_JSON = 64 << 20  # an index of a million tensors fits
_MAX_DIMS = 8
# The shortest entry, `"":{"dtype":"U8","shape":[],"data_offsets":[0,0]},`, has three brackets.
_BYTES_PER_BRACKET = 12

# Bits of an element; None where torch has no such type, so that it is listed and never read.
_DTYPES: dict[str, tuple[int, torch.dtype | None]] = {
    "BOOL": (8, torch.bool), "U8": (8, torch.uint8), "I8": (8, torch.int8),
    "F8_E4M3": (8, torch.float8_e4m3fn), "F8_E5M2": (8, torch.float8_e5m2), "F8_E8M0": (8, None),
    "F4": (4, None), "F6_E2M3": (6, None), "F6_E3M2": (6, None),
    "U16": (16, torch.uint16), "I16": (16, torch.int16), "F16": (16, torch.float16),
    "BF16": (16, torch.bfloat16), "U32": (32, torch.uint32), "I32": (32, torch.int32),
    "F32": (32, torch.float32), "U64": (64, torch.uint64), "I64": (64, torch.int64),
    "F64": (64, torch.float64), "C64": (64, torch.complex64),
}  # fmt: skip
_NAMES = {kind: name for name, (_, kind) in _DTYPES.items() if kind is not None}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    dtype: str  # in the format's words, as "BF16"
    shape: tuple[int, ...]
    start: int  # of its bytes, counted from the end of the header
    end: int


class TensorFile:
    """A safetensors file whose header was checked, or refused by `bad_checkpoint`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_checked(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                bad_checkpoint(path, f"it has {size} bytes, too few for a safetensors file")
            length = int.from_bytes(prefix, "little")
            if length > min(size - 8, _MAX_HEADER):
                bad_checkpoint(path, f"its header claims {length} bytes and the file has {size}")
            text = file.read(length)
        self._data = 8 + length
        header = _parse(path, text, unique=True)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(
            isinstance(value, str) for value in self.metadata.values()
        ):
            bad_checkpoint(path, "its metadata is not a table of texts")
        self.tensors = {name: _entry(path, name, entry) for name, entry in header.items()}
        end = 0
        for name, info in sorted(self.tensors.items(), key=lambda item: item[1].start):
            if info.start != end and info.start != info.end:
                bad_checkpoint(path, f"tensor {name} starts at byte {info.start}, wanted {end}")
            end = max(end, info.end)
        if end != (wanted := size - self._data):
            bad_checkpoint(path, f"its tensors end at byte {end} of {wanted}: cut off, or padded")

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor; nothing else is read. Types that torch does not have are refused."""
        if name not in self.tensors:
            bad_checkpoint(self.path, f"it holds no tensor {name}")
        info = self.tensors[name]
        kind = _DTYPES[info.dtype][1]
        if kind is None:
            bad_checkpoint(self.path, f"tensor {name} is quantised to {info.dtype}")
        try:
            buffer = bytearray(info.end - info.start)
        except MemoryError:
            bad_checkpoint(self.path, f"tensor {name} does not fit into memory")
        if not buffer:
            return torch.empty(info.shape, dtype=kind)
        with open_checked(self.path) as file:
            file.seek(self._data + info.start)
            if file.readinto(buffer) != len(buffer):
                bad_checkpoint(self.path, f"it ends inside tensor {name}")
        return torch.frombuffer(buffer, dtype=kind).reshape(info.shape)


def bad_checkpoint(path: object, what: str, slug: str = "bad_checkpoint") -> NoReturn:
    """Refuse what is at a path: always raises UnsupportedModelError."""
    message = f"{path}: {what}"
    raise UnsupportedModelError(message, slug=slug)


def open_checked(path: Path) -> BufferedReader:
    """Open a file of a checkpoint; `bad_checkpoint` where there is no regular file."""
    try:
        return open_file(path)
    except ParamsError as error:
        raise UnsupportedModelError(str(error), slug="bad_checkpoint") from None
    except FileNotFoundError:
        bad_checkpoint(path, "no such file, or a link to nothing")


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Return some names in words, and how many more there are."""
    some = list(names)
    more = f" and {len(some) - limit} more" if len(some) > limit else ""
    return ", ".join(name[:200] for name in some[:limit]) + more


def read_json(path: Path) -> dict[str, Any]:
    """Return the table in a JSON file; one that holds none, or is too large, is refused."""
    with open_checked(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_JSON:
            bad_checkpoint(path, f"it has {size} bytes, more than any such file")
        text = file.read(size)
    return _parse(path, text, unique=False)


def _parse(path: Path, text: bytes, *, unique: bool) -> dict[str, Any]:
    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if unique and len(found) != len(pairs):
            message = "a name is there twice"
            raise ValueError(message)
        return found

    # An empty list costs two bytes of text and fifty of memory.
    if unique and text.count(b"{") + text.count(b"[") > len(text) // _BYTES_PER_BRACKET + 4:
        bad_checkpoint(path, "its header is nested, and a list of tensors is not")
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        bad_checkpoint(path, f"it is not JSON where it should be: {str(error)[:100]}")
    if not isinstance(parsed, dict):
        bad_checkpoint(path, "its JSON is not a table")
    return parsed


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in values)


def _entry(path: Path, name: str, entry: Any) -> TensorInfo:
    tensor = f"tensor {name[:200]}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        bad_checkpoint(path, f"{tensor}: wanted exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        bad_checkpoint(path, f"{tensor} has an unknown dtype, {str(dtype)[:50]}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMS:
        bad_checkpoint(path, f"{tensor} has no valid shape: {str(shape)[:100]}")
    if not _are_counts(offsets) or len(offsets) != 2:
        bad_checkpoint(path, f"{tensor} has no valid offsets: {str(offsets)[:100]}")
    bits = math.prod(shape) * _DTYPES[dtype][0]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        what = f"{tensor} of {dtype} {shape} needs {bits / 8:g} bytes"
        bad_checkpoint(path, f"{what} and its offsets are {offsets}")
    return TensorInfo(dtype, tuple(shape), *offsets)


def write_atomically(path: Path, chunks: Any) -> None:
    """Write bytes-like parts beside `path` and rename: a kill leaves the old file or the new."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        publish(Path(temporary), path, 0o666)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path, mode: int) -> None:
    """Rename a temporary file or folder, which only its owner can read, and give it a mode."""
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(mode & ~mask)
    temporary.replace(path)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; the metadata gets the `format` of transformers."""
    # Wide types first, as the reference does: then every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        entry = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape)}
        header[name] = {**entry, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Any:
        yield len(text).to_bytes(8, "little")
        yield text
        for name in order:
            plain = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield plain.view(torch.uint8).numpy() if plain.numel() else b""

    write_atomically(path, chunks())
