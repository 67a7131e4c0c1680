"""Drafts of several sequences in one forward: each gets what it would get alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mtp_verify.errors import DraftError
from mtp_verify.heads import family
from mtp_verify.heads.parallel import ParallelHead
from mtp_verify.heads.recurrent import RecurrentHead
from tests.heads import SIZES, VARIANTS, random_hidden, randomised, tiny_head
from tests.models import tiny_model

LENGTHS = (5, 1, 8)
# Parents of each sequence's nodes, call by call; the last call has nodes of two levels.
STEPS = [([0, 0], [0], [0, 0, 0]), ([1, 2, 2], [0, 1], [3, 0])]
TOKENS = torch.arange(3, 30)


def states_of(head, rounds):
    """Return for each sequence its rows of two rounds of reading and drafting."""
    found = [[] for _ in LENGTHS]
    for group in rounds:
        states = [head.new_state() for _ in group]
        for state, index in zip(states, group, strict=True):
            state.first = index  # Positions that differ.
        for turn, length in enumerate((0, 2)):
            counts = [LENGTHS[index] + length for index in group]
            hidden = [
                [layer.double() for layer in random_hidden(head, n, seed=7 * turn + i)]
                for n, i in zip(counts, group, strict=True)
            ]
            rows = head.read_batch(states, hidden, [TOKENS[:n] for n in counts])
            made = [rows]
            for parents in STEPS:
                above = [parents[index] for index in group]
                words = [TOKENS[i : i + len(own)] for i, own in zip(group, above, strict=True)]
                made.append(head.step_batch(states, above, words))
            for place, index in enumerate(group):
                found[index] += [part[place] for part in made]
    return found


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_each_sequence_gets_what_it_gets_alone(name, window):
    check(lambda model: tiny_head(name, model, sizes=replace(SIZES, window=window)))


@pytest.mark.parametrize(
    ("made", "name", "fields"),
    [
        (ParallelHead, "hydra", {"prefix": True}),
        (RecurrentHead, "mlp_speculator", {}),
        (RecurrentHead, "arctic_lstm", {}),
    ],
)
def test_so_it_does_in_heads_of_other_repositories(made, name, fields):
    spec = family(name).replace(sizes=SIZES, num_modules=3, **fields)
    torch.manual_seed(1)
    check(lambda model: randomised(made(spec)).attach(model).eval())


def check(make):
    # Without norms, levels blow rounding up: in float64 none is left to see.
    model = tiny_model("llama").double()
    head = make(model).double()
    with torch.inference_mode():
        alone = states_of(head, [[0], [1], [2]])
        together = states_of(head, [[0, 1, 2]])
        other_order = states_of(head, [[2, 0, 1]])
    for found in (together, other_order):
        for one, other in zip(alone, found, strict=True):
            assert len(one) == len(other) == 6
            for row, same in zip(one, other, strict=True):
                torch.testing.assert_close(same, row, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["deepseek-2", "hydra"])
def test_what_is_refused_changes_no_sequence(name):
    head = tiny_head(name, tiny_model("llama"))
    hidden = [random_hidden(head, n) for n in (3, 4)]
    states = [head.new_state(), head.new_state()]
    with torch.inference_mode():
        rows = head.read_batch(states, hidden, [TOKENS[:3], TOKENS[:4]])
        with pytest.raises(DraftError):
            head.read_batch(states, hidden, [TOKENS[:3], TOKENS[:3]])
        with pytest.raises(DraftError, match="node 5 was not run"):
            head.step_batch(states, [[0], [5]], [TOKENS[:1], TOKENS[:1]])
        assert [state.num_nodes for state in states] == [1, 1]
        again = head.read_batch(
            [head.new_state(), head.new_state()], hidden, [TOKENS[:3], TOKENS[:4]]
        )
    for row, same in zip(rows, again, strict=True):
        torch.testing.assert_close(row, same)
