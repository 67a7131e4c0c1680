"""Tiny random models whose laws can be enumerated: targets that engines load, and their drafters.

A drafter that guesses badly must not change the target's distribution.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify.console.libraries import quiet_bars
from mtp_verify.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["VOCAB", "Checkpoints", "gemma4", "has_mtp", "make_checkpoints", "mtp", "tiny_llama"]

VOCAB = 8
# Head size 32 and no special tokens: what vLLM's CPU kernels and an exact law need.
_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Logits of a standard deviation of about 1.5 for any initialisation: moderate entropy, so
# that rejections and full acceptances both occur within a few hundred samples.
_HEAD_SCALE = 1.5 / (64**0.5 * 0.15)
_DRAFTER_NOISE = 0.35
_NUM_MTP_LAYERS = 2


@dataclass(frozen=True)
class Checkpoints:
    """Folders with config, safetensors and tokenizer, and the models themselves, in float32."""

    target: Path
    drafter: Path
    target_model: Any
    drafter_model: Any


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw weights from a seed of their own."""
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        yield


def tiny_llama(seed: int = 0, noise: float = 0.0, vocab: int = VOCAB) -> Any:
    """Return a random Llama of one layer; `noise` perturbs the weights that `seed` gives."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**_CONFIG | {"vocab_size": vocab}, tie_word_embeddings=False)
    with _seeded(seed):
        model = LlamaForCausalLM(config).eval()
        for weight in model.parameters():
            weight += noise * weight.std(correction=0) * torch.randn_like(weight)
        model.lm_head.weight *= _HEAD_SCALE
    return model


def make_checkpoints(folder: Path, seed: int = 0, sharpness: float = 1.0) -> Checkpoints:
    """Write both checkpoints below `folder`; logits are `sharpness` times as large as usual."""
    models = tiny_llama(seed), tiny_llama(seed, _DRAFTER_NOISE)
    folders = folder / "target", folder / "drafter"
    with quiet_bars():
        for model, where in zip(models, folders, strict=True):
            model.lm_head.weight.data.mul_(sharpness)
            model.save_pretrained(where)
            _tokenizer(model.config.vocab_size).save_pretrained(where)
    return Checkpoints(*folders, *models)


def _tokenizer(vocab: int) -> Any:
    """Return a tokenizer with one word for each token: "t0", "t1", ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def gemma4(seed: int) -> tuple[Any, dict[str, Any]]:
    """Return a Gemma 4 target, and the options of `generate` that bring in its assistant.

    transformers 5.23 cannot build the assistant from a config: `kv_sharing_modes` refuses a model
    whose every layer is shared. It is replaced while the two are built, and for nothing else.
    """
    from unittest import mock

    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4ForCausalLM
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    kinds = ["sliding_attention", "full_attention"]
    common = _CONFIG | {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "sliding_window": 64,
        "initializer_range": 0.05,
        "num_kv_shared_layers": 2,
    }
    large = {
        "num_hidden_layers": 4,
        "layer_types": kinds * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCAB,
    }
    small = {
        "num_hidden_layers": 2,
        "layer_types": kinds,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
    }
    original = Gemma4TextConfig.kv_sharing_modes

    def sharing(config: Any) -> list[str | None]:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        return list(original.fget(config))

    with _seeded(seed), mock.patch.object(Gemma4TextConfig, "kv_sharing_modes", property(sharing)):
        target = Gemma4ForCausalLM(Gemma4TextConfig(**common | large)).eval()
        text = Gemma4TextConfig(**common | small)
        config = Gemma4AssistantConfig(text_config=text, backbone_hidden_size=32)
        assistant = Gemma4AssistantForCausalLM(config).eval()
    return target, {"assistant_model": assistant}


def has_mtp() -> bool:
    """Return whether the installed transformers knows `generate(use_mtp=True)`."""
    from transformers import modeling_layers

    return hasattr(modeling_layers, "MtpModel")


def mtp(seed: int) -> tuple[Any, dict[str, Any]]:
    """Return a GLM-4 target with multi-token-prediction layers, and the options of `generate`.

    transformers reads such layers from the target's checkpoint in every call of `generate`, under
    the layer numbers of the released models. The tiny ones are handed over in memory instead, so
    that what is certified is the library's generator and accept step.

    Raises:
        UnsupportedModelError: The installed transformers has no `use_mtp`.
    """
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, modeling_layers

    if not has_mtp():
        message = "transformers: generate(use_mtp=True) is missing in this version; 5.23 has it"
        raise UnsupportedModelError(message, slug="unsupported_version")
    config = Glm4MoeConfig(
        **_CONFIG,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_routed_experts=2,
        num_experts_per_tok=1,
        num_nextn_predict_layers=_NUM_MTP_LAYERS,
    )
    with _seeded(seed):
        target = Glm4MoeForCausalLM(config).eval()
        target.lm_head.weight *= _HEAD_SCALE
        layers = modeling_layers.MtpModel(target, _NUM_MTP_LAYERS).eval()
        for weight in layers.layers.parameters():
            # The constructor leaves the experts' memory as it was.
            weight.fill_(1.0) if weight.ndim == 1 else weight.normal_(std=0.15)
    return target, {"use_mtp": True, "mtp_layers": layers}
