"""Stated costs of a forward on an accelerator: the roofline."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Roofline"]


@dataclass(frozen=True)
class Roofline:
    """A forward reads all weights and the batch's cache, and multiplies; the slower part counts.

    Attributes:
        parameters: of the model.
        bytes_per_parameter: 2 in bfloat16.
        cache_bytes: of one token in the KV cache.
        context: mean tokens in a request's cache while it decodes.
        bandwidth: bytes a second that the memory really gives.
        arithmetic: floating-point operations a second that the kernels really reach.
        overhead: seconds of a step that are neither.
    """

    parameters: float = 8.0e9
    bytes_per_parameter: float = 2.0
    cache_bytes: float = 131_072.0
    context: float = 768.0
    bandwidth: float = 2.7e12
    arithmetic: float = 5.0e14
    overhead: float = 1.0e-3

    def forward(self, width: int, batch: int = 1) -> float:
        """Return the seconds of one forward.

        Args:
            width: tokens of each request.
            batch: requests in it.
        """
        moved = self.parameters * self.bytes_per_parameter + batch * self.context * self.cache_bytes
        work = 2.0 * self.parameters * width * batch
        return self.overhead + max(moved / self.bandwidth, work / self.arithmetic)
