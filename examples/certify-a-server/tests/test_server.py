"""A test of this repository's own. `--mtp-verify-url` adds the certification beside it."""

from pathlib import Path


def test_the_server_can_be_started():
    assert (Path(__file__).parents[1] / "serve.sh").stat().st_mode & 0o100
