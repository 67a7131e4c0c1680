"""Certify decoders that one does not own: from outside (`certify`), or their accept function."""

from __future__ import annotations

from mtp_verify.certification.blackbox import Certificate, certify
from mtp_verify.certification.report import accept_report, report
from mtp_verify.certification.whitebox import AcceptCertificate, certify_accept

__all__ = [
    "AcceptCertificate",
    "Certificate",
    "accept_report",
    "certify",
    "certify_accept",
    "report",
]
