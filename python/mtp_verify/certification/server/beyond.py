"""What a server promises beside the law: seeds, greedy texts, ends, stops, log-probabilities.

Each check asks a handful of requests, and is compared with the reference's own logits. Where these
tie, rounding decides between tokens: such places are named and are no failure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.certification.server.sampler import TOP, body_of, find_form, seed_of
from mtp_verify.errors import ServerError
from mtp_verify.testing import stats
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mtp_verify.certification.server.answers import Choice
    from mtp_verify.certification.server.sampler import ServerSampler

__all__ = ["Finding", "look_beyond", "refuse_other_checkpoint"]

_NUM_TOKENS = 16
_NUM_SEEDS = 4
# In nats. float32 differs by 1e-5, bfloat16 by a few hundredths.
_TOLERANCE = 0.1
_GREEDY = SamplingParams(temperature=0)
_PLAIN = SamplingParams()
_IMPOSSIBLE = -1000.0
_FIRST_SAMPLES = 128
_FIRST_ALPHA = 1e-9


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What is checked.
        ok: Whether it holds; None where the server does not serve what it needs.
        words: What was found.
    """

    name: str
    ok: bool | None
    words: str


def look_beyond(
    sampler: ServerSampler,
    prompts: Sequence[Sequence[int]],
    *,
    tie: float = 1e-4,
    other: ServerSampler | None = None,
) -> list[Finding]:
    """Check what a server promises beside the law.

    Args:
        sampler: The server, with `rows` unless there is an `other`.
        prompts: Token ids; each check asks for texts after each of them.
        tie: Logits this close to the largest are as good, at temperature 0.
        other: A server whose greedy texts must be the same.

    Raises:
        ServerError: The server does not answer.
    """
    asked = _Asked(sampler, [tuple(prompt) for prompt in prompts], tie)
    if other is None:
        return [check(asked) for check in (_seeds, _greedy, _lengths, _stops, _logprobs)]
    found = [_greedy_of_two(asked, _Asked(other, asked.prompts, tie))]
    return [_seeds(asked), *found, _lengths(asked), _stops(asked)]


class _Asked:
    """A server with a reference, and short ways to ask it."""

    def __init__(self, sampler: ServerSampler, prompts: list[tuple[int, ...]], tie: float) -> None:
        self.sampler, self.prompts, self.tie = sampler, prompts, tie
        self.form = sampler.form or find_form(sampler.client, prompts[0], sampler.texts)

    def choices(
        self, params: SamplingParams, num: int, *, alone: bool = False, **more: Any
    ) -> list[Choice]:
        """Return a text after each prompt; `more` are further fields of each request."""
        sampler = self.sampler
        bodies = [
            body_of(self.form, prompt, params, num, sampler.texts, eos=sampler.eos, **more)
            for prompt in self.prompts
        ]
        found = sampler.client.complete(bodies, concurrency=1 if alone else None)
        return [choice for (choice,) in found]

    def tokens(self, choice: Choice) -> tuple[int, ...]:
        """Return the tokens of a choice."""
        if self.form.name == "text" and self.sampler.texts is not None:
            return self.sampler.texts.tokens_of(choice.text)
        return choice.tokens or ()

    def logits(self, path: tuple[int, ...]) -> Any:
        """Return the reference's logits (V,) behind a path."""
        assert self.sampler.rows is not None  # the caller passes a reference
        return np.asarray(self.sampler.rows(path), np.float64)


def _seeds(asked: _Asked) -> Finding:
    name = "a seed gives the same text again"
    differing = 0
    for number in range(_NUM_SEEDS):
        seed = seed_of(number, 0)
        first, second = (
            [asked.tokens(choice) for choice in asked.choices(_PLAIN, 8, alone=True, seed=seed)]
            for _ in range(2)
        )
        differing += sum(one != other for one, other in zip(first, second, strict=True))
    total = _NUM_SEEDS * len(asked.prompts)
    if differing:
        return Finding(name, ok=False, words=f"{differing} of {total} differ the second time")
    return Finding(name, ok=True, words=f"{total} texts, each twice")


def _greedy(asked: _Asked) -> Finding:
    name = "greedy texts are the reference's"
    wrong, ties = [], []
    for is_alone in (True, False):
        found = asked.choices(_GREEDY, _NUM_TOKENS, alone=is_alone)
        for prompt, choice in zip(asked.prompts, found, strict=True):
            for place, (path, token) in enumerate(_steps(prompt, asked.tokens(choice))):
                row = asked.logits(path)
                where = f"token {place + 1} after {_shown(prompt)}: {token}, not {row.argmax()}"
                gap = float(row.max() - row[token]) if 0 <= token < len(row) else np.inf
                if gap > asked.tie:
                    wrong.append(f"{where} (logits differ by {gap:.2g})")
                    break
                if token != row.argmax():
                    ties.append(f"{where} (they tie within {gap:.1g})")
    near = f"; near ties: {'; '.join(dict.fromkeys(ties))}" if ties else ""
    if wrong:
        return Finding(name, ok=False, words="; ".join(dict.fromkeys(wrong)) + near)
    words = f"{_NUM_TOKENS} tokens after {len(asked.prompts)} prompts{near}"
    return Finding(name, ok=True, words=words)


def _greedy_of_two(asked: _Asked, other: _Asked) -> Finding:
    """Compare greedy texts up to the first difference, which may be a tie by the served laws."""
    name = "greedy texts are the other server's"
    wrong: list[str] = []
    ties: list[str] = []
    fields: dict[str, Any] = {}
    if other.form.name != "text":
        fields = {"logprobs": TOP, "return_tokens_as_token_ids": True}
    wanted = other.choices(_GREEDY, _NUM_TOKENS, **fields)
    found = asked.choices(_GREEDY, _NUM_TOKENS)
    for number, (one, two) in enumerate(zip(found, wanted, strict=True)):
        pairs = list(zip(asked.tokens(one), other.tokens(two), strict=False))
        place = next((i for i, pair in enumerate(pairs) if pair[0] != pair[1]), None)
        if place is None:
            continue
        top = two.top[place] if place < len(two.top) else {}
        gap = abs(top.get(pairs[place][0], -np.inf) - top.get(pairs[place][1], np.inf))
        where = f"token {place + 1} after prompt {number + 1}: {pairs[place][0]}, not "
        where += f"{pairs[place][1]} (log-probabilities differ by {gap:.2g})"
        (ties if gap <= other.tie else wrong).append(where)
    near = f"; near ties: {'; '.join(ties)}" if ties else ""
    words = "; ".join(wrong) or f"{_NUM_TOKENS} tokens after {len(asked.prompts)} prompts"
    return Finding(name, ok=not wrong, words=words + near)


def _lengths(asked: _Asked) -> Finding:
    name = "max_tokens ends texts, with the reason 'length'"
    if asked.sampler.eos is not None:
        return Finding(name, None, "texts may end by themselves")
    texts = asked.sampler.texts
    if asked.form.name == "text" and texts is not None and not texts.has_ids:
        return Finding(name, None, "the server gives characters, not tokens")
    wrong = []
    for num in (1, 2, 3, 5, 8):
        for params in (_PLAIN, _GREEDY):
            for choice in asked.choices(params, num):
                found = len(asked.tokens(choice))
                if (found, choice.finish) != (num, "length"):
                    wrong.append(f"max_tokens {num}: {found} tokens, {choice.finish!r}")
    return Finding(name, not wrong, "; ".join(dict.fromkeys(wrong)) or "1, 2, 3, 5 and 8 tokens")


def _stops(asked: _Asked) -> Finding:
    name = "a stop string ends the text in front of it, with the reason 'stop'"
    wrong, tried = [], 0
    texts = [choice.text for choice in asked.choices(_GREEDY, _NUM_TOKENS)]
    for place, text in enumerate(texts):
        # A word in the middle: behind accepted drafts, if there are any.
        words = text.split()
        fresh = [word for word in dict.fromkeys(words) if word not in words[: len(words) // 4]]
        stop = fresh[0] if fresh else words[-1] if words else ""
        if not stop:
            continue
        tried += 1
        choice = asked.choices(_GREEDY, _NUM_TOKENS, stop=[stop])[place]
        wanted = text[: text.index(stop)]
        if (choice.text.strip(), choice.finish) != (wanted.strip(), "stop"):
            wrong.append(f"stop {stop!r}: {choice.text!r} ({choice.finish!r}), wanted {wanted!r}")
    if not tried:
        return Finding(name, None, "the server gives no text")
    return Finding(name, not wrong, "; ".join(wrong) or f"{tried} texts")


def _logprobs(asked: _Asked) -> Finding:
    name = "log-probabilities are those of the law"
    fields: dict[str, Any] = {"logprobs": TOP, "return_tokens_as_token_ids": True}
    try:
        found = [
            choice
            for number in range(_NUM_SEEDS)
            for choice in asked.choices(_PLAIN, 8, seed=seed_of(number, 0), **fields)
        ]
    except ServerError as error:
        if error.slug != "refused_request":
            raise
        return Finding(name, None, "the server refuses to give them")
    worst, where, count = 0.0, "", 0
    for prompt, choice in zip(asked.prompts * _NUM_SEEDS, found, strict=True):
        tokens = asked.tokens(choice)
        for place, (path, token) in enumerate(_steps(prompt, tokens)):
            law = _log_law(asked.logits(path))
            served = dict(choice.top[place]) if place < len(choice.top) else {}
            if place < len(choice.logprobs):
                served[token] = choice.logprobs[place]
            for one, value in served.items():
                count += 1
                gap = _gap(law, one, value)
                if not gap <= worst:
                    worst = gap
                    where = (
                        f"token {place + 1} after {_shown(prompt)}: {value:.3f} for {one}, "
                        f"wanted {law[one] if 0 <= one < len(law) else -np.inf:.3f}"
                    )
    if not count:
        return Finding(name, None, "the server gives none")
    words = f"{count} values, none off by more than {worst:.1g}"
    is_close = bool(worst <= _TOLERANCE)
    return Finding(name, is_close, words if is_close else where)


def refuse_other_checkpoint(sampler: ServerSampler, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse a server whose model is another one than the reference.

    That is so where the log-probabilities of first tokens, which no speculation touches, are not
    the reference's, and neither are the first tokens themselves: a server that is biased alone has
    the right log-probabilities, and one that reports wrong ones alone has the right tokens.

    Raises:
        ServerError: It is.
    """
    asked = _Asked(sampler, [tuple(prompt) for prompt in prompts], 0.0)
    try:
        found = asked.choices(_PLAIN, 1, logprobs=TOP, return_tokens_as_token_ids=True)
    except ServerError as error:
        if error.slug != "refused_request":
            raise
        return
    gaps, fits = [], []
    for number, (prompt, choice) in enumerate(zip(asked.prompts, found, strict=True)):
        law = _log_law(asked.logits(prompt))
        gaps += [_gap(law, token, value) for token, value in _served(asked, choice)]
        fits.append(_first_tokens(asked, prompt, np.exp(law), number))
    if not gaps or max(gaps) <= _TOLERANCE or sum(fits[1:], fits[0]).p_value > _FIRST_ALPHA:
        return
    message = (
        f"{sampler.client.url}: the server's model is not this checkpoint: log-probabilities of "
        f"first tokens differ by up to {max(gaps):.2g}, and first tokens have another law"
    )
    raise ServerError(message, slug="wrong_checkpoint")


def _served(asked: _Asked, choice: Choice) -> list[tuple[int, float]]:
    found = dict(choice.top[0]) if choice.top else {}
    tokens = asked.tokens(choice)
    if tokens and choice.logprobs:
        found[tokens[0]] = choice.logprobs[0]
    return list(found.items())


def _first_tokens(asked: _Asked, prompt: tuple[int, ...], law: Any, number: int) -> stats.Fit:
    sampler = asked.sampler
    bodies = [
        body_of(asked.form, prompt, _PLAIN, 1, sampler.texts, eos=sampler.eos,
                seed=seed_of(number, row))
        for row in range(_FIRST_SAMPLES)
    ]  # fmt: skip
    firsts = [asked.tokens(choice)[:1] for (choice,) in sampler.client.complete(bodies)]
    # One place more, for tokens that the reference does not have.
    counts = np.zeros(len(law) + 1, np.int64)
    for tokens in firsts:
        counts[tokens[0] if tokens and tokens[0] < len(law) else -1] += 1
    return stats.fit(counts, np.append(law, 0.0))


def _steps(
    prompt: tuple[int, ...], tokens: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield each token with the path that it follows."""
    for place, token in enumerate(tokens):
        yield (*prompt, *tokens[:place]), token


def _log_law(row: Any) -> Any:
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def _gap(law: Any, token: int, value: float) -> float:
    """Return how far a served log-probability is from the law's."""
    wanted = float(law[token]) if 0 <= token < len(law) else -np.inf
    # Servers have numbers of their own for what cannot be: -9999 or the lowest float32.
    if max(wanted, value) < _IMPOSSIBLE:
        return 0.0
    return abs(value - wanted)


def _shown(prompt: tuple[int, ...]) -> str:
    return str(prompt) if len(prompt) <= 8 else f"a prompt of {len(prompt)} tokens"
