"""The exact law of a whole decoding loop: every branch of its chance taken once.

A loop gets its chance at three places: a drafter draws tokens (`mtp_verify.growers`, or one row at
a time), and a rule verifies. `loop_law` puts an enumerator behind all three and runs the loop once
for each combination of branches; the loop itself is the one that ships. Rules and growers are
the shipped ones too: the core lists their branches by running its own decision code.

What is found is exact up to the rounding of float64: some 1e-15 a branch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mtp_verify import _core
from mtp_verify.errors import MtpVerifyError, ParamsError
from mtp_verify.verifier.kernels import Host, to_host, using

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from mtp_verify._core import Draft, Verdict
    from mtp_verify.verifier.kernels import Edits

__all__ = ["loop_law"]

Outcome = TypeVar("Outcome", bound="Hashable")


def loop_law(program: Callable[[], Outcome], *, max_runs: int = 100_000) -> dict[Outcome, float]:
    """Compute the exact law of what a decoding loop returns.

    Args:
        program: Runs the loop from its beginning, the same way each time but for the tokens that
            are drawn by `mtp_verify.growers` and verified by `verify` and `verify_batch`, on this
            thread. Returns what is of interest, such as the emitted tokens.
        max_runs: Runs of the program that are too many.

    Returns:
        Each outcome with its probability.

    Raises:
        ParamsError: More than `max_runs` branches; or a number of the noise that is used for two
            questions: one (seed, position) of `verify`, or of a draw, in two steps.
        DraftError: A draft with the law "coupled" under the rule "coupled", or a lossy acceptance:
            neither has branches that can be listed.

    Example:
        >>> import mtp_verify as mv
        >>> fair = np.zeros((2, 2), np.float32)
        >>> def step():
        ...     verdict = mv.verify(mv.Draft.chain([1]), fair, seed=0, position=0)
        ...     return tuple(verdict.tokens.tolist())
        >>> loop_law(step)
        {(0,): 0.5, (1, 0): 0.25, (1, 1): 0.25}
    """
    law: dict[Outcome, float] = {}
    script: list[list[int]] = []
    for _ in range(max_runs):
        run = _Run(script)
        with using(_Enumerator(run)):
            outcome = program()
        law[outcome] = law.get(outcome, 0.0) + run.weight
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return law
        script[-1][0] += 1
    message = f"the loop has more than {max_runs} branches; take fewer or smaller steps"
    raise ParamsError(message, slug="law_too_large")


class _Run:
    """One run of the program: which branch it takes at each open question."""

    def __init__(self, script: list[list[int]]) -> None:
        self._script = script  # Branch and number of branches of each open question, in order.
        self._asked = 0
        # What was asked with each number, and what it answered.
        self._answers: dict[Hashable, tuple[Hashable, int]] = {}
        self.weight = 1.0  # Probability of the branches taken so far.

    def choose(self, address: Hashable, ways: Hashable, weights: Sequence[float]) -> int:
        """Take one of the branches that `ways` stand for, at the address of the deciding numbers.

        The same question there, as a step that failed may ask it again, has the same answer.
        """
        live = [index for index, weight in enumerate(weights) if weight > 0]
        if len(live) == 1:  # The number decides nothing.
            return live[0]
        question = (ways, tuple(weights))
        if address in self._answers:
            before, answer = self._answers[address]
            if before != question:
                message = f"the noise of {address} answers two questions: {before}, {question}"
                raise ParamsError(message, slug="noise_used_twice")
            return answer
        if self._asked == len(self._script):
            self._script.append([0, len(live)])
        taken = live[self._script[self._asked][0]]
        self._asked += 1
        self.weight *= weights[taken]
        self._answers[address] = question, taken
        return taken

    def verdict(
        self, address: tuple[int, int], found: list[tuple[Verdict | MtpVerifyError, float]]
    ) -> Verdict | MtpVerifyError:
        """Choose one of the verdicts that a rule can give, or the error that it ends with."""
        ways = tuple(
            repr(way)
            if isinstance(way, MtpVerifyError)
            else (*way.path.tolist(), *way.tokens.tolist())
            for way, _ in found
        )
        return found[self.choose(("verify", *address), ways, [weight for _, weight in found])][0]


class _Enumerator(Host):
    """The kernel in which a run chooses, and not the noise."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def draw(self, logits: Any, params: Any, seed: int, position: int, node: int) -> int:
        weights = _core.shaped_row(to_host(logits), params).tolist()
        return self._run.choose(("draw", seed, position, node), "a token", weights)

    def extend(self, grower: _core.Grower, logits: Any) -> Any | None:
        rows = to_host(logits)
        node = grower.frontier()[0] if grower.law not in ("deterministic", "coupled") else -1
        address = ("draw", *grower.address, "below", node)
        weights = grower.branches(rows)
        tokens = grower.tokens.tobytes()
        branch = self._run.choose(address, tokens, weights) if len(weights) > 1 else 0
        return rows if grower.extend(rows, branch) else None

    def verify(
        self, draft: Draft, logits: Any, params: _core.CoreParams, rule: str, *,
        seed: int, position: int, lossy: Any, edits: Edits | None, top_logprobs: int,
    ) -> Verdict:  # fmt: skip
        del top_logprobs
        _refuse(lossy)
        found = _core.verdicts(draft, to_host(logits), params, rule, edits=edits)
        verdict = self._run.verdict((seed, position), found)
        if isinstance(verdict, MtpVerifyError):
            raise verdict
        return verdict

    def verify_batch(
        self, drafts: Any, logits: Any, params: Any, rule: str | Sequence[str], *,
        seeds: Sequence[int], positions: Sequence[int], lossy: Any, edits: Sequence[Edits | None],
        top_logprobs: Any,
    ) -> Any:  # fmt: skip
        del top_logprobs
        count = len(drafts)
        rules = [rule] * count if isinstance(rule, str) else rule
        listed = [params] * count if isinstance(params, _core.CoreParams) else params
        rows = _split(logits, [drafts[b].num_nodes for b in range(count)])
        _refuse(lossy)
        verdicts = []
        for b in range(count):
            own = edits[b] if edits else None
            try:
                found = _core.verdicts(drafts[b], to_host(rows[b]), listed[b], rules[b], edits=own)
            except MtpVerifyError as error:
                raise error.in_sequence(b) from None
            # What the run itself raises is said of the loop, and not of one sequence.
            verdict = self._run.verdict((seeds[b], positions[b]), found)
            if isinstance(verdict, MtpVerifyError):
                raise verdict.in_sequence(b)
            verdicts.append(verdict)
        return verdicts


def _refuse(lossy: Any) -> None:
    if lossy is not None and any(lossy if isinstance(lossy, list) else [lossy]):
        message = "a lossy acceptance was asked for, and its branches cannot be listed"
        raise ParamsError(message, slug="unsupported_setting")


def _split(logits: Any, counts: list[int]) -> list[Any]:
    """Split rows, in any form that `verify_batch` takes, into those of each sequence."""
    if isinstance(logits, list):
        return logits
    if logits.ndim == 3:
        return [rows[:count] for rows, count in zip(logits, counts, strict=True)]
    ends = np.cumsum(counts).tolist()
    return [logits[end - count : end] for end, count in zip(ends, counts, strict=True)]
