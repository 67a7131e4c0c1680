"""One step drawn: as lines of text, or as an SVG picture."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mtp_verify._core import TokenTree
    from mtp_verify.commands.drawing.recorder import Step

__all__ = ["caption", "to_lines", "to_svg"]

_BONUS = -1  # stands for the bonus token among nodes
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"
# Of the picture, in pixels: a line of boxes, the space between columns, a letter, around a text.
_ROW, _GAP, _GLYPH, _PAD = 30, 34, 7.3, 8


def caption(step: Step) -> str:
    """Say in one line what was decided."""
    drafted = step.draft.num_nodes - 1
    if not drafted:
        return f"position {step.position}: nothing drafted"
    return (
        f"position {step.position}: {step.verdict.num_accepted} of {drafted} drafted tokens kept "
        f"(law {step.draft.law}, rule {step.verdict.rule})"
    )


def to_lines(step: Step, show: Callable[[int], str], *, colour: bool = False) -> list[str]:
    """Draw the tree as text, siblings in the order in which they are tested.

    The root comes first; a line runs on to the next branching. `*` marks accepted nodes, which
    `colour` makes green, and `+` the bonus token below the path's end. `show` gives a token's text.
    """
    tree = step.draft.tree
    end = max(step.accepted, default=0)

    def below(node: int) -> list[int]:
        return [*tree.children(node), *([_BONUS] if node == end and step.bonus is not None else [])]

    def text(node: int) -> str:
        if node == _BONUS:
            return f"+{show(step.bonus or 0)}"
        if node not in step.accepted:
            return show(int(step.draft.tokens[node]))
        kept = f"*{show(int(step.draft.tokens[node]))}"
        return f"{_GREEN}{kept}{_PLAIN}" if colour else kept

    lines = [show(step.root)]
    # A stack and not a function that calls itself: drafts may be deeper than Python's own stack.
    waiting = _branches(below(0), "")
    while waiting:
        node, indent, beyond = waiting.pop()
        words = [text(node)]
        while node != _BONUS and len(children := below(node)) == 1:
            node = children[0]
            words.append(text(node))
        lines.append(f"{indent} {' '.join(words)}")
        if node != _BONUS:
            waiting += _branches(below(node), beyond)
    return lines


def _branches(nodes: list[int], indent: str) -> list[tuple[int, str, str]]:
    """Return each node with the text before it and before those below it, the last node first."""
    placed = [(node, f"{indent}├─", f"{indent}│  ") for node in nodes[:-1]]
    placed += [(node, f"{indent}└─", f"{indent}   ") for node in nodes[-1:]]
    return placed[::-1]


def to_svg(step: Step, show: Callable[[int], str]) -> str:
    """Draw the tree from left to right: a column for each depth, a row for each leaf."""
    boxes = _boxes(step, show)
    columns = range(1 + max(box.column for box in boxes))
    widths = [max(box.width for box in boxes if box.column == column) for column in columns]
    starts = [sum(widths[:column]) + _GAP * column for column in columns]
    curves = "".join(_curve(starts, boxes[box.parent], box) for box in boxes[1:])
    drawn = "".join(_rectangle(starts[box.column], box) for box in boxes)
    width = starts[-1] + widths[-1] + 2
    height = _ROW * (1 + max(box.row for box in boxes))
    return (
        f'<svg width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(caption(step))}">{curves}{drawn}</svg>'
    )


@dataclass(frozen=True)
class _Box:
    """A token in the picture."""

    label: str
    kind: str
    column: int
    row: int
    parent: int

    @property
    def width(self) -> float:
        return _GLYPH * len(self.label) + 2 * _PAD


def _boxes(step: Step, show: Callable[[int], str]) -> list[_Box]:
    """Node i is box i; the bonus token comes last, in a row of its own below."""
    tree = step.draft.tree
    rows, depths, parents = _rows(tree), tree.depths.tolist(), tree.parents.tolist()
    tokens = [step.root, *step.draft.tokens[1:].tolist()]
    boxes = []
    for node, token in enumerate(tokens):
        kind = "root" if node == 0 else "kept" if node in step.accepted else "lost"
        boxes.append(_Box(show(token), kind, depths[node], rows[node], parents[node]))
    if step.bonus is not None:
        end = max(step.accepted, default=0)
        below = max(rows) + 1 if tree.children(end) else rows[end]
        boxes.append(_Box(show(step.bonus), "bonus", depths[end] + 1, below, end))
    return boxes


def _rows(tree: TokenTree) -> list[int]:
    """Return the line of each node: that of its first child; leaves take the next free one."""
    rows = [0] * len(tree)
    free, waiting = 0, [0]
    while waiting:
        node = waiting.pop()
        children = tree.children(node)
        waiting.extend(reversed(children))
        if not children:
            rows[node] = free
            free += 1
    # Parents come before their children, so that backwards each child is placed already.
    for node in reversed(range(len(tree))):
        if children := tree.children(node):
            rows[node] = rows[children[0]]
    return rows


def _rectangle(x: float, box: _Box) -> str:
    y = _ROW * box.row + 3
    return (
        f'<g class="{box.kind}"><rect x="{x + 1:.1f}" y="{y}" rx="5" width="{box.width:.1f}" '
        f'height="{_ROW - 8}"/>'
        f'<text x="{x + _PAD + 1:.1f}" y="{y + 15}">{escape(box.label)}</text></g>'
    )


def _curve(starts: list[float], parent: _Box, box: _Box) -> str:
    x0, x1 = starts[parent.column] + parent.width, starts[box.column]
    y0, y1 = (_ROW * row + _ROW // 2 - 1 for row in (parent.row, box.row))
    middle = (x0 + x1) / 2
    points = f"M{x0:.1f} {y0} C{middle:.1f} {y0} {middle:.1f} {y1} {x1:.1f} {y1}"
    return f'<path class="{box.kind}" d="{points}"/>'
