"""Our own layout: `head.json` says what the head is, and names the file with its tensors.

The tensors' file is named by its content and `head.json` is replaced last, so that a kill at any
moment leaves the old head or the new one.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from functools import partial
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.checkpoints.folder import is_plain
from mtp_verify.checkpoints.tensors import (
    TensorFile,
    bad_checkpoint,
    open_checked,
    read_json,
    write_atomically,
    write_tensors,
)
from mtp_verify.errors import ParamsError
from mtp_verify.heads.families import FAMILIES
from mtp_verify.heads.io.assemble import HeadTensors, Stored
from mtp_verify.heads.spec import HeadSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mtp_verify.heads.base import Head

__all__ = ["fingerprint", "is_native", "read_native", "save"]

_HEAD_FILE = "head.json"
_FORMAT = 1
_SAMPLE = 4096  # numbers of a tensor that go into a fingerprint


def save(
    head: Head,
    path: str | Path,
    *,
    target: Any | None = None,
    tokenizer: Any | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write a head; `load` gives it back bit for bit.

    An earlier head in the folder is replaced in one rename; a kill leaves one of the two.

    Args:
        head: to be written.
        path: a folder; made if it does not exist.
        target: the model that it drafts for; its fingerprint is kept.
        tokenizer: of the target; its fingerprint is kept.
        record: how it was trained, or anything else that is JSON.

    Raises:
        ParamsError: a record that is not JSON.

    Example:
        >>> mv.heads.save(head, "my-head", target=model, record={"seed": 7})  # doctest: +SKIP
    """
    folder = Path(path)
    state = dict(head.state_dict())
    if head.vocab is not None:
        state["vocab"] = head.vocab
    document: dict[str, Any] = {
        "format": _FORMAT,
        "spec": json.loads(head.spec.to_json()),
        "target": None if target is None else fingerprint(target, tokenizer),
        "record": dict(record or {}),
    }
    try:
        json.dumps(document)
    except (TypeError, ValueError) as error:
        message = f"the record of a head must be JSON: {error}"
        raise ParamsError(message, slug="bad_record") from None
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / ".head.safetensors"
    write_tensors(written, state)
    document["weights"] = f"head-{_digest(written)}.safetensors"
    written.replace(folder / document["weights"])
    write_atomically(folder / _HEAD_FILE, [json.dumps(document, indent=2).encode()])
    for stale in folder.glob("head-*.safetensors"):
        if stale.name != document["weights"]:
            stale.unlink(missing_ok=True)


def is_native(path: Path) -> bool:
    """Return whether a path is a folder in our own layout, whole or damaged."""
    return lexists(path / _HEAD_FILE)


def read_native(
    folder: Path, target: Any | None = None, tokenizer: Any | None = None
) -> tuple[HeadSpec, HeadTensors, dict[str, Any]]:
    """Read what `save` wrote: the head's spec, its tensors, and how it was trained.

    UnsupportedModelError: a damaged head, or one for another target. ParamsError: a bad spec.
    """
    path = folder / _HEAD_FILE
    document = read_json(path)
    if document.get("format") != _FORMAT:
        bad_checkpoint(path, f"format: found {document.get('format')!r}, wanted {_FORMAT}")
    weights = document.get("weights")
    if not isinstance(weights, str) or not is_plain(weights):
        bad_checkpoint(path, "it does not name the file of its tensors")
    if not lexists(folder / weights):
        bad_checkpoint(path, f"the file of its tensors is missing: {weights[:200]}")
    spec = HeadSpec.from_json(json.dumps(document.get("spec")))
    if spec.family in FAMILIES:  # names in published checkpoints are the family's, not the file's
        spec = spec.replace(layout=FAMILIES[spec.family].spec.layout)
    file = TensorFile(folder / weights)
    if target is not None:
        _compare(folder, document.get("target"), target, tokenizer)
    stored = {
        name: Stored(name, info.shape, partial(file.read, name))
        for name, info in file.tensors.items()
    }
    vocab, record = stored.pop("vocab", None), document.get("record")

    def check() -> None:
        if weights != f"head-{_digest(folder / weights)}.safetensors":
            bad_checkpoint(folder / weights, "its content is not what was saved")

    tensors = HeadTensors(stored, vocab, check=check)
    return spec, tensors, record if isinstance(record, dict) else {}


def fingerprint(model: Any, tokenizer: Any | None = None) -> dict[str, Any]:
    """Return what distinguishes a target from others: sizes, some of its weights, its tokens."""
    config = model.config.get_text_config(decoder=True)
    weights, digest = dict(model.named_parameters()), hashlib.sha256()
    names = sorted(weights)
    for name in (names[0], names[len(names) // 2], names[-1]):
        flat = weights[name].detach().reshape(-1)
        # In bfloat16, so that a model loaded as float32 counts as the same.
        sample = flat[:: max(1, flat.numel() // _SAMPLE)][:_SAMPLE].to("cpu", torch.bfloat16)
        digest.update(name.encode() + sample.view(torch.int16).numpy().tobytes())
    tokens = None
    if tokenizer is not None:
        words = json.dumps(sorted(tokenizer.get_vocab().items()))
        tokens = hashlib.sha256(words.encode()).hexdigest()
    sizes = {"hidden_size": config.hidden_size, "vocab_size": config.vocab_size}
    return {**sizes, "weights": digest.hexdigest(), "tokenizer": tokens}


def _compare(folder: Path, wanted: object, target: Any, tokenizer: Any | None) -> None:
    """Refuse a target whose sizes or tokens are others; warn if its weights are."""
    if not isinstance(wanted, dict):
        return
    found = fingerprint(target, tokenizer)
    for key in ("hidden_size", "vocab_size", "tokenizer"):
        if None not in (wanted.get(key), found[key]) and wanted[key] != found[key]:
            what = f"{key} of the target: found {str(found[key])[:12]}, wanted "
            what += f"{str(wanted[key])[:12]}; load the head that was trained for this target"
            bad_checkpoint(folder, what, "head_of_another_target")
    if wanted.get("weights") != found["weights"]:
        warnings.warn(
            f"{folder}: the head was made for other weights than this target's; output stays "
            "exact, but fewer tokens may be accepted (mtp-verify inspect measures it)",
            stacklevel=4,
        )


def _digest(path: Path) -> str:
    with open_checked(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
