"""The caller's own functions over rows, and the most likely tokens of each place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.verifier.logprobs import TopLogprobs

VOCAB = 12
HISTORY = [5, 2, 7]
TREE = mv.TokenTree([-1, 0, 0, 1, 1, 3])
TOKENS = [7, 1, 2, 3, 4, 5]


def draft() -> mv.Draft:
    return mv.Draft(TREE, TOKENS)


def run(processors: list[Any], logits: Any, **options: Any) -> mv.Verdict:
    options = {"seed": 3, "position": 2, "history": HISTORY, **options}
    return mv.verify(draft(), logits, processors=processors, **options)


def towards(*path: int) -> np.ndarray:
    """Rows that make the walk go down a path of tokens, and then emit token 9."""
    logits = np.zeros((6, VOCAB), np.float32)
    for node, token in zip([0, 1, 3], [*path, 9], strict=False):
        logits[node, token] = 90
    return logits


def test_levels_come_in_one_call_each_and_only_when_reached() -> None:
    calls: list[list[list[int]]] = []

    def spy(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        assert scores.dtype == np.float32
        assert scores.shape == (len(ids), VOCAB)
        calls.append(ids.tolist())
        return scores

    verdict = run([spy], towards(1, 3))
    assert verdict.tokens.tolist() == [1, 3, 9]
    one = [[*HISTORY, 1], [*HISTORY, 2]]
    two = [[*HISTORY, 1, 3], [*HISTORY, 1, 4]]
    assert calls == [[HISTORY], one, two]
    calls.clear()
    run([spy], towards(9))
    assert calls == [[HISTORY]]


@pytest.mark.parametrize("rule", ["token", "block", "gbv", "target_only"])
def test_no_level_comes_before_the_one_above_it(rule: str) -> None:
    lengths: list[int] = []

    def spy(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        lengths.append(ids.shape[1])
        return scores

    tree = mv.TokenTree([-1, 0, 1, 2])
    logits = np.zeros((4, VOCAB), np.float32)
    rows = None if rule == "target_only" else np.full((4, VOCAB), 1 / VOCAB, np.float32)
    law = "deterministic" if rule == "target_only" else "chain"
    chain = mv.Draft(tree, [7, 1, 2, 3], law, rows)
    mv.verify(chain, logits, rule=rule, processors=[spy], seed=1, position=2, history=HISTORY)
    assert lengths == sorted(set(lengths))
    assert lengths[0] == len(HISTORY)


def test_each_node_is_processed_with_its_own_path() -> None:
    def forbid_what_was(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        np.put_along_axis(scores, ids, -np.inf, axis=1)
        return scores

    logits = np.zeros((6, VOCAB), np.float32)
    for seed in range(40):
        verdict = run([forbid_what_was], logits, seed=seed)
        text = HISTORY + verdict.tokens.tolist()
        assert len(set(text)) == len(text)


def test_processors_run_in_order_after_penalties_and_cannot_undo_the_mask() -> None:
    seen: list[np.ndarray] = []

    def double(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return scores * 2

    def free(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(scores.copy())
        return np.zeros_like(scores)

    logits = np.ones((6, VOCAB), np.float32)
    mask = np.full((6, 1), 0b111, np.int32)
    params = mv.SamplingParams(logit_bias={1: 0.5})
    tokens = set()
    for seed in range(30):
        verdict = run([double, free], logits, params=params, bitmask=mask, seed=seed)
        tokens.update(verdict.tokens.tolist())
    np.testing.assert_array_equal(seen[0][0], [2, 3, 2] + [-np.inf] * 9)
    assert tokens == {0, 1, 2}


def test_torch_logits_bring_torch_tensors() -> None:
    def ban_nine(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert ids.dtype is torch.int64
        return scores.index_fill(1, torch.tensor([9]), -torch.inf).double()

    verdict = run([ban_nine], torch.from_numpy(towards(1, 3)).bfloat16())
    assert verdict.tokens.tolist()[:2] == [1, 3]
    assert verdict.tokens[2] != 9


class Parity:
    """Bans even tokens while the sum of all that were accepted is odd."""

    def __init__(self, total: int) -> None:
        self.total = total

    def accept(self, token: int) -> None:
        self.total += token

    def __call__(self, ids: Any, scores: np.ndarray) -> np.ndarray:
        assert len(ids) == 1
        assert self.total == ids.sum()
        scores = scores.copy()
        if self.total % 2:
            scores[:, ::2] = -np.inf
        return scores


class Forking(Parity):
    def fork(self) -> Forking:
        return Forking(self.total)


class RollingBack(Parity):
    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.taken: list[int] = []

    def accept(self, token: int) -> None:
        super().accept(token)
        self.taken.append(token)

    def rollback(self, n: int) -> None:
        self.total -= sum(self.taken[-n:])
        del self.taken[-n:]


@pytest.mark.parametrize("kind", [Forking, RollingBack])
def test_processors_with_state_follow_the_path_and_stand_at_the_root_again(kind: type) -> None:
    def stateless(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        rows = [Parity(int(i.sum()))(i[None], s[None])[0] for i, s in zip(ids, scores, strict=True)]
        return np.stack(rows)

    logits = np.random.default_rng(0).standard_normal((6, VOCAB)).astype(np.float32)
    processor = kind(sum(HISTORY))
    for seed in range(20):
        found = run([processor], logits, seed=seed)
        assert found.tokens.tolist() == run([stateless], logits, seed=seed).tokens.tolist()
        assert processor.total == sum(HISTORY)


def test_what_a_processor_raises_comes_out_as_it_is() -> None:
    class OwnError(Exception):
        pass

    def fail(ids: Any, scores: Any) -> Any:
        raise OwnError("mine")

    with pytest.raises(OwnError, match="mine"):
        run([fail], towards(1))


@pytest.mark.parametrize(
    ("processors", "options", "text"),
    [
        ([3], {}, r"processors\[0\]"),
        ([lambda ids, scores: scores[:, :3]], {}, r"returned shape \(1, 3\), wanted \(1, 12\)"),
        ([lambda ids, scores: scores], {"history": None}, "history: found None with processors"),
    ],
)
def test_bad_processors_are_named(
    processors: list[Any], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(mv.errors.ParamsError, match=text):
        run(processors, towards(1), **options)


def test_a_processor_that_leaves_nothing_names_the_node() -> None:
    def none_after_one(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return np.where(ids[:, -1:] == 1, -np.inf, scores)

    with pytest.raises(mv.errors.NumericsError, match="processors") as caught:
        run([none_after_one], towards(1, 3))
    assert caught.value.row == 1


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - np.log(np.exp(row - row.max()).sum()) - row.max()


@pytest.mark.parametrize("n", [1, 4, VOCAB])
def test_top_logprobs_are_raw_and_shaped(n: int) -> None:
    logits = np.random.default_rng(1).standard_normal((6, VOCAB)).astype(np.float32)
    logits[:, 1] = logits[:, 3] = logits.max() + 1
    params = mv.SamplingParams(temperature=0.5, top_k=3, banned=[11])
    verdict = mv.verify(draft(), logits, params, seed=2, position=2, top_logprobs=n)
    top = verdict.top_logprobs
    assert isinstance(top, TopLogprobs)
    assert len(top.tokens) == len(verdict.tokens)
    for place, node in enumerate([0, *verdict.path.tolist()]):
        raw = log_softmax(logits[node])
        order = np.lexsort((np.arange(VOCAB), -logits[node]))[:n]
        assert top.tokens[place].tolist() == order.tolist()
        np.testing.assert_allclose(top.raw[place], raw[order], atol=1e-6)
        np.testing.assert_allclose(top.emitted[place], raw[verdict.tokens[place]], atol=1e-6)
        edited = logits[node] * 2
        edited[11] = -np.inf
        edited[edited < np.sort(edited)[-3]] = -np.inf
        np.testing.assert_allclose(top.shaped[place], log_softmax(edited)[order], atol=1e-6)
    short = verdict.cut(1).top_logprobs
    assert short is not None
    assert short.tokens.tolist() == top.tokens[:1].tolist() == top.cut(1).tokens.tolist()
    assert short.emitted.shape == (1,)


def test_top_logprobs_are_left_out_unless_asked_for_and_end_with_the_row() -> None:
    logits = np.full((1, 4), -np.inf, np.float32)
    logits[0, 2] = 0
    one = mv.Draft.chain([])
    assert mv.verify(one, logits, seed=0, position=0).top_logprobs is None
    top = mv.verify(one, logits, seed=0, position=0, top_logprobs=3).top_logprobs
    assert top is not None
    assert top.tokens.tolist() == [[2, -1, -1]]
    assert top.raw.tolist() == [[0, -np.inf, -np.inf]]
    for n in (-1, 5):
        with pytest.raises(mv.errors.ParamsError, match="top_logprobs"):
            mv.verify(one, logits, seed=0, position=0, top_logprobs=n)
