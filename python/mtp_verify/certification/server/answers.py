"""What servers answer: the choices of a completion, whole or in a stream, in one form.

Token ids come in one of four ways: `token_ids` of a choice (vLLM), `tokens` (llama.cpp), names
"token_id:5" among the log-probabilities (vLLM), or `id` in them (llama.cpp). Where there is none of
these, there is text alone.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from mtp_verify.errors import ServerError

__all__ = ["Choice", "choices_of", "events_of", "joined"]

_ID = "token_id:"
_MOST_SHOWN = 200


@dataclass(frozen=True)
class Choice:
    """One continuation.

    Attributes:
        tokens: Its ids, or None where the server gives text alone.
        text: As the server decoded it.
        finish: Why it ended: "length", "stop", or what the server says.
        logprobs: Of its tokens, as served; empty where there are none.
        top: Of each place the likeliest tokens with their log-probabilities, where ids are served.
    """

    tokens: tuple[int, ...] | None
    text: str
    finish: str
    logprobs: tuple[float, ...] = ()
    top: tuple[dict[int, float], ...] = field(default=())


def choices_of(document: Any) -> list[Choice]:
    """Return the choices of a completion, by their index.

    Raises:
        ServerError: It is something else.
    """
    try:
        found = sorted(document["choices"], key=lambda choice: choice.get("index", 0))
        return [_choice(choice) for choice in found]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        shown = json.dumps(document)[:_MOST_SHOWN]
        message = f"answer: found {shown}, wanted a completion with its choices"
        raise ServerError(message, slug="bad_answer") from error


def events_of(lines: list[str]) -> list[Any]:
    """Return the documents of a stream's lines, without what ends it.

    Raises:
        ServerError: A line is no document, or it is the server's report of an error.
    """
    texts = [line.removeprefix("data:").strip() for line in lines if line.startswith("data:")]
    try:
        events = [json.loads(text) for text in texts if text and text != "[DONE]"]
    except ValueError as error:
        message = f"answer: found a stream that is not JSON ({error}), wanted a completion"
        raise ServerError(message, slug="bad_answer") from error
    for event in events:
        if isinstance(event, dict) and "error" in event:
            message = f"answer: the stream ended with {json.dumps(event)[:_MOST_SHOWN]}"
            raise ServerError(message, slug="server_stopped")
    return events


def joined(events: list[Any]) -> list[Choice]:
    """Put the choices of a stream together.

    Raises:
        ServerError: Its events are no parts of a completion, or a choice has no end.
    """
    parts: dict[int, list[Choice]] = {}
    for event in events:
        for place, choice in zip(_indices(event), choices_of(event), strict=True):
            parts.setdefault(place, []).append(choice)
    return [_whole(parts[place]) for place in sorted(parts)]


def _indices(event: Any) -> list[int]:
    choices = event.get("choices", ()) if isinstance(event, dict) else ()
    return sorted(int(choice.get("index", 0)) for choice in choices)


def _whole(parts: list[Choice]) -> Choice:
    finish = next((part.finish for part in parts if part.finish), "")
    if not finish:
        message = "answer: found a stream that ends before its text does, wanted a finish_reason"
        raise ServerError(message, slug="server_stopped")
    known = [part.tokens for part in parts if part.tokens is not None]
    # The last part of a stream may hold the reason alone.
    has_ids = all(part.tokens is not None for part in parts if part.text)
    return Choice(
        tuple(token for tokens in known for token in tokens) if known and has_ids else None,
        "".join(part.text for part in parts),
        finish,
        tuple(value for part in parts for value in part.logprobs),
        tuple(top for part in parts for top in part.top),
    )


def _choice(choice: dict[str, Any]) -> Choice:
    served = choice.get("logprobs") or {}
    entries = served.get("content")
    if entries is not None:  # one record a token
        ids = [entry.get("id") for entry in entries]
        values = [entry.get("logprob") for entry in entries]
        tops = [
            {top["id"]: top["logprob"] for top in entry.get("top_logprobs", ()) if "id" in top}
            for entry in entries
        ]
    else:  # one list a kind
        ids = [_number(name) for name in served.get("tokens") or ()]
        values = list(served.get("token_logprobs") or ())
        tops = [_numbers(top or {}) for top in served.get("top_logprobs") or ()]
    tokens = choice.get("token_ids") or choice.get("tokens") or ids
    is_known = bool(tokens) and all(isinstance(token, int) for token in tokens)
    return Choice(
        tuple(tokens) if is_known else None,
        str(choice.get("text") or ""),
        str(choice.get("finish_reason") or ""),
        tuple(math.nan if value is None else float(value) for value in values),
        tuple({token: float(value) for token, value in top.items()} for top in tops),
    )


def _number(name: Any) -> int | None:
    is_id = isinstance(name, str) and name.startswith(_ID)
    return int(name.removeprefix(_ID)) if is_id else None


def _numbers(top: dict[str, float]) -> dict[int, float]:
    named = {_number(name): value for name, value in top.items()}
    return {token: value for token, value in named.items() if token is not None}
