"""The module that `speculators` trains: that of a target's checkpoint, in a repository of its own.

References:
    FastMTP, arXiv 2509.18362; vllm-project/speculators, `mtp`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mtp_verify.heads.blocks.target import TargetBlock
from mtp_verify.heads.spec import Family, HeadSpec, Layout

if TYPE_CHECKING:
    from mtp_verify.heads.io.recognise import Source

__all__ = ["MTP"]

_PLUS_ONE = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")  # whose norms are stored as w - 1


def _fields(source: Source) -> dict[str, Any]:
    plus_one = source.config.get("model_type") in _PLUS_ONE
    return {"norm_kind": "rms1p" if plus_one else "rms"}


_MODULE = "mtp_layers.{i}."
MTP = Family(
    HeadSpec(
        "mtp", block=TargetBlock.kind,
        layout=Layout(
            names={
                "embed_norm": f"{_MODULE}token_layernorm",
                "hidden_norm": f"{_MODULE}hidden_layernorm",
                "fusion": f"{_MODULE}input_proj", "output_norm": f"{_MODULE}final_layernorm",
                "block": _MODULE,
            },
            count_keys=("num_nextn_predict_layers",),
        ),
    ),
    TargetBlock,
    read_fields=_fields,
)  # fmt: skip
