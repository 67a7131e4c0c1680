"""A whole run in one folder: text, then a head; each stage continues where it was left.

`text/` and `held-out/` hold the shards, `plan.json` what was decided on the way (how much text, how
many steps), `state.safetensors` the training's state, `head/` the best head.
"""

from __future__ import annotations

import copy
import json
import warnings
from functools import partial
from math import inf
from statistics import median
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from mtp_verify.checkpoints.tensors import write_atomically
from mtp_verify.errors import ParamsError
from mtp_verify.models.target import as_target
from mtp_verify.training.jobs import Budget, Jobs
from mtp_verify.training.loop import Trainer
from mtp_verify.training.prompts import make_prompts
from mtp_verify.training.shards import Shards
from mtp_verify.training.start import check_features, count_tokens, new_head, spec_of, start_from
from mtp_verify.training.writers import write_shards
from mtp_verify.verifier.files import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mtp_verify.heads import Head
    from mtp_verify.training.prompt_files import OwnPrompts
    from mtp_verify.training.recipe import Recipe
    from mtp_verify.training.writers import Job

__all__ = ["Budget", "train"]

_WARM_UP, _PROBES = 2, 7  # untimed and timed steps of each kind: how many steps there is time for
_PLANNED = 0.95  # of the time that is left: planned steps should not end with the last second
_OVERTIME = 1.1  # planned steps that take longer than their try-out may still end
_PROBE_SHARE = 0.1  # most of the time that is left, for the steps of each kind


def train(
    model: Any,
    encode: Callable[[str], list[int]],
    recipe: Recipe,
    budget: Budget,
    folder: Path,
    tell: Callable[[str], None],
    *,
    own: OwnPrompts | None = None,
    start: Path | None = None,
    load: Callable[[], Any] | None = None,
    began: float | None = None,
) -> tuple[Head, dict[str, Any]]:
    """Write text with the target and train a head on it; call again to continue after a kill.

    Args:
        model: the target, in the recipe's dtype; its parameters want no gradients afterwards.
        encode: from a user's message to the prompt's ids.
        recipe: how.
        budget: how much; what is in the folder already counts.
        folder: of the run.
        tell: called with a line of progress after each part.
        own: users' messages to be answered; None: those of this package.
        start: a head trained before, of the same spec, whose weights and draft vocabulary the run
            starts from.
        load: how further processes get the target, to write text side by side; None: this process
            writes alone.
        began: when the budget's minutes began, of `time.monotonic()`; None: now.

    Returns:
        The head after its last step, and the measurement of the best one, in `folder/head`.

    Raises:
        ParamsError: the folder holds a run of another recipe or other prompts, `start` has another
            spec, or a prompt leaves no room for an answer.
        OSError, NumericsError: as `Trainer.run` and `write_shards`.

    Warns:
        UserWarning: the minutes were over before all steps were done, before each text had been
            used once, or while the text was written.
    """
    began = monotonic() if began is None else began
    digest = None if own is None else own.digest
    target = as_target(model)
    room = None if target.max_length is None else target.max_length - budget.answer
    if own is not None:
        own.check_lengths(encode, room)
    folder.mkdir(parents=True, exist_ok=True)
    plan = _read_plan(folder, recipe, digest)
    spec = spec_of(recipe, model.config)
    check_features(recipe, spec)
    # Nothing of the target is trained: its embedding's gradients would fill its whole table.
    model.requires_grad_(requires_grad=False)
    if own is None:
        parts = [make_prompts(recipe.seed, held_out=held_out) for held_out in (False, True)]
    else:
        parts = [*own.split(recipe.seed, budget.held_out)]
    prompts = {"text": parts[0], "held-out": parts[1]}
    limit = inf if budget.minutes is None else budget.minutes * 60
    late = began + budget.text_share * limit
    writing = Jobs(
        folder, encode, prompts, spec.hidden_layers, tuple(target.eos_ids), room, budget,
        recipe.seed, late, end := began + limit,
    )  # fmt: skip

    is_cut = False
    is_shared = distributed.is_available() and distributed.is_initialized()
    if plan.get("shards") is None and not (is_shared and distributed.get_rank()):
        count = index = 0

        def jobs() -> Iterator[Job]:
            nonlocal index
            yield writing.held_out()
            while index == 0 or (count < budget.tokens and monotonic() <= late):
                if (found := writing.text(index)) is None:
                    break
                yield found
                index += 1
            if (last := writing.held_out_documents()) is not None:
                yield last

        for done in write_shards(model, jobs(), load, torch.get_num_threads()):
            is_cut |= monotonic() >= done.deadline
            if done.path.parent.name == "text":
                count += sum(Shards([done.path]).lengths)
            spent = (monotonic() - began) / 60
            tell(f"text: {count} of {budget.tokens} tokens, {spent:.1f} min")
        plan["shards"] = index
        _write_plan(folder, plan)
    if is_shared:  # the first process has written, the others have waited
        distributed.barrier()
        plan = _read_plan(folder, recipe, digest)
    shards = Shards([writing.path("text", index) for index in range(plan["shards"])])
    measured = [path for index in range(2) if (path := writing.path("held-out", index)).exists()]
    held_out = Shards(measured)
    head = new_head(spec, model, count_tokens(shards, spec.known_sizes.vocab_size), recipe.seed)
    more: dict[str, Any] = {} if start is None else {"start": start_from(head, start)}
    if own is not None:
        more["prompts"] = {kind: len(texts) for kind, texts in prompts.items()}

    def trainer(steps: int, subject: Head, place: Path) -> Trainer:
        record = {
            "tokens": sum(shards.lengths), "steps": steps, "texts": len(shards),
            "questions": budget.questions, "documents": budget.documents, **more,
        }  # fmt: skip
        return Trainer(subject, shards, held_out, recipe, steps=steps, folder=place, record=record)

    if plan.get("steps") is None:
        most = round(budget.epochs * trainer(1, head, folder / "probe").batches_per_epoch)
        if limit < inf:
            tell("timing a step")
            make = partial(trainer, 1, place=folder / "probe")
            cost, plan["measuring"] = _cost_of_a_step(head, recipe, make, end)
            most = min(most, round(_PLANNED * (end - monotonic()) / cost))
        steps = torch.tensor([max(most, 1)])
        if is_shared:
            distributed.broadcast(steps, 0)
        plan["steps"] = int(steps)
        _write_plan(folder, plan)
    running = trainer(plan["steps"], head, folder)
    running.measuring = plan.get("measuring", 0.0)
    best = running.run(tell, deadline=began + _OVERTIME * limit)
    if not is_shared or not distributed.get_rank():
        _warn_if_short(running, budget, sum(shards.lengths), is_cut=is_cut)
    return head, {"best": best, "curve": running.curve, "plan": plan}


def _warn_if_short(running: Trainer, budget: Budget, tokens: int, *, is_cut: bool) -> None:
    """Warn if there was time for less than what was asked for."""
    passes = running.step / running.batches_per_epoch
    is_short = not running.is_finished or passes < min(1.0, budget.epochs)
    if budget.minutes is None or not (is_short or is_cut):
        return
    cut = ", whose texts were cut short," if is_cut else ""
    warnings.warn(
        f"{budget.minutes:g} minutes were enough for {tokens} tokens of text{cut} and for "
        f"{running.step} of {running.steps} planned steps, {passes:.2g} passes over that text: "
        "the head may be weak; give more minutes, or fewer tokens",
        stacklevel=3,
    )


def _cost_of_a_step(
    head: Head, recipe: Recipe, make: Callable[[Head], Trainer], end: float
) -> tuple[float, float]:
    """Return seconds of a mean step of both stages, measurements included, and of a measurement.

    Medians of a few steps on a copy, without the first ones; where steps are slow, of fewer.
    """

    def seconds(share: float) -> float:
        enough = monotonic() + _PROBE_SHARE * (end - monotonic())
        probe = make(copy.deepcopy(head))
        probe.recipe = recipe.replace(plain_share=share)
        probe.steps = 1 << 30
        times: list[float] = []
        while not times or (len(times) < _WARM_UP + _PROBES and monotonic() < enough):
            start = monotonic()
            probe.take_step()
            times.append(monotonic() - start)
        return median(times[_WARM_UP:] or times[-1:])

    share = recipe.plain_share
    step = share * seconds(1.0) + (1 - share) * seconds(0.0)
    probe = make(head)
    probe.measure()
    return step + probe.measuring / recipe.evaluate_every, probe.measuring


def _read_plan(folder: Path, recipe: Recipe, prompts: str | None) -> dict[str, Any]:
    """Return what the folder's run has decided; `prompts` is the digest of own ones, or None."""
    path = folder / "plan.json"
    wanted = recipe.as_dict()
    if not path.exists():
        plan: dict[str, Any] = {"recipe": wanted, "prompts": prompts}
        _write_plan(folder, plan)
        return plan
    text = read_text(path)
    try:
        plan = json.loads(text)
        different = [name for name in wanted if plan["recipe"].get(name) != wanted[name]]
        before = plan.get("prompts")
    except (ValueError, KeyError, AttributeError) as error:
        message = f"{path} is not the plan of a run ({error}); give another folder"
        raise ParamsError(message, slug="bad_run_folder") from None
    if not different and before == prompts:
        return plan
    what = "found other prompts, wanted the same: held-out ones may have been trained on there"
    for name in different[:1]:
        what = f"{name}: found {plan['recipe'].get(name)!r}, wanted {wanted[name]!r}"
    message = f"{folder} holds another run: {what}; give another folder, or the same settings"
    raise ParamsError(message, slug="bad_run_folder")


def _write_plan(folder: Path, plan: dict[str, Any]) -> None:
    write_atomically(folder / "plan.json", [json.dumps(plan, indent=2).encode()])
