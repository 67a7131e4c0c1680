"""Draw drafted tokens on a device, with the noise by which the core's growers draw them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mtp_verify._core import Draft
from mtp_verify.verifier.kernels.device.torch_.noise import philox
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Drawer"]

_DRAFT = 0  # The purpose of drafting, in a noise address.
_WORD = 0xFFFFFFFF
_ROOT = Draft.chain([])


class Drawer(DeviceVerifier):
    """Draws a token from each of at most `max_batch` rows: plain verification with other noise."""

    def __init__(
        self, max_batch: int, vocab: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate what a step needs."""
        super().__init__(
            max_batch, max_batch, vocab, dtype, device=device, max_depth=0, max_drafted=0
        )

    def draw(
        self,
        rows: torch.Tensor,
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        positions: Sequence[int],
        nodes: Sequence[int],
    ) -> torch.Tensor:
        """Return a token of each row; nothing is read on the host.

        Args:
            rows: (B, V) logits on the device, borrowed.
            params: How they are shaped; at temperature 0 the most likely token is taken.
            seeds: Of each row's sequence.
            positions: Of each row's root.
            nodes: The number that the token's node will have in its draft.

        Returns:
            (B,) int64.
        """
        count = len(rows)
        # As the core's growers: penalties are for the target's rows.
        shaping = SamplingParams(
            params.temperature, params.top_k, params.top_p, params.min_p, preset=params.preset
        )
        self.plan([_ROOT] * count, shaping, rule="target_only", seeds=seeds, positions=positions)
        key = tuple(torch.tensor([seed >> shift & _WORD for seed in seeds]) for shift in (0, 32))
        place = torch.tensor([position & _WORD for position in positions]), torch.tensor(nodes)
        high, low, *_ = philox((key[0], key[1]), (*place, _DRAFT, 0))
        given = torch.zeros(self.capacity.rows, 2, dtype=torch.float64)
        given[:count, 1] = (high << 21 | low >> 11).double() * 2.0**-53
        step = self.step(rows)._replace(given=given.to(self.device))
        self._run(step, self._workspace)
        return step.outcomes.tokens[:count, 0].long()
