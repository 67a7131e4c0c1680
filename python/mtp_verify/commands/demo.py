"""`mtp-verify demo` and `generate`: a real model, speculatively, measured against plain decoding.

Speed is measured in bfloat16, as people run the model. Identity is checked in float32: CPU kernels
round differently for one token and for nine, and in bfloat16 that is enough to tip a near-tie.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.bench.entrants import CHAINS
from mtp_verify.commands.subjects import Subject, subject_for
from mtp_verify.console.report import Report, Table
from mtp_verify.console.terminal import Progress, TokenPrinter, has_colour
from mtp_verify.verifier.api import build_info
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from mtp_verify.commands.compare import Identity, Race
    from mtp_verify.commands.threads import ThreadReport
    from mtp_verify.decoder.planning import Planner
    from mtp_verify.drafters import Drafter
    from mtp_verify.verifier.words import Rule

__all__ = ["PROMPTS", "Prompt", "generate", "run"]

_NUM_TOKENS, _NUM_TOKENS_TINY = 128, 24
_GREEDY = SamplingParams(temperature=0.0)
_SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)
_WAYS = ("transformers", "plain", "speculative")
# Name, parameters and rule of each comparison with plain decoding.
_COMPARISONS: tuple[tuple[str, SamplingParams, Rule], ...] = (
    ("greedy", _GREEDY, "auto"),
    ("sampled", _SAMPLED, "coupled"),
)

_CODE = """class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if len(self.items) == 0:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def peek(self):
        if len(self.items) == 0:
            raise IndexError("peek at an empty stack")
        return self.items[-1]
"""
_REPORT = (
    '"The harbour bridge was closed for nine days after the storm of 3 March. The city engineer, '
    "Maria Lund, said that the main cables were not damaged, but that two of the twelve deck "
    "plates had lifted by up to four centimetres. Ferries carried about 6,000 passengers a day "
    "while the bridge was closed, twice as many as in a normal week. The repairs cost 2.1 million "
    "crowns, which the city pays from its reserve fund. A second inspection is planned for the "
    'autumn, when the water is low enough to examine the foundations of the eastern pillar."'
)


@dataclass(frozen=True)
class Prompt:
    """A user's message and what kind of text answers it."""

    kind: str
    text: str


PROMPTS = (
    Prompt(
        "code edit",
        "Rename the class `Stack` to `Pile` and write out the whole class."
        f"\n\n```python\n{_CODE}```",
    ),
    Prompt(
        "summary with quotes",
        f"Summarise this report in four sentences. Quote its own words.\n\n{_REPORT}\n",
    ),
    Prompt(
        "free chat",
        "I would like to start running, but I get bored quickly. What could I do to keep going?",
    ),
)


@dataclass(frozen=True)
class _Found:
    """What was seen for one prompt: speeds, and whether the tokens are the plain ones."""

    prompt: Prompt
    prompt_len: int
    race: Race
    identity: dict[str, Identity]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        race = self.race
        return {
            "prompt": self.prompt.kind,
            "prompt_len": self.prompt_len,
            "tokens_per_second": race.tokens_per_second,
            "speedup_over_transformers": race.speedup_over_transformers,
            "speedup_over_plain": race.speedup_over_plain,
            "tau": race.tau,
            "verifier_share": race.verifier_share,
            "stats": race.stats.as_dict(),
            "identity": {
                name: {
                    "identical": same.is_identical,
                    "num_tokens": same.num_tokens,
                    "first_difference": same.first_difference,
                }
                for name, same in self.identity.items()
            },
        }


def run(
    *,
    tiny: bool = False,
    max_new_tokens: int | None = None,
    repeats: int = 2,
    seed: int = 7,
    drafter: str | None = None,
    head: str | None = None,
) -> Report:
    """Generate, measure and compare on each of `PROMPTS`.

    Args:
        tiny: Use a small random model; its figures mean nothing, the comparisons do.
        max_new_tokens: Per prompt; by default 128, with `tiny` 24.
        repeats: Timed runs of each way, interleaved; the fastest counts.
        seed: Of the sampled comparison.
        drafter: "head" (suffix drafting, and a trained head where nothing repeats) or another name
            of `CHAINS`; None is "head" if the model has one.
        head: a draft head's folder, in place of the head that the model brings along.

    Returns:
        A report that is not `ok` if any speculative output differs from the plain one in float32.

    Raises:
        ImportError: torch, transformers or the packaged model is missing; says what to install.
        OSError: there is no `head`.
        UnsupportedModelError: the head is not for this model.
        ParamsError: a head, and a drafter that makes no use of it; or the other way round.
    """
    from mtp_verify.commands import threads
    from mtp_verify.commands.compare import identical, race
    from mtp_verify.models.cpu.fused import fuse

    length = max_new_tokens or (_NUM_TOKENS_TINY if tiny else _NUM_TOKENS)
    subject = subject_for(tiny=tiny, head=head)
    drafter = subject.check_drafter(drafter or _default(subject))
    with Progress((4 if drafter == "head" else 3) + 4 * len(PROMPTS)) as progress:
        progress.step("loading the model")
        model = subject.load("bfloat16")
        fuse(model)
        progress.step("choosing the number of threads")
        policy = threads.use_best(model)
        draft = _make_drafter(drafter, subject, model)
        planner = None
        if drafter == "head":
            progress.step("measuring what a forward costs")
            planner = _planner(model)

        inputs = [_tensor(subject.encode(prompt.text)) for prompt in PROMPTS]
        races = []
        for prompt, ids in zip(PROMPTS, inputs, strict=True):
            progress.step(f"generating: {prompt.kind}", on_terminal=False)
            _show(prompt, subject, model, ids, draft, planner, length)
            progress.step(f"timing three ways, {repeats} runs each: {prompt.kind} (bfloat16)")
            races.append(
                race(
                    model,
                    ids,
                    draft,
                    max_new_tokens=length,
                    params=_GREEDY,
                    planner=planner,
                    repeats=repeats,
                )
            )

        progress.step("loading the model in float32")
        model = subject.load("float32")
        draft = _make_drafter(drafter, subject, model)
        found = []
        for prompt, ids, raced in zip(PROMPTS, inputs, races, strict=True):
            identity = {}
            for name, params, rule in _COMPARISONS:
                progress.step(f"comparing {name} outputs: {prompt.kind} (float32)")
                identity[name] = identical(
                    model,
                    ids,
                    draft,
                    max_new_tokens=length,
                    params=params,
                    rule=rule,
                    planner=planner,
                    seed=seed,
                )
            found.append(_Found(prompt, int(ids.shape[1]), raced, identity))
    return _report(found, subject=subject, policy=policy, seed=seed, drafter=drafter)


def generate(
    prompt: str,
    *,
    params: SamplingParams,
    folder: str | None = None,
    tiny: bool = False,
    dtype: str = "bfloat16",
    max_new_tokens: int = 256,
    seed: int | None = None,
    rule: Rule = "auto",
    drafter: str | None = None,
    head: str | None = None,
    raw: bool = False,
) -> Report:
    """Answer `prompt`, printing the text as it comes.

    Args:
        prompt: The user's message; with `raw`, the text to continue.
        params: How to sample.
        folder: A local checkpoint; `None` is SmolLM2.
        tiny: Use a small random model.
        dtype: "bfloat16" or "float32".
        max_new_tokens: At most.
        seed: Of all choices; `None` draws one, which the report names.
        rule: As in `mtp_verify.verify`.
        drafter: as in `run`, or "none".
        head: as in `run`.
        raw: Do not use the chat template.

    Returns:
        A report with the text, the tokens and the statistics.

    Raises:
        ImportError, UnsupportedModelError, ParamsError: as `run`.
        OSError: `folder` holds no checkpoint, or there is no `head`.
    """
    import secrets

    from mtp_verify.commands import threads
    from mtp_verify.decoder.decode import Decoder
    from mtp_verify.models.cpu.fused import fuse

    chosen = secrets.randbits(32) if seed is None else seed
    with Progress() as progress:
        progress.show("loading the model")
        subject = subject_for(folder=folder, tiny=tiny, head=head)
        drafter = subject.check_drafter(drafter or _default(subject))
        model = subject.load(dtype)
        fuse(model)
        progress.show("choosing the number of threads")
        threads.use_best(model)
        draft = planner = None
        if drafter != "none":
            draft = _make_drafter(drafter, subject, model)
            # Plans depend on measured times: only where tokens do not depend on plans does a seed
            # still name a text.
            if drafter == "head" and (params.is_greedy or rule == "coupled"):
                progress.show("measuring what a forward costs")
                planner = _planner(model)
        decoder = Decoder(model, draft, params, rule=rule, planner=planner)
        ids = subject.encode_raw(prompt) if raw else subject.encode(prompt)
        progress.show("generating", on_terminal=False)
        start = time.perf_counter()
        made = decoder.generate(
            _tensor(ids),
            max_new_tokens=max_new_tokens,
            seed=chosen,
            streamer=TokenPrinter(subject.decode),
        )
        seconds = time.perf_counter() - start
    tokens = _tokens(made)
    data = {
        "text": subject.decode(tokens),
        "tokens": tokens,
        "finish_reason": made.finish_reasons[0],
        "drafter": drafter,
        "seed": chosen,
        "seconds": seconds,
        "tokens_per_second": len(tokens) / seconds,
        "stats": made.stats.as_dict(),
    }
    summary = (
        f"{len(tokens)} tokens in {seconds:.1f} s ({len(tokens) / seconds:.1f} tokens/s), "
        f"tau {made.stats.tau:.2f}, seed {chosen}"
    )
    return Report("generate", data=data, summary=summary)


def _show(
    prompt: Prompt,
    subject: Subject,
    model: Any,
    ids: torch.Tensor,
    draft: Drafter,
    planner: Planner | None,
    length: int,
) -> None:
    """Print one speculative answer as it comes; this also warms what is timed later."""
    from mtp_verify.decoder.decode import Decoder

    out = sys.stdout
    note = " (green: accepted draft tokens)" if has_colour(out) else ""
    out.write(f"== {prompt.kind}{note}\n")
    Decoder(model, draft, _GREEDY, planner=planner).generate(
        ids, max_new_tokens=length, seed=0, streamer=TokenPrinter(subject.decode)
    )
    out.write("\n")


def _report(
    seen: list[_Found], *, subject: Subject, policy: ThreadReport, seed: int, drafter: str
) -> Report:
    import torch
    import transformers

    is_ok = all(same.is_identical for found in seen for same in found.identity.values())
    rows = tuple(
        (
            found.prompt.kind,
            *(f"{found.race.tokens_per_second[way]:.1f}" for way in _WAYS),
            f"{found.race.speedup_over_transformers:.2f}x",
            f"{found.race.speedup_over_plain:.2f}x",
            f"{found.race.tau:.2f}",
            f"{100 * found.race.verifier_share:.1f} %",
            *(_identity(found.identity[name]) for name, _, _ in _COMPARISONS),
        )
        for found in seen
    )
    table = Table(
        title=f"{subject.name}, tokens/s, {policy.best} thread(s) (measured to be the fastest)",
        columns=(
            "prompt", *_WAYS, "vs transformers", "vs plain", "tau", "verifier", "greedy", "sampled",
        ),
        rows=rows,
        notes=(
            "",
            "transformers: its own generate. plain, speculative: our loop without and with drafts.",
            "tau: tokens emitted per forward of the model. verifier: its share of the time.",
            "greedy, sampled: do the speculative tokens equal the plain ones, every one of them?",
            f"Sampled is seed-exact: rule coupled, seed {seed}, temperature 0.8, top-p 0.95.",
            "Speed is measured in bfloat16, greedy; identity in float32, since kernels round",
            "differently at different widths, and in bfloat16 a near-tie can tip either way.",
        ),
    )  # fmt: skip
    entrant = CHAINS[drafter]
    data = {
        "model": subject.name,
        "drafter": drafter,
        "drafter_settings": (entrant.parts or (entrant,))[-1].settings,
        "seed": seed,
        "threads": policy.best,
        "thread_milliseconds": policy.milliseconds,
        "versions": {
            "mtp_verify": build_info()["version"],
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
        },
        "speed_dtype": "bfloat16",
        "identity_dtype": "float32",
        "prompts": [found.to_dict() for found in seen],
    }
    summary = (
        "Every token is identical. Next: make prove (the proof), make bench (the verifier alone)"
        if is_ok
        else "FAILED: a speculative output differs from the plain one in float32"
    )
    return Report("demo", ok=is_ok, data=data, sections=[table], summary=summary)


def _identity(same: Identity) -> str:
    return "identical" if same.is_identical else f"DIFFERS at {same.first_difference}"


def _default(subject: Subject) -> str:
    return "suffix" if subject.load_head is None else "head"


def _planner(model: Any) -> Planner:
    """Leaves the head out where its drafts cost more than they save."""
    from mtp_verify.decoder.planning import MeasuredCosts, Planner
    from mtp_verify.models.target import as_target

    costs = MeasuredCosts(as_target(model))
    costs.forward(1)
    return Planner(costs)


def _make_drafter(name: str, subject: Subject, model: Any) -> Drafter:
    """A drafter by its name, for one load of the subject's model."""
    from mtp_verify.models.cpu.fused import fuse

    entrant, head = CHAINS[name], None
    if entrant.needs_head and subject.load_head is not None:
        head = subject.load_head(model)
        fuse(head)
    drafter: Drafter = entrant.make(model, _GREEDY, head)
    return drafter


def _tensor(ids: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.tensor([list(ids)])


def _tokens(made: Any) -> list[int]:
    """The new tokens of the first row of a `Generation`."""
    return [int(token) for token in made.tokens[0]]
