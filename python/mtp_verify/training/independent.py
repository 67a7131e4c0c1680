"""An independent draft model in training: a small language model that imitates its target.

It reads tokens alone. What it gives at level k of a draft is its own prediction of the next token,
k rows further on, so that a roll-out is one forward and every level trains with the first.

References:
    DistillSpec, arXiv 2310.08461 (distilling a draft model on its target's own text); DistilBERT,
    arXiv 1910.01108 (first weights from every so many of the target's layers).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from mtp_verify.checkpoints.tensors import write_atomically
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.heads.base import Head
from mtp_verify.heads.spec import HeadSpec, Sizes

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAMILY", "IndependentDraft", "shrink", "spec_of_draft"]

FAMILY = "independent"
_RECORD = "training.json"


def spec_of_draft(config: Any, num_layers: int) -> HeadSpec:
    """Return what such a model is as a head: one that takes nothing from its target."""
    return HeadSpec(
        FAMILY, feed="pre", fusion="none", num_layers=num_layers, block="target",
        output_head="own", own_embedding=True, sizes=Sizes.of(config),
    )  # fmt: skip


def shrink(target: Any, num_layers: int) -> Any:
    """Return a model of a few of a target's layers, in float32.

    The layers are spread evenly from the first to the last; UnsupportedModelError: the target has
    fewer. Embedding and output head are the target's too and not trained: they are most of a small
    model's weights.
    """
    from transformers import AutoModelForCausalLM

    layers = getattr(target.get_decoder(), "layers", None)
    if layers is None or not 1 <= num_layers <= len(layers):
        found = "none" if layers is None else len(layers)
        message = f"layers of the target: found {found}, wanted {max(num_layers, 1)} or more"
        raise UnsupportedModelError(message, slug="cannot_shrink")
    chosen = [round(i * (len(layers) - 1) / max(num_layers - 1, 1)) for i in range(num_layers)]
    config = copy.deepcopy(target.config)
    text = config.get_text_config(decoder=True)
    text.num_hidden_layers = num_layers
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[index] for index in chosen]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    small = model.get_decoder()
    for layer, index in zip(small.layers, chosen, strict=True):
        layer.load_state_dict(layers[index].state_dict())
    small.norm.load_state_dict(target.get_decoder().norm.state_dict())
    for part in ("get_input_embeddings", "get_output_embeddings"):
        mine = getattr(model, part)()
        mine.load_state_dict(getattr(target, part)().state_dict())
        mine.requires_grad_(requires_grad=False)
    return model.eval()


class IndependentDraft(Head):
    """A language model that `Trainer` trains like a head; it drafts by `mv.drafters.Model`.

    `model`, a transformers model with the target's vocabulary, is trained in place.
    """

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        super().__init__(spec_of_draft(model.config, text.num_hidden_layers))
        self.model = model

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return hidden states (B, n, d) that predict the token after each of (B, n) tokens."""
        states: torch.Tensor = self.model.get_decoder()(tokens, use_cache=False).last_hidden_state
        return states

    def logits(
        self, features: torch.Tensor, level: int = 0, extra: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Head.logits`; all levels are alike, and there are no further tokens."""
        del level, extra
        logits: torch.Tensor = self.model.get_output_embeddings()(features)
        return logits

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write a checkpoint that transformers reads; each file is replaced in one rename."""
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
            self.model.save_pretrained(fresh)
            for path in sorted(Path(fresh).iterdir()):
                path.replace(folder / path.name)
        write_atomically(folder / _RECORD, [json.dumps(dict(record), indent=2).encode()])
