"""Certify a server over HTTP: nothing of its engine is imported."""

from __future__ import annotations

from mtp_verify.certification.server.against import compare_servers
from mtp_verify.certification.server.checkpoint import (
    Reference,
    load_reference,
    write_checkpoints,
)
from mtp_verify.certification.server.client import Client, Limits
from mtp_verify.certification.server.loads import LOADS, Load
from mtp_verify.certification.server.matrix import ServerPlan, certify_server
from mtp_verify.certification.server.sampler import ServerSampler

__all__ = [
    "LOADS",
    "Client",
    "Limits",
    "Load",
    "Reference",
    "ServerPlan",
    "ServerSampler",
    "certify_server",
    "compare_servers",
    "load_reference",
    "write_checkpoints",
]
