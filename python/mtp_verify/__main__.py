"""`python -m mtp_verify` is the command `mtp-verify`."""

from __future__ import annotations

import sys

from mtp_verify.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
