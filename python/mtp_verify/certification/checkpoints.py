"""Tiny checkpoints that engines load: a target and a drafter whose laws can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["VOCAB", "Checkpoints", "make_checkpoints", "tiny_llama"]

VOCAB = 8
# Moderate entropy: rejections and full acceptances both occur within a few hundred samples.
_SHARPNESS = 3.0
_DRAFTER_NOISE = 0.35


@dataclass(frozen=True)
class Checkpoints:
    """Folders with config, safetensors and tokenizer, and the models themselves.

    Attributes:
        target: Folder of the model whose law is to be kept.
        drafter: Folder of one with the same weights plus noise.
        target_model: The target, in float32.
        drafter_model: The drafter, in float32.
    """

    target: Path
    drafter: Path
    target_model: Any
    drafter_model: Any


def tiny_llama(seed: int = 0, noise: float = 0.0, vocab: int = VOCAB) -> Any:
    """Return a random Llama of one layer; `noise` perturbs the weights that `seed` gives.

    Head size 32 and no special tokens: what vLLM's CPU kernels and an exact law need.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        for weight in model.parameters():
            weight += noise * weight.std(correction=0) * torch.randn_like(weight)
        # Logits of a standard deviation that does not depend on the initialisation.
        model.lm_head.weight *= _SHARPNESS / (64**0.5 * 0.15) / 2
    return model


def make_checkpoints(folder: Path, seed: int = 0, sharpness: float = 1.0) -> Checkpoints:
    """Write both checkpoints below `folder`.

    Args:
        folder: Of both.
        seed: Of their weights.
        sharpness: Their logits are that much larger than usual.

    Raises:
        ImportError: torch or transformers is missing.
    """
    from transformers.utils import logging

    models = tiny_llama(seed), tiny_llama(seed, _DRAFTER_NOISE)
    for model in models:
        model.lm_head.weight.data.mul_(sharpness)
    folders = folder / "target", folder / "drafter"
    has_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        for model, where in zip(models, folders, strict=True):
            model.save_pretrained(where)
            _tokenizer(model.config.vocab_size).save_pretrained(where)
    finally:
        if has_bars:
            logging.enable_progress_bar()
    return Checkpoints(*folders, *models)


def _tokenizer(vocab: int) -> Any:
    """One word a token: "t0", "t1", ..."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)
