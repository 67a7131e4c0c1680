"""Verify a draft: NumPy alone. Calls of the core, their arguments and their results.

What most programs call stands at the package's root (``mv.verify``); the rest is public here.
"""

from mtp_verify.verifier.api import alpha_star, build_info
from mtp_verify.verifier.batch import set_num_threads

__all__ = ["alpha_star", "build_info", "set_num_threads"]
