"""Requests to a server with an OpenAI-compatible completions endpoint: bounded, patient, quiet.

The key comes from the environment variable `OPENAI_API_KEY` alone and is in no message, report or
file.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import threading
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx2

from mtp_verify.certification.server.answers import choices_of, events_of, joined
from mtp_verify.errors import ParamsError, ServerError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from mtp_verify.certification.server.answers import Choice

__all__ = ["Client", "Limits"]

_T = TypeVar("_T")

_KEY = "OPENAI_API_KEY"
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_MOST_SHOWN = 300


@dataclass(frozen=True)
class Limits:
    """How much is asked of a server, and for how long it is waited for.

    Attributes:
        concurrency: Requests at a time, at most.
        per_second: Requests begun in a second, at most.
        timeout: Seconds without a byte of an answer.
        retries: How often a request is made again where the server is busy, restarts or is gone.
        first_wait: Seconds before the first of them; each later one waits twice as long.
        longest_wait: Seconds before any of them, at most.
    """

    concurrency: int = 16
    per_second: float = math.inf
    timeout: float = 60.0
    retries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what would ask for nothing, or for ever."""
        for name in ("concurrency", "per_second", "timeout", "first_wait", "longest_wait"):
            if not getattr(self, name) > 0:
                message = f"{name}: found {getattr(self, name)}, wanted more than 0"
                raise ParamsError(message, slug="param_out_of_range")
        if self.retries < 0:
            message = f"retries: found {self.retries}, wanted 0 or more"
            raise ParamsError(message, slug="param_out_of_range")


class Client:
    """The completions endpoint of one server, for one model.

    Its calls wait for the answers; the requests themselves run in a thread of the client's own, so
    that it can be used where an event loop runs already.

    Args:
        url: Where `/completions` is, for example "http://127.0.0.1:8000/v1".
        model: A name that the server knows; empty means the only one that it serves.
        limits: How much is asked of it.
        transport: What carries the requests instead of a network: `httpx2.ASGITransport(app)`.

    Attributes:
        num_requests: How many were answered.
        num_retries: How many were made again.

    Raises:
        ParamsError: The address is none.
        ServerError: It does not answer, or does not serve that model.
    """

    def __init__(
        self, url: str, model: str = "", *, limits: Limits | None = None, transport: Any = None
    ) -> None:
        self.url, self.limits = _checked(url), limits or Limits()
        self.num_requests = self.num_retries = 0
        self._slot = 0.0  # when the next request may begin, of `time.monotonic()`
        self._loop = _Loop()
        key = os.environ.get(_KEY)
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self.limits.timeout,
            limits=httpx2.Limits(max_connections=self.limits.concurrency),
            transport=transport,
        )
        try:
            self.model = self._known(model)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        if self._loop.is_running:
            self._loop.run(self._http.aclose())
            self._loop.stop()

    def models(self) -> list[str]:
        """Return the names of the models that are served.

        Raises:
            ServerError: It does not answer, or with something else than a list of models.
        """
        document = self._loop.run(self._ask("GET", "/models", None))
        try:
            return [str(entry["id"]) for entry in document["data"]]
        except (KeyError, TypeError) as error:
            shown = json.dumps(document)[:_MOST_SHOWN]
            message = f"{self.url}/models: found {shown}, wanted a list of models"
            raise ServerError(message, slug="bad_answer") from error

    def complete(
        self, bodies: Sequence[dict[str, Any]], *, concurrency: int | None = None
    ) -> list[list[Choice]]:
        """Make requests at a time, and return the choices of each, in the order of the requests.

        Args:
            bodies: What each asks for, without the model. With `stream` the answer is read as a
                stream.
            concurrency: How many at a time; None: as many as the limits allow.

        Raises:
            ServerError: One was refused, or was not answered after all retries; the others are
                given up.
        """
        most = min(concurrency or self.limits.concurrency, self.limits.concurrency)
        return self._loop.run(self._complete(bodies, most))

    async def _complete(
        self, bodies: Sequence[dict[str, Any]], concurrency: int
    ) -> list[list[Choice]]:
        places = asyncio.Semaphore(concurrency)

        async def one(body: dict[str, Any]) -> list[Choice]:
            async with places:
                found = await self._ask("POST", "/completions", {"model": self.model, **body})
            wanted = body.get("n", 1)
            if len(found) != wanted:
                message = f"n: found {len(found)} choices, wanted {wanted}: the server ignores n"
                raise ServerError(message, slug="bad_answer")
            return list(found)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(body)) for body in bodies]
        except BaseExceptionGroup as error:
            raise error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Make a request, again and again where that may help."""
        wait, attempt = self.limits.first_wait, 0
        while True:
            await self._turn()
            told = None
            try:
                response = await self._send(method, path, body)
                if response.status_code == 200:
                    found = self._read(response, body)
                    self.num_requests += 1
                    return found
                if response.status_code not in _TRANSIENT:
                    raise self._refusal(response, path)
                told = _retry_after(response.headers.get("Retry-After"))
                failure = self._busy(response)
            except httpx2.TransportError as error:
                failure = self._silence(error)
            except ServerError as error:
                if error.slug != "server_stopped":
                    raise
                failure = error
            # A little of chance, so that requests that failed together do not come back together.
            pause = told if told is not None else wait * random.uniform(0.5, 1.0)
            if attempt == self.limits.retries or pause > self.limits.longest_wait:
                raise failure
            attempt, wait = attempt + 1, min(2 * wait, self.limits.longest_wait)
            self.num_retries += 1
            await asyncio.sleep(pause)

    async def _turn(self) -> None:
        """Wait until one more request is within the rate."""
        now = time.monotonic()
        start = max(now, self._slot)
        self._slot = start + 1 / self.limits.per_second
        await asyncio.sleep(start - now)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        return await self._http.request(method, self.url + path, json=body)

    def _read(self, response: Any, body: dict[str, Any] | None) -> Any:
        if body is not None and body.get("stream"):
            return joined(events_of(response.text.splitlines()))
        try:
            document = response.json()
        except ValueError as error:
            message = f"{self.url}: found {response.text[:80]!r}, wanted JSON"
            raise ServerError(message, slug="bad_answer") from error
        return document if body is None else choices_of(document)

    def _known(self, model: str) -> str:
        """Return the name of a model that is served."""
        names = self.models()
        if model in names or (not model and len(names) == 1):
            return model or names[0]
        served = ", ".join(names) or "none"
        message = f"model {model!r}: {self.url} does not serve it; it serves: {served}"
        raise ServerError(message, slug="unknown_model")

    def _refusal(self, response: Any, path: str) -> ServerError:
        """Return the error for a status that no retry changes."""
        status, said = response.status_code, self._said(response)
        if status in (401, 403):
            state = "is not accepted" if os.environ.get(_KEY) else "is not set"
            message = f"{self.url}: status {status}; the environment variable {_KEY} {state}"
            return ServerError(message, slug="not_allowed")
        if status in (404, 405) and path == "/models":
            message = (
                f"{self.url}: status {status} for /models; wanted the address in front of "
                "/completions, for most servers http://HOST:PORT/v1"
            )
            return ServerError(message, slug="no_such_address")
        return ServerError(f"{self.url}{path}: status {status}: {said}", slug="refused_request")

    def _busy(self, response: Any) -> ServerError:
        status, said = response.status_code, self._said(response)
        if status == 429:
            message = f"{self.url}: it limits the rate (status 429: {said}); ask for fewer a second"
            return ServerError(message, slug="rate_limited")
        return self._gone(f"status {status}: {said}")

    def _silence(self, error: Exception) -> ServerError:
        return self._gone(f"{type(error).__name__}: {error}".rstrip(": "))

    def _gone(self, why: str) -> ServerError:
        """Return the error for a server that does not answer: it never did, or no longer does."""
        if self.num_requests == 0:
            message = f"{self.url}: it does not answer ({why})"
            return ServerError(message, slug="server_unreachable")
        message = (
            f"{self.url}: it answered {self.num_requests:,} requests and then no more ({why}); "
            "with kept counts (--resume) the same command continues from here"
        )
        return ServerError(message, slug="server_stopped")

    def _said(self, response: Any) -> str:
        """Return a server's own words, without a key that it may repeat."""
        text, key = " ".join(response.text.split()), os.environ.get(_KEY)
        return (text.replace(key, "...") if key else text)[:_MOST_SHOWN]


def _checked(url: str) -> str:
    parts = urlsplit(url)
    found = ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        found = f"{url!r}"
    elif parts.username is not None or parts.query or parts.fragment:
        found = f"{parts.scheme}://{parts.hostname} with a user, a query or a fragment"
    if found:
        message = f"url: found {found}, wanted http://HOST:PORT/v1; keys come from {_KEY}"
        raise ParamsError(message, slug="bad_address")
    return url.rstrip("/").removesuffix("/completions")


def _retry_after(text: str | None) -> float | None:
    """Return the seconds that a header asks to wait: it names them, or a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run to the end; whatever interrupts the wait ends the work too."""
        if not self.is_running:
            work.close()
            message = "client: found a closed one, wanted one that is open"
            raise ParamsError(message, slug="client_closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
