"""`load`: a head from a checkpoint, whatever its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.errors import MtpVerifyError
from mtp_verify.heads.base import Shared, check_target
from mtp_verify.heads.io.assemble import assemble
from mtp_verify.heads.io.convert import convert
from mtp_verify.heads.io.native import is_native, read_native
from mtp_verify.heads.io.recognise import recognise
from mtp_verify.heads.probe import resolve_disputed
from mtp_verify.verifier.intake import as_path

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mtp_verify.heads.base import Head
    from mtp_verify.heads.io.recognise import Source

__all__ = ["load", "load_published"]


def load(
    path: str | Path,
    target: Any | None = None,
    *,
    tokenizer: Any | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    allow_pickle: bool = False,
    probe: bool = True,
) -> Head:
    """Read a head from disk.

    It reads what `save` wrote; multi-token prediction modules inside a target's checkpoint,
    in the names of every family of `FAMILIES` that can be run; EAGLE, EAGLE-3 (`speculators` too)
    and Medusa repositories. A family is recognised by the names of its tensors. Names, shapes and
    sizes are checked before memory is taken; nothing is downloaded.

    Args:
        path: a folder, or one safetensors file.
        target: the transformers model that it drafts for; the head is attached to it, and takes its
            device and dtype.
        tokenizer: of the target, to be compared with the one that the head was made for.
        dtype: of the parameters, if not the target's; "auto": each parameter has that of the file,
            which is for writing it elsewhere, as drafting wants the target's.
        allow_pickle: read `.pt` and `.bin` files too, by torch's weights-only loader, where there
            are no safetensors files. Pickles are refused otherwise.
        probe: where serving engines read a family in different ways, measure each on some 256
            tokens that the target writes, and keep the best (see `probe`); needs the target.

    Returns:
        The head, in evaluation mode; attached if there is a target.

    Raises:
        FileNotFoundError: no such path.
        UnsupportedModelError: no head, a damaged one, or one for another target; says why, with the
            names of tensors that are missing, not known or of another shape.
        ParamsError: the head is made of the target's own kind of layer, and no target was given.

    Example:
        >>> head = mv.heads.load("my-head", model)  # doctest: +SKIP
        >>> mv.Decoder(model, mv.drafters.Heads(head)).generate(ids)  # doctest: +SKIP
    """
    path = as_path("path", path)
    try:
        if is_native(path):
            spec, tensors, record = read_native(path, target, tokenizer)
            head = assemble(spec, tensors, path, target=target, dtype=dtype)
            head.record = record
            return head
        checkpoint = Checkpoint(path, allow_pickle=allow_pickle)
        head = load_published(recognise(checkpoint, target), dtype)
    except MtpVerifyError as error:
        if str(path) not in str(error):  # What looks at a spec alone does not know whose it is.
            error.args = (f"{path}: {error}",)
        raise
    if probe and target is not None and head.spec.disputed:
        resolve_disputed(head, target)
    return head


def load_published(source: Source, dtype: torch.dtype | Literal["auto"] | None = None) -> Head:
    """Return the head of a published checkpoint; see `load`."""
    spec, target = source.spec, source.target
    if target is not None:
        check_target(spec, Shared.of(target))
    return assemble(spec, convert(source), source.folder, target=target, dtype=dtype)
