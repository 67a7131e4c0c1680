"""Corrupted folders: whatever stands where a file should, an error of this package names it.

`test_fuzzed_checkpoints` damages contents at random, and most of its cases may load. Here each case
is one that no head can come out of: pipes, devices, sockets, folders and links in the place of
files, weights that are not finite, files cut short, wrong shapes, headers and JSON that lie.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

import mtp_verify as mv
from mtp_verify.commands.cli import main
from mtp_verify.heads import load
from tests.property.test_fuzzed_checkpoints import sound_checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 2.0
ODD = (
    b"", b"[]", b"null", b'"text"', b"3", b"{", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000,
    b"NaN", b"{" + b'"a": 1' * 2, b"9" * 5000,
)  # fmt: skip


def _put(make: Callable[[Path], None]) -> Callable[[Path, random.Random], None]:
    def corrupt(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return corrupt


def _loop(path: Path) -> None:
    path.symlink_to(path.with_name(f"{path.name}.other"))
    path.with_name(f"{path.name}.other").symlink_to(path)


def _pipe_behind_link(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def _socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # Names of sockets are short.
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(f"/proc/self/fd/{here}/{path.name}")
    finally:
        os.close(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


# For any file that a head is made of.
ANY: dict[str, Callable[[Path, random.Random], None]] = {
    "pipe": _put(os.mkfifo),
    "pipe behind a link": _put(_pipe_behind_link),
    "link to nothing": _put(lambda path: path.symlink_to("nothing")),
    "link to itself": _put(lambda path: path.symlink_to(path.name)),
    "link loop": _put(_loop),
    "endless device": _put(lambda path: path.symlink_to("/dev/zero")),
    "terminal": _put(lambda path: path.symlink_to("/dev/tty")),
    "folder": _put(lambda path: path.mkdir()),
    "link to a folder": _put(lambda path: path.symlink_to(path.parent)),
    "socket": _put(_socket),
    "huge": _put(_sparse),
    "cut short": lambda path, rng: os.truncate(path, rng.randrange(path.stat().st_size)),
}


def _odd_json(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice(ODD))


def _header(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    way = rng.randrange(4)
    if way == 0:  # One that claims to be longer than all that there is.
        path.write_bytes(rng.choice([1 << 62, 1 << 40, len(content)]).to_bytes(8, "little"))
        return
    header = json.loads(content[8 : 8 + length])
    entry = header[rng.choice(sorted(set(header) - {"__metadata__"}))]
    if way == 1:
        entry["data_offsets"][1] += rng.choice([1, 1 << 40, -1])
    elif way == 2:
        entry["shape"] = [*entry["shape"], rng.choice([2, 1 << 40, -1])]
    else:
        entry["dtype"] = "F128"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def _whole_claim(path: Path, rng: random.Random) -> None:
    """Claim one tensor of a size that only a sparse file has."""
    size = 1 << rng.choice([36, 40])
    header = {"fc.weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 4 * size)


def _weights(change: Callable[..., None]) -> Callable[[Path, random.Random], None]:
    def corrupt(path: Path, rng: random.Random) -> None:
        tensors = load_file(path)
        names = [name for name in sorted(tensors) if _is_of_head(name, tensors)]
        change(tensors, rng.choice(names), rng)
        save_file(tensors, path)

    return corrupt


def _is_of_head(name: str, tensors: dict[str, object]) -> bool:
    tensor = tensors[name]
    inside = any(part in name for part in ("mtp", "layers.2."))
    alone = not any(other.startswith("model.layers.0") for other in tensors)
    return tensor.is_floating_point() and tensor.dim() > 0 and (inside or alone)


def _torn(tensors, name, rng):
    flat = tensors[name].reshape(-1)
    flat[rng.randrange(len(flat))] = rng.choice([float("nan"), float("inf"), float("-inf")])
    tensors[name] = flat.reshape(tensors[name].shape)


def _misshapen(tensors, name, rng):
    tensor = tensors[name]
    tensors[name] = tensor[:-1].clone() if rng.random() < 0.5 else tensor[..., None].clone()


TENSORS = {
    "header": _header, "claim": _whole_claim, "not finite": _weights(_torn),
    "wrong shape": _weights(_misshapen),
}  # fmt: skip


_CHANGED = ("not finite", "wrong shape")


def _kinds(path: Path) -> dict[str, Callable[[Path, random.Random], None]]:
    return {**ANY, **({"odd JSON": _odd_json} if path.suffix == ".json" else TENSORS)}


def cases(sound: list[Path], count: int, seed: int):
    """Yield folders to copy, the file that is corrupted and how, all kinds equally often."""
    rng = random.Random(seed)
    every: dict[str, list[tuple[Path, str]]] = {}
    for folder in sound:
        for path in sorted(folder.iterdir()):
            for kind in _kinds(path):
                # The embedding beside an EAGLE head is a copy; a shard may hold none of the head.
                if folder.name not in ("sharded", "eagle") or kind not in _CHANGED:
                    every.setdefault(kind, []).append((folder, path.name))
    for case in range(count):
        kind = sorted(every)[case % len(every)]
        yield *rng.choice(every[kind]), kind, rng


def corrupted(place: Path, folder: Path, name: str, kind: str, rng: random.Random) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    _kinds(place / name)[kind](place / name, rng)


def check(folder: Path, count: int, seed: int) -> tuple[Counter[str], float]:
    """Load corrupted folders; return how many of each kind, and the longest time of one."""
    model, sound = sound_checkpoints(folder / "sound")
    place, longest, kinds = folder / "case", 0.0, Counter()
    signal.signal(signal.SIGALRM, _hangs)
    for source, name, kind, rng in cases(sound, count, seed):
        corrupted(place, source, name, kind, rng)
        what = f"{source.name}/{name}: {kind}"
        signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)  # Waiting takes no time of its own.
        began = time.process_time()
        try:
            with pytest.raises(mv.MtpVerifyError) as caught:
                load(place, model, probe=False)
        except BaseException as error:
            error.add_note(what)
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        spent = time.process_time() - began
        assert spent < SECONDS, what
        assert str(place) in str(caught.value), (what, caught.value)
        longest, kinds[kind] = max(longest, spent), kinds[kind] + 1
    return kinds, longest


def _hangs(*_args: object) -> None:
    msg = "it waits"
    raise TimeoutError(msg)


def test_corrupted_folders_are_named(tmp_path):
    kinds, _ = check(tmp_path, 68, seed=1)
    assert set(kinds) == {*ANY, *TENSORS, "odd JSON"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_corrupted_folders(tmp_path, record_property):
    kinds, longest = check(tmp_path, 1000, seed=2)
    assert sum(kinds.values()) == 1000
    record_property("longest_seconds", longest)


@pytest.mark.parametrize("kind", ["pipe", "endless device", "link loop", "folder", "not finite"])
def test_inspect_names_what_stands_in_the_place_of_a_file(kind, tmp_path, capsys):
    _, sound = sound_checkpoints(tmp_path / "sound")
    source = next(folder for folder in sound if folder.name == "eagle3")
    corrupted(tmp_path / "case", source, "model.safetensors", kind, random.Random(0))
    assert main(["inspect", str(tmp_path / "case"), "--tokens", "0"]) == 1
    assert "damaged" in capsys.readouterr().out
