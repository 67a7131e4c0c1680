"""`load`: a head from a checkpoint, whatever its layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.native import HEAD_FILE, load_native

if TYPE_CHECKING:
    import torch

    from mtp_verify.heads.base import Head

__all__ = ["load"]


def load(
    path: str | Path,
    target: Any | None = None,
    *,
    tokenizer: Any | None = None,
    dtype: torch.dtype | None = None,
) -> Head:
    """Read a head.

    Names, shapes and sizes are checked before memory is taken; nothing is downloaded.

    Args:
        path: a folder that `save` wrote.
        target: the transformers model that it drafts for; the head is attached to it, and takes its
            device and dtype.
        tokenizer: of the target, to be compared with the one that the head was made for.
        dtype: of the parameters, if not the target's.

    Returns:
        The head, in evaluation mode; attached if there is a target.

    Raises:
        FileNotFoundError: no such path.
        UnsupportedModelError: no head, a damaged one, or one for another target; says why.

    Example:
        >>> head = mv.heads.load("my-head", model)  # doctest: +SKIP
        >>> mv.Decoder(model, mv.drafters.Heads(head)).generate(ids)  # doctest: +SKIP
    """
    folder = Path(path)
    if not folder.exists():
        msg = f"{folder}: no such file or folder"
        raise FileNotFoundError(msg)
    if (folder / HEAD_FILE).is_file():
        return load_native(folder, target, tokenizer=tokenizer, dtype=dtype)
    msg = f"{folder}: it holds no {HEAD_FILE}"
    raise UnsupportedModelError(msg, slug="bad_checkpoint")
