"""Tools for tests of decoders: targets whose law is known exactly."""

from __future__ import annotations

from mtp_verify.testing.table import TableCache, TableTarget

__all__ = ["TableCache", "TableTarget"]
