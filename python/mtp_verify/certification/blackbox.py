"""Certify a sampler from outside: many seeded runs against the exact law of a small target."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify.certification.paths import PathTally
from mtp_verify.certification.runs import Run, Sampler, TimedRows, TimeOverError, check_call
from mtp_verify.certification.tally import (
    Check,
    Tally,
    checks,
    mean_interval,
    power_of,
    samples_needed,
)
from mtp_verify.certification.ties import Ties
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError
from mtp_verify.testing import stats
from mtp_verify.testing.laws import JointLaw, TokenLaws, exact_law
from mtp_verify.verifier.intake import as_count
from mtp_verify.verifier.params import SamplingParams, as_params

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Certificate", "Sampler", "certify", "make_prompts"]

_PROMPTS = ((1, 2, 3, 1, 2), (0, 3, 0, 3), (2, 2, 1))
_PROMPT_TOKENS = 4  # different ones, so that every target has them
_NUM_LOOKS = 4
# Controls check the machinery, not the engine: their own false alarms must not matter.
_CONTROL_ALPHA = 1e-6
_CONTROL_FACTOR = 2.0
# Strings that a control draws one by one, over all prompts; the counts of all others at once.
_CONTROL_STRINGS = 1 << 16
# For the first prompt's law, under any limit: without it there is nothing to report.
_LEAST_SECONDS = 1.0
# Tokens of each string that are compared one by one, where the engine returns more.
_MOST_TOKENS = 32


@dataclass(frozen=True)
class Certificate:
    """What a certification found.

    Attributes:
        verdict: "pass" (nothing of `min_tv` or more found, with the stated power), "biased",
            "not enough data", or "lossy": the engine declares that it changes the distribution.
        min_tv: The total variation that was looked for.
        alpha: Probability that a correct engine is called biased.
        power: Probability that a bias of `min_tv` is found with all the samples needed.
        power_reached: The same with the samples that were drawn.
        num_samples: Strings drawn over all prompts; `num_needed` for a pass.
        prompts: Those whose law was known in time; no sample is drawn before all are.
        num_prompts: How many there were to be.
        checks: Every test, the combined joint law first.
        horizon: Tokens of each string that were compared one by one.
        tv: Total variation from the target's law, the mean over the prompts; 95 %.
        intervals: The same of each prompt alone.
        controls: Whether right sampling passed and wrong sampling was found, with the same tests.
        seeds: First and last seed used: each call took the next one, four in a row for a prompt.
        repeats: Whether a seed gave the same strings twice.
        ties: At temperature 0, strings that left the greedy one where logits tie; they count as it.
        lossy: The acceptance that a lossy engine declares, else empty.
    """

    name: str
    verdict: str
    min_tv: float
    alpha: float
    power: float
    power_reached: float
    num_samples: int
    num_needed: int
    prompts: tuple[tuple[int, ...], ...]
    num_prompts: int
    checks: tuple[Check, ...]
    horizon: int
    tv: stats.Interval
    intervals: tuple[stats.Interval, ...]
    controls: dict[str, bool]
    seeds: tuple[int, int]
    repeats: bool
    ties: int
    seconds: float
    lossy: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    tallies: tuple[Tally, ...] = field(default=(), repr=False)
    paths: PathTally | None = field(default=None, repr=False)

    @property
    def num_missing(self) -> int:
        """How many more samples a pass needs, for the prompts whose law is known."""
        return max(0, self.num_needed - self.num_samples)

    @property
    def is_sound(self) -> bool:
        """Whether both controls came out as they must."""
        return all(self.controls.values())


def certify(
    subject: Sampler,
    rows: Callable[[tuple[int, ...]], Any] | None = None,
    *,
    params: SamplingParams | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    length: int = 3,
    horizon: int | None = None,
    eos: int | None = None,
    allowed: Callable[[tuple[int, ...]], Any] | None = None,
    min_tv: float = 0.05,
    alpha: float = 1e-4,
    power: float = 0.99,
    tie: float = 1e-4,
    seed: int = 0,
    max_samples: int | None = None,
    max_seconds: float | None = None,
    resume: str | Path | None = None,
    name: str | None = None,
    details: dict[str, Any] | None = None,
) -> Certificate:
    """Test whether a sampler follows the distribution of its target.

    The joint law of the first `length` tokens is compared as a whole and token by token, for each
    prompt and over all. Every token up to `horizon` is compared with its law given those before it,
    and the noise of neighbouring tokens, samples and seeds for independence; seeds and samples of
    even and of odd number by themselves. The samples are tested four times, so that a clear bias
    ends early; Holm's correction and the split of `alpha` over the looks keep the probability of a
    false alarm below `alpha`.

    Args:
        subject: `f(prompt_ids, n, seed) -> int (n, >= length)`: n independent continuations. It
            should generate a few tokens more than `length` (engines shorten drafts near the end).
            Strings that have ended are filled up with -1. One with an attribute `lossy` that is not
            None declares itself lossy: its bias is measured with all samples, and it never passes.
        rows: The target: from the tokens so far to logits (V,). A transformers model becomes such a
            function by `mv.testing.model_rows`. This and `params`, `eos` and `allowed` are taken
            from the subject's attributes of these names where they are None.
        params: How the engine shapes rows; None everywhere is plain sampling.
        prompts: Several, so that rejections and full acceptances occur.
        length: Tokens whose joint law is compared; should span at least two steps.
        horizon: Tokens that are compared one by one, hundreds if need be: each costs a row of the
            target for each string. None: all that the engine returns, up to 32.
        eos: The token at which the engine stops; None everywhere: it ignores all such tokens.
        allowed: The grammar that the engine obeys: from the tokens behind the prompt to
            bool (V,), which of them may come next; where there is none, the string ends.
        min_tv: The bias to look for: total variation, root mean square over the prompts.
        alpha: Probability that a right engine is called biased.
        power: Probability that a bias of `min_tv` is found.
        tie: At temperature 0, tokens whose logit is this close to the largest are as good: rounding
            decides between them. Take more for engines in bfloat16.
        seed: The first seed; later calls take seed + 1, seed + 2, ...
        max_samples: Most samples over all prompts; None means as many as needed.
        max_seconds: Most time; None means no limit. It is checked before each call of the engine
            and of `rows`; two calls that try the engine out are made in any case. The controls come
            before the samples, so that they count too.
        resume: A file that keeps the counts: an interrupted run goes on where it was.
        name: For the report.
        details: What else the report should say (versions, settings).

    Returns:
        The certificate; `mv.certification.report` renders it.

    Raises:
        ParamsError: No target given, a law too large to enumerate, no time for the law of a single
            prompt, or a sampler that returns something else than such strings.
    """
    started = time.monotonic()
    deadline = math.inf if max_seconds is None else started + max_seconds

    def given(what: str, value: Any) -> Any:
        return getattr(subject, what, None) if value is None else value

    for what, value in (("alpha", alpha), ("power", power), ("min_tv", min_tv)):
        if not 0 < value < 1:
            message = f"{what}: found {value}, wanted 0 < {what} < 1"
            raise ParamsError(message, slug="param_out_of_range")
    rows = given("rows", rows)
    if rows is None:
        message = "rows: the target is not known; pass rows=, or a subject with an attribute rows"
        raise ParamsError(message, slug="no_target")
    params = as_params(given("params", params))
    eos, allowed = given("eos", eos), given("allowed", allowed)
    wanted = tuple(tuple(int(t) for t in prompt) for prompt in (prompts or _PROMPTS))
    timed = TimedRows(rows, max(deadline, started + _LEAST_SECONDS))
    tokens = TokenLaws(timed, params, eos=eos, allowed=allowed)
    with Progress() as progress:
        progress.show("enumerating the exact law")
        laws = _laws_in_time(tokens, timed, wanted, length, deadline)
        chosen = wanted[: len(laws)]
        # Before sampling: it says early whether the engine can be called at all.
        progress.show("trying the engine out")
        repeats, width, seconds = _try_out(subject, wanted[0], seed, length)
    horizon = min(width, _MOST_TOKENS) if horizon is None else horizon
    paths = PathTally(tokens, laws[0].vocab - tokens.may_end, horizon, tie)
    levels = stats.spend(alpha, _NUM_LOOKS)
    needed = samples_needed(laws, paths, min_tv=min_tv, alpha=levels[-1], power=power)
    with progress:
        progress.show("running the controls")
        began = time.monotonic()
        controls = _controls(laws, needed, min_tv, seed)
        # Each of the two runs all tests once, as the last look at the samples will.
        deadline -= (time.monotonic() - began) / 2
    declared = given("lossy", None)
    ties = Ties(tokens, laws[0].length, tie, dict(zip(chosen, laws, strict=True)))
    tallies = [Tally(law) for law in laws]
    kept = ties if params.is_greedy else None
    run = Run(subject, timed, chosen, tallies, paths, needed, seed, kept, progress)
    run.call_seconds = seconds  # at least: the try-out draws fewer strings
    name = name or str(getattr(subject, "name", getattr(subject, "__name__", type(subject))))
    if resume is not None and len(chosen) == len(wanted):
        identity = {"name": name, "prompts": chosen, "length": length, "seed": seed}
        identity |= {"horizon": horizon, "eos": eos, "grammar": getattr(allowed, "name", "")}
        # The levels too: looks that were spent at another alpha would not add up.
        identity |= {"params": str(params), "vocab": laws[0].vocab}
        run.load(Path(resume), identity | {"min_tv": min_tv, "alpha": alpha, "power": power})
    most = math.inf if max_samples is None else max_samples
    is_biased = False
    with progress:
        for look, level in enumerate(levels):
            goal = -(-needed // 2 ** (_NUM_LOOKS - 1 - look))
            run.sample(min(goal, most), deadline)
            found = checks(run.tallies, paths)
            is_last = run.num_samples < goal or look == _NUM_LOOKS - 1
            # A sample that ends early takes the last look's level: looks already spent stay spent.
            is_biased = min(c.adjusted for c in found) < (levels[-1] if is_last else level)
            if is_last or (is_biased and declared is None):
                break
    run.save()
    is_whole = run.num_samples >= needed and len(chosen) == len(wanted)
    verdict = "biased" if is_biased else "pass" if is_whole else "not enough data"
    reached = power_of(laws, paths, num_samples=run.num_samples, min_tv=min_tv, alpha=levels[-1])
    return Certificate(
        name=name,
        verdict=verdict if declared is None else "lossy",
        min_tv=min_tv,
        alpha=alpha,
        power=power,
        power_reached=reached,
        num_samples=run.num_samples,
        num_needed=needed,
        prompts=chosen,
        num_prompts=len(wanted),
        checks=tuple(found),
        horizon=horizon,
        tv=mean_interval(run.tallies),
        intervals=tuple(mean_interval([tally]) for tally in run.tallies),
        controls=controls,
        seeds=(seed, run.next_seed - 1),
        repeats=repeats,
        ties=ties.num,
        seconds=time.monotonic() - started,
        lossy="" if declared is None else str(declared),
        details=dict(details or {}),
        tallies=tuple(run.tallies),
        paths=paths,
    )


def make_prompts(count: int) -> tuple[tuple[int, ...], ...]:
    """Return prompts of two to seven tokens: rows that are peaked all but repeat one string each.

    Raises:
        ParamsError: `count` is below 1.
    """
    count = as_count("prompts", count)
    rng = np.random.default_rng(0)
    made = dict.fromkeys(_PROMPTS)
    while len(made) < count:
        made[tuple(rng.integers(0, _PROMPT_TOKENS, rng.integers(2, 8)).tolist())] = None
    return tuple(made)[:count]


def _laws_in_time(
    tokens: TokenLaws, rows: TimedRows, prompts: Sequence[tuple[int, ...]], length: int, end: float
) -> list[JointLaw]:
    """Compute the laws of the prompts in order until `end`; the first has until `rows.end`."""
    laws: list[JointLaw] = []
    try:
        for prompt in prompts:
            laws.append(exact_law(tokens, prompt, length))
            rows.end = end
    except TimeOverError as error:
        if not laws:
            wanted = "more seconds, a smaller length or faster rows"
            message = f"max_seconds: found too little for the law of one prompt; wanted {wanted}"
            raise ParamsError(message, slug="too_little_time") from error
    rows.end = math.inf
    return laws


def _try_out(
    subject: Sampler, prompt: tuple[int, ...], seed: int, length: int
) -> tuple[bool, int, float]:
    """Return whether one seed gives the same strings twice, of how many tokens, in what time."""
    calls = []
    for _ in range(2):
        start = time.monotonic()
        calls.append(np.asarray(subject(prompt, 4, seed)))
        seconds = time.monotonic() - start
    for call in calls:
        check_call(call, 4, length)
    width = min(call.shape[1] for call in calls)
    return bool(np.array_equal(calls[0][:, :width], calls[1][:, :width])), width, seconds


def _controls(
    laws: Sequence[JointLaw], num_samples: int, min_tv: float, seed: int
) -> dict[str, bool]:
    """Run the same tests on right sampling, which must pass, and on wrong, which must be found."""
    rng = np.random.default_rng(seed)
    half = -(-num_samples // (2 * len(laws))) + 1
    # A few are strings, so that counting them is tried too; all of them would take minutes.
    num_strings = min(half, -(-_CONTROL_STRINGS // (2 * len(laws))))

    def smallest(wanted: Sequence[np.ndarray[Any, Any]]) -> float:
        tallies = []
        for law, probs in zip(laws, wanted, strict=True):
            tally = Tally(law)
            halves = rng.choice(len(probs), (2, num_strings), p=probs)
            powers = law.vocab ** np.arange(law.length - 1, -1, -1)
            tally.add(*(strings[:, None] // powers % law.vocab for strings in halves))
            tally.add_counts(half - num_strings, probs, rng)
            tallies.append(tally)
        return min(check.adjusted for check in checks(tallies))

    right = smallest([law.probs for law in laws]) >= _CONTROL_ALPHA
    wrong = smallest([_tilted(law.probs, _CONTROL_FACTOR * min_tv) for law in laws])
    return {"right sampling passes": right, "wrong sampling is found": wrong < _CONTROL_ALPHA}


def _tilted(probs: np.ndarray[Any, Any], tv: float) -> np.ndarray[Any, Any]:
    """Return a law at a distance of `tv`; moving mass in proportion is the hardest to find."""
    order = np.argsort(-probs, kind="stable")
    up = np.isin(np.arange(len(probs)), order[::2])
    gain, loss = probs[up].sum(), probs[~up].sum()
    if tv <= loss:
        return np.asarray(np.where(up, probs * (1 + tv / gain), probs * (1 - tv / loss)))
    mixed = probs * (1 - min(tv, 1.0))
    mixed[order[-1]] += min(tv, 1.0)
    return np.asarray(mixed)
