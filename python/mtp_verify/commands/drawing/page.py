"""One self-contained HTML page of a generation: its text by origin, then each step's tree."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from mtp_verify.commands.drawing.tree import caption, to_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mtp_verify.commands.drawing.recorder import Step

    Decode = Callable[[Sequence[int]], str]

__all__ = ["to_html"]

_CSS = (
    "body{font:15px system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}"
    "svg{display:block;overflow:visible}div.step{overflow-x:auto;padding-bottom:6px}"
    "h3{font-size:14px;font-weight:500;margin:1.4em 0 .4em}svg text{font:12px monospace}"
    "svg path{fill:none;stroke-width:1.5}rect{fill:#fff;stroke:#9ca3af}"
    "path.lost{stroke:#d1d5db}path.kept{stroke:#15803d;stroke-width:3}"
    "path.bonus{stroke:#2563eb;stroke-width:2;stroke-dasharray:4 3}"
    ".lost text{fill:#9ca3af}.kept rect{fill:#dcfce7;stroke:#15803d}"
    ".bonus rect{fill:#dbeafe;stroke:#2563eb}.root rect{fill:#f3f4f6}"
    "pre{white-space:pre-wrap;font:14px monospace}pre .kept{background:#dcfce7}"
    "pre .bonus{background:#dbeafe}"
)


def to_html(
    steps: Sequence[Step], decode: Decode, show: Callable[[int], str], *, title: str, summary: str
) -> str:
    """Render the steps of one request, in order, as a page that loads nothing."""
    pictures = "".join(
        f'<h3>{index}. {escape(caption(step))}</h3><div class="step">{to_svg(step, show)}</div>'
        for index, step in enumerate(steps, 1)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_CSS}</style><h1>{escape(title)}</h1><p>{escape(summary)}</p>"
        f"<p>Green: drafted and accepted. Blue: drawn by the verifier. Grey: rejected, or never "
        f"asked for.</p><pre>{_text(steps, decode)}</pre>{pictures}</html>\n"
    )


def _text(steps: Sequence[Step], decode: Decode) -> str:
    """Render the generated text; a piece is empty if its last character ends in a later one."""
    ids: list[int] = []
    shown, parts = "", []
    for step in steps:
        tokens, kept = step.verdict.tokens.tolist(), step.verdict.num_accepted
        for kind, piece in (("kept", tokens[:kept]), ("bonus", tokens[kept:])):
            ids += piece
            text = decode(ids)
            new, shown = text[len(shown) :], text
            if new:
                parts.append(f'<span class="{kind}">{escape(new)}</span>')
    return "".join(parts)
