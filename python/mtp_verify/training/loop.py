"""The training loop: steps, measurements, and a state on disk that a run continues from exactly.

All randomness is a function of the seed and the step's number, and the data's order of the seed and
the epoch's. A run that was killed and continued gives the same bits as one that was not, on the
same number of threads.

Under `torchrun` each process takes its share of every batch's sequences and gradients are added up;
the losses are those of one process, to rounding.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

from mtp_verify.errors import NumericsError, ParamsError
from mtp_verify.heads import save
from mtp_verify.training.acceptance import Acceptance, measure_acceptance
from mtp_verify.training.batches import Batch, collate, plan_epoch
from mtp_verify.training.independent import IndependentDraft
from mtp_verify.training.losses import LOSSES, Discriminator, cross_entropy, feature_regression
from mtp_verify.training.muon import Muon
from mtp_verify.training.rollout import level_logits, roll_out
from mtp_verify.training.start import check_features, places_of
from mtp_verify.training.states import load_state, save_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mtp_verify.heads import Head
    from mtp_verify.training.recipe import Recipe
    from mtp_verify.training.shards import Shards

__all__ = ["Trainer"]

_STATE = "state.safetensors"
_BEST = "head"
_CHAIN = 4  # drafted tokens of the chains that acceptance is measured with
_ADVERSARIAL_FROM = 0.3  # share of the steps before the adversarial term comes in
_DISCRIMINATOR_RATE = 0.25  # relative to the vectors' rate


class Trainer:
    """Trains a head on shards.

    Args:
        head: attached to its target; changed.
        shards: text to train on.
        held_out: text that the target wrote greedily, to measure acceptance on.
        recipe: how; ParamsError: it does not fit the head.
        steps: number of optimizer steps, over which rates and stages are spread.
        folder: for the state and, in `head/`, the best head so far; UnsupportedModelError: it holds
            the state of another kind of run.
        save_every: steps between two states on disk.
        record: saved with the head: what else its result depends on.
    """

    def __init__(
        self,
        head: Head,
        shards: Shards,
        held_out: Shards,
        recipe: Recipe,
        *,
        steps: int,
        folder: Path,
        save_every: int = 50,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        check_features(recipe, head.spec)
        if not len(shards) or not len(held_out) or steps < 1:
            message = f"{len(shards)} texts, {len(held_out)} held out, {steps} steps: none may be 0"
            raise ParamsError(message, slug="nothing_to_train")
        self.head, self.recipe = head, recipe
        self.step, self.steps = 0, steps
        self.curve: list[dict[str, Any]] = []
        self._shards, self._places = shards, places_of(head)
        self._texts = [held_out[index] for index in range(len(held_out))]
        self._folder, self._save_every = folder, save_every
        self._record = dict(record or {})
        self.measuring = 0.0  # seconds of the last measurement
        self._modules: dict[str, nn.Module] = {"head": head}
        # Rows of an embedding, and of an output head tied to it, are no matrix's directions.
        tables = {id(m.weight) for m in head.modules() if isinstance(m, nn.Embedding)}
        trained = [p for p in head.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() == 2 and id(p) not in tables]
        vectors = [p for p in trained if p.dim() != 2 or id(p) in tables]
        rate, decay, dtype = recipe.matrix_rate, recipe.weight_decay, getattr(torch, recipe.dtype)
        muon = Muon(matrices, lr=rate, weight_decay=decay, dtype=dtype)
        self._optimizers: dict[str, torch.optim.Optimizer] = {"matrices": muon}
        if vectors:
            self._optimizers["vectors"] = torch.optim.AdamW(
                vectors, lr=recipe.vector_rate, betas=(0.9, 0.95), weight_decay=0.0
            )
        self._discriminator: Discriminator | None = None
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        if recipe.adversarial_weight:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                self._discriminator = Discriminator(head.spec.known_sizes.hidden_size)
            self._modules["judge"] = self._discriminator
            self._optimizers["judge_rates"] = torch.optim.AdamW(
                self._discriminator.parameters(), lr=recipe.vector_rate * _DISCRIMINATOR_RATE
            )
        self._rates = {name: o.param_groups[0]["lr"] for name, o in self._optimizers.items()}
        shared = distributed.is_available() and distributed.is_initialized()
        self._rank = distributed.get_rank() if shared else 0
        self._world = distributed.get_world_size() if shared else 1
        self._plans: dict[int, list[list[int]]] = {}
        if (folder / _STATE).exists():
            progress = load_state(folder / _STATE, self._modules, self._optimizers)
            self.step, self.curve = progress["step"], progress["curve"]

    @property
    def batches_per_epoch(self) -> int:
        """Steps that go once through the text (of the first epoch; others differ by a few)."""
        return len(self._plan(0))

    @property
    def best(self) -> dict[str, Any]:
        """The measurement of the head that was kept."""
        return max(self.curve, key=lambda point: point["tau"], default={"tau": 0.0, "step": 0})

    @property
    def is_finished(self) -> bool:
        """Whether all steps were done, or acceptance stopped to rise."""
        late = [point for point in self.curve if point["step"] > self.best["step"]]
        return self.step >= self.steps or len(late) >= self.recipe.patience

    def run(
        self, tell: Callable[[str], None] | None = None, *, deadline: float = math.inf
    ) -> dict[str, Any]:
        """Train until the steps are done, acceptance stops to rise or the time is over.

        `tell` gets a line after each step. No step begins that would not end before the deadline,
        of `time.monotonic()`, with a measurement of the head; but for one, so that there is a head.
        Returns the measurement of the best head, which is in the folder.

        Raises:
            NumericsError: a loss that is not a number; the best head and the last state stay.
            OSError: the disk is full or cannot be written.
        """
        began, first, last = monotonic(), self.step, 0.0
        self._folder.mkdir(parents=True, exist_ok=True)
        loss = math.nan
        while not self.is_finished:
            must_go_on = self.step == first and not self.curve
            ends = monotonic() + last + self.measuring
            if self._agree(is_late=ends >= deadline) and not must_go_on:
                break
            start = monotonic()
            loss = self.take_step()
            last = monotonic() - start
            if tell is not None:
                pace = (monotonic() - began) / (self.step - first)
                left = min(pace * (self.steps - self.step), deadline - monotonic()) / 60
                tau = f", tau {self.curve[-1]['tau']:.2f}" if self.curve else ""
                tell(f"step {self.step} of {self.steps}, loss {loss:.3f}{tau}, {left:.0f} min left")
            if self.step % self.recipe.evaluate_every == 0 or self.step == self.steps:
                self._keep_if_best(loss)
            if self.step % self._save_every == 0 or self.is_finished:
                self._save()
        if not self.is_finished and self.step > first:  # the time was over
            if not self.curve or self.curve[-1]["step"] < self.step:
                self._keep_if_best(loss)
            self._save()
        return self.best

    def _agree(self, *, is_late: bool) -> bool:
        """Return the first process's answer: all must do the same steps."""
        if self._world == 1:
            return is_late
        answer = torch.tensor([float(is_late)])
        distributed.broadcast(answer, 0)
        return bool(answer)

    def take_step(self) -> float:
        """Do one optimizer step; return the loss before it. NumericsError: it is not a number."""
        recipe, indices = self.recipe, self._indices(self.step)
        texts, with_context = [self._shards[i] for i in indices], self.head.spec.context_tokens
        batch = collate(texts, self._places, with_context=with_context)
        count = max(int((batch.top_probs.sum(-1) > 0).sum()), 1)
        hidden = self._with_noise(batch)
        mine = batch.part(self._rank, self._world)
        depth = 1 if self.step < recipe.plain_share * self.steps else recipe.depth
        for module in self._modules.values():
            module.zero_grad()
        value = 0.0
        if len(mine.lengths):
            hidden = tuple(layer[self._rank :: self._world] for layer in hidden)
            with self._products():
                loss = self._loss(mine, hidden, depth) / count
            loss.backward()  # type: ignore[no-untyped-call]
            value = float(loss.detach())
            self._train_discriminator(count)
        value = self._add_up(value)
        if not math.isfinite(value):
            kept = f"the head of step {self.best['step']} is kept in {self._folder / _BEST}"
            what = f"the loss of step {self.step} is {value} (sequences {indices})"
            message = f"{what}; {kept}: lower the rates, or look at the text"
            raise NumericsError(message, slug="loss_not_finite")
        factor = recipe.rate_at(self.step, self.steps)
        for name, optimizer in self._optimizers.items():
            optimizer.param_groups[0]["lr"] = self._rates[name] * factor
            optimizer.step()
        self.step += 1
        return value

    def _loss(self, batch: Batch, hidden: tuple[torch.Tensor, ...], depth: int) -> torch.Tensor:
        """Return the sum over rows and levels."""
        recipe = self.recipe
        total = torch.zeros(())
        levels = depth if self.head.max_depth is None else self.head.max_depth
        for level, features in enumerate(roll_out(self.head, batch, levels, hidden)):
            probs = batch.shifted(batch.top_probs, level + 1)
            used = probs.sum(-1) > 0
            picked = features[used]
            logits = level_logits(self.head, batch, picked, level, used)
            if recipe.loss == "cross-entropy":
                targets = batch.shifted(batch.targets, level + 1)[used]
                rows = cross_entropy(logits, batch.reachable(targets[:, None], used)[:, 0])
            else:
                ids = batch.reachable(batch.shifted(batch.top_ids, level + 1)[used], used)
                rows = LOSSES[recipe.loss](logits, ids, probs[used])
            if recipe.feature_weight or self._discriminator is not None:
                true = batch.shifted(batch.hidden[0], level + 1)[used].float()
                rows = rows + recipe.feature_weight * feature_regression(picked, true)
                if self._discriminator is not None and self.step >= _ADVERSARIAL_FROM * self.steps:
                    rows = rows + recipe.adversarial_weight * self._discriminator.head_loss(picked)
                    self._pairs.append((true, picked.detach()))
            total = total + recipe.decay**level * rows.sum()
        return total

    def _train_discriminator(self, count: int) -> None:
        """Set the discriminator's gradients, which the head's loss has left dirty, from its own."""
        if self._discriminator is None:
            return
        self._discriminator.zero_grad()
        for true, made in self._pairs:
            loss = self._discriminator.own_loss(true, made).sum() / count
            loss.backward()  # type: ignore[no-untyped-call]
        self._pairs.clear()

    def _products(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def _with_noise(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return hidden states with noise: in drafts the head reads its own, which are inexact."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.step)

        def noisy(states: torch.Tensor) -> torch.Tensor:
            size = states.square().mean(-1, keepdim=True).sqrt()
            noise = torch.randn(states.shape, generator=generator)
            return states + self.recipe.noise * size * noise

        return tuple(noisy(layer.float()) for layer in batch.hidden)

    def _add_up(self, value: float) -> float:
        """Add gradients and the loss over all processes."""
        if self._world == 1:
            return value
        parameters = [p for module in self._modules.values() for p in module.parameters()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([torch.tensor([value]), *(g.reshape(-1) for g in gradients)])
        distributed.all_reduce(flat)
        parts = torch.split(flat[1:], [p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.reshape(parameter.shape).clone()
        return float(flat[0])

    def _plan(self, epoch: int) -> list[list[int]]:
        if epoch not in self._plans:
            lengths, recipe = self._shards.lengths, self.recipe
            self._plans[epoch] = plan_epoch(lengths, recipe.max_rows, recipe.seed, epoch)
        return self._plans[epoch]

    def _indices(self, step: int) -> list[int]:
        """Return the sequences of a step."""
        epoch = 0
        while step >= len(plan := self._plan(epoch)):
            step, epoch = step - len(plan), epoch + 1
        return plan[step]

    def measure(self) -> Acceptance:
        """Return acceptance on the held-out text."""
        start = monotonic()
        with self._products():
            found = measure_acceptance(self.head, self._texts, self._places, _CHAIN)
        self.measuring = monotonic() - start
        return found

    def _keep_if_best(self, loss: float) -> None:
        found = self.measure()
        measured = {"tau": found.tau, "by_depth": list(found.by_depth)}
        self.curve.append(point := {"step": self.step, "loss": loss, **measured})
        if self.best is point and self._rank == 0:
            record = {**self._record, "recipe": self.recipe.as_dict(), "curve": self.curve}
            if isinstance(self.head, IndependentDraft):
                self.head.save(self._folder / _BEST, record)
            else:
                save(self.head, self._folder / _BEST, record=record)

    def _save(self) -> None:
        if self._rank == 0:
            progress = {"step": self.step, "curve": self.curve}
            save_state(self._folder / _STATE, self._modules, self._optimizers, progress)
