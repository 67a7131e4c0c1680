"""Tiny models of the families that bring a drafter of their own, for transformers' own loops.

Both are random: a drafter that guesses badly still has to leave the target's law as it is.
"""

from __future__ import annotations

from typing import Any

from mtp_verify.certification.checkpoints import VOCAB
from mtp_verify.errors import UnsupportedModelError

__all__ = ["gemma4", "has_mtp", "mtp"]

_NUM_MTP_LAYERS = 2
# Logits of a standard deviation of about 1.5: moderate entropy, as the tiny checkpoints have.
_HEAD_SCALE = 1.5 / (64**0.5 * 0.15)


def gemma4(seed: int) -> tuple[Any, dict[str, Any]]:
    """A Gemma 4 target, and the options of `generate` that bring in its assistant.

    transformers 5.23 cannot build the assistant from a config: `kv_sharing_modes` refuses a model
    whose every layer is shared. It is replaced while the two are built, and for nothing else.
    """
    import torch
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4ForCausalLM
    from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "max_position_embeddings": 128,
        "sliding_window": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.05,
    }
    kinds = ["sliding_attention", "full_attention"]
    original = Gemma4TextConfig.kv_sharing_modes

    def sharing(config: Any) -> list[str | None]:
        if config.num_kv_shared_layers == config.num_hidden_layers:
            return ["reuse"] * config.num_hidden_layers
        return list(original.fget(config))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        Gemma4TextConfig.kv_sharing_modes = property(sharing)
        try:
            target = Gemma4ForCausalLM(
                Gemma4TextConfig(
                    **common,
                    num_hidden_layers=4,
                    layer_types=kinds * 2,
                    num_kv_shared_layers=2,
                    hidden_size_per_layer_input=8,
                    vocab_size_per_layer_input=VOCAB,
                )
            ).eval()
            text = Gemma4TextConfig(
                **common,
                num_hidden_layers=2,
                layer_types=kinds,
                num_kv_shared_layers=2,
                hidden_size_per_layer_input=0,
                vocab_size_per_layer_input=0,
            )
            assistant = Gemma4AssistantForCausalLM(
                Gemma4AssistantConfig(text_config=text, backbone_hidden_size=32)
            ).eval()
        finally:
            Gemma4TextConfig.kv_sharing_modes = original
    return target, {"assistant_model": assistant}


def has_mtp() -> bool:
    """Whether the installed transformers knows `generate(use_mtp=True)`."""
    from transformers import modeling_layers

    return hasattr(modeling_layers, "MtpModel")


def mtp(seed: int) -> tuple[Any, dict[str, Any]]:
    """A GLM-4 target with multi-token-prediction layers, and the options of `generate` for them.

    transformers reads such layers from the target's checkpoint in every call of `generate`, under
    the layer numbers of the released models. The tiny ones are handed over in memory instead, so
    that what is certified is the library's generator and accept step.

    Raises:
        UnsupportedModelError: The installed transformers has no `use_mtp`.
    """
    import torch
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, modeling_layers

    if not has_mtp():
        message = "transformers: generate(use_mtp=True) is missing in this version; 5.23 has it"
        raise UnsupportedModelError(message, slug="unsupported_version")
    config = Glm4MoeConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        first_k_dense_replace=1,
        n_routed_experts=2,
        num_experts_per_tok=1,
        num_nextn_predict_layers=_NUM_MTP_LAYERS,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        target = Glm4MoeForCausalLM(config).eval()
        target.lm_head.weight *= _HEAD_SCALE
        layers = modeling_layers.MtpModel(target, _NUM_MTP_LAYERS).eval()
        for weight in layers.layers.parameters():
            # The constructor leaves the experts' memory as it was.
            weight.fill_(1.0) if weight.ndim == 1 else weight.normal_(std=0.15)
    return target, {"use_mtp": True, "mtp_layers": layers}
