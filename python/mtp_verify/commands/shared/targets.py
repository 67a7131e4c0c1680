"""A checkpoint's target model, loaded only if its files hold what its configuration says."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["language_class", "load_target"]

_PACKED = 8  # parameters that one stored number may hold, in four-bit checkpoints


def language_class(config: Any) -> Any:
    """Return the class of transformers that loads a model which writes text.

    Models that also see have a class for conditional generation, many of them no other.
    """
    import transformers

    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        for kind in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
            if type(config) in getattr(transformers, f"MODEL_FOR_{kind}_MAPPING", {}):
                name = "".join(word.title() for word in kind.split("_"))
                return getattr(transformers, f"AutoModelFor{name.replace('Lm', 'LM')}")
    return transformers.AutoModelForCausalLM


def load_target(folder: str | None) -> tuple[Any | None, str]:
    """Return a target from its checkpoint, or None and the reason."""
    if folder is None:
        return None, "no target was given: nothing was measured"
    import torch
    from transformers import AutoConfig

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.verifier.files import check_folder

    try:
        check_folder(folder)
        held = sum(math.prod(info.shape) for info in Checkpoint(folder).tensors.values())
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kind = language_class(config)
        with torch.device("meta"):
            wanted = kind.from_config(config).num_parameters()
        if wanted > _PACKED * held:
            # transformers would fill what is missing with random numbers, even terabytes of them.
            return None, f"the target has {wanted:,} parameters and its files hold {held:,} numbers"
        model, found = kind.from_pretrained(
            folder, dtype="auto", local_files_only=True, output_loading_info=True
        )
        names = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
        # Random numbers stand for weights that are missing, as all are in a head's own repository;
        # for a bias it is zero, as where a module of another architecture was added.
        if lost := [name for name in names if not name.endswith(".bias")]:
            return None, f"its files do not hold the target: {lost[0][:100]} is missing"
    except Exception as error:  # noqa: BLE001 - a foreign checkpoint may fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return None, f"transformers cannot load the target: {reason}"
    return model.eval(), ""
