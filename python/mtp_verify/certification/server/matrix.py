"""Certify a server: case after case, and what it promises beside the law, in one report."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any

from mtp_verify.certification.blackbox import certify, make_prompts
from mtp_verify.certification.report import CertificateReport, report
from mtp_verify.certification.server.beyond import look_beyond, refuse_other_checkpoint
from mtp_verify.certification.server.loads import matrix, words_of
from mtp_verify.certification.server.sampler import ServerSampler, find_form
from mtp_verify.console.report import Report, Table
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mtp_verify.certification.blackbox import Certificate
    from mtp_verify.certification.server.beyond import Finding
    from mtp_verify.certification.server.checkpoint import Reference
    from mtp_verify.certification.server.client import Client
    from mtp_verify.certification.server.loads import Case

__all__ = ["ServerPlan", "add_findings", "certify_server", "counts_file"]

_MARGIN = 2  # tokens behind those that are compared, where engines shorten drafts


@dataclass(frozen=True)
class ServerPlan:
    """How a server is certified.

    Attributes:
        loads: Keys of `loads.LOADS`.
        is_whole: All loads instead, and every kind of shaping.
        params: How rows are shaped.
        prompts: How many.
        length: Tokens whose joint law is compared.
        horizon: Tokens compared one by one.
        min_tv: The bias to look for.
        alpha: Probability that a right server is called biased, over all cases together.
        tie: Logits this close to the largest are as good, at temperature 0.
        eos: The token at which texts end, or None.
        seed: The first seed.
        max_seconds: For all cases together.
        resume: A folder that keeps the counts of each case.
    """

    loads: tuple[str, ...] = ("batch",)
    is_whole: bool = False
    params: SamplingParams = field(default_factory=SamplingParams)
    prompts: int = 3
    length: int = 3
    horizon: int = 12
    min_tv: float = 0.1
    alpha: float = 1e-4
    tie: float = 1e-4
    eos: int | None = None
    seed: int = 0
    max_seconds: float | None = None
    resume: Path | None = None

    @property
    def num(self) -> int:
        """Tokens of each continuation."""
        return max(self.length, self.horizon) + _MARGIN


def certify_server(
    client: Client, reference: Reference, plan: ServerPlan | None = None
) -> CertificateReport:
    """Certify a server against the exact law of a checkpoint that it serves.

    Args:
        client: The server.
        reference: What `load_reference` returned for the checkpoint.
        plan: How.

    Returns:
        A report with a certificate for each case; a bias names the load and the shaping under
        which it was found.

    Raises:
        ServerError: The server does not answer, gives nothing that can be compared, or serves
            another model. Counts are kept where the plan has a folder for them.
        ParamsError: A load is unknown, or longer than the model's texts may be.
    """
    plan = plan or ServerPlan()
    began = time.monotonic()
    prompts = make_prompts(plan.prompts)
    cases, left_out = _fitting(plan, prompts, reference.longest)
    try:
        form = find_form(client, prompts[0], reference.texts)
    except ServerError as error:
        if error.slug == "no_token_ids" and reference.texts is None:
            error.args = (f"{error} ({reference.why_no_texts})",)
        raise
    common: dict[str, Any] = {"eos": plan.eos, "texts": reference.texts, "form": form}
    first = ServerSampler(client, reference.rows, num=plan.num, **common)
    with Progress() as progress:
        progress.show("comparing the server's model with the checkpoint")
        refuse_other_checkpoint(first, prompts)
    found = []
    for index, case in enumerate(cases):
        used = time.monotonic() - began
        left = inf if plan.max_seconds is None else max(0.0, plan.max_seconds - used)
        sampler = ServerSampler(
            client, reference.rows, params=case.params, num=plan.num, load=case.load,
            name=f"{client.model}, {case.name}", **common,
        )  # fmt: skip
        share = left / (len(cases) - index)
        found.append(_certify(sampler, case, plan, prompts, share, len(cases)))
    with Progress() as progress:
        progress.show("looking beside the law: seeds, greedy texts, ends, log-probabilities")
        findings = look_beyond(first, prompts, tie=plan.tie)
    return _report(client, found, findings, form.name, left_out, time.monotonic() - began)


def _fitting(
    plan: ServerPlan, prompts: Sequence[Sequence[int]], longest: int
) -> tuple[list[Case], list[str]]:
    """Return the cases whose prompts fit the model, and the names of the other loads."""
    cases = matrix(plan.params, plan.loads, is_whole=plan.is_whole)
    needed = max(map(len, prompts)) + plan.num
    fitting = [case for case in cases if case.load.prefix + needed <= longest]
    left_out = [case.load.name for case in cases if case not in fitting]
    if left_out and not plan.is_whole:
        message = (
            f"load {left_out[0]}: found a model of {longest} tokens, which is too short for it"
        )
        raise ParamsError(message, slug="unknown_load")
    return fitting, left_out


def _certify(
    sampler: ServerSampler,
    case: Case,
    plan: ServerPlan,
    prompts: Sequence[Sequence[int]],
    seconds: float,
    num_cases: int,
) -> Certificate:
    client = sampler.client
    requests, retries, start = client.num_requests, client.num_retries, time.monotonic()
    sys.stderr.write(f"certifying {sampler.name} ...\n")
    found = certify(
        sampler,
        prompts=case.load.lengthened(prompts),
        length=plan.length,
        horizon=plan.horizon,
        min_tv=plan.min_tv,
        # A right server passes all cases with probability 1 - alpha.
        alpha=plan.alpha / num_cases,
        tie=plan.tie,
        seed=plan.seed,
        max_seconds=None if seconds == inf else seconds,
        resume=counts_file(plan.resume, sampler.name),
    )
    asked, passed = client.num_requests - requests, time.monotonic() - start
    details = {
        "server": client.url,
        "model": client.model,
        "load": f"{case.load.name}: {case.load.words}",
        "shaping": words_of(case.params),
        "requests": asked,
        "requests_per_second": round(asked / passed, 1),
        "retries": client.num_retries - retries,
    }
    return replace(found, details=found.details | details)


def counts_file(folder: Path | None, name: str) -> Path | None:
    """Return the file for the counts of a case, in a folder that is made if it is not there."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.json"


def _report(
    client: Client,
    certificates: list[Certificate],
    findings: list[Finding],
    form: str,
    left_out: list[str],
    seconds: float,
) -> CertificateReport:
    made = report(certificates)
    rate = client.num_requests / seconds
    notes = [f"{client.num_requests:,} requests, {rate:,.0f}/s, {client.num_retries:,} retries."]
    if left_out:
        notes.append(f"loads left out, too long for the model: {', '.join(left_out)}.")
    made.appendix = (add_findings(made, findings, form, notes),)
    return made


def add_findings(made: Report, findings: list[Finding], form: str, notes: list[str]) -> Table:
    """Add what was found beside the law to a report, and return its table."""
    words = {True: "ok", False: "FAILED", None: "not served"}
    rows = tuple((words[f.ok], f.name, f.words) for f in findings)
    notes = ["", f"tokens: {form}.", *notes]
    table = Table("beside the law", ("", "promise", "found"), rows, left=3, notes=tuple(notes))
    made.sections.append(table)
    made.data["beside_the_law"] = [vars(finding) for finding in findings]
    made.data["tokens_from"] = form
    broken = [finding.name for finding in findings if finding.ok is False]
    if broken:
        failure = f"FAILED: not kept: {'; '.join(broken)}"
        made.summary = failure if made.ok else f"{made.summary}; {failure}"
        made.ok = False
        made.data["status"] = "failed"
    return table
