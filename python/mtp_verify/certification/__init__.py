"""Certify decoders that one does not own: from outside (`certify`), or their accept function."""

from __future__ import annotations

from mtp_verify.certification.blackbox import Certificate, certify
from mtp_verify.certification.report import accept_report, report
from mtp_verify.certification.two_report import comparison_report
from mtp_verify.certification.two_sample import Comparison, compare
from mtp_verify.certification.whitebox import AcceptCertificate, certify_accept

__all__ = [
    "AcceptCertificate",
    "Certificate",
    "Comparison",
    "accept_report",
    "certify",
    "certify_accept",
    "compare",
    "comparison_report",
    "report",
]
