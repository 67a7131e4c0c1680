"""How far from the best possible lossless rule each rule is: the linear programme as an oracle.

Over drafted trees T with probability Pr(T), the best rule for a draft law solves

    maximise  sum over strings v of F(v),   F(v) = sum of a(T, u) over T and nodes u at or below v,
    subject to  a >= 0,   sum over u in T of a(T, u) = Pr(T),   F(vy) <= p_v(y) F(v)

where a(T, u) is the probability that T is drafted and u is where the accepted path ends.
Optima computed beforehand, independently, are reproduced.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.property.branches import Branches
from tests.property.models import GOLDEN, P, draft, row, step

optimize = pytest.importorskip("scipy.optimize", reason="the oracle needs SciPy")
sparse = pytest.importorskip("scipy.sparse", reason="the oracle needs SciPy")

# The column of the documentation, to six decimals: law, then model and shape.
DOCS = json.loads((Path(__file__).parents[2] / "docs" / "data" / "optimum.json").read_text())

# model, shape, law: the optimum to four decimals.
OPTIMUM = {
    ("A", (1, 1), "chain"): 2.2222,
    ("A", (2, 1), "iid"): 2.6173,
    ("A", (2, 1), "swor"): 2.8889,
    ("A", (2, 1), "top_plus_one"): 2.8889,
    ("A", (2, 1), "deterministic"): 2.3333,
    ("A", (2, 2), "iid"): 2.7435,
    ("B", (1, 1), "chain"): 2.4167,
    ("B", (2, 1), "iid"): 2.8117,
    ("B", (2, 1), "swor"): 2.8333,
    ("B", (2, 1), "top_plus_one"): 2.8750,
    ("B", (2, 1), "deterministic"): 2.0000,
    ("B", (2, 2), "iid"): 2.9966,
    ("B", (2, 2), "swor"): 3.0000,
    ("B", (3, 1), "iid"): 2.9448,
    ("B", (3, 1), "swor"): 2.9583,
    ("B", (3, 1), "top_plus_one"): 2.9583,
    ("C", (1, 1), "chain"): 1.6667,
    ("C", (2, 1), "iid"): 1.8056,
    ("C", (2, 1), "swor"): 1.8333,
    ("C", (2, 1), "top_plus_one"): 1.8333,
    ("C", (2, 2), "iid"): 1.9784,
    ("C", (3, 1), "iid"): 1.9213,
    ("D", (1, 1), "chain"): 2.6406,
    ("D", (2, 1), "iid"): 3.0000,
    ("D", (2, 1), "swor"): 3.0000,
    ("D", (2, 1), "top_plus_one"): 3.0000,
    ("E", (1, 1), "chain"): 2.0300,
    ("E", (2, 1), "iid"): 2.3700,
    ("E", (2, 1), "swor"): 2.4518,
    ("E", (2, 1), "top_plus_one"): 2.3267,
    ("E", (2, 1), "deterministic"): 1.3300,
    ("E", (2, 2), "top_plus_one"): 2.4300,
    ("E", (1, 1, 1), "chain"): 1173 / 500,
    ("B", (1, 1, 1), "chain"): 209 / 72,
    ("D", (2, 2), "iid"): 3.0000,
    ("D", (2, 2), "swor"): 3.0000,
    ("D", (2, 2), "top_plus_one"): 3.0000,
    ("E", (2, 2), "iid"): 2.4886,
    ("E", (2, 2), "swor"): 2.6027,
    ("E", (3, 1), "iid"): 2.5472,
    ("E", (3, 1), "swor"): 2.7957,
    ("E", (3, 1), "top_plus_one"): 2.6600,
}


def drafts(model, shape, law):
    """The law of the set of strings that a drafted tree holds: the order of siblings is free."""
    chances = defaultdict(float)
    for branches in Branches():
        tree = draft(model, shape, law, branches, float)
        strings = frozenset(
            tuple(tree.tokens[n] for n in tree.path(node)) for node in range(len(tree.parents))
        )
        chances[strings] += branches.weight
    return chances


@cache
def optimum(model, shape, law):
    chances = drafts(model, shape, law)
    ends = [(tree, end) for tree, strings in enumerate(chances) for end in sorted(strings)]
    strings = sorted({end for _, end in ends})
    index = {string: i for i, string in enumerate(strings)}
    # F = flow @ a: every end counts for each of its prefixes.
    entries = [(index[end[:n]], k) for k, (_, end) in enumerate(ends) for n in range(len(end) + 1)]
    at = tuple(np.array(entries).T)
    flow = sparse.csr_matrix((np.ones(len(entries)), at), shape=(len(strings), len(ends)))
    below = [string for string in strings if string]
    shares = [row(model, P, string[:-1], float)[string[-1]] for string in below]
    children, parents = ([index[s[:cut]] for s in below] for cut in (None, -1))
    law_of_target = flow[children] - sparse.diags_array(shares) @ flow[parents]
    trees = sparse.csr_matrix((np.ones(len(ends)), ([t for t, _ in ends], range(len(ends)))))
    solved = optimize.linprog(
        -np.asarray(flow.sum(axis=0)).ravel(),
        A_ub=law_of_target, b_ub=np.zeros(len(below)),
        A_eq=trees, b_eq=list(chances.values()),
        method="highs",
    )  # fmt: skip
    assert solved.success, solved.message
    return -solved.fun


@pytest.mark.parametrize(("model", "shape", "law"), OPTIMUM)
def test_optimum_is_the_tables(model, shape, law):
    wanted = OPTIMUM[model, shape, law]
    assert optimum(model, shape, law) == pytest.approx(wanted, abs=6e-5)


@pytest.mark.parametrize("law", DOCS)
def test_optimum_of_the_documentation_is_current(law):
    for case, stated in DOCS[law].items():
        model, _, shape = case.partition(" ")
        found = optimum(model, tuple(json.loads(shape)), law)
        assert found == pytest.approx(stated, abs=6e-7), case


@pytest.mark.parametrize("model", sorted(GOLDEN))
def test_no_rule_is_above_the_optimum_of_independent_paths(model):
    best = optimum(model, (2, 1), "iid")
    for core in ("topdown", "lifted", "kseq", "gbv", "global_resolution"):
        _, length = step(model, (2, 1), "iid", core, float)
        assert length <= best + 1e-9, core
        if model in "AC" and core in ("gbv", "global_resolution"):
            assert length == pytest.approx(best, abs=1e-9)
