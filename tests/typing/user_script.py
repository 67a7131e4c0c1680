"""What users write, with its types: `make lint` holds it to strict mypy and pyright.

tests/typing/test_types.py runs it too.
"""

from collections.abc import Sequence
from typing import assert_type

import numpy as np
import torch
from numpy.typing import NDArray

import mtp_verify as mv
from mtp_verify.certification import Certificate
from mtp_verify.decoder.decode import Paged
from mtp_verify.decoder.generation import Generation, Stats, StatsRecord
from mtp_verify.verifier.tree_shape import TreeShape
from mtp_verify.verifier.words import (
    BuildInfo,
    FinishReason,
    HeadLaw,
    Law,
    LossyName,
    Preset,
    RuleCore,
    RuleName,
    RuleRecord,
)


def verify_one() -> mv.Verdict:
    """A draft, its verdict and what a cache keeps of it."""
    tree = mv.TokenTree([-1, 0, 0])
    assert_type(tree.parents, NDArray[np.int64])
    draft = mv.Draft(tree, [-1, 2, 0], law="deterministic")
    assert_type(draft.law, Law)
    assert_type(mv.best_rule(draft), RuleName)
    params = mv.SamplingParams(temperature=0.7, top_k=2, preset="vllm")
    assert_type(params.preset, Preset)
    logits = np.zeros((3, 4), np.float32)
    verdict = mv.verify(draft, logits, params, rule="target_only", seed=1, position=0)
    assert_type(verdict, mv.Verdict)
    assert_type(verdict.tokens, NDArray[np.int64])
    assert_type(verdict.logprobs, NDArray[np.float32])
    assert_type(verdict.rule, RuleName | LossyName)
    assert_type(verdict.num_accepted, int)
    assert_type(mv.expected_accepted(draft, logits, rule="auto"), float)
    assert_type(mv.verifier.alpha_star(np.ones(2) / 2, np.ones(2) / 2, 1, "iid"), float)
    plan = mv.kv.commit_plan(tree, verdict.path, start=4)
    assert_type(plan, mv.kv.CommitPlan)
    assert_type(plan.moves, NDArray[np.int64])
    lossy = mv.verify(draft, logits, lossy=mv.lossy.typical(0.3, 0.1), seed=1, position=0)
    assert_type(lossy.lossless, bool)
    return verdict


def verify_many() -> None:
    """A batch with its bookkeeping of blocks."""
    drafts = mv.DraftBatch.chains([[1, 2]], [2])
    mv.verifier.set_num_threads(1)
    verdicts = mv.verify_batch(
        drafts,
        np.zeros((3, 4), np.float32),
        rule=["block"],
        seeds=[mv.derive_seed(1, 0)],
        positions=[0],
    )
    assert_type(verdicts, mv.VerdictBatch)
    assert_type(verdicts[0], mv.Verdict)
    assert_type(verdicts.rules, list[RuleName | LossyName])
    table, near = mv.kv.BlockTable(8, 4), mv.kv.BlockTable(8, 4, prefix_cache=True, window=2)
    given: list[tuple[int, int, str]] = [(0, 1, "digest")]
    assert_type(mv.kv.add_sequence([table, near], 0, 1, [3], keys={"salt": "a"}, items=given), int)
    assert_type((near.window, near.num_cached([3])), tuple[int | None, int])
    assert_type(near.reset_prefix_cache(), int)
    reserved = table.reserve_batch([0], [3])
    assert_type(reserved, mv.kv.ReservationBatch)
    assert_type(reserved[0], mv.kv.Reservation)
    assert_type(table.block_table([0]), NDArray[np.int32])
    assert_type(table.lengths([0], out=torch.zeros(1, dtype=torch.int64)), torch.Tensor)
    plans = table.commit_batch([0], drafts, verdicts)
    assert_type(plans, mv.kv.CommitPlanBatch)
    assert_type(plans.lengths, NDArray[np.int64])
    found = mv.ops.verify_batch(
        torch.zeros(1, 3, dtype=torch.int64),
        torch.zeros(1, 3, 4),
        law="deterministic",
        rule="auto",
        seeds=torch.tensor([1]),
        positions=torch.tensor([0]),
    )
    assert_type(found.tokens, torch.Tensor)


def read_records() -> list[RuleName]:
    """The table of rules, and how the core was built."""
    rules = mv.rules()
    assert_type(rules, list[RuleRecord])
    assert_type(rules[0]["core"], RuleCore)
    assert_type(rules[0]["laws"], list[Law])
    assert_type(mv.verifier.build_info(), BuildInfo)
    assert_type(mv.verifier.build_info()["simd_available"], list[str])
    assert_type(mv.__version__, str)
    return [rule["name"] for rule in rules]


def generate(rule: RuleName) -> Generation:
    """A whole generation with everything that a decoder takes."""

    def rows(tokens: tuple[int, ...]) -> list[float]:
        return [0.0, 1.0, 0.5, float(len(tokens) % 3)]

    target = mv.testing.TableTarget(rows, 4)
    drafter = mv.drafters.Combined([mv.drafters.NGram(), mv.drafters.Suffix()], mode="merge")
    assert_type(drafter.laws, tuple[Law, ...])
    decoder = mv.Decoder(target, drafter, rule=rule, batching="each")
    assert_type(decoder, mv.Decoder)
    made = decoder.generate([1, 2, 1, 2], max_new_tokens=4, seed=1)
    assert_type(made, Generation)
    assert_type(made.tokens, list[list[int]])
    assert_type(made.sequences, torch.Tensor)
    assert_type(made.finish_reasons, list[FinishReason])
    assert_type(made.logprobs, list[NDArray[np.float32]])
    assert_type(made.stats, Stats)
    assert_type(made.stats.as_dict(), StatsRecord)
    assert_type(made.stats.as_dict()["tau"], float)
    return made


class Chain(mv.TargetCache):
    """A cache of one's own: the tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        """Its entries."""
        return len(self.tokens)

    def commit(self, plan: mv.kv.CommitPlan) -> None:
        """Keep what was accepted."""
        for move in plan.moves:
            self.tokens[int(move[1])] = self.tokens[int(move[0])]
        self.crop(plan.length)

    def crop(self, length: int) -> None:
        """Forget the end."""
        del self.tokens[length:]


class Flat(mv.Target):
    """A target of one's own."""

    vocab_size = 4

    def new_cache(self, past: object = None) -> Chain:
        """Nothing yet."""
        return Chain()

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        cache: Chain,
        hidden_layers: Sequence[int] = (),
        *,
        num_logits: int,
    ) -> tuple[torch.Tensor, None]:
        """Rows of zeros."""
        cache.tokens += [int(token) for token in tokens[0]]
        return torch.zeros(num_logits, 4), None


class Repeats(mv.Drafter):
    """A drafter of one's own."""

    laws: tuple[Law, ...] = ("deterministic",)

    def propose(
        self, requests: Sequence[mv.drafters.Request], budgets: Sequence[int]
    ) -> list[mv.Draft]:
        """The last token again."""
        pairs = zip(requests, budgets, strict=True)
        return [mv.Draft.chain(request.tokens[-1:] * budget) for request, budget in pairs]


def generate_with_own_parts() -> Generation:
    """A target and a drafter of one's own, tried and used."""
    target, drafter = Flat(), Repeats()
    mv.testing.assert_target(target)
    mv.testing.assert_drafter(drafter, [1, 2], 4)
    decoder = mv.Decoder(target, drafter)
    assert_type(decoder.target, mv.Target)
    assert_type(decoder.drafter, mv.Drafter | None)
    assert_type(mv.testing.assert_lossless(lambda: decoder, [1], 2), float)
    return decoder.generate([1, 2], max_new_tokens=4, seed=1)


def generate_with(
    model: mv.heads.Head, planner: mv.Planner, constraint: mv.constraints.Constraint
) -> mv.Decoder:
    """What needs a model; for the type checker alone."""
    shape = TreeShape.by_depth(2, 2)
    head = mv.drafters.Heads(model, shape=shape, law="coupled")
    assert_type(head.law, HeadLaw)
    decoder = mv.Decoder(object(), head, planner="auto", cache="paged")
    mv.Decoder(object(), head, planner=planner, cache=Paged(8, block_size=4))
    decoder.generate([1], max_new_tokens=1, constraint=constraint)
    with mv.hf.patch(rule="block") as stats:
        assert_type(stats, Stats)
    mv.hf.speculative(head, rule="auto", cache="paged", planner="auto")
    return decoder


def grow() -> mv.Draft:
    """A draft from a drafter's rows."""
    grower = mv.growers.Fixed(TreeShape.by_depth(2), law="iid", seed=1, position=0)
    assert_type(grower.law, Law)
    while len(grower.frontier()):
        grower.extend(np.zeros((len(grower.frontier()), 4), np.float32))
    draft = grower.finish()
    assert_type(draft, mv.Draft)
    return draft


def certify() -> Certificate:
    """A sampler, from outside."""

    def draw(prompt: Sequence[int], num: int, seed: int) -> NDArray[np.int64]:
        return np.random.default_rng(seed + len(prompt)).integers(0, 2, (num, 1))

    def rows(tokens: tuple[int, ...]) -> list[float]:
        return [0.0, 0.0]

    found = mv.certify(draw, rows, prompts=[(1,)], length=1, max_samples=64)
    assert_type(found, Certificate)
    assert_type(found.controls, dict[str, bool])
    return found


def catch() -> list[str]:
    """Every error is one of ours, and says what it is about."""
    errors: list[mv.MtpVerifyError] = [
        kind("found nothing", slug="none", row=1)
        for kind in (
            mv.errors.CacheError, mv.errors.DraftError, mv.errors.InternalError,
            mv.errors.NumericsError, mv.errors.ParamsError, mv.errors.RuleError,
            mv.errors.ServerError, mv.errors.UnsupportedModelError,
        )
    ]  # fmt: skip
    try:
        mv.kv.BlockTable(1, 1).add_sequence(0, 2)
    except mv.errors.OutOfBlocksError as error:
        errors.append(error)
    assert_type(errors[0].slug, str | None)
    assert_type(errors[0].row, int | None)
    return [error.slug or "" for error in errors]
