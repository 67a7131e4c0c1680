"""A small server of completions whose law is known, with faults that can be switched on.

It is what certification over HTTP is tried out on: an ASGI application, and with
`python -m mtp_verify.testing.server` a process of its own. It answers as vLLM's server does, as far
as `mtp-verify certify --url` asks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from bisect import bisect_right
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.errors import ParamsError
from mtp_verify.testing.laws import TokenLaws, model_rows
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.certification.runs import Sampler

__all__ = ["FAULTS", "ToyServer", "main", "serve"]

# What can be wrong with it.
FAULTS = {
    "bias": "moves mass from the likeliest second token to the least likely",
    "bias_in_batch": "the same, while it works on several requests",
    "bias_on_cache_hit": "the same, for prompts whose first 32 tokens it has seen before",
    "bias_in_stream": "the same, in streams",
    "bias_with_top_k": "the same, with top-k",
    "shared_noise": "the continuations of a request are all the same",
    "wrong_logprobs": "log-probabilities after a temperature of 2",
    "other_weights": "serves another model than it says",
    "ignores_seed": "seeds change nothing",
    "not_greedy": "at temperature 0 it takes the second likeliest token at every third place",
    "runs_past_stop": "a stop string does not end the text",
    "one_too_many": "gives a token more than asked for",
    "no_token_ids": "gives text alone",
    "text_prompts": "takes no token ids, and gives none",
    "ignores_n": "gives one continuation, however many are asked for",
    "strict": "refuses fields that OpenAI's API has not",
    "forbids_extras": "refuses fields that are llama.cpp's alone",
    "busy": "refuses every third request once, with status 429",
    "restarts": "is away for a moment after the 50th request",
    "dies": "is away for good after the 50th request",
}
_NO_IDS = {"no_token_ids", "text_prompts"}
_SHIFT = 0.3
_BLOCK = 32
_AWAY = 5  # requests that are refused during a restart
_OPENAI = {
    "model", "prompt", "suffix", "max_tokens", "temperature", "top_p", "n", "stream", "logprobs",
    "echo", "stop", "presence_penalty", "frequency_penalty", "best_of", "logit_bias", "user",
    "seed", "stream_options",
}  # fmt: skip
_LLAMA_CPP = {"repeat_penalty", "repeat_last_n", "samplers", "return_tokens"}
_SHAPING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class _RefusalError(Exception):
    """A request that is not answered with a completion."""

    status: int
    text: str
    headers: tuple[tuple[str, str], ...] = ()


class ToyServer:
    """An ASGI application that serves a law: `/v1/models` and `/v1/completions`.

    Args:
        rows: From the tokens so far to logits (V,).
        faults: Keys of `FAULTS`.
        model: The name under which it is served.
        eos: The token at which texts end, or None.
        engine: What draws the tokens of a request instead, an engine of `gallery` for one; it has
            its own shaping.

    Attributes:
        num_requests: Completions asked for so far, refused ones included.
        most_at_once: How many were worked on at a time, at most.

    Raises:
        ParamsError: There is no such fault.
    """

    def __init__(
        self,
        rows: Callable[[tuple[int, ...]], Any],
        faults: Sequence[str] = (),
        *,
        model: str = "toy",
        eos: int | None = None,
        engine: Sampler | None = None,
    ) -> None:
        self.rows, self.faults, self.model, self.eos = rows, frozenset(faults), model, eos
        self.engine = engine
        for fault in self.faults - FAULTS.keys():
            message = f"fault {fault!r}: wanted one of: {', '.join(FAULTS)}"
            raise ParamsError(message, slug="unknown_fault")
        self.num_requests = self.most_at_once = 0
        self._num_now, self._refused = 0, set[str]()
        self._rng = np.random.default_rng(0)
        self._prefixes: set[tuple[int, ...]] = set()
        self._laws: dict[SamplingParams, TokenLaws] = {}
        self._cumulative: dict[Any, tuple[list[float], int]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, as ASGI wants it."""
        parts = [await receive()]
        while parts[-1].get("more_body"):
            parts.append(await receive())
        body = b"".join(part.get("body", b"") for part in parts)
        status, headers, answer = await self.respond(scope["method"], scope["path"], body)
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": answer})

    async def respond(
        self, method: str, path: str, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Answer one request: status, headers and body."""
        kind = [("Content-Type", "application/json")]
        try:
            if (method, path) == ("GET", "/v1/models"):
                return 200, kind, json.dumps({"data": [{"id": self.model}]}).encode()
            if (method, path) != ("POST", "/v1/completions"):
                raise _RefusalError(404, f"no {method} {path}")
            asked = json.loads(body)
            self.num_requests += 1
            self._refuse(asked, body.decode())
            return 200, kind, await self._completion(asked)
        except _RefusalError as refusal:
            answer = json.dumps({"error": {"message": refusal.text}}).encode()
            return refusal.status, [*kind, *refusal.headers], answer

    def _refuse(self, asked: dict[str, Any], text: str) -> None:
        if asked.get("model") != self.model:
            raise _RefusalError(404, f"the model {asked.get('model')} does not exist")
        if "strict" in self.faults and asked.keys() - _OPENAI:
            raise _RefusalError(400, f"unknown fields: {sorted(asked.keys() - _OPENAI)}")
        if "forbids_extras" in self.faults and asked.keys() & _LLAMA_CPP:
            raise _RefusalError(400, "extra inputs are not permitted")
        if "text_prompts" in self.faults and not isinstance(asked["prompt"], str):
            raise _RefusalError(422, "prompt: a string is required")
        is_new = text not in self._refused
        if "busy" in self.faults and self.num_requests % 3 == 0 and is_new:
            self._refused.add(text)
            raise _RefusalError(429, "too many requests", (("Retry-After", "0.001"),))
        is_away = self.num_requests > 50 and (
            "dies" in self.faults or ("restarts" in self.faults and self.num_requests <= 50 + _AWAY)
        )
        if is_away:
            raise _RefusalError(503, "restarting")

    async def _completion(self, asked: dict[str, Any]) -> bytes:
        self._num_now += 1
        await asyncio.sleep(0)  # what else was sent meanwhile joins the batch
        is_batch = self._num_now > 1
        self.most_at_once = max(self.most_at_once, self._num_now)
        try:
            choices = self._choices(asked, is_batch=is_batch)
        finally:
            await asyncio.sleep(0)
            self._num_now -= 1
        if not asked.get("stream"):
            return json.dumps({"object": "text_completion", "choices": choices}).encode()
        events = [json.dumps({"choices": [part]}) for whole in choices for part in _parts(whole)]
        return "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()

    def _choices(self, asked: dict[str, Any], *, is_batch: bool) -> list[dict[str, Any]]:
        given = asked["prompt"]
        prompt = _tokens(given) if isinstance(given, str) else tuple(given)
        shaping = {name: asked[name] for name in _SHAPING if name in asked}
        shaping["top_k"] = max(0, shaping.get("top_k", 0))
        shaping["repetition_penalty"] = asked.get("repetition_penalty", 1.0)
        params = SamplingParams(**shaping)
        was_seen = prompt[:_BLOCK] in self._prefixes and len(prompt) >= _BLOCK
        self._prefixes.add(prompt[:_BLOCK])
        causes = {
            "bias": True,
            "bias_in_batch": is_batch,
            "bias_on_cache_hit": was_seen,
            "bias_in_stream": bool(asked.get("stream")),
            "bias_with_top_k": params.top_k > 0,
        }
        is_biased = any(causes[fault] for fault in self.faults & causes.keys())
        eos = None if asked.get("ignore_eos") else self.eos
        number = 1 if "ignores_n" in self.faults else asked.get("n", 1)
        num = asked.get("max_tokens", 16) + ("one_too_many" in self.faults)
        if self.engine is not None:
            seed = asked.get("seed", self.num_requests)
            strings = np.asarray(self.engine(prompt, number, seed))[:, :num].tolist()
        else:
            shared = "shared_noise" in self.faults
            noises = [self._noise(asked, 0 if shared else index) for index in range(number)]
            strings = [
                self._string(prompt, params, noise.random(num).tolist(), eos, is_biased=is_biased)
                for noise in noises
            ]
        return [
            self._choice(asked, index, prompt, tuple(string), eos)
            for index, string in enumerate(strings)
        ]

    def _noise(self, asked: dict[str, Any], index: int) -> np.random.Generator:
        if "seed" not in asked or "ignores_seed" in self.faults:
            return self._rng
        return np.random.default_rng(asked["seed"] + index)

    def _string(
        self,
        prompt: tuple[int, ...],
        params: SamplingParams,
        uniforms: list[float],
        eos: int | None,
        *,
        is_biased: bool,
    ) -> tuple[int, ...]:
        string: tuple[int, ...] = ()
        for uniform in uniforms:
            string += (self._draw(prompt, string, params, uniform, is_biased=is_biased),)
            if string[-1] == eos:
                break
        return string

    def _choice(
        self,
        asked: dict[str, Any],
        index: int,
        prompt: tuple[int, ...],
        string: tuple[int, ...],
        eos: int | None,
    ) -> dict[str, Any]:
        finish = "stop" if string[-1] == eos else "length"
        text = _text(string)
        stops = [stop for stop in _listed(asked.get("stop")) if stop in text]
        if stops and "runs_past_stop" not in self.faults:
            at = min(text.index(stop) for stop in stops)
            text, finish = text[:at], "stop"
            string = string[: len(_tokens(text)) + 1]  # as vLLM: the stop string's are among them
        choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": finish}
        if "logprobs" in asked:
            choice["logprobs"] = self._logprobs(asked, prompt, string)
        if asked.get("return_token_ids") and not self.faults & _NO_IDS:
            choice["token_ids"] = list(string)
        return choice

    def _draw(
        self,
        prompt: tuple[int, ...],
        string: tuple[int, ...],
        params: SamplingParams,
        uniform: float,
        *,
        is_biased: bool,
    ) -> int:
        is_biased = is_biased and len(string) == 1 and not params.is_greedy
        key = prompt, string, params, is_biased
        if key not in self._cumulative:
            laws = self._laws.setdefault(params, TokenLaws(self._served, params))
            law = laws.after(prompt, string)
            assert law is not None  # nothing ends these texts
            order = np.argsort(-law, kind="stable")
            if is_biased:
                moved = _SHIFT * law[order[0]]
                law[order[0]] -= moved
                law[order[-1]] += moved
            if params.is_greedy and "not_greedy" in self.faults and len(string) % 3 == 2:
                law = np.eye(len(law))[np.argsort(-self.rows((*prompt, *string)))[1]]
            last = int(np.flatnonzero(law)[-1])
            self._cumulative[key] = law.cumsum().tolist(), last
        cumulative, last = self._cumulative[key]
        return min(bisect_right(cumulative, uniform * cumulative[-1]), last)

    def _served(self, path: tuple[int, ...]) -> Any:
        row = np.asarray(self.rows(path))
        return row[::-1] if "other_weights" in self.faults else row

    def _logprobs(
        self, asked: dict[str, Any], prompt: tuple[int, ...], string: tuple[int, ...]
    ) -> dict[str, Any]:
        has_ids = asked.get("return_tokens_as_token_ids") and not self.faults & _NO_IDS
        start = "token_id:" if has_ids else "t"
        heat = 2.0 if "wrong_logprobs" in self.faults else 1.0
        values, tops = [], []
        for place, token in enumerate(string):
            row = np.asarray(self._served((*prompt, *string[:place])), np.float64) / heat
            row = row - row.max()
            row -= np.log(np.exp(row).sum())
            values.append(float(row[token]))
            likeliest = np.argsort(-row)[: asked["logprobs"]].tolist()
            tops.append({f"{start}{t}": float(row[t]) for t in likeliest})
        names = [f"{start}{token}" for token in string]
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops}


def _parts(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a choice in two parts of a stream: what is said, and the end."""
    end = {name: choice[name] for name in ("index", "finish_reason")} | {"text": ""}
    return [choice | {"finish_reason": None}, end]


def _text(tokens: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _tokens(text: str) -> tuple[int, ...]:
    return tuple(int(word.removeprefix("t")) for word in text.split() if word[1:].isdecimal())


def _listed(stop: Any) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


def serve(app: ToyServer, port: int = 0) -> ThreadingHTTPServer:
    """Serve on this machine alone, in threads; `shutdown()` of what is returned ends it.

    Args:
        app: What answers.
        port: 0 takes a free one; it is `server_address[1]`.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet: else each answer waits for an acknowledgement.
        wbufsize = -1
        disable_nagle_algorithm = True

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            work = app.respond(self.command, self.path, body)
            status, headers, answer = asyncio.run_coroutine_threadsafe(work, loop).result()
            self.send_response(status)
            for name, value in [*headers, ("Content-Length", str(len(answer)))]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _answer  # noqa: N815 - names of the standard library

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a checkpoint until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m mtp_verify.testing.server")
    parser.add_argument("--checkpoint", required=True, help="a folder of --make-checkpoint")
    parser.add_argument("--port", type=int, default=8000)
    known = "; ".join(f"{name}: {words}" for name, words in FAULTS.items())
    parser.add_argument(
        "--fault", action="append", default=[], choices=FAULTS, metavar="FAULT", help=known
    )
    parser.add_argument("--model", default="toy", help="the name under which it is served")
    args = parser.parse_args(argv)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.checkpoint)
    app = ToyServer(model_rows(model), args.fault, model=args.model)
    server = serve(app, args.port)
    print(f"serving on http://127.0.0.1:{server.server_address[1]}/v1", flush=True)  # noqa: T201
    threading.Event().wait()


if __name__ == "__main__":
    main()
