"""A served model as a sampler, which `certify` and other tests of samplers take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.certification.server.loads import LOADS, Load
from mtp_verify.certification.settings import filled_up
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.verifier.params import SamplingParams, as_params

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mtp_verify.certification.server.answers import Choice
    from mtp_verify.certification.server.client import Client
    from mtp_verify.certification.server.texts import Texts

__all__ = ["TOP", "Form", "ServerSampler", "body_of", "find_form", "seed_of"]

# Fields by which servers are asked for token ids; each knows its own and leaves out the others.
_IDS = {"return_token_ids": True, "return_tokens": True}
_IDS_BY_LOGPROBS = {"logprobs": 1, "return_tokens_as_token_ids": True}
TOP = 5  # log-probabilities of a place, as many as OpenAI's API serves
_LAST = 4096  # tokens, more than any prompt here has; some versions refuse -1, which means all
_SEED_BITS = 31  # as much as every server takes
_ROW_BITS = 12  # of these, for the continuations of a call
_STEPS = {
    "transformers": ("temperature", "top_k", "top_p", "min_p"),
    "vllm": ("temperature", "min_p", "top_k", "top_p"),
}


@dataclass(frozen=True)
class Form:
    """In which form a server takes prompts and gives tokens.

    Attributes:
        name: Where the ids are: "token ids", "token ids among log-probabilities", or "text".
        fields: What a request has beside the usual.
        has_text_prompts: Whether prompts are sent as text.
        dialect: Which fields it takes: "any"; "common", those that most engines have beside
            OpenAI's; or "openai", no others.
    """

    name: str
    fields: tuple[tuple[str, Any], ...] = ()
    has_text_prompts: bool = False
    dialect: str = "any"

    def without_ids(self) -> Form:
        """Return the same form with text alone."""
        return replace(self, name="text", fields=())


def find_form(client: Client, prompt: Sequence[int], texts: Texts | None) -> Form:
    """Try in which form a server takes prompts and gives tokens.

    Args:
        client: The server.
        prompt: Token ids that it can continue.
        texts: For servers without token ids; None where only ids will do.

    Raises:
        ServerError: It gives no token ids, and there are no `texts`; or it refuses every request.
    """
    forms = [Form("token ids", tuple(_IDS.items()))]
    forms += [Form("token ids among log-probabilities", tuple((_IDS | _IDS_BY_LOGPROBS).items()))]
    forms += [Form("text")]
    forms += [Form("token ids", (("return_token_ids", True),), dialect="common")]
    forms += [Form("text", dialect="common"), Form("text", dialect="openai")]
    as_text = [replace(form, has_text_prompts=True) for form in forms]
    if texts is not None:
        forms = [*forms, *as_text] if texts.has_ids else as_text
    refusal: ServerError | None = None
    for form in forms:
        body = body_of(form, prompt, SamplingParams(), 2, texts)
        try:
            ((choice,),) = client.complete([body])
        except ServerError as error:
            if error.slug != "refused_request":
                raise
            refusal = refusal or error
            continue
        if choice.tokens is not None or (form.name == "text" and texts is not None):
            return form
    if refusal is not None and texts is not None:
        raise refusal
    message = (
        f"{client.url}: found no token ids in its answers, wanted token_ids (vLLM), ids among the "
        "log-probabilities (llama.cpp), or a tokenizer in the checkpoint's folder, by which its "
        "texts become tokens"
    )
    raise ServerError(message, slug="no_token_ids")


def body_of(
    form: Form,
    prompt: Sequence[int],
    params: SamplingParams,
    num: int,
    texts: Texts | None = None,
    *,
    eos: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return a request for `num` tokens; shaping that is off is named too: servers have defaults.

    Args:
        form: What the server takes.
        prompt: Token ids.
        params: How rows are to be shaped.
        num: Tokens, at most.
        texts: Makes the prompt a text, where the server takes no ids.
        eos: The token at which texts end; None: they are not to end.
        more: Further fields.
    """
    prompt = [int(token) for token in prompt]
    sent: Any = texts.text_of(prompt) if form.has_text_prompts and texts is not None else prompt
    body: dict[str, Any] = {"prompt": sent, "max_tokens": num, "n": 1}
    body |= {"temperature": params.temperature, "top_p": params.top_p}
    body |= {name: getattr(params, name) for name in ("presence_penalty", "frequency_penalty")}
    shaping = {"top_k": params.top_k or -1, "min_p": params.min_p}
    shaping |= {"repetition_penalty": params.repetition_penalty}
    if form.dialect == "openai":
        neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1}
        changed = {name: value for name, value in shaping.items() if value != neutral[name]}
        if changed:
            message = f"params: the server refuses top_k, min_p and repetition_penalty: {changed}"
            raise ParamsError(message, slug="bad_options")
    elif form.dialect == "common":
        body |= shaping
    else:
        # llama.cpp's name of the penalty, for which it looks back at 64 tokens unless told to take
        # more; and it has an order of its own.
        body |= {**shaping, "repeat_penalty": params.repetition_penalty, "repeat_last_n": _LAST}
        body |= {"samplers": ["penalties", *_STEPS[params.preset]]}
    if eos is None and form.dialect != "openai":
        body["ignore_eos"] = True
    return body | dict(form.fields) | more


def seed_of(seed: int, row: int) -> int:
    """Return the seed of a continuation; those of one call follow each other, as `n` needs it."""
    return ((seed << _ROW_BITS) + row) % (1 << _SEED_BITS)


class ServerSampler:
    """A served model: `f(prompt_ids, n, seed) -> int64 (n, num)`, n independent continuations.

    Args:
        client: The server.
        rows: The law that it should have: from the tokens so far to logits (V,). None where it is
            compared with another server's.
        params: How rows are shaped.
        num: Tokens of each continuation.
        eos: The token at which texts end; None: servers are told not to end them.
        texts: Makes texts tokens where the server gives no ids.
        load: How the server is loaded meanwhile.
        form: In which form it takes prompts and gives tokens; None: tried out with the first call.

    Attributes:
        name: The model and its server, unless another was given.
        first_law: `served_law`, where first tokens are to be compared with it, else None.
    """

    def __init__(
        self,
        client: Client,
        rows: Callable[[tuple[int, ...]], Any] | None = None,
        *,
        params: SamplingParams | None = None,
        num: int = 5,
        eos: int | None = None,
        texts: Texts | None = None,
        load: Load | None = None,
        form: Form | None = None,
        name: str = "",
    ) -> None:
        self.client, self.rows, self.params = client, rows, as_params(params)
        self.num, self.eos, self.texts, self.form = num, eos, texts, form
        self.load = load or LOADS["batch"]
        self.name = name or f"{client.model} at {client.url}"
        self.first_law: Callable[[Sequence[int]], dict[int, float]] | None = None

    def served_law(self, prompt: Sequence[int]) -> dict[int, float]:
        """Return the probabilities of the likeliest first tokens as served; none if none are.

        They are those of rows that are not shaped.
        """
        self._find_form(prompt)
        fields: dict[str, Any] = {"logprobs": TOP, "return_tokens_as_token_ids": True}
        body = self._body(prompt, SamplingParams(), 1, eos=self.eos, **fields)
        try:
            ((choice,),) = self.client.complete([body])
        except ServerError as error:
            if error.slug != "refused_request":
                raise
            return {}
        if not choice.top or choice.tokens is None:
            return {}
        return {token: math.exp(min(0.0, value)) for token, value in choice.top[0].items()}

    def _find_form(self, prompt: Sequence[int]) -> None:
        if self.form is None:
            self.form = find_form(self.client, prompt, self.texts)

    def __call__(self, prompt: Sequence[int], n: int, seed: int) -> NDArray[np.int64]:
        """Draw n continuations of a prompt.

        Raises:
            ServerError: The server does not answer, or with something else than was asked for.
        """
        self._find_form(prompt)
        size = min(self.load.n, n)
        bodies, is_counted = [], []
        for start in range(0, n, size):
            own = {"n": min(size, n - start)}
            own |= {"stream": True} if self.load.stream else {}
            own |= {"seed": seed_of(seed, start)} if self.load.is_seeded else {}
            bodies.append(self._body(prompt, self.params, self.num, eos=self.eos, **own))
            is_counted.append(True)
            if self.load.is_mixed:
                bodies.append(self._other(prompt, seed, start))
                is_counted.append(False)
        found = self.client.complete(bodies, concurrency=self.load.concurrency)
        kept = [choices for choices, counts in zip(found, is_counted, strict=True) if counts]
        rows = [self._tokens(choice) for choices in kept for choice in choices]
        return filled_up(rows, max(self.num, *map(len, rows)))

    def _body(
        self, prompt: Sequence[int], params: SamplingParams, num: int, **more: Any
    ) -> dict[str, Any]:
        assert self.form is not None  # found with the first call
        return body_of(self.form, prompt, params, num, self.texts, **more)

    def _other(self, prompt: Sequence[int], seed: int, row: int) -> dict[str, Any]:
        """Return a request that runs beside those that are counted: another length and shaping."""
        rng = np.random.default_rng((seed, row))
        text = [*prompt[: 1 + int(rng.integers(len(prompt)))], *prompt[: int(rng.integers(4))]]
        params = SamplingParams(temperature=float(rng.choice([0.0, 0.5, 1.5])))
        return self._body(text, params, 1 + int(rng.integers(2 * self.num)), seed=row)

    def _tokens(self, choice: Choice) -> list[int]:
        """Return the tokens of a continuation, its end among them."""
        tokens = choice.tokens
        if self.texts is not None and self.form is not None and self.form.name == "text":
            tokens = self.texts.tokens_of(choice.text)
            if not self.texts.has_ids:
                return list(tokens)
        if tokens is None:
            message = f"{self.client.url}: found an answer without token ids, wanted them again"
            raise ServerError(message, slug="no_token_ids")
        found = list(tokens)
        has_stopped = choice.finish == "stop"
        if self.eos is not None and has_stopped and found[-1:] != [self.eos]:
            found.append(self.eos)
        if len(found) > self.num or (len(found) < self.num and not has_stopped):
            wanted = f"{self.num}, or fewer and finish_reason 'stop'"
            message = f"answer: found {len(found)} tokens ({choice.finish}), wanted {wanted}"
            raise ServerError(message, slug="bad_answer")
        if len(found) < self.num and self.eos is None:
            message = (
                f"answer: found an end after {len(found)} of {self.num} tokens; wanted texts that "
                "do not end: say at which token they do (eos)"
            )
            raise ServerError(message, slug="ended_early")
        return found
