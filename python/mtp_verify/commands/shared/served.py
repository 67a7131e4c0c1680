"""The options of `mtp-verify certify` that are about servers, and what they name."""

from __future__ import annotations

import argparse
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from mtp_verify.certification.settings import Plan
from mtp_verify.console.libraries import need
from mtp_verify.console.report import Report
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    from mtp_verify.certification.report import CertificateReport
    from mtp_verify.certification.server import ServerPlan
    from mtp_verify.certification.two_report import ComparisonReport

__all__ = ["add_server_arguments", "certify_url", "make_checkpoint", "refuse_server_options"]

_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_SHAPING = ("temperature", "top_k", "top_p", "min_p", *_PENALTIES, "preset")
_PLAN = ("prompts", "length", "horizon", "min_tv", "alpha", "tie", "resume")
# What other subjects have and a server has not.
_ELSEWHERE = ("mode", "batch", "grammar", "cache", "no_repeat_ngram_size", "sharpness")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group(
        "a server", "with an OpenAI-compatible completions endpoint; a key: OPENAI_API_KEY"
    )
    add = group.add_argument
    add("--url", metavar="URL", help="certify a server, for example http://127.0.0.1:8000/v1")
    add("--model", default="", metavar="NAME", help="as the server names it (default: its only)")
    add("--checkpoint", type=Path, metavar="FOLDER", help="what it serves: the exact law is its")
    add(
        "--make-checkpoint",
        type=Path,
        metavar="FOLDER",
        help="write tiny random models that servers load, and say how (with --sharpness, --seed)",
    )
    add("--against", metavar="URL", help="compare with this server instead: no law is needed")
    add("--prompt", action="append", metavar="TEXT", help="for --against; may be repeated")
    add("--load", action="append", metavar="LOAD", help="may be repeated: batch (default), alone, "
        "n, mixed, stream, cache, long, free")  # fmt: skip
    add("--matrix", action="store_true", help="all loads, and every kind of shaping")
    add("--min-p", type=float, default=0.0, help="0 is off")
    add("--presence-penalty", type=float, default=0.0, help="0 is off")
    add("--frequency-penalty", type=float, default=0.0, help="0 is off")
    add(
        "--preset",
        choices=("transformers", "vllm"),
        default="transformers",
        help="the order of top-k, top-p and min-p, if there are several (default: min-p last)",
    )
    add("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default 16)")
    add(
        "--rate", type=float, default=inf, metavar="N", help="requests a second (default: no limit)"
    )
    add("--timeout", type=float, default=60.0, metavar="S", help="for an answer (default 60 s)")
    add("--retries", type=int, default=6, metavar="N", help="of a busy server (default 6)")


def make_checkpoint(args: argparse.Namespace) -> Report:
    """Write the checkpoints, and say how to serve them."""
    need(extra="hf")
    from mtp_verify.certification.server.checkpoint import write_checkpoints

    seed = 0 if args.seed is None else args.seed
    lines = write_checkpoints(args.make_checkpoint, seed=seed, sharpness=args.sharpness)
    data = {"folder": str(args.make_checkpoint), "next": lines}
    return Report("certify", data=data, sections=["\n".join(["serve one of them:", *lines])])


def certify_url(args: argparse.Namespace) -> CertificateReport | ComparisonReport:
    """Certify the server."""
    _refuse_others(args)
    if (args.checkpoint is None) == (args.against is None):
        message = (
            "--url: say what its law is, by the checkpoint that it serves (--checkpoint FOLDER), "
            "or by another server (--against URL)"
        )
        raise ParamsError(message, slug="bad_options")
    need(extra="server")
    from mtp_verify.certification.server import (
        Client,
        Limits,
        certify_server,
        compare_servers,
        load_reference,
    )

    limits = Limits(args.concurrency, args.rate, args.timeout, args.retries)
    plan = _plan(args)
    if args.against is not None:
        prompts = {} if args.prompt is None else {"prompts": args.prompt}
        with (
            Client(args.url, args.model, limits=limits) as one,
            Client(args.against, args.model, limits=limits) as other,
        ):
            return compare_servers(one, other, plan, **prompts)
    need(extra="hf")
    # Before the reference is loaded: it says early whether the server can be asked at all.
    with Client(args.url, args.model, limits=limits) as client:
        return certify_server(client, load_reference(args.checkpoint), plan)


def _plan(args: argparse.Namespace) -> ServerPlan:
    from mtp_verify.certification.server import ServerPlan

    seconds = args.max_seconds
    return ServerPlan(
        loads=tuple(args.load or ("batch",)),
        is_whole=args.matrix,
        params=SamplingParams(**{name: getattr(args, name) for name in _SHAPING}),
        eos=None if args.eos < 0 else args.eos,
        seed=0 if args.seed is None else args.seed,
        max_seconds=None if seconds is None else max(0.0, args.began + seconds - monotonic()),
        **{name: getattr(args, name) for name in _PLAN},
    )


def refuse_server_options(args: argparse.Namespace) -> None:
    """Refuse options of a server where something else is certified."""
    parser = argparse.ArgumentParser()
    add_server_arguments(parser)
    for name, usual in vars(parser.parse_args([])).items():
        if getattr(args, name) != usual:
            message = f"--{name.replace('_', '-')}: it belongs to --url; leave it out"
            raise ParamsError(message, slug="bad_options")


def _refuse_others(args: argparse.Namespace) -> None:

    plain = Plan("", "")
    for name in _ELSEWHERE:
        usual = None if name == "mode" else getattr(plain, name)
        if getattr(args, name) != usual:
            message = f"--{name.replace('_', '-')}: a server has none to set; leave it out"
            raise ParamsError(message, slug="bad_options")
