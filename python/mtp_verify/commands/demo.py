"""`mtp-verify demo`: a real model, speculatively, measured against plain decoding.

Speed is measured in bfloat16, as people run the model. Identity is checked in float32: CPU kernels
round differently for one token and for nine, and in bfloat16 that is enough to decide a near-tie
the other way.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.command import Command, add_model_arguments, positive
from mtp_verify.commands.shared.entrants import CHAINS
from mtp_verify.commands.shared.prompts import DEMO
from mtp_verify.console.report import Report, Table
from mtp_verify.console.terminal import Progress, TokenPrinter, has_colour
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    import argparse

    from mtp_verify.commands.shared.compare import Identity, Race
    from mtp_verify.commands.shared.entrants import Entrant
    from mtp_verify.commands.shared.prompts import BenchPrompt
    from mtp_verify.commands.shared.subjects import Subject
    from mtp_verify.commands.shared.threads import ThreadReport
    from mtp_verify.decoder.decode import Decoder
    from mtp_verify.verifier.words import Rule

__all__ = ["COMMAND", "PROMPTS", "add_arguments", "add_drafter_argument", "run"]

_NUM_TOKENS, _NUM_TOKENS_TINY = 128, 24
_GREEDY = SamplingParams(temperature=0.0)
_SAMPLED = SamplingParams(temperature=0.8, top_p=0.95)
_WAYS = ("transformers", "plain", "speculative")
# Name, parameters and rule of each comparison with plain decoding.
_COMPARISONS: tuple[tuple[str, SamplingParams, Rule], ...] = (
    ("greedy", _GREEDY, "auto"),
    ("sampled", _SAMPLED, "coupled"),
)
PROMPTS = DEMO


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_model_arguments(parser, model=False)
    add = parser.add_argument
    add("--max-new-tokens", type=positive, help="per prompt (default 128; tiny 24)")
    add("--repeats", type=positive, default=2, help="timed runs of each way; the best counts")
    add("--seed", type=int, default=7, help="of the sampled comparison")
    add_drafter_argument(parser)


def add_drafter_argument(parser: argparse.ArgumentParser, *others: str) -> None:
    """Add `--drafter`, which names one of `entrants.CHAINS` or of `others`."""
    parser.add_argument(
        "--drafter",
        choices=(*CHAINS, *others),
        help="head: suffix drafting, and a trained head where nothing repeats (default: head if "
        "there is one, else suffix)",
    )


@dataclass(frozen=True)
class _Found:
    """What was seen for one prompt: speeds, and whether the tokens are the plain ones."""

    prompt: BenchPrompt
    prompt_len: int
    race: Race
    identity: dict[str, Identity]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        race = self.race
        identity = {
            name: {
                "identical": same.is_identical,
                "num_tokens": same.num_tokens,
                "first_difference": same.first_difference,
            }
            for name, same in self.identity.items()
        }
        return {
            "prompt": self.prompt.category,
            "prompt_len": self.prompt_len,
            "tokens_per_second": race.tokens_per_second,
            **{f"speedup_over_{way}": race.speedup_over(way) for way in _WAYS[:2]},
            "tau": race.stats.tau,
            "verifier_share": race.stats.share("verify"),
            "stats": race.stats.as_dict(),
            "identity": identity,
        }

    def cells(self) -> tuple[str, ...]:
        """Return the line of the table."""
        race = self.race
        return (
            self.prompt.category,
            *(f"{race.tokens_per_second[way]:.1f}" for way in _WAYS),
            *(f"{race.speedup_over(way):.2f}x" for way in _WAYS[:2]),
            f"{race.stats.tau:.2f}",
            f"{100 * race.stats.share('verify'):.1f} %",
            *(
                "identical" if same.is_identical else f"DIFFERS at {same.first_difference}"
                for same in self.identity.values()
            ),
        )


def run(args: argparse.Namespace) -> Report:
    """Generate, measure and compare on each of `PROMPTS`; not `ok` if outputs differ in float32."""
    import torch

    from mtp_verify.commands.shared.compare import identical, race
    from mtp_verify.commands.shared.subjects import planner_for, subject_for
    from mtp_verify.decoder.decode import Decoder

    length = args.max_new_tokens or (_NUM_TOKENS_TINY if args.tiny else _NUM_TOKENS)
    subject = subject_for(tiny=args.tiny, head=args.head)
    name = subject.check_drafter(args.drafter)
    entrant = CHAINS[name]
    with Progress((4 if entrant.needs_head else 3) + 4 * len(PROMPTS)) as progress:
        model, policy = subject.prepare("bfloat16", progress.step)
        planner = None
        if entrant.needs_head:
            progress.step("measuring what a forward costs")
            planner = planner_for(model)

        def decoder(params: SamplingParams, rule: Rule) -> Decoder:
            return Decoder(model, draft, params, rule, planner=planner)

        draft = entrant.make(model, subject.head_for(model))
        inputs = [torch.tensor([subject.encode(prompt.prompt)]) for prompt in PROMPTS]
        fast = decoder(_GREEDY, "auto")
        races = []
        for prompt, ids in zip(PROMPTS, inputs, strict=True):
            progress.step(f"generating: {prompt.category}", on_terminal=False)
            note = " (green: accepted draft tokens)" if has_colour(sys.stdout) else ""
            sys.stdout.write(f"== {prompt.category}{note}\n")
            printer = TokenPrinter(subject.decode)  # it also warms what is timed later
            fast.generate(ids, max_new_tokens=length, seed=0, streamer=printer)
            sys.stdout.write("\n")
            timing = f"timing three ways, {args.repeats} runs each"
            progress.step(f"{timing}: {prompt.category} (bfloat16)")
            races.append(race(model, fast, ids, max_new_tokens=length, repeats=args.repeats))

        progress.step("loading the model in float32")
        model = subject.load("float32")
        draft = entrant.make(model, subject.head_for(model))
        found = []
        for prompt, ids, raced in zip(PROMPTS, inputs, races, strict=True):
            same = {}
            for kind, params, rule in _COMPARISONS:
                progress.step(f"comparing {kind} outputs: {prompt.category} (float32)")
                options = {"max_new_tokens": length, "seed": args.seed}
                same[kind] = identical(model, decoder(params, rule), ids, **options)
            found.append(_Found(prompt, int(ids.shape[1]), raced, same))
    return _report(found, subject, policy, args.seed, name, entrant)


def _report(
    seen: list[_Found], subject: Subject, policy: ThreadReport, seed: int, name: str,
    entrant: Entrant,
) -> Report:  # fmt: skip
    from mtp_verify.commands.shared.subjects import versions

    is_ok = all(same.is_identical for found in seen for same in found.identity.values())
    table = Table(
        title=f"{subject.name}, tokens/s, {policy.best} thread(s) (measured to be the fastest)",
        columns=(
            "prompt", *_WAYS, "vs transformers", "vs plain", "tau", "verifier", "greedy", "sampled",
        ),
        rows=tuple(found.cells() for found in seen),
        notes=(
            "",
            "transformers: its own generate. plain, speculative: our loop without and with drafts.",
            "tau: tokens emitted per forward of the model. verifier: its share of the time.",
            "greedy, sampled: do the speculative tokens equal the plain ones, every one of them?",
            f"Sampled is seed-exact: rule coupled, seed {seed}, temperature 0.8, top-p 0.95.",
            "Speed is measured in bfloat16, greedy; identity in float32, since kernels round",
            "differently at different widths, and in bfloat16 that can decide a near-tie.",
        ),
    )  # fmt: skip
    data = {
        "model": subject.name,
        "drafter": name,
        "drafter_settings": (entrant.parts or (entrant,))[-1].settings,
        "seed": seed,
        "threads": policy.best,
        "thread_milliseconds": policy.milliseconds,
        "versions": versions(),
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


COMMAND = Command(
    "demo",
    "Watch a real model generate speculatively; compare speed and tokens.",
    "mtp-verify demo --max-new-tokens 64",
    add_arguments,
    run,
    extra="demo",
)
