"""`reattach`: a fine-tuned target gets back the head that its tool lost."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.extend import extend
from mtp_verify.checkpoints.folder import Checkpoint
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.published import Published

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from mtp_verify.heads.spec import HeadSpec

__all__ = ["Reattached", "reattach"]

DRIFT = 0.05  # of the embedding, above which a head may be stale
# What must be equal for a head to fit.
_KEYS = (
    "hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "intermediate_size", "moe_intermediate_size", "kv_lora_rank", "q_lora_rank",
)  # fmt: skip
_CHUNK = 4096


class Reattached:
    """What was done.

    Args:
        spec: of the head.
        names: of the tensors that were put back.
        retied: of those among them that were taken from the fine-tune itself.
        drift: relative Frobenius distance of the two embeddings, or None if one was not found.
    """

    def __init__(
        self, spec: HeadSpec, names: list[str], retied: list[str], drift: float | None
    ) -> None:
        self.spec = spec
        self.names = names
        self.retied = retied
        self.drift = drift


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
    published = Published(original)
    spec = published.spec
    if not spec.layout.prefix and spec.family != "ernie4_5_moe":
        msg = (
            f"{base}: a {spec.family} head has a repository of its own, so fine-tuning the target "
            "cannot lose it; nothing to reattach"
        )
        raise UnsupportedModelError(msg, slug="nothing_to_reattach")
    _compare(original, new)
    names = published.names()
    retied = [name for name in names if published.copies.get(name)]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        source, wanted = original, name
        if name in retied:
            source, wanted = new, published.main_of(name)
            if wanted not in new.tensors:
                msg = f"{tuned}: it holds no {wanted}, of which {name} is a copy"
                raise UnsupportedModelError(msg, slug="bad_tensors")
        tensors[name] = source.read(wanted)
    drift = _drift(original, new, published)
    if drift is not None and drift > DRIFT:
        warnings.warn(
            f"{tuned}: its embedding moved by {drift:.1%} from the original's; the head may be "
            "stale (mtp-verify inspect measures it), and training it again pays",
            stacklevel=2,
        )
    config = json.loads(json.dumps(new.config))
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    for key in spec.layout.count_keys:
        if key in original.text_config:
            text[key] = original.text_config[key]
    extend(new, tensors, out, config=config)
    return Reattached(spec, names, retied, drift)


def _compare(original: Checkpoint, new: Checkpoint) -> None:
    """Refuse two targets of different sizes."""
    one, two = original.text_config, new.text_config
    differing = [
        f"{key} is {two[key]} and was {one[key]}"
        for key in _KEYS
        if one.get(key) is not None and two.get(key) is not None and one[key] != two[key]
    ]
    if differing:
        msg = f"{new.folder}: the head does not fit: {'; '.join(differing)}"
        raise UnsupportedModelError(msg, slug="head_of_another_target")


def _drift(original: Checkpoint, new: Checkpoint, published: Published) -> float | None:
    name = published.main_embedding
    if name is None or name not in new.tensors:
        return None
    old, now = original.read(name), new.read(name)
    if old.shape != now.shape:
        msg = f"{new.folder}: {name} has the shape {list(now.shape)} and had {list(old.shape)}"
        raise UnsupportedModelError(msg, slug="head_of_another_target")
    moved = total = 0.0
    for row in range(0, old.shape[0], _CHUNK):
        was: Any = old[row : row + _CHUNK].float()
        moved += float((now[row : row + _CHUNK].float() - was).square().sum())
        total += float(was.square().sum())
    return float((moved / total) ** 0.5) if total else 0.0
