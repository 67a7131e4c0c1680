"""Write the table of families in `docs/howto/heads.md`, and the picture of two heads side by side.

    .venv/bin/python scripts/gen_heads_docs.py

Both come from the records in `mtp_verify.heads`, and what was shown of a family from the cases of
`tests/real_heads.py`, each of which is a test; `tests/docs/test_heads_page.py` checks that they are
current.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from mtp_verify.heads import FAMILIES, family

if TYPE_CHECKING:
    from mtp_verify.heads import HeadSpec

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "howto" / "heads.md"
PICTURE = ROOT / "docs" / "img" / "heads.svg"
START, END = "<!-- families: generated -->\n", "<!-- end -->\n"

_WIDTH, _HEIGHT, _GAP = 190, 34, 18
_COLUMNS = (40, 500)  # left edges of the two heads
_STYLE = """\
  .head { fill: #1b2430; font: 600 16px system-ui, sans-serif; }
  .text { fill: #4a5666; font: 13px system-ui, sans-serif; text-anchor: middle; }
  .both { fill: #e6eaf0; stroke: #9aa5b4; }
  .one { fill: #fff0d2; stroke: #c98a14; }
  .gone { fill: #ffffff; stroke: #c9cfd8; stroke-dasharray: 4 3; }
  .gone-t { fill: #8b96a5; font: 13px system-ui, sans-serif; text-anchor: middle; }
  .flow { stroke: #6b7788; stroke-width: 1.5; fill: none; }
  .note { fill: #4a5666; font: 13px system-ui, sans-serif; }
"""


def table() -> str:
    """Return the table of families."""
    columns = ["family", "stored in", "recognised by", "input, output", "fusion", "runs here",
               "exact against"]  # fmt: skip
    lines = [columns, ["---"] * len(columns), *(_row(record.spec) for record in FAMILIES.values())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _row(spec: HeadSpec) -> list[str]:
    layout = spec.layout
    signs = ("embed_proj", "fusion", "features", "block")
    names = [layout.names[part] for part in signs if part in layout.names]
    first = f"`{layout.prefix}{names[0]}`" if names else "none published"
    if layout.marks:
        first = f"`{layout.marks[-1]}`"
    place = "the target" if spec.is_inside_target else "its own repository"
    disputed = f" (disputed: {', '.join(spec.disputed)})" if spec.disputed else ""
    return [
        f"`{spec.family}`",
        place if names else "our layout",
        first,
        f"{spec.feed}, {spec.recycle}{disputed}",
        spec.fusion,
        f"no: {spec.obstacle}" if spec.obstacle else "yes",
        _shown(spec) if spec.is_inside_target else "",
    ]


def _shown(spec: HeadSpec) -> str:
    """Return the classes of transformers from whose layers a family's logits were computed."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    known = import_module("tests.real_heads").CASES.values()
    cases = [case for case in known if case.family == spec.family]
    return ", ".join(f"`{case.class_name}`" for case in cases)


def page(text: str) -> str:
    """Return the page with its table made anew."""
    before, rest = text.split(START)
    return before + START + table() + END + rest.split(END)[1]


def _parts(spec: HeadSpec) -> list[tuple[str, bool]]:
    """The parts of a causal head from the inputs upwards, each with whether it is there."""
    order = "[embedding ; hidden]" if spec.fusion == "eh" else "[hidden ; embedding]"
    fed = "behind" if spec.feed == "post" else "before"
    handed = "behind" if spec.recycle == "post" else "before"
    return [
        (f"hidden state {fed} the final norm", True),
        ("norm of the hidden state", spec.hidden_norm),
        ("norm of the embedding", spec.embed_norm),
        (f"projection of {order}", True),
        ("input norm of the block", spec.input_norm),
        ("attention and MLP", True),
        ("output norm", spec.output_norm),
        (f"handed on: {handed} the output norm" if spec.output_norm else "handed on: its output",
         True),
        ("the target's output head", spec.output_head == "shared"),
    ]  # fmt: skip


def picture(left: HeadSpec, right: HeadSpec) -> str:
    """Return two heads side by side as SVG; parts of one alone stand out."""
    columns = (_parts(left), _parts(right))
    height = 70 + len(columns[0]) * (_HEIGHT + _GAP) + 40
    differing = sum(one[1] != two[1] for one, two in zip(*columns, strict=True))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 {height}" role="img" '
        'aria-labelledby="title desc">',
        f'<title id="title">The heads {left.family} and {right.family} side by side</title>',
        f'<desc id="desc">One causal head, drawn from two records. They differ in {differing} '
        "parts, all of them norms.</desc>",
        f"<style>\n{_STYLE}</style>",
    ]
    for x, spec, column, other in zip(
        _COLUMNS, (left, right), columns, reversed(columns), strict=True
    ):
        parts.append(f'<text class="head" x="{x}" y="34">{spec.family}</text>')
        for index, ((label, is_there), (_, is_elsewhere)) in enumerate(
            zip(column, other, strict=True)
        ):
            y = height - 60 - (index + 1) * (_HEIGHT + _GAP) + _GAP
            kind = "gone" if not is_there else "both" if is_elsewhere else "one"
            parts.append(
                f'<rect class="{kind}" x="{x}" y="{y}" width="{2 * _WIDTH}" height="{_HEIGHT}" '
                'rx="6"/>'
            )
            text = "text" if is_there else "gone-t"
            parts.append(f'<text class="{text}" x="{x + _WIDTH}" y="{y + 22}">{label}</text>')
            if index + 1 < len(column):
                parts.append(f'<path class="flow" d="M{x + _WIDTH} {y} v-{_GAP}"/>')
    parts.append(
        f'<text class="note" x="{_COLUMNS[0]}" y="{height - 24}">Read from below. Dashed: left '
        "out; yellow: in one of the two alone.</text>"
    )
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    """Write both files."""
    PAGE.write_text(page(PAGE.read_text()))
    PICTURE.write_text(picture(family("deepseek_v3"), family("eagle")))


if __name__ == "__main__":
    main()
