"""The form of a draft's tree, known by name, computed from measurements, or read from a file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtp_verify import _core
from mtp_verify._core import TokenTree
from mtp_verify.errors import ParamsError
from mtp_verify.verifier.files import read_text
from mtp_verify.verifier.intake import as_float, as_list, as_path, as_word, check_type, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["TreeShape"]

_FORMAT = "mtp-verify shape"


@dataclass(frozen=True)
class TreeShape:
    """A tree's form without tokens; siblings stand in the order in which they are tested.

    Attributes:
        tree: the form.
        accepted: mean accepted tokens that it was made for, or None.
        acceptance: the rates by rank that it was made for.

    Example:
        >>> TreeShape.by_depth(2, 1).tree.parents.tolist()
        [-1, 0, 0, 1, 2]
        >>> TreeShape.stem(2, 2).tree.parents.tolist()
        [-1, 0, 1, 2, 2]
        >>> best = TreeShape.optimal([0.6, 0.2, 0.1], max_nodes=4, max_depth=3)
        >>> best.tree.parents.tolist(), round(best.accepted, 3)
        ([-1, 0, 0, 1, 3], 1.376)
    """

    tree: TokenTree
    accepted: float | None = None
    acceptance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no tree; rates may come in any list."""
        check_type("tree", self.tree, TokenTree)
        if self.accepted is not None and not 0 <= as_float("accepted", self.accepted) < math.inf:
            message = f"accepted: found {self.accepted}, wanted a number of tokens"
            raise ParamsError(message, slug="param_out_of_range")
        rates = [as_float("acceptance", r) for r in as_list("acceptance", self.acceptance)]
        if not all(0 <= rate <= 1 for rate in rates):
            message = f"acceptance: found {shown(rates)}, wanted numbers from 0 to 1"
            raise ParamsError(message, slug="param_out_of_range")
        object.__setattr__(self, "acceptance", tuple(rates))

    def __reduce__(self) -> tuple[type[TreeShape], tuple[Any, ...]]:
        """Through the constructor: what comes out of a pickle is checked like any other input."""
        return type(self), (self.tree, self.accepted, self.acceptance)

    @classmethod
    def by_depth(cls, *counts: int) -> TreeShape:
        """Give every node at depth d `counts[d]` children."""
        return cls(_core.stem_shape(0, list(counts)))

    @classmethod
    def stem(cls, length: int, *counts: int) -> TreeShape:
        """Make a chain of `length` nodes with the levels of `counts` below its end."""
        return cls(_core.stem_shape(length, list(counts)))

    @classmethod
    def paths(cls, count: int, length: int) -> TreeShape:
        """Make `count` paths of `length` nodes that share the root; independent under "iid"."""
        return cls(_core.path_shape(count, length))

    @classmethod
    def optimal(
        cls,
        acceptance: Sequence[float],
        *,
        max_nodes: int,
        max_depth: int,
        draft_times: Sequence[float] | None = None,
        verify_times: Sequence[float] | None = None,
    ) -> TreeShape:
        """Compute the shape with the most accepted tokens, by dynamic programming.

        Args:
            acceptance: measured Pr[the child tested k-th is the one accepted], k = 1, 2, ..; their
                sum is at most 1. No node gets more children.
            max_nodes: most drafted nodes.
            max_depth: most levels.
            draft_times: seconds of drafting d levels, from d = 0 on.
            verify_times: seconds of verifying n drafted nodes, from n = 0 on. With both, the size
                and depth are those of the most emitted tokens per second.

        Raises:
            ParamsError: rates that are no probabilities, times that are not above 0, or one of the
                two lists of times without the other.

        References:
            Sequoia, arXiv 2402.12374.
        """
        if (draft_times is None) != (verify_times is None):
            message = "draft_times, verify_times: found one of them; pass both, or neither"
            raise ParamsError(message, slug="param_out_of_range")
        times = None
        if draft_times is not None and verify_times is not None:
            times = (draft_times, verify_times)
        rates = [as_float("acceptance", rate) for rate in as_list("acceptance", acceptance)]
        tree, accepted = _core.optimal_shape(rates, max_nodes, max_depth, times)
        return cls(tree, accepted, tuple(rates))

    @property
    def num_paths(self) -> int:
        """The number of its paths, if it consists of paths of one length from the root; else 0."""
        tree = self.tree
        num_heads, num_levels = len(tree.children(0)), int(max(tree.depths))
        is_forked = any(len(tree.children(node)) > 1 for node in range(1, tree.num_nodes))
        return 0 if is_forked or tree.num_nodes - 1 != num_heads * num_levels else num_heads

    def cut(self, max_nodes: int, max_depth: int | None = None) -> TreeShape:
        """Return the part of the shape that keeps within limits.

        Levels below `max_depth` are left out, then the last nodes. Several paths of one length
        become shorter ones of one length, or single nodes: rule "gbv" takes no others.

        Args:
            max_nodes: Most drafted nodes.
            max_depth: Most levels; None is no limit.

        Raises:
            ParamsError: A number below 0, or none.

        Example:
            >>> TreeShape.by_depth(2, 2).cut(4).tree.parents.tolist()
            [-1, 0, 0, 1, 1]
            >>> TreeShape.paths(2, 3).cut(5).tree.parents.tolist()
            [-1, 0, 1, 0, 3]
        """
        max_nodes = as_word("max_nodes", max_nodes)
        parents, depths = self.tree.parents.tolist(), self.tree.depths.tolist()
        deepest = max(depths)
        depth = deepest if max_depth is None else min(deepest, as_word("max_depth", max_depth))
        if self.num_paths > 1:
            depth = min(depth, max(1, max_nodes // self.num_paths))
        if depth == deepest and len(parents) <= max_nodes + 1:
            return self
        numbers = {-1: -1}
        kept: list[int] = []
        for node, level in enumerate(depths):
            if level <= depth and len(kept) <= max_nodes:
                numbers[node] = len(kept)
                kept.append(numbers[parents[node]])
        return TreeShape(TokenTree(kept))

    def save(self, path: str | Path) -> None:
        """Write the shape as JSON."""
        document = {
            "format": _FORMAT,
            "version": 1,
            "parents": self.tree.parents.tolist(),
            "accepted": self.accepted,
            "acceptance": list(self.acceptance),
        }
        as_path("path", path).write_text(json.dumps(document) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> TreeShape:
        """Read a shape that `save` wrote.

        Raises:
            ParamsError: there is no file, no such JSON document in it, or what is no number.
            TypeError: its rates are no list.
            DraftError: its parents are not a tree.
        """
        text = read_text(as_path("path", path))
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = f"{path}: not JSON ({error}); wanted a file that TreeShape.save wrote"
            raise ParamsError(message, slug="bad_shape_file") from error
        known = isinstance(document, dict) and document.get("format") == _FORMAT
        if not known or document.get("version") != 1 or "parents" not in document:
            message = f'{path}: wanted a JSON object of format "{_FORMAT}", version 1'
            raise ParamsError(message, slug="bad_shape_file")
        rates = as_list("acceptance", document.get("acceptance", ()))
        accepted = document.get("accepted")
        return cls(
            TokenTree(document["parents"]),
            None if accepted is None else as_float("accepted", accepted),
            tuple(as_float("acceptance", rate) for rate in rates),
        )
