"""A checkpoint's target model, loaded only if its files hold what its configuration says."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["load_target"]

_PACKED = 8  # parameters that one stored number may hold, in four-bit checkpoints


def load_target(folder: str | None) -> tuple[Any | None, str]:
    """Return a target from its checkpoint, or None and the reason."""
    if folder is None:
        return None, "no target was given: nothing was measured"
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from mtp_verify.checkpoints.folder import Checkpoint
    from mtp_verify.verifier.files import check_folder

    try:
        check_folder(folder)
        held = sum(math.prod(info.shape) for info in Checkpoint(folder).tensors.values())
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            wanted = AutoModelForCausalLM.from_config(config).num_parameters()
        if wanted > _PACKED * held:
            # transformers would fill what is missing with random numbers, even terabytes of them.
            return None, f"the target has {wanted:,} parameters and its files hold {held:,} numbers"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except Exception as error:  # noqa: BLE001 - a foreign checkpoint may fail in any way
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        return None, f"transformers cannot load the target: {reason}"
    return model.eval(), ""
