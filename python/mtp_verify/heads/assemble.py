"""A head put together from stored tensors, all checked before memory is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtp_verify.errors import MtpVerifyError, ParamsError, UnsupportedModelError
from mtp_verify.heads.blocks import Rotary
from mtp_verify.heads.causal import CausalHead
from mtp_verify.heads.parallel import ParallelHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mtp_verify.heads.base import Head
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["Stored", "assemble", "defects", "empty_head", "listed"]


@dataclass(frozen=True)
class Stored:
    """A tensor that can be read.

    Attributes:
        label: its name in the checkpoint.
        shape: what the header says.
        read: reads it.
    """

    label: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def empty_head(spec: HeadSpec, target: Any | None) -> Head:
    """A head whose parameters have shapes and no memory.

    Raises:
        ParamsError: `spec` is not that of a head.
        UnsupportedModelError: a family that cannot be run, a target of another kind, or sizes that
            make no head.
    """
    try:
        with torch.device("meta"):
            if spec.kind == "parallel":
                return ParallelHead(spec)
            return CausalHead(spec, target if spec.block == "target" else None)
    except MtpVerifyError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Sizes and rotary parameters come from a file, and libraries meet them unprepared.
        msg = f"the sizes of this {spec.family} head make no sense: {str(error)[:200]}"
        raise UnsupportedModelError(msg, slug="bad_head_spec") from None


def assemble(
    spec: HeadSpec,
    stored: Mapping[str, Stored],
    where: Path,
    *,
    target: Any | None = None,
    vocab: Stored | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    extra: Iterable[str] = (),
    label: Callable[[str], str] = str,
) -> Head:
    """Build a head.

    Args:
        spec: with sizes.
        stored: the tensor of each parameter, by the parameter's name.
        where: the checkpoint, for messages.
        target: a transformers model; the head is attached to it, and takes its device and dtype.
        vocab: (D,) int64, the draft vocabulary.
        dtype: of the parameters; None: the target's, or without one, as "auto"; "auto": each has
            that of the file.
        extra: further tensors that the checkpoint should not hold.
        label: name of a parameter -> its name in such a checkpoint, for messages.

    Raises:
        UnsupportedModelError: tensors that are missing, not known, or of another shape, by name.
    """
    if spec.num_modules * spec.num_layers > len(stored):
        msg = (
            f"{where}: it claims {spec.num_modules} modules of {spec.num_layers} blocks and holds "
            f"{len(stored)} tensors"
        )
        raise UnsupportedModelError(msg, slug="bad_checkpoint")
    head = empty_head(spec, target)
    found = defects(head, stored, extra, label)
    if found:
        msg = f"{where} does not hold a whole {spec.family} head: " + "; ".join(found)
        raise UnsupportedModelError(msg, slug="bad_tensors")
    kind = None if dtype == "auto" else dtype
    if dtype is None and target is not None:
        kind = next(target.parameters()).dtype
    device = "cpu" if target is None else next(target.parameters()).device
    state = {name: item.read().to(device=device, dtype=kind) for name, item in stored.items()}
    head.load_state_dict(state, assign=True)
    if getattr(head, "rotary", None) is not None:
        head.rotary = Rotary(spec.known_sizes).to(device)
    if spec.draft_vocab_size is not None:
        _set_vocab(head, vocab, where)
    if target is not None:
        head.attach(target)
    for parameter in head.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return head.eval()


def defects(
    head: Head, stored: Mapping[str, Stored], extra: Iterable[str], label: Callable[[str], str]
) -> list[str]:
    """What is wrong with the tensors of a head, in words; empty if nothing is."""
    wanted = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    missing = [label(name) for name in wanted if name not in stored]
    unknown = [*extra, *(item.label for name, item in stored.items() if name not in wanted)]
    wrong = [
        f"{item.label} {list(item.shape)} for {list(wanted[name])}"
        for name, item in stored.items()
        if name in wanted and item.shape != wanted[name]
    ]
    return [
        f"{what}: {listed(names)}"
        for what, names in (("missing", missing), ("not known", unknown), ("wrong shape", wrong))
        if names
    ]


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _set_vocab(head: Head, vocab: Stored | None, where: Path) -> None:
    size = head.spec.draft_vocab_size
    if vocab is None or vocab.shape != (size,):
        found = "none" if vocab is None else f"one of shape {list(vocab.shape)}"
        msg = f"{where}: the head drafts from {size} tokens and its list of tokens is: {found}"
        raise UnsupportedModelError(msg, slug="bad_tensors")
    head.vocab = torch.empty(0, dtype=torch.int64)
    try:
        head.set_vocab(vocab.read())
    except ParamsError as error:
        msg = f"{where}: {error}"
        raise UnsupportedModelError(msg, slug="bad_tensors") from None
