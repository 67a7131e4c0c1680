"""Parallel heads: Medusa's, Hydra's, and Meta's, which have no published layout.

References:
    Medusa, arXiv 2401.10774; Hydra, arXiv 2402.05109; Meta, arXiv 2404.19737.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.checkpoints.tensors import bad_checkpoint
from mtp_verify.heads.blocks.llama import LlamaBlock
from mtp_verify.heads.blocks.residual import ResidualBlock
from mtp_verify.heads.spec import Family, HeadSpec, Layout, Repository

if TYPE_CHECKING:
    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.heads.base import Head
    from mtp_verify.heads.io.recognise import Source
    from mtp_verify.heads.spec import Described

__all__ = ["HYDRA", "MEDUSA", "META"]


def _medusa_config(head: Head, base: Checkpoint | None) -> Described:
    del base
    spec, sizes = head.spec, head.spec.known_sizes
    # Without `medusa_fc_bias` vLLM drops the biases, and says nothing.
    config: dict[str, Any] = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "medusa_fc_bias": True,
        "hidden_size": sizes.hidden_size,
        "vocab_size": sizes.vocab_size,
        "num_heads": spec.num_modules,
        "num_hidden_layers": spec.num_layers,
        "truncated_vocab_size": spec.draft_vocab_size or sizes.vocab_size,
    }
    tensors = {} if head.vocab is None else {"token_map": head.vocab}
    if spec.output_head == "shared":
        config["original_lm_head"] = True
        rows = head.shared.output_weight.detach()
        tensors["lm_head.weight"] = rows if head.vocab is None else rows[head.vocab]
    return config, tensors


def _hydra_fields(source: Source) -> dict[str, Any]:
    """Return what Hydra's heads are made of: the paper's, and Hydra++ with a block before them."""
    if (offset := source.config.get("hidden_state_offset")) not in (None, 0):
        what = f"hidden_state_offset: found {str(offset)[:50]}, wanted 0, the last hidden state"
        bad_checkpoint(source.folder, what, "unsupported_head")
    num_layers = 1  # The first is the fusion.
    while source.has(f"levels.0.layers.{num_layers - 1}.linear.weight"):
        num_layers += 1
    return {
        "num_layers": num_layers,
        "fusion": "residual",
        "output_bias": source.has("levels.0.output.bias"),
        "prefix": source.has("prefix_norm.weight"),
    }


_HYDRA_MARKS = ("hydra_mlp.#.#.linear.weight", "hydra_mlp.#.#.res_connection.weight")
_VLLM = Layout(
    names={"block": "blocks.{i}.layers.{l}.", "output": "lm_heads.{i}", "shared_output": "lm_head"},
    renames={"linear.weight": "weight", "linear.bias": "bias"},
)
MEDUSA = Family(
    HeadSpec(
        "medusa", kind="parallel", fusion="none", embed_norm=False, hidden_norm=False,
        output_norm=False, block=ResidualBlock.kind, output_head="own", num_modules=4,
        # FasterDecoding's names.
        layout=Layout(prefix="{i}.", names={"block": "{l}.", "output": "{n}"},
                      count_keys=("medusa_num_heads",)),
    ),
    ResidualBlock,
    (),
    {"medusa": Repository(_VLLM, _medusa_config)},
    # Behind the target, as tools that train both save them.
    aliases=(Layout(prefix="medusa_head.{i}.", names={"block": "{l}.", "output": "{n}"},
                    count_keys=("medusa_num_heads",)),),
)  # fmt: skip
_HYDRA = HeadSpec(
    "hydra", kind="parallel", fusion="eh", embed_norm=False, hidden_norm=False, output_norm=False,
    block=ResidualBlock.kind, num_modules=4,
    layout=Layout("hydra_mlp.{i}.",
                  {"fusion": "0", "block": "{k}.", "output": "/hydra_lm_head.{i}"},
                  count_keys=("hydra_num_heads",), marks=_HYDRA_MARKS),
)  # fmt: skip
# Hydra++: dropouts count as places, and one block runs before all levels.
_HYDRA_PLUS = Layout(
    "hydra_mlp.{i}.",
    {"fusion": "1", "block": "{m}.", "output": "/hydra_lm_head.{i}.1",
     "prefix": "/prefix_embeding_layer.layers.0", "prefix_norm": "/prefix_embeding_layer.norm"},
    count_keys=("hydra_num_heads",), marks=(*_HYDRA_MARKS, "prefix_embeding_layer.norm.weight"),
)  # fmt: skip
HYDRA = Family(_HYDRA, ResidualBlock, read_fields=_hydra_fields, aliases=(_HYDRA_PLUS,))
_META = HeadSpec(
    "meta", kind="parallel", fusion="none", embed_norm=False, hidden_norm=False, feed="aux",
    num_modules=3,
)  # fmt: skip
# Its layer is beside the target's last.
META = Family(_META, LlamaBlock, default_layers=lambda depth: (depth - 1,))
