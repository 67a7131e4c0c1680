"""Plausible mistakes in the readable twin, each of which the tests of the twin must notice.

A mutant is the source of `reference.py` with one piece of text replaced. "law": the enumeration of
`models.step` finds another law or another mean length. "core": verdicts differ from the core's.
"edges", "rows": what numbers on a threshold decide, and shaped rows.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.testing import draw_logits
from mtp_verify.testing.logit_rows import KINDS
from mtp_verify.verifier import reference
from tests.property.cases import Case, normal_logits, torch
from tests.property.models import GOLDEN, cases, step

SOURCE = Path(reference.__file__).read_text()


class Mutant(NamedTuple):
    """Text to replace, and where it shows: a core, laws, and the checks that must all find it."""

    right: str
    wrong: str
    core: str = ""
    laws: tuple[str, ...] = ()
    found_by: tuple[str, ...] = ("law", "core")


# The line that drafts were verified with once: one minus what is gone, which may be all of it.
CANCELLING = Mutant(
    "        return _law(left)\n",
    "        gone = {int(t) for t in np.flatnonzero(self.drafter[parent] - left)}\n"
    "        return left / (1 - sum(self.drafter[parent][t] for t in gone))\n",
    "topdown",
    ("swor", "top_plus_one", "mixed"),
)
ALL_SAMPLED = ("chain", "iid", "swor", "top_plus_one", "mixed")
MUTANTS = {
    "remainder that cancels": CANCELLING,
    "remainder that cancels, lifted": CANCELLING._replace(core="lifted"),
    "iid treated as swor": Mutant(
        '(sibling < child and self.law != "iid")', "sibling < child", "topdown", ("iid",)
    ),
    "swor treated as iid": Mutant(
        '(sibling < child and self.law != "iid")', "False", "topdown", ("swor",)
    ),
    "later siblings left out too": Mutant(
        "sibling < child", "sibling != child", "topdown", ("swor",)
    ),
    "the fixed set left in": Mutant(
        "not self.sampled[sibling] or (sibling < child",
        "self.sampled[sibling] and (sibling < child",
        "lifted",
        ("top_plus_one",),
    ),
    "law of a child not normalised": Mutant(
        "        return _law(left)\n", "        return left\n", "topdown", ("swor",)
    ),
    "q not normalised": Mutant(
        "return _law(self.drafter[node])", "return self.drafter[node]", "kseq", ("iid",), ("law",)
    ),
    "a fixed child drawn": Mutant(
        "if not self.sampled[child]:", "if False:", "lifted", ("top_plus_one",)
    ),
    "forgotten q": Mutant("row[token] / law[token]):", "row[token]):", "topdown", ALL_SAMPLED),
    "q over p": Mutant(
        "noise.accept(child, row[token] / law[token])",
        "noise.accept(child, law[token] / max(row[token], law[token]))",
        "topdown",
        ("chain",),
    ),
    "residual without max": Mutant(
        "_left(np.maximum(row - law, 0), row)", "_law(abs(row - law))", "topdown", ("chain",)
    ),
    "residual is p": Mutant(
        "row = _left(np.maximum(row - law, 0), row)", "pass", "topdown", ALL_SAMPLED
    ),
    "residual of one rejection only": Mutant(
        "_left(np.maximum(row - law, 0), row)",
        "_left(np.maximum(tree.target[node] - law, 0), row)",
        "topdown",
        ("iid", "swor"),
    ),
    "siblings tested backwards": Mutant(
        "filter(lambda c: tree.sampled[c], tree.children(node))",
        "[c for c in tree.children(node)[::-1] if tree.sampled[c]]",
        "topdown",
        ("swor",),
    ),
    "fixed children tested first": Mutant(
        "filter(lambda c: tree.sampled[c], tree.children(node))",
        "sorted(tree.children(node), key=lambda c: tree.sampled[c])",
        "topdown",
        ("mixed",),
    ),
    "fixed children not followed": Mutant(
        "following is None or tree.sampled[following]", "True", "topdown", ("top_plus_one",)
    ),
    "lifted forgets w": Mutant(
        "min(1, w * row[token] / law[token])",
        "min(1, row[token] / law[token])",
        "lifted",
        ("chain",),
    ),
    "lifted forgets w in what is left": Mutant(
        "rest = np.maximum(w * row - law, 0)",
        "rest = np.maximum(row - law, 0)",
        "lifted",
        ("chain",),
    ),
    "lifted forgets what fell": Mutant("owed / max(owed, fallen)", "owed", "lifted", ("chain",)),
    "lifted keeps w": Mutant(
        "row, w = _law(rest), owed / max(owed, fallen)", "row = _law(rest)", "lifted", ("chain",)
    ),
    "lifted keeps its row": Mutant(
        "row, w = _law(rest), owed / max(owed, fallen)",
        "w = owed / max(owed, fallen)",
        "lifted",
        ("chain", "swor"),
    ),
    "lifted always stops": Mutant(
        "node == 0 or noise.accept(node, w)", "True", "lifted", ("chain",)
    ),
    "lifted tries one child": Mutant(
        "tree.children(node) if row.any() else []",
        "tree.children(node)[:1] if row.any() else []",
        "lifted",
        ("swor",),
    ),
    "kseq forgets rho": Mutant(
        "row[token] / (rho * law[token])", "row[token] / law[token]", "kseq", ("iid",)
    ),
    "kseq counts a child less": Mutant(
        "for j in range(k)) * taken", "for j in range(k - 1)) * taken", "kseq", ("iid",)
    ),
    "kseq takes the wrong half": Mutant(
        "(low, middle) if is_enough else (middle, rho)",
        "(middle, rho) if is_enough else (low, middle)",
        "kseq",
        ("iid",),
    ),
    "kseq draws from p": Mutant(
        "_left(np.maximum(row - delivered(rho), 0), row)", "row", "kseq", ("iid",)
    ),
    "gbv forgets the law of its path": Mutant(
        "laws.append(_law(law))", "laws.append(q)", "gbv", ("iid",)
    ),
    "gbv takes the worst path": Mutant(
        "[noise.rank(p[drafted] / q[drafted], q[drafted])][::-1]",
        "[noise.rank(p[drafted] / q[drafted], q[drafted])]",
        "gbv",
        ("iid",),
    ),
    "gbv ranks by p": Mutant(
        "noise.rank(p[drafted] / q[drafted], q[drafted])",
        "noise.rank(p[drafted], q[drafted])",
        "gbv",
        ("iid",),
    ),
    "gbv counts each number of paths once": Mutant("comb(num_paths, j)", "1", "gbv", ("iid",)),
    "gbv forgets which paths are left": Mutant(
        "low, width = below[rank], widths[rank]",
        "low = below[rank]",
        "gbv",
        ("iid",),
        ("law",),  # rows of six tokens hardly ever show it
    ),
    "selection without exchanges": Mutant(
        "np.where(shared > 0, shared, 0 * gap)", "0 * shared", "global_resolution", ("iid",)
    ),
    "selection counts a place once": Mutant(
        "comb(n, j) * q ** (j - 1)", "q ** (j - 1)", "global_resolution", ("iid",)
    ),
    "selection forgets w": Mutant(
        "min(w * row[token] / law[token], lam)",
        "min(row[token] / law[token], lam)",
        "global_resolution",
        ("iid",),
    ),
    "selection tested by its own place": Mutant(
        "(places[front] @ lead)", "lead[ranks[front]]", "global_resolution", ("iid",)
    ),
    "selection loses ties": Mutant(
        "front * (law + _after(law))", "front * _after(law)", "global_resolution", ("iid",)
    ),
    "selection draws from p": Mutant(
        "if owed > 0 else 0, _left(rest, row)",
        "if owed > 0 else 0, row",
        "global_resolution",
        ("iid",),
    ),
    "selection keeps one node": Mutant(
        "live = [child for child in children if tree.tokens[child] == token]",
        "live = [children[front]]",
        "global_resolution",
        ("iid",),
    ),
    "plain walk stops at the first child": Mutant(
        "if child is None:\n            return node, token\n        node, depth",
        "if child is None or depth > 0:\n            return node, token\n        node, depth",
        "target_only",
        ("deterministic", "chain"),
    ),
    "race of one position for all": Mutant(
        "node, depth = child, depth + 1", "node, depth = child, depth", "coupled", ("chain",)
    ),
    "one number for two purposes": Mutant(
        "DRAFT, ACCEPT, SAMPLE, GUMBEL, SELECT = range(5)",
        "DRAFT, ACCEPT, SAMPLE, GUMBEL, SELECT = 0, 1, 1, 3, 4",
        "topdown",
        ("chain",),
        ("core",),
    ),
    "accepts on the edge": Mutant(
        "return uniform < probability", "return uniform <= probability", found_by=("edges",)
    ),
    "draws below the edge": Mutant(
        'point, side="right"', 'point, side="left"', found_by=("edges",)
    ),
    "temperature forgotten": Mutant(
        "logits / np.float32(params.temperature)", "logits", found_by=("rows",)
    ),
    "top-k without ties": Mutant(
        "int((falling[:count] >= falling[k - 1]).sum())", "k", found_by=("rows",)
    ),
    "top-p without the crossing token": Mutant(
        "share_before = np.concatenate([[0.0], share_before[:-1]])", "pass", found_by=("rows",)
    ),
    "top-p keeps the higher of equal tokens": Mutant(
        'order = np.argsort(-scaled, kind="stable")',
        'order = np.argsort(scaled, kind="stable")[::-1]',
        found_by=("rows",),
    ),
    "min-p of the sum": Mutant(
        "weights[:count] >= params.min_p",
        "weights[:count] >= params.min_p * weights[:count].sum()",
        found_by=("rows",),
    ),
    "one order of steps for both libraries": Mutant(
        "else (min_p, top_k, top_p)", "else (top_k, top_p, min_p)", found_by=("rows",)
    ),
}


def load(mutant):
    """The reference as a module of its own, with one piece of its text replaced."""
    assert SOURCE.count(mutant.right) >= 1, mutant.right
    module = ModuleType(reference.__name__)
    exec(SOURCE.replace(mutant.right, mutant.wrong), module.__dict__)
    return module


@cache
def right_mean(model, shape, law, core):
    return step(model, shape, law, core)[1]


def has_another_law(twin, core, laws):
    for law in laws:
        # Small shapes first, and rows whose sums are not 1.
        ordered = sorted(cases(core, law), key=lambda case: (len(case[1]), case[0] in GOLDEN))
        for model, shape in ordered:
            try:
                found = step(model, shape, law, core, twin=twin)
            except (ArithmeticError, IndexError, RuntimeError, ValueError):
                return True  # the right one raises nothing
            if found[0] != 0 or found[1] != right_mean(model, shape, law, core):
                return True
    return False


def parts_from_the_core(twin, core, laws, count=120):
    params = mv.SamplingParams()
    for seed in range(count * len(laws)):
        law = laws[seed % len(laws)]
        law = "paths" if core in ("gbv", "global_resolution") else law
        kind = ("normal", "normal", *KINDS)[seed % 7]
        # A drafter at a low temperature: what it has left beside its likely tokens is little.
        cold = mv.SamplingParams(temperature=(1.0, 0.2)[seed % 2])
        case = Case(seed, law, 6, torch.float32, params, cold, "probs32", kind=kind)
        try:
            case.check(core, Counter(), twin=twin)
        except (AssertionError, ArithmeticError, IndexError, RuntimeWarning, ValueError):
            return True
    return False


def decides_edges_otherwise(twin, *_):
    noise = twin.Noise(0, 0)
    answers = []
    for uniform in (0.0, 0.25, 0.5):
        noise.uniform = lambda *_, number=uniform: number
        answers += [noise.accept(1, probability) for probability in (0.0, 0.25, 0.5, 1.0)]
        answers += [noise.draw(0, np.array(row)) for row in ([0.0, 0.5, 0.5], [0.25, 0.0, 0.75])]
    right = [False, True, True, True, 1, 0]
    right += [False, False, True, True, 1, 2]
    right += [False, False, False, True, 2, 2]
    return answers != right


def shapes_rows_otherwise(twin, *_):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        params = mv.SamplingParams(
            temperature=rng.choice([0.2, 1.0, 1.5]),
            top_k=int(rng.choice([0, 3])),
            top_p=float(rng.choice([1.0, 0.6])),
            min_p=float(rng.choice([0.0, 0.3])),
            preset=str(rng.choice(["transformers", "vllm"])),
        )
        (row,), _ = draw_logits(rng, 9) if seed % 2 else normal_logits(rng, 9, 1)
        found = np.asarray(mv._core.shaped_row(torch.from_numpy(row), params))
        if np.abs(found - twin.shaped(row, params)).max() > 1e-4:
            return True
    return False


CHECKS = {
    "law": has_another_law,
    "core": parts_from_the_core,
    "edges": decides_edges_otherwise,
    "rows": shapes_rows_otherwise,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_found(name):
    mutant = MUTANTS[name]
    twin = load(mutant)
    for check in mutant.found_by:
        assert CHECKS[check](twin, mutant.core, mutant.laws), check


def test_the_right_twin_is_not_found():
    twin = load(Mutant("", ""))
    assert not decides_edges_otherwise(twin)
    assert not shapes_rows_otherwise(twin)
    for core, law in {(m.core, law) for m in MUTANTS.values() for law in m.laws}:
        assert not parts_from_the_core(twin, core, [law], count=40), (core, law)


@pytest.mark.parametrize(
    ("core", "law"),
    [(core, law) for core in ("topdown", "lifted") for law in ("top_plus_one", "mixed")]
    + [("topdown", "swor")],  # lifted: 0 / 0
)
def test_a_remainder_that_cancels_is_seen_in_floats(core, law):
    """Without exact numbers too: the bias is no rounding."""
    found = 0.0
    with np.errstate(all="ignore"):
        twin = load(CANCELLING)
        for model, shape in cases(core, law):
            distance, _ = step(model, shape, law, core, float, twin)
            found = max(found, distance)
    assert found > 0.1
