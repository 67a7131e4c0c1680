"""Safetensors files: equal to the reference library's, and no lie of a header is believed."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import mtp_verify as mv
from mtp_verify.checkpoints.tensors import TensorFile, read_json, write_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor([[True], [False]]),
    "empty": torch.empty((0, 4), dtype=torch.float16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "turned": torch.arange(6, dtype=torch.float64).reshape(2, 3).T,
}


def test_written_file_is_what_the_reference_library_reads(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"who": "me"})
    found = safetensors.torch.load_file(path)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in TENSORS.items()
    }
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "who": "me"}
    assert [item.name for item in tmp_path.iterdir()] == ["x.safetensors"]


def test_file_of_the_reference_library_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    plain = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    safetensors.torch.save_file(plain, path)
    file = TensorFile(path)
    for name, tensor in TENSORS.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(file.read(name), tensor)
        assert file.read(name).dtype == tensor.dtype
    with pytest.raises(mv.errors.UnsupportedModelError, match="holds no tensor d"):
        file.read("d")


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes, too few"),
        (b"\1\0\0", "3 bytes, too few"),
        (raw({}, length=1 << 60), "header claims 1152921504606846976 bytes and the file has 10"),
        (raw({"a": entry()}, b"1234")[:-1], r"end at byte 4 of 3: cut off"),
        (raw({"a": entry()}, b"12345"), r"end at byte 4 of 5"),
        (raw(b"[]"), "not a table"),
        (raw(b"\xff\xfe"), "not JSON"),
        (raw(b"{"), "not JSON"),
        (raw(b'{"a":' * 100_000), "nested"),
        (raw(b'{"a":' + b"9" * 5000 + b"}"), "not JSON"),
        (raw(b'{"a":' + b"[]," * 999 + b"}"), "nested"),
        (raw({"__metadata__": {"a": 1}}), "metadata"),
        (raw({"a": 3}), "wanted exactly dtype"),
        (raw({"a": entry(x=1)}, b"1234"), "wanted exactly dtype"),
        (raw({"a": entry("F33")}, b"1234"), "unknown dtype, F33"),
        (raw({"a": entry(shape=(-1,))}, b"1234"), "no valid shape"),
        (raw({"a": entry(shape=(True,))}, b"1234"), "no valid shape"),
        (raw({"a": entry(shape=(1,) * 9)}, b"1234"), "no valid shape"),
        (raw({"a": entry(shape=(1 << 62, 1 << 62))}, b"1234"), "needs"),
        (raw({"a": entry(offsets=(0, 1 << 40))}, b"1234"), "needs 4 bytes"),
        (raw({"a": entry(offsets=(4, 0))}, b"1234"), "needs 4 bytes"),
        (raw({"a": entry(), "b": entry()}, b"1234"), "starts at byte 0, wanted 4"),
        (raw({"a": entry(offsets=(4, 8))}, b"12345678"), "starts at byte 4, wanted 0"),
        (raw(b'{"a": 1, "a": 2}'), "is there twice"),
        (raw({"a": entry("F4", (3,), (0, 2))}, b"12"), "needs 1.5 bytes"),
    ],
)  # fmt: skip
def test_lying_headers_are_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(mv.errors.UnsupportedModelError, match=message):
        TensorFile(path)


def test_types_that_torch_lacks_are_listed_and_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw({"a": entry("F4", (4,), (0, 2))}, b"12"))
    file = TensorFile(path)
    assert file.tensors["a"].dtype == "F4"
    with pytest.raises(mv.errors.UnsupportedModelError, match="quantised to F4"):
        file.read("a")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    class Broken(dict):
        def __getitem__(self, name):
            tensor = super().__getitem__(name)
            if self.pop("armed", None) is not None:
                raise OSError("disk full")
            return tensor

    with pytest.raises((OSError, KeyError)):
        write_tensors(path, Broken(a=torch.ones(2), armed=torch.ones(1)))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("content", [b"", b"3", b"{", b"\xff", b'{"a":' * 100_000])
def test_json_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(mv.errors.UnsupportedModelError, match="JSON"):
        read_json(path)
