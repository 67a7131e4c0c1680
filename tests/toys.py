"""A toy server in this process, and clients of it."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import httpx2

from mtp_verify.certification.server.client import Client, Limits
from mtp_verify.certification.server.loads import LOADS
from mtp_verify.certification.server.sampler import ServerSampler
from mtp_verify.testing import mutants
from mtp_verify.testing.server import ToyServer, serve

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = mutants.table_rows(4, 7)
PROMPTS = ((1, 2, 3, 1, 2), (0, 3, 0, 3), (2, 2, 1))
# How pytest is told of the plug-in: an environment that is older than the entry point has it by its
# module alone.
_IS_INSTALLED = bool(entry_points(group="pytest11", name="mtp_verify"))
PLUGIN = ("-p", "mtp_verify" if _IS_INSTALLED else "mtp_verify.commands.pytest_plugin")
QUICK = {"retries": 3, "first_wait": 0.001, "longest_wait": 0.1}


class Words:
    """A tokenizer with one word a token, as far as texts need one."""

    def __init__(self, vocab: int = 4) -> None:
        self.vocab = vocab

    def __len__(self) -> int:
        return self.vocab

    def decode(self, tokens: Any, **_: Any) -> str:
        return " ".join(f"t{token}" for token in tokens)

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word[1:]) for word in text.split()]


def client_of(app: Any, model: str = "", **limits: Any) -> Client:
    transport = httpx2.ASGITransport(app)
    return Client("http://toy/v1", model, limits=Limits(**(QUICK | limits)), transport=transport)


def sampler_of(*faults: str, load: str = "n", **options: Any) -> ServerSampler:
    """A sampler of a toy server; `sampler.client` is to be closed by whoever made it."""
    client = client_of(ToyServer(ROWS, faults, eos=options.get("eos")))
    return ServerSampler(client, ROWS, load=LOADS[load], **options)


@contextmanager
def served(app: ToyServer) -> Iterator[str]:
    """The address of a toy server on a port of this machine."""
    server = serve(app)
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
