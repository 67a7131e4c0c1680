"""Forwards out of graphs: what a graph holds is recorded and carried out anew, on the CPU.

The record stands for a CUDA graph: operators on tensors, without the Python code around them. It
shows that a forward over static slots can be captured; that CUDA does so is for a GPU to show.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mtp_verify as mv
from mtp_verify.decoder.graphs import Graphs
from mtp_verify.drafters import Heads, Suffix
from tests.heads import tiny_head
from tests.models import KINDS, TreeDrafter, prompt, tiny_model
from tests.unit.decoder.test_on_device import GREEDY, WARM, few, finish

LONG = [kind for kind in KINDS if kind != "gpt2"]  # Its context ends where entries have to grow.


class Record(TorchDispatchMode):
    """Keeps each operator with the very tensors that it took and gave."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.num_replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found

    def replay(self):
        self.num_replays += 1
        for func, args, kwargs, old in self.calls:
            new = func(*args, **kwargs)
            taken = [memory(leaf) for leaf in tree_leaves((args, kwargs)) if memory(leaf)]
            for kept, fresh in zip(tree_leaves(old), tree_leaves(new), strict=True):
                if memory(kept) and memory(kept) not in taken:  # Else it is a view, or in place.
                    kept.copy_(fresh)


def memory(value):
    return value.untyped_storage().data_ptr() if isinstance(value, torch.Tensor) else 0


class Recorder:
    """In the place of `capture_cuda`."""

    def __init__(self):
        self.records = []

    def __call__(self, function):
        with Record() as record:
            outputs = function()
        self.records.append(record)
        return outputs, record.replay


@pytest.fixture
def recorder(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("mtp_verify.decoder.decode.capture_cuda", recorder)
    return recorder


def run(model, drafter, *, captures, count=14):
    decoder = mv.Decoder(model, drafter, cache="static")
    decoder._captures = captures
    for index, length in enumerate((9, 3, 55)):
        params = GREEDY if index == 1 else WARM
        ids = prompt(length, seed=index)[0]
        new = {"max_new_tokens": count + index, "seed": index, "params": params}
        decoder.submit(ids, eos_token_id=(), **new)
    return [done.tokens[0] for done in finish(decoder)], decoder.target


class Tree(TreeDrafter):
    """A tree of six nodes, in widths that change."""

    def __init__(self):
        super().__init__([-1, 0, 0, 1, 1, 2], text=[(5 * n) % 31 for n in range(200)])


@pytest.mark.parametrize("kind", few(LONG, ["llama", "gemma3"]))
@pytest.mark.parametrize("name", ["suffix", "tree", "head"])
def test_tokens_are_those_of_forwards_that_run(kind, name, recorder):
    model = tiny_model(kind)
    head = tiny_head("eagle3", model) if name == "head" else None
    drafters = {"suffix": partial(Suffix, min_match=1), "tree": Tree, "head": partial(Heads, head)}
    plain, _ = run(model, drafters[name](), captures=False)
    assert recorder.records == []
    found, _ = run(model, drafters[name](), captures=True)
    assert found == plain
    # Widths change, entries grow beyond a power of two, requests leave one after the other.
    assert len(recorder.records) > 1
    assert any(record.num_replays for record in recorder.records)


def test_a_graph_is_kept_for_what_its_key_says():
    made = []

    def capture(function):
        made.append(function)
        with Record() as record:
            outputs = function()
        return outputs, record.replay

    graphs, calls = Graphs(capture), []

    def double(x):
        calls.append(len(x))
        return 2 * x

    for value in (1.0, 2.0, 3.0):
        assert graphs.run(lambda: 2, double, (torch.full((2,), value),)).tolist() == [2 * value] * 2
    assert graphs.run(lambda: 3, double, (torch.ones(3),)).tolist() == [2.0] * 3
    assert calls == [2, 2, 3, 3]
    assert len(made) == 2
    assert graphs
    assert not Graphs()


def test_without_a_capture_the_function_runs_at_each_call():
    calls = []
    for _ in range(3):
        Graphs().run(lambda: 0, calls.append, (torch.ones(1),))
    assert len(calls) == 3
