"""Small models, drafts of every law from them, and the exact law of a step of the reference.

Rows are Fractions. A model's drafter rows are weights, as 32-bit and 16-bit probabilities are: what
they sum to is whatever rounding made of 1.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from fractions import Fraction
from functools import cache

import numpy as np

import mtp_verify as mv
from mtp_verify.verifier import reference
from tests.property.branches import Branches

P, Q = 0, 1


def _rows(*texts):
    return [[Fraction(x) for x in text.split()] for text in texts]


def _softmax(dtype, *logits):
    """What a softmax in float64 is after rounding to a dtype; bfloat16 as the top of a float32."""
    row = np.exp(np.array(logits) - max(logits))
    row /= row.sum()
    if dtype != "bfloat16":
        return [Fraction(float(x)) for x in row.astype(dtype)]
    bits = row.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return [Fraction(float(x)) for x in bits.view(np.float32)]


# The specification's golden models. Row of a path: number (its length + the sum of its tokens).
GOLDEN = {
    "A": (_rows("1/3 2/3"), _rows("2/3 1/3")),
    "B": (
        _rows("1/2 1/3 1/6", "1/6 1/2 1/3", "1/4 1/4 1/2"),
        _rows("1/3 1/3 1/3", "1/2 1/4 1/4", "1/6 2/3 1/6"),
    ),
    "C": (
        _rows("0 1/2 1/2", "3/4 1/4 0", "1 0 0"),
        _rows("1/2 1/2 0", "1/4 0 3/4", "1/3 1/3 1/3"),
    ),
    "D": (
        _rows("1/2 1/4 1/8 1/8", "1/8 5/8 1/8 1/8", "1/4 1/4 3/8 1/8"),
        _rows("3/8 3/8 1/8 1/8", "1/4 1/2 1/8 1/8", "1/8 1/8 1/2 1/4"),
    ),
    "E": (_rows("1/10 2/10 3/10 4/10", "4/10 3/10 2/10 1/10"),
          _rows("4/10 3/10 2/10 1/10", "1/10 2/10 3/10 4/10")),
}  # fmt: skip
# Rows as models have them at low temperatures, in the precisions that drafters have.
_FLAT = _rows("2/20 14/20 3/20 1/20")
PEAKED = {
    "18 nats, float32": (_FLAT, [_softmax("float32", 0, -18, -19, -20)]),
    "36 nats, float32": (_FLAT, [_softmax("float32", 0, -36, -37, -38)]),
    "9 nats, float16": (_FLAT, [_softmax("float16", 0, -9, -9, -10)]),
    "8 nats, bfloat16": (_FLAT, [_softmax("bfloat16", 0, -8, -8.5, -9)]),
    "like the target": (
        _rows("999999/1000000 1/2000000 1/2000000 0"),
        [_softmax("float32", 0, -14, -15, -40)],
    ),
    "masked": (_rows("0 1/4 3/4 0"), [_softmax("float32", -np.inf, 0, -25, -np.inf)]),
}
MODELS = GOLDEN | PEAKED

SHAPES = {
    "deterministic": [(1, 1), (2, 1)],
    "unknown": [(2,)],
    "coupled": [(1, 1)],
    "chain": [(1,), (1, 1)],
    "iid": [(2,), (2, 1)],
    "swor": [(2,), (3,)],
    "top_plus_one": [(2,), (3,)],
    "mixed": [(2,), (3,)],
}


@cache
def _arrays(model, side, number):
    dtype = np.float64 if number is float else object
    return [np.array(values, dtype=dtype) for values in MODELS[model][side]]


def row(model, side, path, number=Fraction):
    """(V,), not to be written to: the target's probabilities or the drafter's weights."""
    rows = _arrays(model, side, number)
    return rows[(len(path) + sum(path)) % len(rows)]


def draft(model, shape, law, branches, number=float, twin=reference):
    """Draws a tree of the given shape under a law, breadth first; its rows are of a number type."""
    parents, tokens, sampled, paths = [-1], [-1], [False], [()]
    level = [0]

    def drawn(rest):
        return branches.draw(len(parents) + len(children), rest, twin.DRAFT)

    for width in shape:
        below = []
        for node in level:
            q = row(model, Q, paths[node], number)
            order = np.argsort(-q, kind="stable")
            children, rest = [], q.copy()
            if law in ("deterministic", "unknown"):
                children = [(int(t), False) for t in order[:width] if q[t] > 0]
            elif law == "coupled":
                children = [(branches.race(len(paths[node]), q), False)]
            else:
                # Mixed: one token that has nothing to do with the row, after the drawn ones.
                fixed = {
                    "top_plus_one": [int(t) for t in order[: width - 1] if q[t] > 0],
                    "mixed": [len(paths[node]) % len(q)],
                }.get(law, [])
                rest[fixed] *= 0
                for _ in range(width - len(fixed)):
                    if not rest.any():
                        break
                    token = drawn(rest)
                    children.append((token, True))
                    if law != "iid":
                        rest[token] *= 0
                children += [(token, False) for token in fixed]
            for token, is_sampled in children:
                below.append(len(parents))
                parents.append(node)
                tokens.append(token)
                sampled.append(is_sampled)
                paths.append((*paths[node], token))
        level = below
    rows = [np.stack([row(model, side, path, number) for path in paths]) for side in (P, Q)]
    return twin.Tree(parents, tokens, *rows, sampled, law)


def pairs():
    """Every legal pair of a core and a law whose drafts can be enumerated."""
    cores = {(rule["core"], law) for rule in mv.rules() for law in rule["laws"]}
    return sorted((core, law) for core, law in cores if core != "greedy" and law in SHAPES)


def cases(core, law):
    """Models and shapes for a pair; of large trees over four tokens only some."""
    for model, (target, _) in MODELS.items():
        large = model in {"D", "18 nats, float32"} and core in {"topdown", "lifted", "gbv"}
        for shape in SHAPES[law]:
            if law != "iid" or len(shape) == 1 or len(target[0]) < 4 or large:
                yield model, shape


@cache
def strings(vocab, length):
    return list(itertools.product(range(vocab), repeat=length))


@cache
def path_law(model, start, length, number):
    """The target's law of the tokens after a path, by string."""
    masses = {}
    for string in strings(len(MODELS[model][P][0]), length):
        mass = number(1)
        for i, token in enumerate(string):
            mass *= row(model, P, start + string[:i], number)[token]
        masses[string] = mass
    return masses


def step(model, shape, law, rule, number=Fraction, twin=reference):
    """The law of a step, every draft and choice enumerated.

    Args:
        number: Fraction or float: what all is computed with.
        twin: the reference, or a copy of it.

    Returns:
        Its total variation from the target's law, and the mean number of tokens.
    """
    length = len(shape) + 1
    difference, mean = defaultdict(number), number(0)
    for string, mass in path_law(model, (), length, number).items():
        difference[string] -= mass
    for branches in Branches():
        tree = draft(model, shape, law, branches, number, twin)
        node, token = twin.decide(tree, rule, branches)
        emitted = (*(tree.tokens[n] for n in tree.path(node)), token)
        mean += branches.weight * len(emitted)
        ends = path_law(model, emitted, length - len(emitted), number)
        for end, mass in ends.items():
            difference[emitted + end] += branches.weight * mass
    return sum(map(abs, difference.values())) / 2, mean
