"""Whatever a user names is read only if it is a file: nothing waits, and errors name the path."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import mtp_verify as mv
from mtp_verify.certification.kept import read_file as read_counts
from mtp_verify.certification.server.checkpoint import load_reference
from mtp_verify.certification.settings import plans_of
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.checkpoints.tensors import TensorFile, read_json
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.commands.shared.targets import load_target
from mtp_verify.decoder.planning import store
from mtp_verify.training.prompt_files import read_prompts
from mtp_verify.training.shards import Shards
from mtp_verify.verifier.files import check_folder, open_file, read_text
from mtp_verify.verifier.tree_shape import TreeShape

ROOT = Path(mv.__file__).parent


@pytest.fixture(autouse=True)
def _no_waiting():
    def waits(*_args):
        msg = "it waits"
        raise TimeoutError(msg)

    signal.signal(signal.SIGALRM, waits)
    signal.alarm(20)
    yield
    signal.alarm(0)


READERS = {
    "open_file": open_file,
    "safetensors": TensorFile,
    "json": read_json,
    "checkpoint": Checkpoint,
    "head": mv.heads.load,
    "prompts": read_prompts,
    "shard": lambda path: Shards([path]),
    "shape": TreeShape.load,
    "report": plans_of,
    "counts": lambda path: read_counts(path, {}),
}
PLACES = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "cannot be read": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("found", PLACES)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_what_is_no_file(reader, found, tmp_path):
    path = tmp_path / "x.safetensors"
    PLACES[found](path)
    if found == "a folder" and reader in ("checkpoint", "head"):
        found = "holds no safetensors"
    error = mv.MtpVerifyError
    if found == "cannot be read" and reader in ("checkpoint", "head"):
        error, found = FileNotFoundError, "no such file or folder"
    with pytest.raises(error, match=f"{re.escape(str(path))}.*{found}"):
        READERS[reader](path)


@pytest.mark.parametrize("found", [place for place in PLACES if place != "a folder"])
def test_folders_for_other_libraries_are_looked_through(found, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "gone").symlink_to("nothing")
    check_folder(tmp_path)
    PLACES[found](tmp_path / "tokenizer.json")
    for read in (check_folder, lambda path: subject_for(folder=str(path)), load_reference):
        with pytest.raises(mv.errors.ParamsError, match=f"tokenizer.json: found .*{found}"):
            read(tmp_path)
    model, why = load_target(str(tmp_path))
    assert model is None
    assert found in why


def test_kept_costs_that_are_a_pipe_are_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MTP_VERIFY_CACHE", str(tmp_path))
    key = {"a": 1}
    store.path_of(key).parent.mkdir(parents=True)
    os.mkfifo(store.path_of(key))
    assert store.load(key) == {}


def test_missing_files_are_python_s_own_error(tmp_path):
    for read in (open_file, read_prompts, TreeShape.load, plans_of, mv.heads.load):
        with pytest.raises(FileNotFoundError, match="nothing"):
            read(tmp_path / "nothing")
    assert read_counts(tmp_path / "nothing", {}) is None


def test_text_is_limited_and_utf8(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc\xff")
    with pytest.raises(mv.errors.ParamsError, match="byte 3 that is not UTF-8"):
        read_text(path)
    with pytest.raises(mv.errors.ParamsError, match="found 4 bytes, wanted at most 3"):
        read_text(path, 3)
    path.write_text("ab")
    assert read_text(path) == "ab"
    with pytest.raises(mv.errors.ParamsError, match="wanted a file"):
        read_text("a\0b")


def test_a_pipe_that_takes_a_file_s_place_is_not_waited_for(tmp_path, monkeypatch):
    path, pipe = tmp_path / "x", tmp_path / "pipe"
    path.write_text("{}")
    os.mkfifo(pipe)
    real = os.open
    monkeypatch.setattr(os, "open", lambda _path, *flags: real(pipe, *flags))
    with pytest.raises(mv.errors.ParamsError, match="found a named pipe"):
        open_file(path)


# Files that this package brings along, the system's own, and what it has just written.
_OWN = {
    "training/prompts.py", "training/shards.py", "testing/logit_rows.py", "console/clock.py",
    "decoder/planning/store.py", "commands/doctor.py", "commands/shared/threads.py",
    "integrations/smollm2.py", "testing/device/mutants.py", "verifier/files.py",
    "checkpoints/folder.py",  # torch.load, of an open file
}  # fmt: skip
_READS = re.compile(
    r"\.read_text\(|\.read_bytes\(|\.open\(\"r|(?<!def )(?<![\w.])open\(|safe_open\("
    r"|torch\.load\(|np\.load\("
)


def test_nothing_else_opens_files_by_itself():
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if _READS.search(path.read_text(encoding="utf-8"))
    }
    assert found <= _OWN
