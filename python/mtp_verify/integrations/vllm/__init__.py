"""vLLM: this package's rules in place of its rejection sampler, and a proposer that copies."""

from mtp_verify.integrations.vllm.plugin import (
    GATE,
    RULES,
    forward,
    install,
    is_installed,
    register,
    uninstall,
)
from mtp_verify.integrations.vllm.proposer import SuffixProposer

__all__ = [
    "GATE",
    "RULES",
    "SuffixProposer",
    "forward",
    "install",
    "is_installed",
    "register",
    "uninstall",
]
