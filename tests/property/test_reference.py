"""The oracle itself: the published noise, and the exact laws of the specification's golden models.

Every random choice of the reference's rules is enumerated, drafts included, so its output law is a
sum over all branches and no sample. That the sum equals the target's law shows the rule lossless;
that the expected length equals the independently computed table shows it is the right rule.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mtp_verify import reference
from mtp_verify.reference import Noise, Tree
from tests.property.branches import Branches

F = np.float64
P, Q = 0, 1
GOLDEN = {
    "A": ([[1 / 3, 2 / 3]], [[2 / 3, 1 / 3]]),
    "B": (
        [[1 / 2, 1 / 3, 1 / 6], [1 / 6, 1 / 2, 1 / 3], [1 / 4, 1 / 4, 1 / 2]],
        [[1 / 3, 1 / 3, 1 / 3], [1 / 2, 1 / 4, 1 / 4], [1 / 6, 2 / 3, 1 / 6]],
    ),
    "C": (
        [[0, 1 / 2, 1 / 2], [3 / 4, 1 / 4, 0], [1, 0, 0]],
        [[1 / 2, 1 / 2, 0], [1 / 4, 0, 3 / 4], [1 / 3, 1 / 3, 1 / 3]],
    ),
    "D": (
        [[1 / 2, 1 / 4, 1 / 8, 1 / 8], [1 / 8, 5 / 8, 1 / 8, 1 / 8], [1 / 4, 1 / 4, 3 / 8, 1 / 8]],
        [[3 / 8, 3 / 8, 1 / 8, 1 / 8], [1 / 4, 1 / 2, 1 / 8, 1 / 8], [1 / 8, 1 / 8, 1 / 2, 1 / 4]],
    ),
    "E": (
        [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]],
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]],
    ),
}
# From the specification's table: model, shape, law: E[emitted] of target_only, topdown, lifted.
EXPECTED = {
    ("A", (1, 1), "chain"): (1.6420, 2.1111, 2.2222),
    ("A", (1, 1), "det"): (1.4444, 1.4444, 1.4444),
    ("A", (2, 1), "iid"): (1.9630, 2.2963, 2.4074),
    ("A", (2, 1), "swor"): (2.4444, 2.6667, 2.7778),
    ("A", (2, 1), "top1"): (2.4444, 2.6667, 2.7778),
    ("B", (1, 1), "chain"): (1.4329, 2.3889, 2.4167),
    ("B", (2, 1), "iid"): (1.7215, 2.4815, 2.5093),
    ("B", (2, 1), "swor"): (1.8657, 2.5278, 2.5556),
    ("B", (2, 1), "top1"): (1.9722, 2.6667, 2.7500),
    ("B", (2, 1), "det"): (2.0, 2.0, 2.0),
    ("C", (1, 1), "chain"): (1.3333, 1.6667, 1.6667),
    ("C", (2, 1), "iid"): (1.5, 1.6667, 1.6667),
    ("C", (2, 1), "swor"): (1.6667, 1.6667, 1.6667),
    ("C", (2, 1), "top1"): (1.6667, 1.6667, 1.8333),
    ("E", (1, 1), "chain"): (1.2400, 1.9600, 2.0300),
    ("E", (2, 1), "iid"): (1.4200, 2.1520, 2.2220),
    ("E", (2, 1), "swor"): (1.5033, 2.2229, 2.3014),
    ("E", (2, 1), "top1"): (1.4400, 2.2267, 2.3200),
    ("E", (2, 1), "det"): (1.3300, 1.3300, 1.3300),
    ("E", (1, 1, 1), "chain"): (None, 272 / 125, 1173 / 500),
    ("B", (1, 1, 1), "chain"): (None, 599 / 216, 209 / 72),
}


def row(model, side, path):
    rows = GOLDEN[model][side]
    return np.array(rows[(len(path) + sum(path)) % len(rows)], F)


def draft(model, shape, law, branches):
    """Draws a tree of the given shape under a law, breadth first."""
    parents, tokens, sampled, paths = [-1], [-1], [False], [()]
    level = [0]
    for width in shape:
        below = []
        for node in level:
            q = row(model, Q, paths[node])
            order = np.argsort(-q, kind="stable")
            if law == "det":
                children = [(int(t), False) for t in order[:width] if q[t] > 0]
            elif law == "top1":
                top = [int(t) for t in order[: width - 1] if q[t] > 0]
                rest = q.copy()
                rest[top] = 0
                drawn = [(branches.draw(0, rest / rest.sum()), True)] if rest.sum() > 1e-12 else []
                children = drawn + [(t, False) for t in top]
            else:
                # Mixed: one token that has nothing to do with the row, after the drawn ones.
                fixed = [len(paths[node]) % len(q)] if law == "mixed" else []
                children, rest = [], q.copy()
                rest[fixed] = 0
                for _ in range(width - len(fixed)):
                    if rest.sum() < 1e-12:
                        break
                    token = branches.draw(0, rest / rest.sum())
                    children.append((token, True))
                    if law != "iid":
                        rest[token] = 0
                children += [(token, False) for token in fixed]
            for token, drawn in children:
                below.append(len(parents))
                parents.append(node)
                tokens.append(token)
                sampled.append(drawn)
                paths.append((*paths[node], token))
        level = below
    target = np.stack([row(model, P, path) for path in paths])
    drafter = np.stack([row(model, Q, path) for path in paths])
    return Tree(parents, tokens, target, drafter, sampled, law)


RULES = {
    "target_only": reference._target_only,
    "topdown": reference._topdown,
    "lifted": reference._lifted,
}


@pytest.mark.parametrize(("model", "shape", "law"), EXPECTED)
def test_output_law_is_the_targets_and_lengths_are_the_table(model, shape, law):
    vocab, depth = len(GOLDEN[model][P][0]), len(shape)
    strings = list(itertools.product(range(vocab), repeat=depth + 1))
    for (name, rule), expected in zip(RULES.items(), EXPECTED[model, shape, law], strict=True):
        mass, length = dict.fromkeys(strings, 0.0), 0.0
        for branches in Branches():
            tree = draft(model, shape, law, branches)
            if law == "det":
                rule = RULES["target_only"]
            node, token = rule(tree, branches)
            emitted = (*(tree.tokens[n] for n in tree.path(node)), token)
            length += branches.weight * len(emitted)
            for end in itertools.product(range(vocab), repeat=depth + 1 - len(emitted)):
                string = emitted + end
                weight = branches.weight
                for i in range(len(emitted), depth + 1):
                    weight *= row(model, P, string[:i])[string[i]]
                mass[string] += weight
        for string in strings:
            wanted = np.prod([row(model, P, string[:i])[t] for i, t in enumerate(string)])
            assert mass[string] == pytest.approx(wanted, abs=1e-12), (name, string)
        if expected is not None:
            assert length == pytest.approx(expected, abs=6e-5), name


@pytest.mark.parametrize(
    ("model", "lengths"),
    [("A", 212 / 81), ("B", 287 / 108), ("C", 65 / 36), ("D", 11123 / 4096), ("E", 294 / 125)],
)
def test_two_paths_give_the_stated_lengths(model, lengths):
    length = 0.0
    for branches in Branches():
        tree = draft(model, (2, 1), "iid", branches)
        node, _ = reference._gbv(tree, branches)
        length += branches.weight * (len(tree.path(node)) + 1)
    assert length == pytest.approx(lengths, abs=1e-12)


def test_kseq_finds_the_root_of_e():
    length = 0.0
    for branches in Branches():
        tree = draft("E", (2,), "iid", branches)
        node, _ = reference._kseq(tree, branches)
        length += branches.weight * (len(tree.path(node)) + 1)
    assert length == pytest.approx(7 / 4, abs=1e-9)


def test_philox_gives_the_published_answers():
    ones = 0xFFFFFFFF
    cases = [
        ([0] * 2, [0] * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ones] * 2, [ones] * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0xA4093822, 0x299F31D0],
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ]
    for key, counter, answer in cases:
        words = reference.philox(key, np.array(counter, np.uint32))
        assert " ".join(f"{int(word):08x}" for word in words) == answer


def test_draws_never_land_on_probability_zero():
    row = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    tokens = {Noise(3, position).draw(0, row) for position in range(200)}
    assert tokens == {1, 3}


def test_race_has_the_law_of_the_row():
    row = np.array([0.5, 0.25, 0.0, 0.25])
    count = 4000
    wins = np.bincount([Noise(1, p).race(0, row) for p in range(count)], minlength=4) / count
    # Hoeffding at 1e-9 for each token: sqrt(log(2e9) / (2 * 4000)) = 0.052.
    assert np.abs(wins - row).max() < 0.052
