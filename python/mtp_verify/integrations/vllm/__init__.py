"""vLLM: this package's rules in place of its rejection sampler, and a proposer that copies."""

from mtp_verify.integrations.vllm.plugin import (
    RULES,
    SUPPORTED,
    VARIABLE,
    forward,
    install,
    is_installed,
    is_supported,
    register,
    uninstall,
)
from mtp_verify.integrations.vllm.proposer import SuffixProposer

__all__ = [
    "RULES",
    "SUPPORTED",
    "VARIABLE",
    "SuffixProposer",
    "forward",
    "install",
    "is_installed",
    "is_supported",
    "register",
    "uninstall",
]
