"""Verify a step by Triton kernels, which leave their results for each other in a workspace."""

from mtp_verify.verifier.kernels.device.triton_.run import run
from mtp_verify.verifier.kernels.device.triton_.workspace import Workspace

__all__ = ["Workspace", "run"]
