"""Compare two servers, or one with speculation off and on: no law needs to be known."""

from __future__ import annotations

import sys
import time
from math import inf
from typing import TYPE_CHECKING

from mtp_verify.certification.server.beyond import look_beyond
from mtp_verify.certification.server.loads import matrix
from mtp_verify.certification.server.matrix import ServerPlan, add_findings, counts_file
from mtp_verify.certification.server.sampler import ServerSampler, find_form
from mtp_verify.certification.server.texts import Characters
from mtp_verify.certification.two_report import ComparisonReport, comparison_report
from mtp_verify.certification.two_sample import compare
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mtp_verify.certification.server.client import Client
    from mtp_verify.certification.server.loads import Case

__all__ = ["PROMPTS", "compare_servers"]

# Of different kinds, so that some of what follows is drafted well and some is not.
PROMPTS = (
    "The three primary colours are",
    "def fibonacci(n):",
    "one two three one two three one two",
    "Once upon a time there was a",
)
_CHARACTERS = 4  # for a token, where texts are compared
_MARGIN = 2  # tokens behind those that are compared, where engines shorten drafts


def compare_servers(
    one: Client, other: Client, plan: ServerPlan | None = None, prompts: Sequence[str] = PROMPTS
) -> ComparisonReport:
    """Compare the distributions of what two servers say.

    The first tokens of each text are compared where both servers give token ids, else its first
    characters; first tokens with the laws that the servers themselves report too.

    Args:
        one: The server in question, for example with speculation.
        other: The server that is right, for example without.
        plan: How; loads whose prompts have tokens in common are not for prompts that are texts.
        prompts: Texts.

    Raises:
        ServerError: A server does not answer, or with something else than was asked for.
        ParamsError: No prompt, or a load that is unknown or needs prompts of tokens.
    """
    plan = plan or ServerPlan()
    began = time.monotonic()
    cases = matrix(plan.params, plan.loads, is_whole=plan.is_whole)
    if not plan.is_whole and any(case.load.prefix for case in cases):
        message = "load: cache and long need a checkpoint; give long prompts instead"
        raise ParamsError(message, slug="unknown_load")
    cases = [case for case in cases if not case.load.prefix]
    texts = Characters(prompts, _CHARACTERS * plan.length)
    numbers = [(number,) for number in range(len(prompts))]
    forms = [find_form(client, (0,), texts) for client in (one, other)]
    # Both sides in one form: tokens of one and characters of the other have nothing in common.
    length = plan.length
    if any(form.name == "text" for form in forms):
        forms, length = [form.without_ids() for form in forms], _CHARACTERS * plan.length

    def sampler(client: Client, case: Case) -> ServerSampler:
        form = forms[0 if client is one else 1]
        made = ServerSampler(
            client, params=case.params, num=plan.length + _MARGIN, texts=texts, load=case.load,
            form=form, eos=plan.eos,
        )  # fmt: skip
        is_plain = case.params == SamplingParams(preset=case.params.preset)
        if is_plain and form.name != "text" and made.served_law((0,)):
            made.first_law = made.served_law
        return made

    found = []
    for index, case in enumerate(cases):
        used = time.monotonic() - began
        left = inf if plan.max_seconds is None else max(0.0, plan.max_seconds - used)
        name = f"{one.model} and {other.model}, {case.name}"
        sys.stderr.write(f"comparing {name} ...\n")
        found.append(
            compare(
                sampler(one, case),
                sampler(other, case),
                numbers,
                length=length,
                min_tv=plan.min_tv,
                alpha=plan.alpha / len(cases),
                seed=plan.seed,
                max_seconds=None if left == inf else left / (len(cases) - index),
                resume=counts_file(plan.resume, name),
                name=name,
                details={"servers": [one.url, other.url], "prompt_texts": list(prompts)},
            )
        )
    with Progress() as progress:
        progress.show("looking beside the law: seeds, greedy texts, ends")
        pair = (sampler(client, cases[0]) for client in (one, other))
        findings = look_beyond(next(pair), numbers, tie=plan.tie, other=next(pair))
    made = comparison_report(found)
    asked = [f"{client.url}: {client.num_requests:,} requests" for client in (one, other)]
    add_findings(made, findings, forms[0].name, [f"{'; '.join(asked)}."])
    return made
