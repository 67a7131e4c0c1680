"""A pytest plug-in: `pytest --mtp-verify-url URL` fails where a server is biased.

It adds one test to those that are there: `mtp-verify certify --url URL` with the options given.
pytest loads this module in every run, so that all else is loaded when that test runs.
"""

from __future__ import annotations

import shlex
from typing import Any

import pytest

__all__ = ["ServerTest", "pytest_addoption", "pytest_collection_modifyitems"]

_URL, _OPTIONS = "--mtp-verify-url", "--mtp-verify-options"
_SECONDS = 1800  # pytest-timeout's usual limit is for unit tests


class BiasError(AssertionError):
    """A report that is not "ok"; its text is the failure's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("mtp-verify", "certify a server")
    group.addoption(
        _URL, metavar="URL", help="certify this server, for example http://HOST:PORT/v1"
    )
    group.addoption(
        _OPTIONS,
        metavar="OPTIONS",
        default="",
        help="of mtp-verify certify, in one word: '--checkpoint FOLDER --load n'",
    )


# Last: other plug-ins may choose from the tests that were found by their names and files.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add the test, where a server is named."""
    url = config.getoption(_URL)
    if url:
        words = ["certify", "--url", url, *shlex.split(config.getoption(_OPTIONS))]
        items.append(ServerTest.from_parent(session, name=f"mtp-verify {url}", words=words))


class ServerTest(pytest.Item):
    """A run of `mtp-verify certify --url` as a test."""

    def __init__(self, *, words: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.words = words
        if self.config.pluginmanager.hasplugin("timeout"):
            self.add_marker(pytest.mark.timeout(_SECONDS))

    def runtest(self) -> None:
        """Fail unless the report is "ok"; an error, such as a server that is away, fails too."""
        import time

        from mtp_verify.commands.cli import build_parser

        args = build_parser().parse_args(self.words)
        args.began = time.monotonic()
        made = args.function(args)
        self.add_report_section("call", "mtp-verify", made.to_text())
        if made.exit_code:
            raise BiasError(made.to_text())

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """Show the report, without this module's own frames; an error by its message."""
        from mtp_verify.errors import MtpVerifyError

        if isinstance(excinfo.value, BiasError | MtpVerifyError | ImportError | OSError):
            return f"mtp-verify {' '.join(self.words)}\n\n{excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, int | None, str]:
        """Name the test in reports."""
        return "mtp-verify", None, self.name
