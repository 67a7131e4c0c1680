"""Tiny random checkpoints that servers load, and the reference that one of them is."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mtp_verify.certification.models import make_checkpoints
from mtp_verify.certification.server.texts import WordTexts
from mtp_verify.console.libraries import quiet_bars
from mtp_verify.errors import ParamsError
from mtp_verify.testing.laws import model_rows
from mtp_verify.verifier.files import check_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["GGUF", "Reference", "load_reference", "write_checkpoints"]

GGUF = "model.gguf"


class Reference(NamedTuple):
    """A checkpoint whose law can be computed.

    Attributes:
        rows: From the tokens so far to logits (V,), in float64.
        texts: Its tokenizer, if there is one whose tokens can be read off their text.
        why_no_texts: Why there is none.
        longest: Tokens of prompt and text together, at most.
    """

    rows: Callable[[tuple[int, ...]], Any]
    texts: WordTexts | None
    why_no_texts: str
    longest: int


def write_checkpoints(folder: Path, *, seed: int = 0, sharpness: float = 1.0) -> list[str]:
    """Write a random target and a drafter for it, and return the lines that say how to serve them.

    `target` and `drafter` are folders with config, safetensors and tokenizer; where the package
    gguf is installed, each has the same weights as `model.gguf` too. Eight tokens, "t0" to "t7",
    none of which ends a text.

    Args:
        folder: Is made if it is not there.
        seed: Of the weights.
        sharpness: Logits are so many times as large as usual.
    """
    made = make_checkpoints(folder, seed, sharpness)
    has_gguf = find_spec("gguf") is not None
    if has_gguf:
        for model, where in ((made.target_model, made.target), (made.drafter_model, made.drafter)):
            write_gguf(model, where / GGUF)
    target = shlex.quote(str(made.target))
    model = f"llama-server -m {shlex.quote(str(made.target / GGUF))}"
    return [
        f"vllm serve {target} --dtype float32 --max-model-len 1024",
        f"python -m sglang.launch_server --model-path {target} --dtype float32",
        model if has_gguf else 'no GGUF: pip install "mtp-verify[demo]" brings the package gguf',
        f"mtp-verify certify --url http://127.0.0.1:8000/v1 --checkpoint {target}",
    ]


def load_reference(folder: Path) -> Reference:
    """Load a checkpoint as a reference.

    Raises:
        ParamsError: There is no checkpoint, or its vocabulary is too large for an exact law.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        message = (
            f"checkpoint: found no config.json in {folder}, wanted a folder of transformers' "
            "layout: --make-checkpoint writes one, with a folder target"
        )
        raise ParamsError(message, slug="no_checkpoint")
    check_folder(folder)
    with quiet_bars():
        model = AutoModelForCausalLM.from_pretrained(folder)
    texts, why = None, "the checkpoint's folder has no tokenizer"
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        try:
            texts = WordTexts(AutoTokenizer.from_pretrained(folder))
        except ParamsError as error:
            why = str(error)
    longest = getattr(model.config, "max_position_embeddings", 1 << 30)
    return Reference(model_rows(model), texts, why, longest)


def write_gguf(model: Any, path: Path) -> None:
    """Write a Llama of transformers as a GGUF file in float32.

    Its tokenizer is of the one kind in llama.cpp that has no special tokens ("rwkv").
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_name("mtp-verify tiny")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list([f" t{i}" for i in range(config.vocab_size)])
    writer.add_token_types([TokenType.NORMAL] * config.vocab_size)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        value = weight.numpy().astype(np.float32)
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if kind in heads:
            value = _interleaved(value, heads[kind])
        writer.add_tensor(_gguf_name(name), value, raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    layer = f"blk.{parts[parts.index('layers') + 1]}." if "layers" in parts else ""
    return f"{layer}{_NAMES[parts[-1]]}.weight"


def _interleaved(weight: Any, num_heads: int) -> Any:
    """Reorder a projection's rows: llama.cpp rotates neighbours, transformers halves."""
    width = weight.shape[0] // num_heads
    halves = weight.reshape(num_heads, 2, width // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
