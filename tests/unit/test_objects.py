"""What every public object that holds data has: pickle, copy, equality, a short text."""

from __future__ import annotations

import copy
import importlib
import inspect
import multiprocessing
import pickle
import random

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.verifier import growers
from tests.models import tiny_model
from tests.objects import (
    IDLE,
    NOISE,
    OBJECTS,
    classes,
    echo,
    in_flight,
    near_table,
    rows,
    table,
    verdict,
)

PUBLIC = (
    "",
    ".drafters",
    ".verifier.growers",
    ".heads",
    ".verifier.lossy",
    ".integrations.ops",
    ".decoder.planning",
    ".testing.stats",
    ".decoder.decode",
    ".commands.shared.compare",
    ".decoder.constraints",
)

# Public classes that hold no data of their own, and why.
NO_DATA = {
    "Decoder": "runs a model; see below",
    "Head": "a torch module", "CausalHead": "a torch module", "ParallelHead": "a torch module",
    "Shared": "parts of a model, which torch pickles",
    "Model": "runs a model", "ModelTree": "runs a model", "Heads": "runs a head",
    "DeviceDrafts": "tensors of a device, which are not compared",
    "DeviceVerifier": "memory of a device",
    "MeasuredCosts": "times a model", "Translation": "reads two tokenizers",
    "SuffixStore": "threads share it; refuses",
    "Drafter": "a base class", "Constraint": "a protocol", "Matcher": "a base class",
    "Target": "a protocol", "TargetCache": "a protocol",
    "LLGuidance": "a grammar of another library", "XGrammar": "a grammar of another library",
    **dict.fromkeys((n for n in growers.__all__ if n[0].isupper() and n != "TreeShape"),
                    "in flight; refuses"),
}  # fmt: skip


def test_each_public_class_is_tried_here_or_has_a_reason():
    found = {}
    for name in PUBLIC:
        module = importlib.import_module(f"mtp_verify{name}")
        found |= {n: getattr(module, n) for n in module.__all__}
    public = {n: c for n, c in found.items() if inspect.isclass(c)}
    errors = {n for n, c in public.items() if issubclass(c, Exception)}
    tried = {c.__name__ for c in classes()}
    assert public.keys() - errors - tried == NO_DATA.keys()


@pytest.mark.parametrize("name", OBJECTS)
def test_pickles_and_copies_are_equal(name):
    value = OBJECTS[name]()
    is_error = isinstance(value, Exception)
    copies = [pickle.loads(pickle.dumps(value, protocol)) for protocol in range(2, 6)]
    for other in [*copies, copy.copy(value), copy.deepcopy(value)]:
        assert type(other) is type(value)
        if is_error:
            assert (str(other), vars(other)) == (str(value), vars(value))
            continue
        assert other == value
        assert (other != value) is False
        assert repr(other) == repr(value)
    assert value != 3
    assert value is not None
    assert value != "text"


@pytest.mark.parametrize("name", [n for n in OBJECTS if "Error" not in n])
def test_equal_objects_hash_alike_or_not_at_all(name):
    one, two = OBJECTS[name](), OBJECTS[name]()
    assert one == two
    try:
        number = hash(one)
    except TypeError as error:
        assert "unhashable" in str(error)  # noqa: PT017
    else:
        assert number == hash(two)


def test_what_does_not_change_can_be_a_key():
    for make in (
        OBJECTS[name] for name in ("TokenTree", "SamplingParams", "TreeShape", "Lossy", "Plan")
    ):
        assert {make(): 1}[make()] == 1


@pytest.mark.parametrize("name", [*OBJECTS, *IDLE])
def test_texts_are_short_and_name_the_class(name):
    value = (OBJECTS.get(name) or IDLE[name])()
    text = repr(value)
    assert type(value).__name__ in text or name == "Lossy"
    assert "\n" not in text
    limit = 1200 if name in ("HeadSpec", "Layout", "Stats", "Race", "Sizes") else 250
    assert len(text) < limit, text


def test_long_lists_are_counted_in_texts():
    tokens = [*range(5000)]
    values = {
        "5000 in all": mv.TokenTree([-1, *tokens[:-1]]),
        "5001 in all": mv.Verdict([*tokens, 1], range(1, 5001), [-1.0] * 5001, "greedy"),
        "<5000 tokens>": mv.SamplingParams(banned=tokens),
        "5000 in all ": mv.kv.Reservation(tokens, np.zeros((0, 2), int)),
    }
    for text, value in values.items():
        assert text.strip() in repr(value)
        assert len(repr(value)) < 250


def test_a_pool_of_fresh_processes_gives_everything_back():
    values = [make() for make in (*OBJECTS.values(), *IDLE.values())]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        returned = pool.apply(echo, (values,))
    for value, other in zip(values, returned, strict=True):
        assert repr(other) == repr(value)
        if value.__eq__ is not object.__eq__ and not isinstance(value, Exception):
            assert other == value or type(value) in {type(make()) for make in IDLE.values()}


@pytest.mark.parametrize("name", in_flight())
def test_what_is_in_flight_says_why_it_stays(name):
    value = in_flight()[name]
    for move in (pickle.dumps, copy.copy, copy.deepcopy):
        if move is copy.copy and name in ("NGram", "Suffix", "Grower"):
            continue  # A shallow copy of a Python object shares what it holds.
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            move(value)


class TestDifferences:
    """Equality sees each part."""

    def test_of_drafts(self):
        draft = mv.Draft.chain([1, 2], rows(2))
        others = [
            mv.Draft.chain([1, 3], rows(2)), mv.Draft.chain([1, 2]),
            mv.Draft.chain([1, 2], rows(2), root=4),
            mv.Draft.chain([1, 2], np.ascontiguousarray(rows(2)[::-1])),
            mv.Draft.chain([1, 2], rows(2, width=6)),
            mv.Draft(draft.tree, draft.tokens, "chain", logits=rows(2)),
            mv.Draft(draft.tree, draft.tokens, "chain", rows(2), vocab=[5, 1, 2, 3, 4]),
        ]  # fmt: skip
        assert draft == mv.Draft.chain([1, 2], rows(9)[:2])
        assert all(draft != other for other in others)
        logits = [
            mv.Draft(draft.tree, draft.tokens, "chain", logits=rows(2), params=params)
            for params in (None, mv.SamplingParams(0.5), mv.SamplingParams(top_k=2))
        ]
        assert logits[0] != logits[1] != logits[2] != logits[0]

    def test_of_verdicts(self):
        one = mv.Verdict([1, 2], [1], [-1, -2], "greedy")
        parts = ([1, 3], [1], [-1, -2], "greedy"), ([1, 2], [2], [-1, -2], "greedy")
        parts += ([1, 2], [1], [-1, -3], "greedy"), ([1, 2], [1], [-1, -2], "token")
        assert all(mv.Verdict(*other) != one for other in parts)
        assert verdict(2) != verdict() != verdict(3)

    def test_of_block_tables(self):
        for change in (
            lambda blocks: blocks.release(1), lambda blocks: blocks.rollback(0, 7),
            lambda blocks: blocks.fork(1, 5), lambda blocks: blocks.reserve(10, 1),
        ):  # fmt: skip
            one, other = table(), table()
            change(other)
            assert one != other


def test_a_copied_draft_has_rows_of_its_own():
    probs = rows(2)
    draft = mv.Draft.chain([1, 2], probs)
    kept = copy.deepcopy(draft)
    before = mv.verify(kept, np.log(rows(3)), **NOISE)
    probs[:] = 0
    assert draft != kept
    assert mv.verify(kept, np.log(rows(3)), **NOISE) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_copies_are_verified_alike(dtype):
    probs = torch.from_numpy(rows(3)).to(dtype)
    draft = mv.Draft.chain([1, 2, 3], probs)
    logits = np.log(rows(4)[:, ::-1]).copy()
    for seed in range(50):
        one, two = (
            mv.verify(d, logits, seed=seed, position=seed) for d in (draft, copy.deepcopy(draft))
        )
        assert one == two


def test_a_draft_of_a_batch_leaves_the_others_rows_behind():
    batch = mv.DraftBatch.chains(np.ones((64, 1), int), [1] * 64, rows(64, width=1000)[:, None])
    assert len(pickle.dumps(batch[5])) < 2 * len(pickle.dumps(rows(1, width=1000)))


def test_a_copied_block_table_goes_on_alike_and_alone():
    one = table()
    two = copy.deepcopy(one)
    for blocks in (one, two):
        blocks.commit(0, mv.TokenTree([-1, 0, 1]), [1], [3, 4, 5])
    assert one == two
    assert one.add_sequence(7, 6, [1, 2, 3, 4, 5, 6]) == two.add_sequence(7, 6, [1, 2, 3, 4, 5, 6])
    assert one.block_table([7]).tolist() == two.block_table([7]).tolist()
    two.release(7)
    assert one != two
    for blocks in (one, two):
        blocks.check_integrity()


LEGAL = (mv.MtpVerifyError, TypeError, ValueError, OverflowError)
BAD = (None, -1, 2**70, "text", b"\0", [2**70], [[1]], [[-1, 5]], [-5, 7], 0.5, np.nan, [np.nan],
       np.zeros((0, 0)), object())  # fmt: skip


# The others are records of Python values, which are what they are.
BUILT = [
    name
    for name, make in OBJECTS.items()
    if "Error" not in name and type(make()).__reduce__ is not object.__reduce__
]


class TestHostilePickles:
    """A pickle can hold anything; what is built from it is checked like any other input."""

    @pytest.mark.parametrize("name", BUILT)
    def test_of_other_arguments(self, name):
        build, arguments = OBJECTS[name]().__reduce__()[:2]
        for place in range(len(arguments)):
            for bad in BAD:
                given = [*arguments[:place], bad, *arguments[place + 1 :]]
                try:
                    built = build(*given)
                except mv.errors.InternalError as error:
                    pytest.fail(f"{given}: {error}")
                except LEGAL:
                    continue
                assert pickle.loads(pickle.dumps(built)) == built, given

    def test_no_illegal_tree_verdict_or_plan(self):
        wrong = {
            "parents": lambda: mv.TokenTree([-1, 5]),
            "node 1": lambda: mv.Draft(mv.TokenTree([-1, 0]), [0, -7]),
            "path": lambda: mv.Verdict([1, 2, 3], [4, 2], [-1] * 3, "greedy"),
            "logprobs: found 0.5": lambda: mv.Verdict([1], [], [0.5], "greedy"),
            "rule": lambda: mv.Verdict([1], [], [-1], "mine"),
            "tokens": lambda: mv.Verdict([1, 2], [], [-1, -1], "greedy"),
            "moves": lambda: mv.kv.CommitPlan([[1, -1]], [], 1, 0),
            "freed": lambda: mv.kv.CommitPlan([], [2**31], 1, 0),
            "slots": lambda: mv.kv.Reservation([-1], []),
            r"verdicts\[0\]: found int": lambda: mv.VerdictBatch([1]),
            r"plans\[1\]": lambda: mv.kv.CommitPlanBatch(
                [mv.kv.commit_plan(mv.TokenTree([-1]), [], 0), 2]
            ),
        }
        for text, build in wrong.items():
            with pytest.raises((mv.MtpVerifyError, TypeError), match=text):
                build()

    @pytest.mark.parametrize(
        "sound", [table(prefix_cache=False), table(), near_table()], ids=["plain", "prefix", "near"]
    )
    def test_no_illegal_block_table(self, sound):
        rng = random.Random(1)
        _, sizes, state = sound.__reduce__()
        kept = 0
        for _ in range(3000):
            numbers = state.tolist()
            for at in rng.sample(range(len(numbers)), rng.randint(1, 2)):
                numbers[at] = rng.choice(
                    [numbers[at] + 1, numbers[at] - 1, -1, 0, 1, 3, 2**31, 2**40, 2**63 - 1]
                )
            if rng.random() < 0.1:
                del numbers[rng.randrange(len(numbers)) :]
            blocks = mv.kv.BlockTable(*sizes)
            before = copy.deepcopy(blocks)
            try:
                blocks.__setstate__(numbers)
            except mv.errors.CacheError as error:
                assert str(error).startswith("state: found")  # noqa: PT017
                assert blocks == before
                continue
            kept += 1
            blocks.check_integrity()
            for seq in (0, 1, 10):
                if f"sequence {seq} " not in _outcome(blocks, seq):
                    blocks.release(seq)
            blocks.check_integrity()
        assert 0 < kept < 2000

    def test_of_another_size(self):
        state = table().__reduce__()[2]
        for sizes in ((3, 2, True), (16, 3, True), (16, 2, False)):
            with pytest.raises(mv.errors.CacheError, match="state: found"):
                mv.kv.BlockTable(*sizes).__setstate__(state)

    def test_no_state_takes_memory_that_it_does_not_have(self):
        with pytest.raises(mv.errors.CacheError, match="more blocks in use"):
            mv.kv.BlockTable(2**31 - 1, 1).__setstate__([2, 2**31 - 1, 0, 0, 0, 0, 0])


def _outcome(blocks: mv.kv.BlockTable, seq: int) -> str:
    try:
        return str(blocks.lengths([seq]))
    except mv.errors.CacheError as error:
        return str(error)


class TestDecoders:
    def test_an_idle_one_works_elsewhere(self):
        decoder = mv.Decoder(tiny_model("llama"), mv.drafters.NGram())
        wanted = decoder.generate([1, 2, 3], max_new_tokens=4, seed=1, top_logprobs=2)
        for move in (lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy):
            moved = move(decoder)
            assert moved.generate([1, 2, 3], max_new_tokens=4, seed=1, top_logprobs=2) == wanted
            assert move(wanted) == wanted

    def test_one_in_flight_says_why_it_stays(self):
        decoder = mv.Decoder(tiny_model("llama"))
        decoder.submit([1, 2], max_new_tokens=4, seed=2)
        paged = mv.Decoder(tiny_model("llama"), cache="paged")
        for value, text in (
            (decoder, "1 requests are in flight"),
            (paged, "this process"),
        ):
            with pytest.raises(TypeError, match=f"Decoder: cannot be pickled or copied: .*{text}"):
                pickle.dumps(value)
