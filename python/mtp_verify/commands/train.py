"""`mtp-verify train`: a draft head for a model, on text that the model writes itself."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtp_verify.commands.command import Command
from mtp_verify.console.report import Report, Table
from mtp_verify.console.terminal import Progress
from mtp_verify.errors import ParamsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["COMMAND", "add_arguments", "run"]

# Short names of the families that train well without their target's own kind of block.
_HEADS: dict[str, dict[str, Any]] = {
    "mtp": {"family": "mimo"},
    "eagle": {"family": "eagle", "feature_weight": 1.0},
    "eagle3": {"family": "eagle3"},
    "medusa": {"family": "medusa", "num_modules": 4, "plain_share": 0.0},
    "hydra": {"family": "hydra", "num_modules": 4, "plain_share": 0.0},
    "block": {"family": "block", "num_modules": 5, "plain_share": 0.0},
    "model": {
        "family": "independent", "num_layers": 2, "plain_share": 1.0, "context_tokens": False,
    },
}  # fmt: skip
_TINY = {"max_rows": 256, "draft_vocab_size": 256, "evaluate_every": 10, "dtype": "float32"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add = parser.add_argument
    add(
        "--model",
        default="smollm2",
        metavar="smollm2|tiny|FOLDER",
        help="the target: SmolLM2-135M (default), a small random model, or a local checkpoint",
    )
    add(
        "--head", choices=list(_HEADS), default="mtp",
        help="mtp (default), ..., or model: an independent draft model of the target's own layers",
    )  # fmt: skip
    add(
        "--out", type=Path, default=Path("trained-head"), metavar="FOLDER",
        help="of the run; run the same command again to go on after a kill (default: trained-head)",
    )  # fmt: skip
    add(
        "--minutes",
        type=float,
        help="wall time for everything, from the start of the process (default 38; tiny 1)",
    )
    add("--tokens", type=int, help="most training text (850000)")
    add(
        "--prompts", type=Path, metavar="FILE",
        help='answer these: one JSON object a line with a "prompt", or in a .txt file one prompt a '
        "line; a tenth of them is held out (default: prompts of this package)",
    )  # fmt: skip
    add(
        "--questions", type=float, metavar="SHARE",
        help="share of the text whose prompts the target makes up itself (0)",
    )  # fmt: skip
    add(
        "--documents", type=float, metavar="SHARE",
        help="share of the text whose prompts are tasks on texts that the target wrote before (0)",
    )  # fmt: skip
    add("--epochs", type=float, help="most passes over it (10)")
    add("--loss", help="distillation (default), hybrid, log-overlap, ...")
    add(
        "--layers", type=int, default=None,
        help="blocks per level (1; KOALA's K), or layers of the model (2)",
    )  # fmt: skip
    add("--adversarial", type=float, default=0.0, metavar="WEIGHT", help="KOALA's term (eagle)")
    add(
        "--from", dest="start", type=Path, metavar="HEAD",
        help="start from the weights of a head trained before instead of random ones",
    )  # fmt: skip
    add(
        "--set", dest="changes", action="append", default=[], metavar="NAME=VALUE",
        help="any other field of the recipe, as plain_share=0; may be repeated",
    )  # fmt: skip
    add("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> Report:
    """Train a head for a target."""
    import torch

    from mtp_verify.commands.shared.subjects import subject_for
    from mtp_verify.training import run as stages
    from mtp_verify.training.prompt_files import read_prompts
    from mtp_verify.training.recipe import Recipe, quick_dtype

    is_tiny = args.model == "tiny"
    folder = None if args.model in ("tiny", "smollm2") else args.model
    if folder is not None and not Path(folder).is_dir():
        message = f"--model {folder}: no such folder (models are never downloaded)"
        raise ParamsError(message, slug="bad_options")
    given = {
        name: getattr(args, name)
        for name in ("minutes", "tokens", "epochs", "questions", "documents")
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not (0 <= value <= 1 if name in ("questions", "documents") else value > 0):
            wanted = "a share of 0 to 1" if name in ("questions", "documents") else "more than 0"
            message = f"--{name}: found {value}, wanted {wanted}"
            raise ParamsError(message, slug="param_out_of_range")
    if (both := sum(given.get(name, 0.0) for name in ("questions", "documents"))) > 1:
        message = f"--questions and --documents: found {both:g} together, wanted at most 1"
        raise ParamsError(message, slug="param_out_of_range")
    settings: dict[str, Any] = {
        **(_TINY if is_tiny else {}), **_HEADS[args.head],
        "adversarial_weight": args.adversarial, "seed": args.seed,
    }  # fmt: skip
    chosen = {"num_layers": args.layers, "loss": args.loss}
    settings |= {name: value for name, value in chosen.items() if value is not None}
    changes = _changes(args.changes, settings)
    recipe = Recipe(**{"dtype": quick_dtype(), **settings, **changes})
    limits: dict[str, Any] = {"minutes": 1.0, "tokens": 4000, "answer": 40} if is_tiny else {}
    budget = stages.Budget(**limits | given)
    own = None if args.prompts is None else read_prompts(args.prompts)
    with _processes(), Progress() as lines:
        lines.show("loading the model")
        subject = subject_for(folder=folder, tiny=is_tiny)
        model = subject.load(recipe.dtype)
        load = None if is_tiny else partial(_load, folder, recipe.dtype)
        options = {"own": own, "start": args.start, "load": load, "began": args.began}
        settled = (recipe, budget, args.out)
        _, found = stages.train(model, subject.encode, *settled, tell=lines.show, **options)
    best, place = found["best"], str(args.out / "head")
    data = {
        "model": subject.name,
        "head": place,
        "tau": best["tau"],
        "by_depth": best["by_depth"],
        "best_step": best["step"],
        "seconds": time.monotonic() - args.began,
        "threads": torch.get_num_threads(),
        "recipe": recipe.as_dict(),
        "plan": found["plan"],
        "curve": found["curve"],
    }
    table = Table(
        f"acceptance of greedy chains of 4 on held-out {'topics' if own is None else 'prompts'}",
        ("step", "loss", "tau", *(f"depth {depth + 1}" for depth in range(4))),
        tuple(
            (
                str(point["step"]),
                f"{point['loss']:.3f}",
                *(f"{value:.2f}" for value in (point["tau"], *point["by_depth"])),
            )
            for point in found["curve"]
        ),
        left=0,
    )
    use = f"mv.drafters.Heads(mv.heads.load({place!r}, target=model))"
    if args.head == "model":
        use = f"mv.drafters.Model(AutoModelForCausalLM.from_pretrained({place!r}))"
    summary = f"The best one (tau {best['tau']:.2f}) is in {place}; draft with it:\n  {use}"
    return Report("train", data=data, sections=[table], summary=summary)


def _load(folder: str | None, dtype: str) -> Any:
    """Load the target, in another process."""
    from mtp_verify.commands.shared.subjects import subject_for

    return subject_for(folder=folder).load(dtype)


def _changes(words: Sequence[str], taken: Mapping[str, Any]) -> dict[str, Any]:
    """Read fields of a recipe that have no option of their own from words like `depth=4`."""
    import dataclasses

    from mtp_verify.training.recipe import Recipe

    kinds = {field.name: field.type for field in dataclasses.fields(Recipe)}
    read: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
    changes: dict[str, Any] = {}
    for word in words:
        name, _, value = word.partition("=")
        kind = kinds.get(name)
        if kind not in read or name in taken:
            free = sorted(name for name in kinds if kinds[name] in read and name not in taken)
            message = f"--set {word}: wanted NAME=VALUE with one of these names: {', '.join(free)}"
            raise ParamsError(message, slug="bad_options")
        try:
            changes[name] = read[str(kind)](value)
        except ValueError:
            message = f"--set {word}: wanted a value of type {kind}"
            raise ParamsError(message, slug="bad_options") from None
    return changes


@contextlib.contextmanager
def _processes() -> Iterator[None]:
    """Join the other processes where `torchrun` started several."""
    from torch import distributed

    is_one_of_many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if is_one_of_many:
        # The others wait while the first writes the text.
        distributed.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        yield
    finally:
        if is_one_of_many:
            distributed.destroy_process_group()


COMMAND = Command(
    "train",
    "Train a draft head for a model, on text that the model writes itself.",
    "mtp-verify train --model smollm2 --out my-head --minutes 37",
    add_arguments,
    run,
    extra="demo",
)
