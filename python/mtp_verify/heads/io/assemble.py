"""`assemble`: a head from stored tensors, all checked before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtp_verify.checkpoints.tensors import bad_checkpoint, listed
from mtp_verify.errors import MtpVerifyError, ParamsError, UnsupportedModelError
from mtp_verify.heads.blocks.llama import Rotary
from mtp_verify.heads.kinds import build

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mtp_verify.heads.base import Head
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["HeadTensors", "Stored", "assemble", "empty_head", "find_defects"]


@dataclass(frozen=True)
class Stored:
    """A tensor that can be read."""

    label: str  # its name in the checkpoint
    shape: tuple[int, ...]  # as its file's header says
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class HeadTensors:
    """All tensors of a head."""

    stored: Mapping[str, Stored]  # by the parameter's name
    vocab: Stored | None = None  # (D,) int64, the draft vocabulary
    unknown: tuple[str, ...] = ()  # further tensors that such a checkpoint should not hold
    label: Callable[[str], str] = str  # name of a parameter -> in such a checkpoint
    # Refuses content that is damaged; called when names and shapes are right, since it reads all.
    check: Callable[[], None] | None = None


def empty_head(spec: HeadSpec, target: Any | None) -> Head:
    """Return a head whose parameters have shapes and no memory.

    ParamsError: `spec` is not that of a head. UnsupportedModelError: a family that cannot be run, a
    target of another kind, or sizes that make no head.
    """
    try:
        with torch.device("meta"):
            return build(spec, target)
    except MtpVerifyError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Sizes and rotary parameters come from a file, and libraries do not check them.
        message = f"the sizes of this {spec.family} head make no sense: {str(error)[:200]}"
        raise UnsupportedModelError(message, slug="bad_head_spec") from None


def assemble(
    spec: HeadSpec,
    tensors: HeadTensors,
    where: Path,
    *,
    target: Any | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
) -> Head:
    """Return a head made of stored tensors, attached to the target if there is one.

    `where` is the checkpoint, for messages; without a target and a `dtype` parameters have that of
    the file. UnsupportedModelError names tensors that are missing, unknown or of another shape.
    """
    if not spec.is_tied and spec.num_modules * spec.num_layers > len(tensors.stored):
        claim = f"{spec.num_modules} modules of {spec.num_layers} blocks"
        bad_checkpoint(where, f"it claims {claim} and holds {len(tensors.stored)} tensors")
    head = empty_head(spec, target)
    if defects := find_defects(head, tensors):
        message = f"{where} does not hold a whole {spec.family} head: " + "; ".join(defects)
        raise UnsupportedModelError(message, slug="bad_tensors")
    if tensors.check is not None:
        tensors.check()
    kind, device = None if dtype == "auto" else dtype, "cpu"
    if target is not None:
        weight = next(target.parameters())
        device, kind = weight.device, weight.dtype if dtype is None else kind
    state = {name: item.read() for name, item in tensors.stored.items()}
    for name, _ in head.named_parameters():
        if not state[name].is_floating_point():
            what = f"{tensors.stored[name].label}: found {state[name].dtype}, wanted floats"
            bad_checkpoint(where, f"{what}: quantised weights cannot be read")
    if torn := [tensors.stored[n].label for n, tensor in state.items() if _is_torn(tensor)]:
        bad_checkpoint(where, f"numbers that are not finite in: {listed(torn)}", "bad_tensors")
    moved = {name: tensor.to(device, kind) for name, tensor in state.items()}
    head.load_state_dict(moved, assign=True)
    if getattr(head, "rotary", None) is not None:
        head.rotary = Rotary(spec.known_sizes).to(device)
    if spec.draft_vocab_size is not None:
        head.vocab = torch.empty(0, dtype=torch.int64)
        try:
            head.set_vocab(_read_vocab(spec.draft_vocab_size, tensors.vocab))
        except ParamsError as error:
            bad_checkpoint(where, str(error), "bad_tensors")
    if target is not None:
        head.attach(target)
    return head.requires_grad_().eval()


def _is_torn(tensor: torch.Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def find_defects(head: Head, tensors: HeadTensors) -> list[str]:
    """Return what is wrong with the tensors of a head, in words; empty if nothing is."""
    stored = tensors.stored
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    missing = [tensors.label(name) for name in wanted if name not in stored]
    unknown = [item.label for name, item in stored.items() if name not in wanted]
    wrong = [
        f"{item.label} {list(item.shape)} for {list(wanted[name])}"
        for name, item in stored.items()
        if name in wanted and item.shape != wanted[name]
    ]
    found = {"missing": missing, "not known": [*tensors.unknown, *unknown], "wrong shape": wrong}
    return [f"{what}: {listed(names)}" for what, names in found.items() if names]


def _read_vocab(size: int, vocab: Stored | None) -> torch.Tensor:
    if vocab is None or vocab.shape != (size,):
        found = "none" if vocab is None else f"one of shape {list(vocab.shape)}"
        message = f"draft vocabulary: found {found}, wanted a list of {size} tokens"
        raise ParamsError(message, slug="bad_draft_vocab")
    return vocab.read()
