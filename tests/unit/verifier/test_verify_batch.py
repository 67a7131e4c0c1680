"""`verify_batch` and its classes: every argument when it is wrong, and what can be seen."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv

torch = pytest.importorskip("torch")

VOCAB = 5
Q = np.full((3, 2, VOCAB), 1 / VOCAB)
CHAINS = {"tokens": [[1, 2], [3, -1], [0, 4]], "lengths": [2, 1, 2]}
LOGITS = np.random.default_rng(3).normal(0, 1, (8, VOCAB)).astype(np.float32)
NOISE = {"seeds": [4, 5, 6], "positions": [7, 8, 9]}


def drafts() -> mv.DraftBatch:
    return mv.DraftBatch.chains(**CHAINS, probs=Q)


def with_bad_row() -> np.ndarray:
    logits = LOGITS.copy()
    logits[3] = np.nan  # The root's row of sequence 1.
    return logits


@pytest.mark.parametrize(
    ("change", "kind", "message", "sequence"),
    [
        ({"logits": LOGITS[:7]}, mv.errors.DraftError, "7 rows, wanted 8", None),
        ({"logits": [LOGITS[:3]]}, mv.errors.DraftError, "logits: found 1 entries", None),
        ({"logits": [LOGITS[:3], LOGITS[:3], LOGITS[:3]]}, mv.errors.DraftError, "3 rows", 1),
        (
            {"logits": [LOGITS[:3], "x", LOGITS[:3]]},
            mv.errors.DraftError,
            "str has no __dlpack__",
            1,
        ),
        (
            {"logits": [LOGITS[:3], LOGITS[:2], LOGITS[:3].astype(int)]},
            mv.errors.DraftError,
            "int",
            2,
        ),
        ({"logits": LOGITS.astype(np.float64)}, mv.errors.DraftError, "float64", None),
        (
            {"logits": LOGITS[None, :3].repeat(2, 0)},
            mv.errors.DraftError,
            "2 matrices, wanted 3",
            None,
        ),
        ({"logits": LOGITS[None, :2].repeat(3, 0)}, mv.errors.DraftError, "2 rows", 0),
        ({"logits": LOGITS[:, :3]}, mv.errors.DraftError, "5 tokens", 0),
        ({"logits": with_bad_row()}, mv.errors.NumericsError, "NaN", 1),
        ({"params": [mv.SamplingParams()] * 2}, mv.errors.DraftError, "params: found 2", None),
        ({"rule": ["auto"]}, mv.errors.DraftError, "rule: found 1", None),
        ({"rule": ["auto", "auto", "rrsw"]}, mv.errors.RuleError, "rrsw", 2),
        ({"rule": "nonsense"}, mv.errors.RuleError, "nonsense", 0),
        ({"seeds": [1, 2]}, mv.errors.DraftError, "seeds: found 2", None),
        ({"seeds": 1}, mv.errors.ParamsError, "seeds: found 1, wanted one for each", None),
        ({"seeds": [1, -2, 3]}, mv.errors.ParamsError, "seeds: found -2", 1),
        ({"seeds": [1, 2, 2**64]}, mv.errors.ParamsError, r"wanted 0 <= seeds < 2\*\*64", 2),
        ({"seeds": [1.5, 2, 3]}, mv.errors.ParamsError, "wanted an integer", 0),
        ({"positions": [1]}, mv.errors.DraftError, "positions: found 1", None),
        ({"positions": [1, 2, -1]}, mv.errors.ParamsError, "positions: found -1", 2),
        ({"positions": [1, 2**33, 1]}, mv.errors.ParamsError, "position", 1),
        ({"lossy": [None]}, mv.errors.DraftError, "lossy: found 1", None),
        ({"lossy": mv.lossy.topk(2), "rule": "block"}, mv.errors.RuleError, "lossy", 0),
    ],
)
def test_bad_arguments_name_the_sequence(change, kind, message, sequence) -> None:
    arguments = {"logits": LOGITS, **NOISE, **change}
    with pytest.raises(kind, match=message) as caught:
        mv.verify_batch(drafts(), **arguments)
    assert caught.value.sequence == sequence
    if sequence is not None:
        assert str(caught.value).startswith(f"sequence {sequence}: ")


def test_what_is_not_drafts_at_all_is_a_type_error() -> None:
    for wrong in ([1, 2, 3], [None], "abc"):
        with pytest.raises(TypeError):
            mv.verify_batch(wrong, LOGITS, **NOISE)


PACKED = {
    "offsets": [0, 2, 4],
    "parents": [-1, 0, -1, 0],
    "tokens": [0, 1, 2, 3],
    "law": "chain",
    "probs": np.full((4, VOCAB), 0.2),
}


@pytest.mark.parametrize(
    ("change", "kind", "message", "sequence"),
    [
        ({"offsets": [1, 2, 4]}, mv.errors.DraftError, "offsets", None),
        ({"offsets": [0, 2, 2]}, mv.errors.DraftError, "offsets", 1),
        ({"offsets": [0, 2, 3]}, mv.errors.DraftError, "parents", None),
        ({"offsets": [[0, 2]]}, mv.errors.DraftError, "offsets", None),
        ({"parents": [-1, 0, -1, 1]}, mv.errors.DraftError, "node 1", 1),
        ({"parents": [-1, 0, 0, 1]}, mv.errors.DraftError, "node 0", 1),
        ({"parents": [-1, 0]}, mv.errors.DraftError, "parents", None),
        ({"tokens": [0, 1, 2]}, mv.errors.DraftError, "tokens", None),
        ({"tokens": [0, -1, 2, 3]}, mv.errors.DraftError, "node 1", 0),
        ({"tokens": [0.5] * 4}, mv.errors.DraftError, "tokens", None),
        ({"law": "nonsense"}, mv.errors.DraftError, "nonsense", None),
        ({"law": "unknown"}, mv.errors.DraftError, "never reads drafter rows", None),
        ({"law": "mixed"}, mv.errors.DraftError, "sampled", 0),
        ({"law": "mixed", "sampled": [False] * 3}, mv.errors.DraftError, "sampled", None),
        ({"probs": None}, mv.errors.DraftError, "needs the rows", 0),
        ({"probs": np.full((2, VOCAB), 0.2)}, mv.errors.DraftError, "row", 1),
        ({"probs": np.eye(VOCAB)[[1, 1, 1, 1]]}, mv.errors.DraftError, "token 3", 1),
        ({"rows": [0, 1, 2]}, mv.errors.DraftError, "rows", None),
        ({"rows": [0, -1, 9, -1]}, mv.errors.DraftError, "row", 1),
        ({"logits": LOGITS[:4]}, mv.errors.DraftError, "not both", None),
        ({"vocab": [1, 2]}, mv.errors.DraftError, "vocab", None),
        ({"vocab": [0, 1, 2, 4, 5]}, mv.errors.DraftError, "token 3", 1),
    ],
)
def test_bad_packed_drafts_name_the_sequence(change, kind, message, sequence) -> None:
    with pytest.raises(kind, match=message) as caught:
        mv.DraftBatch(**{**PACKED, **change})
    assert caught.value.sequence == sequence


@pytest.mark.parametrize(
    ("change", "kind", "message", "sequence"),
    [
        ({"tokens": [1, 2, 3]}, mv.errors.DraftError, "two-dimensional", None),
        ({"tokens": [[1, 2], [-1, 3], [4, 5]]}, mv.errors.DraftError, "node 1", 1),
        ({"lengths": [2, 1]}, mv.errors.DraftError, "lengths", None),
        ({"lengths": [2, 1, 3]}, mv.errors.ParamsError, "lengths: found 3 of 2", 2),
        ({"lengths": [2, -1, 2]}, mv.errors.ParamsError, "lengths: found -1", 1),
        ({"roots": [1]}, mv.errors.DraftError, "roots", None),
        ({"probs": Q[:2]}, mv.errors.DraftError, "2 matrices, wanted 3", None),
        ({"probs": Q[:, :1]}, mv.errors.DraftError, "row", 0),
        ({"probs": Q[0]}, mv.errors.DraftError, "vocabulary", None),
        ({"probs": Q[:, :, ::-1]}, mv.errors.DraftError, "strides", None),
        ({"probs": Q.transpose(1, 0, 2)}, mv.errors.DraftError, "2 matrices", None),
        ({"probs": 0 * Q}, mv.errors.DraftError, "q > 0", 0),
    ],
)
def test_bad_chains_name_the_sequence(change, kind, message, sequence) -> None:
    with pytest.raises(kind, match=message) as caught:
        mv.DraftBatch.chains(**{**CHAINS, "probs": Q, **change})
    assert caught.value.sequence == sequence


def test_one_row_of_probabilities_may_serve_all_chains() -> None:
    shared = np.broadcast_to(Q[:1], Q.shape)  # Stride 0: nothing is repeated in memory.
    found = mv.verify_batch(mv.DraftBatch.chains(**CHAINS, probs=shared), LOGITS, **NOISE)
    assert found.tokens.tolist() == mv.verify_batch(drafts(), LOGITS, **NOISE).tokens.tolist()


def test_transposed_matrices_are_refused() -> None:
    logits = np.zeros((3, 3, VOCAB), np.float32).transpose(1, 0, 2)
    with pytest.raises(mv.errors.DraftError, match="pass a contiguous tensor"):
        mv.verify_batch(drafts(), logits, **NOISE)


def test_seeds_and_positions_of_any_integer_kind() -> None:
    wanted = mv.verify_batch(drafts(), LOGITS, seeds=[2**64 - 1, 0, 3], positions=[7, 8, 9])
    for kind in (np.asarray, tuple):
        seeds = kind(np.array([2**64 - 1, 0, 3], np.uint64))
        found = mv.verify_batch(drafts(), LOGITS, seeds=seeds, positions=torch.tensor([7, 8, 9]))
        assert found.tokens.tolist() == wanted.tokens.tolist()


def test_verdicts_are_a_sequence() -> None:
    found = mv.verify_batch(drafts(), torch.from_numpy(LOGITS).requires_grad_(), **NOISE)
    assert len(found) == len(list(found)) == 3
    assert found[-1].tokens.tolist() == found[2].tokens.tolist()
    assert found.rules == ["block"] * 3
    assert found.lossless
    assert repr(found).startswith("VerdictBatch(3 verdicts, ")
    for outside in (3, -4):
        with pytest.raises(IndexError):
            found[outside]
        with pytest.raises(IndexError):
            drafts()[outside]


def test_cutting_a_batch_checks_the_counts() -> None:
    found = mv.verify_batch(drafts(), LOGITS, **NOISE)
    with pytest.raises(mv.errors.DraftError, match="counts"):
        found.cut([1, 1])
    with pytest.raises(mv.errors.ParamsError, match="counts: found 0") as caught:
        found.cut([1, 0, 1])
    assert caught.value.sequence == 1


def test_no_sequences_are_no_verdicts() -> None:
    for empty in ([], mv.DraftBatch([0], [], [], "deterministic")):
        found = mv.verify_batch(empty, LOGITS[:0], seeds=[], positions=[])
        assert (len(found), found.tokens.tolist(), found.offsets.tolist()) == (0, [], [0])


@pytest.mark.parametrize("wrong", [0, -1, 1025, 2**70])
def test_numbers_of_threads_are_checked(wrong: int) -> None:
    with pytest.raises(mv.errors.ParamsError, match="n: found"):
        mv.verifier.set_num_threads(wrong)
