"""A step in plain torch operators: for any device, and the readable form of the device's algorithm.

`run` makes the decisions of the core. All operators have shapes that the step's capacities give,
and none is read by the host, so a run can be captured in a graph. Modules from the bottom up:
`arithmetic`, `weights`, `noise`, `trees`, `rows`, `shaping`, `drafter`, `rounds`, `draw`, `walk`,
`run`.
"""

from mtp_verify.verifier.kernels.device.torch_.run import run
from mtp_verify.verifier.kernels.device.torch_.workspace import Workspace

__all__ = ["Workspace", "run"]
