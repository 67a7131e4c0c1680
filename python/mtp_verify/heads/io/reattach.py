"""`reattach`: a fine-tuned target gets back the head that its tool lost."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mtp_verify.checkpoints.extend import extend
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.heads.io.recognise import recognise

if TYPE_CHECKING:
    from pathlib import Path

    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.spec import HeadSpec

__all__ = ["Reattached", "reattach"]

DRIFT = 0.05  # of the embedding, above which a head may be stale
# What must be equal for a head to fit.
_KEYS = (
    "hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "moe_intermediate_size", "kv_lora_rank", "q_lora_rank",
)  # fmt: skip
_ROWS = 4096  # of an embedding, compared at once


@dataclass(frozen=True)
class Reattached:
    """What `reattach` did."""

    spec: HeadSpec  # of the head
    names: list[str]  # of the tensors that were put back
    retied: list[str]  # of those among them that were taken from the fine-tune itself
    drift: float | None  # relative Frobenius distance of the embeddings; None: one was not found


def reattach(base: str | Path, tuned: str | Path, out: str | Path) -> Reattached:
    """Put the original's modules into a copy of a fine-tuned checkpoint.

    The fine-tune's shards are linked, never rewritten; stored copies of the embedding and the
    output head are taken from the fine-tune, since they must equal its own.

    Args:
        base: the original checkpoint, with its head.
        tuned: the fine-tuned one.
        out: a new folder; it appears in one rename, complete.

    Raises:
        UnsupportedModelError: the original has no head inside, or the two do not fit; says why.
        ParamsError: there is something at `out`.

    Example:
        >>> mv.heads.reattach("original", "tuned", "tuned-with-head")  # doctest: +SKIP
    """
    original, new = Checkpoint(base), Checkpoint(tuned)
    source = recognise(original)
    spec = source.spec
    if not spec.is_inside_target:
        what = f"a {spec.family} head has a repository of its own, so fine-tuning the target cannot"
        bad_checkpoint(base, f"{what} lose it; nothing to reattach", "nothing_to_reattach")
    _compare_sizes(original, new)
    names = source.own_names
    retied = [name for name in names if source.copies.get(name)]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if name not in retied:
            tensors[name] = original.read(name)
        elif (main := source.main_of(name)) in new.tensors:
            tensors[name] = new.read(main)
        else:
            bad_checkpoint(tuned, f"it holds no {main}, of which {name} is a copy", "bad_tensors")
    drift = _drift_of_embedding(source, new)
    if drift is not None and drift > DRIFT:
        warnings.warn(
            f"{tuned}: its embedding moved by {drift:.1%} from the original's; the head may be "
            "stale (mtp-verify inspect measures it), and training it again pays",
            stacklevel=2,
        )
    config = json.loads(json.dumps(new.config))
    told = original.text_config
    new.text_part(config).update({k: told[k] for k in spec.layout.count_keys if k in told})
    extend(new, tensors, out, config=config)
    return Reattached(spec, names, retied, drift)


def _compare_sizes(original: Checkpoint, new: Checkpoint) -> None:
    """Refuse two targets of different sizes."""
    one, two = original.text_config, new.text_config
    differing = [
        f"{key}: found {two[key]}, wanted {one[key]}"
        for key in _KEYS
        if one.get(key) is not None and two.get(key) is not None and one[key] != two[key]
    ]
    if differing:
        what = f"the head does not fit: {'; '.join(differing)}"
        bad_checkpoint(new.folder, what, "head_of_another_target")


def _drift_of_embedding(source: Source, new: Checkpoint) -> float | None:
    name = source.main_embedding
    if name is None or name not in new.tensors:
        return None
    old, now = source.checkpoint.read(name), new.read(name)
    if old.shape != now.shape:
        what = f"{name}: found shape {list(now.shape)}, wanted {list(old.shape)}"
        bad_checkpoint(new.folder, what, "head_of_another_target")
    moved = total = 0.0
    for was, rows in zip(torch.split(old, _ROWS), torch.split(now, _ROWS), strict=True):
        moved += float((rows.float() - was.float()).square().sum())
        total += float(was.float().square().sum())
    return float((moved / total) ** 0.5) if total else 0.0
