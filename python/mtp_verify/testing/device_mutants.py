"""Deliberate mistakes in the sources that verify on a device, which `device_law` must find."""

from __future__ import annotations

import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mtp_verify.testing.device_law import MODELS, Case, find_law

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from mtp_verify.verifier.words import Law, RuleName

__all__ = ["TORCH", "TRITON", "Mutant", "mutated", "try_mutants"]

_NAME = "mtp_verify_mutant"


class Mutant(NamedTuple):
    """One line of a package's source changed.

    Attributes:
        name: The rule or part, and what is wrong.
        module: In which module.
        before: The source text, which occurs there once.
        after: What stands there instead.
        case: Where it shows.
    """

    name: str
    module: str
    before: str
    after: str
    case: Case


def _on(rule: RuleName, law: Law, shape: tuple[int, ...], model: int = 0) -> Case:
    return Case(MODELS[model], rule, law, shape)


TORCH = (
    Mutant(
        "td/residual_not_updated",
        "rounds",
        "state.b = _to_parents(state.b, state.b[parent] + share, rejected, parent)",
        "state.b = state.b",
        _on("topdown", "iid", (2,)),
    ),
    Mutant(
        "td/shared_u_siblings",
        "rounds",
        "children.u * den < weight",
        "children.u[parent] * den < weight",
        _on("topdown", "swor", (2,)),
    ),
    Mutant(
        "td/inverted_ratio",
        "rounds",
        "(children.u * den < weight)",
        "(children.u * weight < den)",
        _on("topdown", "chain", (1,)),
    ),
    Mutant(
        "td/forget_q",
        "rounds",
        "whole * (children.q / children.rest)",
        "whole",
        _on("topdown", "chain", (1,)),
    ),
    Mutant(
        "td/residual_not_renormalised",
        "rounds",
        "whole * (children.q / children.rest), whole)",
        "children.q / children.rest, whole)",
        _on("topdown", "iid", (2,)),
    ),
    Mutant(
        "td/q_not_renormalised",
        "drafter",
        "is_out = is_child & (is_earlier | is_set)",
        "is_out = is_child & is_set",
        _on("topdown", "swor", (2,), model=2),
    ),
    Mutant(
        "td/child_row",
        "rounds",
        "row = rows.drafted[parent]",
        "row = rows.drafted",
        _on("topdown", "chain", (1, 1)),
    ),
    Mutant(
        "td/sample_p_after_reject",
        "draw",
        "sums, b, gone = state.sums, state.b, state.gone",
        "sums, b, gone = target.sums, 0 * state.b, state.gone & False",
        _on("topdown", "chain", (1,), model=2),
    ),
    Mutant(
        "td/u_reused_for_sample",
        "run",
        "draw(step, rows, state, noise.samples())",
        "draw(step, rows, state, u[trees.children[:, 0]])",
        _on("topdown", "chain", (1,)),
    ),
    Mutant(
        "td/set_taken_from",
        "residual",
        "is_taken = (b[rows, None] > 0) & ~_holds(own, in_set, tokens)",
        "is_taken = b[rows, None] > 0",
        _on("topdown", "mixed", (3,)),
    ),
    Mutant(
        "td/draw_that_hits_a_set_stops",
        "walk",
        "follows = torch.where(trees.core == TOPDOWN, is_forced, trees.core != LIFTED)",
        "follows = (trees.core != TOPDOWN) & (trees.core != LIFTED)",
        _on("topdown", "top_plus_one", (2,)),
    ),
    Mutant(
        "law/rest_ignores_the_set",
        "drafter",
        "is_out = is_child & (is_earlier | is_set)",
        "is_out = is_child & is_earlier",
        _on("topdown", "top_plus_one", (2,)),
    ),
    Mutant(
        "lift/forget_w",
        "rounds",
        "own = torch.where(w * weight >= den, 1.0, w * weight / den)",
        "own = torch.where(weight >= den, 1.0, weight / den)",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/no_min1",
        "rounds",
        "own = torch.where(w * weight >= den, 1.0, w * weight / den)",
        "own = w * weight / den",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/residual_without_w",
        "rounds",
        "state.total[parent] / (state.w[parent] * children.rest)",
        "state.total[parent] / children.rest",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/h_is_m",
        "rounds",
        "mass / (mass + (1.0 - state.w))",
        "mass",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/h_is_w",
        "rounds",
        "state.w = torch.where(is_lifted, left, state.w)",
        "state.w = torch.where(is_lifted & (left <= 0), left, state.w)",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/removed_token_stays",
        "residual",
        "_holds(own, is_child & gone[children], tokens)",
        "_holds(own, is_child & gone[children] & False, tokens)",
        _on("lifted", "mixed", (3,), model=2),
    ),
    Mutant(
        "lift/stops_at_the_root_first",
        "walk",
        'torch.where(stops, post, count), "amin")',
        'torch.where(stops, -post, count), "amin").abs()',
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/siblings_wait_for_nothing",
        "rounds",
        "due = start + trees.place",
        "due = trees.place",
        _on("lifted", "swor", (2, 1)),
    ),
)

# The same of the kernels in Triton.
TRITON = (
    Mutant(
        "td/residual_not_updated",
        "rounds",
        "taken = tl.where(rejects, taken + total / rest, taken)",
        "taken = taken",
        _on("topdown", "iid", (2,)),
    ),
    Mutant(
        "td/shared_u_siblings",
        "rounds",
        "u = _number_of(nodes, requests, given, request, child, tests_one)",
        "u = _number_of(nodes, requests, given, request, row, tests_one)",
        _on("topdown", "swor", (2,)),
    ),
    Mutant(
        "td/inverted_ratio",
        "rounds",
        "(u * den < num)",
        "(u * num < den)",
        _on("topdown", "chain", (1,)),
    ),
    Mutant(
        "td/forget_q",
        "rounds",
        "tl.where(sampled, total * (q / rest), total)",
        "total",
        _on("topdown", "chain", (1,)),
    ),
    Mutant(
        "td/residual_not_renormalised",
        "rounds",
        "tl.where(sampled, total * (q / rest), total)",
        "tl.where(sampled, q / rest, total)",
        _on("topdown", "iid", (2,)),
    ),
    Mutant(
        "td/q_not_renormalised",
        "rest",
        "tl.where(is_sampled, is_earlier & (without != 0), has_set != 0)",
        "tl.where(is_sampled, is_earlier & (without < 0), has_set != 0)",
        _on("topdown", "swor", (2,), model=2),
    ),
    Mutant(
        "td/child_row",
        "rest",
        "drafted = tl.load(nodes.drafted + node)",
        "drafted = tl.maximum(tl.load(nodes.drafted + row), 0)",
        _on("topdown", "chain", (1, 1)),
    ),
    Mutant(
        "td/sample_p_after_reject",
        "draw",
        "removes = tl.load(tests.summed + row) != 0\n    taken = tl.load(states.taken + row)",
        "removes = tl.load(tests.summed + row) < 0\n    taken = 0.0 * tl.load(states.taken + row)",
        _on("topdown", "chain", (1,), model=2),
    ),
    Mutant(
        "td/u_reused_for_sample",
        "draw",
        "return tl.load(given + 2 * row + 1)",
        "return tl.load(given + 2 * tl.maximum(tl.load(nodes.first_child + row), 0))",
        _on("topdown", "chain", (1,)),
    ),
    Mutant(
        "td/set_taken_from",
        "residual",
        "takes = takes & ~_is_marked(untouched, stripe)",
        "takes = takes",
        _on("topdown", "mixed", (3,)),
    ),
    Mutant(
        "td/draw_that_hits_a_set_stops",
        "walk",
        "((core != TOPDOWN) | (sampled == 0))",
        "(core != TOPDOWN)",
        _on("topdown", "top_plus_one", (2,)),
    ),
    Mutant(
        "law/rest_ignores_the_set",
        "rest",
        "tl.where(is_sampled, is_earlier & (without != 0), has_set != 0)",
        "tl.where(is_sampled, is_earlier & (without != 0), has_set < 0)",
        _on("topdown", "top_plus_one", (2,)),
    ),
    Mutant(
        "lift/forget_w",
        "rounds",
        "num = above * weight",
        "num = weight",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/no_min1",
        "rounds",
        "ratio = tl.where(num >= den, 1.0, num / den)",
        "ratio = num / den",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/residual_without_w",
        "rounds",
        "tl.where(rejects & is_drawn, delivered * rest, 1.0)",
        "tl.where(rejects & is_drawn, rest, 1.0)",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/h_is_m",
        "rounds",
        "tl.where(mass > 0.0, mass / left, 0.0)",
        "mass",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/h_is_w",
        "rounds",
        "tl.where(mass > 0.0, mass / left, 0.0)",
        "tl.where(mass > 0.0, delivered, 0.0)",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/removed_token_stays",
        "draw",
        "is_gone = tl.load(states.gone + child) != 0",
        "is_gone = tl.load(states.gone + child) < 0",
        _on("lifted", "mixed", (3,), model=2),
    ),
    Mutant(
        "lift/stops_at_the_root_first",
        "rounds",
        "tl.where(phase == STOPS, place, NEVER)",
        "tl.where(phase == STOPS, 1000 - place, NEVER)",
        _on("lifted", "chain", (1, 1)),
    ),
    Mutant(
        "lift/siblings_wait_for_nothing",
        "rounds",
        "is_turn = (phase == UNMET) & (_at(child, parent) == row)",
        "is_turn = phase == UNMET",
        _on("lifted", "swor", (2,)),
    ),
)


@contextmanager
def mutated(package: str, mutant: Mutant) -> Iterator[ModuleType]:
    """Import a copy of a package with one mistake in it.

    Args:
        package: Its full name; its modules import one another by theirs.
        mutant: The mistake.

    Raises:
        ValueError: The source has changed, and the mistake no longer fits it.
    """
    found = import_module(package).__file__
    source = Path(str(found)).parent
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / _NAME
        copy.mkdir()
        for path in source.glob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.stem == mutant.module:
                if text.count(mutant.before) != 1:
                    message = f"{mutant.name}: {mutant.before!r} is not once in {path.name}"
                    raise ValueError(message)
                text = text.replace(mutant.before, mutant.after)
            (copy / path.name).write_text(text.replace(package, _NAME), encoding="utf-8")
        sys.path.insert(0, folder)
        invalidate_caches()
        try:
            yield import_module(_NAME)
        finally:
            sys.path.remove(folder)
            for name in [name for name in sys.modules if name.split(".")[0] == _NAME]:
                del sys.modules[name]


def try_mutants(package: str, mutants: Sequence[Mutant]) -> list[dict[str, Any]]:
    """Look for mistakes in the source of a backend; return a line for each."""
    lines = []
    for mutant in mutants:
        with mutated(package, mutant) as module:
            found = find_law(mutant.case, module.run, module.Workspace)
        shape = "-".join(map(str, mutant.case.shape))
        lines.append(
            {
                "name": mutant.name,
                "change": f"a line of {mutant.module}",
                "case": f"{mutant.case.law} {shape}, {mutant.case.model.name}",
                "distance": found.distance,
                "answers": len(found.mistakes),
                "killed": not found.holds,
            }
        )
    return lines
