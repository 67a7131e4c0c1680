"""Acceptance on held-out text: greedy chains, replayed over text that the target wrote greedily.

Decoding is replayed exactly: a draft is true text as long as it is accepted, so one roll-out over
the text holds every draft that decoding would have made, and the walk visits the rows that decoding
would have visited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mtp_verify.training.batches import collate
from mtp_verify.training.rollout import level_logits, roll_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.heads import Head
    from mtp_verify.training.shards import Text

__all__ = ["Acceptance", "measure_acceptance"]

_TOGETHER = 8  # sequences of one forward


@dataclass(frozen=True)
class Acceptance:
    """What greedy chains of a head reach."""

    tau: float  # tokens per step, the target's own included
    # For each depth the share of drafted tokens that were accepted, of those whose path was.
    by_depth: tuple[float, ...]
    num_steps: int


def measure_acceptance(
    head: Head, texts: Sequence[Text], places: torch.Tensor, depth: int
) -> Acceptance:
    """Replay greedy decoding with chains of `depth` drafted tokens.

    `texts` were written greedily by the head's target; `places` (V,) are those of each token in the
    draft vocabulary, or -1.
    """
    emitted = steps = 0
    reached, accepted = [0] * depth, [0] * depth
    for start in range(0, len(texts), _TOGETHER):
        group = texts[start : start + _TOGETHER]
        batch = collate(group, places, with_context=head.spec.context_tokens)
        # Of a prompt, only its last row is read, which has a distribution too.
        used = batch.top_probs.sum(-1) > 0
        hits = []
        with torch.no_grad():
            for level, features in enumerate(roll_out(head, batch, depth)):
                best = torch.full_like(batch.targets, -2)  # no token's place
                best[used] = level_logits(head, batch, features[used], level, used).argmax(-1)
                hits.append(best == batch.shifted(batch.targets, level + 1))
        for text, rows in zip(group, torch.stack(hits, dim=-1).tolist(), strict=True):
            # The first row with a distribution is the prompt's last token.
            row = int((text.top_probs.sum(1) > 0).nonzero()[0])
            end = len(text)
            while row + 1 < end:
                most = min(depth, len(rows[row]), end - 1 - row)
                count = 0
                while count < most:
                    reached[count] += 1
                    if not rows[row][count]:
                        break
                    accepted[count] += 1
                    count += 1
                steps += 1
                emitted += count + 1
                row += count + 1
    by_depth = tuple(a / r if r else 0.0 for a, r in zip(accepted, reached, strict=True))
    return Acceptance(emitted / max(steps, 1), by_depth, steps)
