"""Damaged checkpoints: never a crash, a hang, or memory that the files do not justify.

Each case takes a sound tiny checkpoint of some layout and damages it: files cut short or padded,
headers that lie about lengths, shapes, dtypes, offsets and names, configurations with absurd sizes,
indices that lead nowhere, shards that are missing. `load` must give a head or an error of this
package, quickly, and the process must not grow.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import struct
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

import mtp_verify as mv
from mtp_verify.checkpoints.tensors import TensorFile
from mtp_verify.heads import load, save
from tests.block_heads import KINDS, write_block_head
from tests.heads import tiny_head
from tests.models import tiny_model
from tests.published import REPOSITORIES, write, write_in_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

# No checkpoint here has more than 200 kB. A header of n bytes may cost some 20 n as Python objects,
# a tensor its own bytes twice: once read, once in another dtype.
ALLOWED = 8 << 20
SECONDS = 20
NUMBERS = [0, -1, 1, 2, 7, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 64, 10**30, 0.5, 1e308, None, True,
           "x", [], {}, [1 << 40], "9" * 5000]  # fmt: skip


def sound_checkpoints(folder: Path) -> tuple[object, list[Path]]:
    model = tiny_model("llama")
    for name, make in REPOSITORIES.items():
        make(folder / name, model)
    for name in ("mimo", "ernie4_5_moe", "step3p5", "qwen3_next"):
        write_in_checkpoint(name, folder / name)
    for name in ("dflash, sliding", "dspark of speculators", "domino"):
        write_block_head(folder / name, KINDS[name], model)
    write_in_checkpoint("mimo", folder / "sharded")
    tensors = load_file(folder / "sharded/model.safetensors")
    (folder / "sharded/model.safetensors").unlink()
    config = json.loads((folder / "sharded/config.json").read_text())
    names = sorted(tensors)
    write(folder / "sharded", config, *({n: tensors[n] for n in names[k::3]} for k in range(3)))
    save(tiny_head("eagle3", model), folder / "native", target=model)
    return model, sorted(path for path in folder.iterdir() if path.is_dir())


def damage(folder: Path, rng: random.Random) -> None:
    """Damage a checkpoint in one to three ways."""
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(sorted(folder.iterdir()))
        content = path.read_bytes()
        if path.suffix == ".json":
            path.write_bytes(_damaged_json(content, rng))
        elif rng.random() < 0.1:
            path.unlink()
            if not any(folder.iterdir()):
                path.write_bytes(b"")
        else:
            path.write_bytes(_damaged_tensors(content, rng))


def _damaged_json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.15:
        return _damaged_bytes(content, rng)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return _damaged_bytes(content, rng)
    _change(document, rng)
    return json.dumps(document).encode()


def _change(document: object, rng: random.Random, depth: int = 0) -> None:
    """Change one place somewhere inside."""
    if not isinstance(document, dict | list) or not document:
        return
    key = (
        rng.choice(sorted(document)) if isinstance(document, dict) else rng.randrange(len(document))
    )
    if isinstance(document[key], dict | list) and document[key] and rng.random() < 0.8:
        _change(document[key], rng, depth + 1)
    elif rng.random() < 0.2:
        del document[key]
    else:
        document[key] = rng.choice(NUMBERS)


def _damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    way = rng.randrange(4)
    if way == 0:
        return content[: rng.randrange(len(content) + 1)]
    if way == 1:
        return content + rng.randbytes(rng.randrange(1, 64))
    if way == 2:
        return rng.choice([b"", b"[" * 50_000, b'{"a":' * 20_000, b"null", b"\xff\xfe"])
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        if changed:
            changed[rng.randrange(min(len(changed), 400))] = rng.randrange(256)
    return bytes(changed)


def _damaged_tensors(content: bytes, rng: random.Random) -> bytes:
    if len(content) < 8 or rng.random() < 0.25:
        return _damaged_bytes(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    way = rng.randrange(3)
    if way == 0:
        return (
            struct.pack("<Q", rng.choice([0, 1, (length >> 1), min(length, 1 << 40) + 1, 1 << 62]))
            + content[8:]
        )
    try:
        document = json.loads(header)
    except (ValueError, RecursionError):
        return _damaged_bytes(content, rng)
    if way == 1 and document:
        name = rng.choice(sorted(document))
        document[rng.choice(["", "x" * 300, f"{name}.x", "fc.weight", "d2t"])] = document.pop(name)
    else:
        _change(document, rng)
    changed = json.dumps(document).encode()
    return struct.pack("<Q", len(changed)) + changed + data


def fuzz(folder: Path, count: int, seed: int, traced: int = 1) -> dict[str, int]:
    """Load damaged checkpoints, every `traced`th under tracemalloc; the outcomes by kind."""
    model, sound = sound_checkpoints(folder / "sound")
    place = folder / "case"
    outcomes: dict[str, int] = {}
    rng = random.Random(seed)
    # Its own time, not the clock's: other programs may run beside it.
    signal.signal(signal.SIGPROF, _too_slow)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(count):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(rng.choice(sound), place)
        damage(place, rng)
        if case % traced == 0:
            tracemalloc.start()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            load(place, rng.choice([model, model, None]), probe=False)
            outcome = "loaded"
        except mv.MtpVerifyError as error:
            outcome = error.slug or type(error).__name__
        except FileNotFoundError:
            outcome = "not found"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if case % traced == 0:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < ALLOWED, f"{peak} bytes for {sorted(place.iterdir())}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    # Memory of torch is not traced: the whole process is.
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 64 * ALLOWED, f"the process grew by {grown} bytes"
    return outcomes


def _too_slow(*_args: object) -> None:
    msg = f"a checkpoint took more than {SECONDS} s of work"
    raise TimeoutError(msg)


@pytest.mark.filterwarnings("ignore:.*made for other weights")
def test_damaged_checkpoints_are_refused(tmp_path):
    outcomes = fuzz(tmp_path, 150, seed=1)
    assert set(outcomes) >= {"bad_checkpoint", "bad_tensors"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.filterwarnings("ignore:.*made for other weights")
def test_a_hundred_thousand_damaged_checkpoints(seed, tmp_path):
    outcomes = fuzz(tmp_path, 10_000, seed, traced=50)
    assert sum(outcomes.values()) == 10_000


def test_memory_stays_in_proportion_to_the_header(tmp_path):
    # The worst text for its length: a header of nothing but short entries.
    path = tmp_path / "x.safetensors"
    entry = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    header = ("{" + ",".join(entry.format(index) for index in range(20_000)) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    tracemalloc.start()
    file = TensorFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file.tensors) == 20_000
    assert peak < 25 * len(header)
