"""What may be passed to a function that is documented to take something else."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier import growers
from mtp_verify.verifier.growers import TreeShape

if TYPE_CHECKING:
    import random


class CallerError(Exception):
    """What a caller's own object raises; it has to come out as it is."""


class Claims:
    """A sequence of any length, as far as it says."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return 0


def _boom(*args: Any, **kwargs: Any) -> Any:
    raise CallerError


def _hostile(name: str, value: Any = _boom, **more: Any) -> Any:
    """An object one of whose own methods raises, or gives what it should not."""
    method = value if value is _boom else (lambda *args, **kwargs: value)
    return type("Hostile", (), {name: method, **more})()


def _of_length(length: Any) -> Any:
    return _hostile("__len__", length, __getitem__=lambda self, index: 0)


_HOSTILE = [
    *(
        _hostile(name)
        for name in (
            "__len__", "__getitem__", "__iter__", "__index__", "__float__", "__bool__", "__eq__",
            "__hash__", "__dlpack__", "__dlpack_device__", "tolist", "__array__", "__getattr__",
            "__str__", "__repr__", "__int__",
        )
    ),
    _hostile("__dlpack__", __dlpack_device__=lambda self: (1, 0)),
    _hostile("__dlpack__", None, __dlpack_device__=lambda self: (1, 0)),
    _hostile("__dlpack__", 3, __dlpack_device__=lambda self: (1, 0)),
    _hostile("__dlpack__", None, __dlpack_device__=lambda self: (2, 0)),
    _hostile("__dlpack__", None, __dlpack_device__=lambda self: None),
    _hostile("__index__", "one"),
    _hostile("__float__", "one"),
    _hostile("tolist", None),
    _hostile("tolist", Claims(2**62)),
    _of_length(-1),
    _of_length("two"),
    _of_length(2**100),
]  # fmt: skip

_NUMBERS = [
    None, True, False, 0, 1, 2, 3, 7, 16, -1, -2, 2**14, 2**31 - 1, 2**31, 2**32, 2**40, 2**53,
    2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**70, -(2**63), -(2**70), 10**5000, 0.0, 0.5, 1.0, 1.5,
    -0.5, 1e-8, 4e38, float("nan"), float("inf"), float("-inf"), 1e300, 1j, np.int64(3),
    np.float32(0.5), np.uint64(2**63),
]  # fmt: skip

_LISTS = [
    "", "auto", "block", "swor", "chain", "mixed", "greedy", "\ud800", "a" * 1000, b"\1\2", [],
    [0], [-1], [-1, 0, 0], [-1, 0, 1], [0, 1, 2], [0.5, 0.25], [True, False], [[0], [1]],
    [[], [1, 2]], [None], ["a"], [2**70], [10**5000], (), (1, 2), {}, {1: 2.0}, {0},
    frozenset({1}), range(3), range(2**40), range(2**62), deque([-1, 0]), Claims(0), Claims(3),
    Claims(2**40), Claims(2**62), object(), object, len, Ellipsis, lambda *args,
    **kwargs: args[-1] if args else None, _boom,
]  # fmt: skip


def _capsule() -> Any:
    """A capsule, offered as an array would be, that was taken already."""
    capsule = np.zeros(4, np.float32).__dlpack__()
    np.from_dlpack(_hostile("__dlpack__", capsule, __dlpack_device__=lambda self: (1, 0)))
    return _hostile("__dlpack__", capsule, __dlpack_device__=lambda self: (1, 0))


def _arrays() -> list[Any]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, 4)).astype(np.float32)
    probs = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
    fixed = rows.copy()
    fixed.flags.writeable = False
    bad = rows.copy()
    bad[1, 2] = np.nan
    shapes = [
        (),
        (0,),
        (4,),
        (0, 0),
        (1, 0),
        (0, 4),
        (3, 4),
        (1, 4),
        (2, 3, 4),
        (1, 1, 1, 1),
        (0, 2**32),
    ]
    return [
        rows, probs, fixed, bad, rows[:, ::2], rows[:, ::-1], rows[::2], rows.T,
        rows.astype(">f4"), np.full((3, 4), -np.inf, np.float32),
        np.full((2, 4), np.inf, np.float32), *(np.zeros(shape, np.float32) for shape in shapes),
        *(rows.astype(kind) for kind in (np.float16, np.float64, np.int32, np.uint8, bool)),
        rows.astype(complex), rows.astype(object), np.array(["a", "b"]), np.array([None]),
        np.zeros(2, [("a", np.int32)]), np.array([-1, 0, 0]), np.array([-1, 0, 1], np.int8),
        np.array([2**63], np.uint64), np.arange(4.0), np.array("2020-01-01", np.datetime64),
        np.full((3, 1), -1, np.int32), np.zeros((3, 1), np.int32),
        np.lib.stride_tricks.as_strided( np.zeros(1, np.float32), (3, 4), (0, 0) ),
        np.ma.masked_array(rows, rows > 0), np.zeros(8, np.int64), np.full((4, 4), -1, np.int32),
    ]  # fmt: skip


def _objects() -> list[Any]:
    tree = mv.TokenTree([-1, 0, 0])
    chain = mv.Draft.chain([1, 2])
    probs = np.full((2, 4), 0.25, np.float32)
    logits = np.zeros((3, 4), np.float32)
    noise = {"seed": 1, "position": 0}
    drawn = mv.Draft.chain([1, 2], probs)
    verdict = mv.verify(chain, logits, **noise)
    batch = mv.DraftBatch.chains([[1, 2]], [2])
    verdicts = mv.verify_batch(batch, logits, seeds=[1], positions=[0])
    table = mv.kv.BlockTable(8, 2)
    table.add_sequence(0, 3)
    params = [
        mv.SamplingParams(),
        mv.SamplingParams(temperature=0),
        mv.SamplingParams(top_p=0.5, repetition_penalty=1.5, banned=[1]),
    ]
    return [
        tree, mv.TokenTree([-1]), chain, drawn, mv.Draft.chain([]), verdict, batch, verdicts,
        table, *params, params[0]._core, params[2]._core, mv.lossy.topk(2), mv.lossy.ensemble(0.5),
        TreeShape.by_depth(2, 1), mv.kv.commit_plan(tree, [1], 0), growers.Heap(3),
        growers.Chain(2, **noise), growers.Stochastic(3, **noise), _core.NGramIndex(3, 1, 64),
        mv.SamplingParams, mv.Draft, [chain, drawn], [verdict], [params[0], None],
        mv.errors.DraftError("text"), _core.SuffixStore(256, 4),
    ]  # fmt: skip


class Values:
    """Any value, most often one that could be meant."""

    def __init__(self) -> None:
        self.kinds = [_NUMBERS, _LISTS, _arrays(), _objects(), [*_HOSTILE, _capsule()]]

    def any(self, rng: random.Random) -> Any:
        """A value of any kind."""
        weights = (6, 5, 6, 6, 2)
        return rng.choice(rng.choices(self.kinds, weights)[0])

    def near(self, rng: random.Random, usual: Any) -> Any:
        """`usual` as a rule, else any value."""
        return self.any(rng) if rng.random() < 0.35 else usual
