"""`Recipe`: everything that a run's result depends on besides the target and the text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from mtp_verify.errors import ParamsError
from mtp_verify.training.losses import LOSSES

__all__ = ["Recipe", "quick_dtype"]


def quick_dtype() -> str:
    """Return the best `dtype` of a recipe on this CPU: "bfloat16" where it has units for products.

    Without them bfloat16 takes twice the time of float32, with them a third.

    Example:
        >>> quick_dtype() in ("bfloat16", "float32")
        True
    """
    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if has_units else "float32"


@dataclass(frozen=True)
class Recipe:
    """How a head is made and trained.

    The defaults were found for heads of a few million parameters on a CPU: most steps train the
    first level alone, which is cheap, and the rest roll the head out as drafting does.

    Attributes:
        family: of the head, one of `mtp_verify.heads.FAMILIES`.
        num_modules: levels with weights of their own (all levels of a parallel head, the slots of a
            block head).
        num_layers: blocks of each.
        draft_vocab_size: tokens that the head drafts, the most frequent of the text.
        context_tokens: the head drafts the other tokens of a sequence too, once it has shown them.
        loss: of the levels, one of `mtp_verify.training.losses.LOSSES`, or "cross-entropy".
        depth: levels of the roll-out.
        decay: weight of level k is decay ** k.
        plain_share: share of the steps that train the first level alone, at the start.
        feature_weight: of EAGLE's feature regression; 0 leaves it out.
        adversarial_weight: of KOALA's adversarial term, after 30 % of the steps; 0 leaves it out.
        noise: added to hidden states, relative to their size.
        max_rows: of a batch.
        matrix_rate: learning rate of matrices (Muon).
        vector_rate: of norms and biases (AdamW).
        weight_decay: of matrices.
        warm_up: share of the steps in which the rates rise.
        cool_down: share of the steps, at the end, in which they fall to 0.
        evaluate_every: steps between two measurements of acceptance.
        patience: measurements without a better one that end the run.
        dtype: of products, "float32" or "bfloat16"; the command's own choice is `quick_dtype`.
        seed: of everything that is random.
    """

    family: str = "mimo"
    num_modules: int = 1
    num_layers: int = 1
    draft_vocab_size: int = 8192
    context_tokens: bool = True
    loss: str = "distillation"
    depth: int = 3
    decay: float = 0.8
    plain_share: float = 0.5
    feature_weight: float = 0.0
    adversarial_weight: float = 0.0
    noise: float = 0.05
    max_rows: int = 1200
    matrix_rate: float = 0.02
    vector_rate: float = 5e-3
    weight_decay: float = 0.1
    warm_up: float = 0.05
    cool_down: float = 0.7
    evaluate_every: int = 200
    patience: int = 8
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be right."""
        if self.loss not in (known := (*LOSSES, "cross-entropy")):
            message = f"loss: found {self.loss!r}, wanted one of: {', '.join(known)}"
            raise ParamsError(message, slug="unknown_loss")
        counts = ("depth", "max_rows", "evaluate_every", "patience", "draft_vocab_size")
        for name in (*counts, "plain_share", "warm_up", "cool_down"):
            value = getattr(self, name)
            if value < 1 if name in counts else not 0.0 <= value <= 1.0:
                wanted = "an int >= 1" if name in counts else "a share of 0 to 1"
                message = f"{name}: found {value}, wanted {wanted}"
                raise ParamsError(message, slug="param_out_of_range")

    def replace(self, **changes: Any) -> Recipe:
        """Return a copy with other fields."""
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, object]:
        """Return all fields, for JSON."""
        return dataclasses.asdict(self)

    def rate_at(self, step: int, steps: int) -> float:
        """Return the factor of the learning rates in a step: a rise, a plain, and a fall to 0.

        Example:
            >>> [round(Recipe().rate_at(step, 100), 2) for step in (0, 4, 20, 99)]
            [0.2, 1.0, 1.0, 0.01]
        """
        up, down = self.warm_up * steps, self.cool_down * steps
        return min(1.0, (step + 1) / max(up, 1.0), (steps - step) / max(down, 1.0))
