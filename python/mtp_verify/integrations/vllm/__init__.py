"""vLLM: this package's rules in place of its rejection samplers, and a proposer that copies."""

from mtp_verify.integrations.vllm.plugin import install, is_installed, register, uninstall
from mtp_verify.integrations.vllm.proposer import SuffixProposer
from mtp_verify.integrations.vllm.seams import GATE, RULES
from mtp_verify.integrations.vllm.v1 import forward

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
