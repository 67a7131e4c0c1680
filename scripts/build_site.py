"""Build the documentation site from `docs/` and the docstrings, and check what was built.

    make site                                   # build/site/html
    python -m http.server -d build/site/html    # or open build/site/html/index.html as a file

Pages are copied to build/site/source, where the navigation (from the links of `docs/README.md`) and
a reference page for each public module are added. Any warning is an error, and so is a link between
pages that leads nowhere. Nothing is fetched. `scripts/check_site.py` then checks the HTML.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import mtp_verify

__all__ = ["MODULES", "commands", "entries", "main", "missing", "navigation", "reference"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUILD = ROOT / "build" / "site"

# Where the names of users are found, beside `mtp_verify` itself and the modules in its `__all__`.
# Whatever an example imports has to be among them (`tests/docs/test_site.py`).
OTHER_MODULES = (
    "mtp_verify.verifier",
    "mtp_verify.verifier.processors",
    "mtp_verify.verifier.reference",
    "mtp_verify.decoder.decode",
    "mtp_verify.decoder.generation",
    "mtp_verify.decoder.planning",
    "mtp_verify.models.interface",
    "mtp_verify.models.cpu.fused",
    "mtp_verify.models.cpu.packing",
    "mtp_verify.certification",
    "mtp_verify.certification.server",
    "mtp_verify.testing.mutants",
    "mtp_verify.testing.server",
    "mtp_verify.testing.strategies",
    "mtp_verify.training.recipe",
    "mtp_verify.training.run",
    "mtp_verify.training.losses",
    "mtp_verify.integrations.smollm2",
    "mtp_verify.integrations.vllm",
    "mtp_verify.integrations.sglang",
)
# Module -> the path that users write.
MODULES = {
    "mtp_verify": "mtp_verify",
    **{
        getattr(mtp_verify, name).__name__: f"mtp_verify.{name}"
        for name in mtp_verify.__all__
        if isinstance(getattr(mtp_verify, name), ModuleType)
    },
    **{name: name for name in OTHER_MODULES},
}
LINK = re.compile(r"\]\(([\w./-]+)\.md\)")


def entries() -> dict[str, list[tuple[str, Any]]]:
    """Return the public names of each module, by the path that users write: (name, object).

    A module without `__all__` has what it defines or hands out without an underscore.
    """
    return {path: _names(import_module(module)) for module, path in MODULES.items()}


def _names(module: ModuleType) -> list[tuple[str, Any]]:
    names = getattr(module, "__all__", None)
    if names is None:
        found = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        names = [name for name, value in found.items() if not isinstance(value, ModuleType)]
    return [(name, getattr(module, name)) for name in names]


def reference() -> dict[str, str]:
    """Return the pages of the reference, in reStructuredText: file name -> text.

    An object that several modules hand out is described once, in the first of them; the others
    name it with a link.
    """
    described: dict[int, str] = {}
    pages, lines = {}, []
    for module, path in MODULES.items():
        parts = [_title(path)]
        parts.append(f".. automodule:: {module}\n   :no-index:\n\n.. py:module:: {path}\n")
        if path != module:
            parts.append(f"Defined in ``{module}``.\n")
        for name, value in entries()[path]:
            if isinstance(value, ModuleType):
                if value.__name__ in MODULES:
                    target = MODULES[value.__name__]
                    parts.append(f"- :py:mod:`{target}`: {_summary(value)}\n")
                continue
            place = described.get(id(value)) if _has_identity(value) else None
            if place is not None:
                parts.append(f"- ``{name}``: see :py:obj:`{place} <{place}>`.\n")
                continue
            described[id(value)] = f"{path}.{name}"
            parts.append(_entry(f"{path}.{name}", value))
        pages[f"{path}.rst"] = "\n".join(parts)
        lines.append(f"   {path}\n")
    lines.append("   commands\n")
    pages["commands.rst"] = commands()
    toctree = ".. toctree::\n   :maxdepth: 1\n\n" + "".join(lines)
    intro = (
        "Every public name, from its docstring, and the help of every command. ``mv`` in the other "
        "pages is ``mtp_verify``.\n"
    )
    pages["index.rst"] = f"{_title('API reference')}\n{intro}\n{toctree}"
    return pages


def commands() -> str:
    """Return the page of the command line: the help of each command."""
    from mtp_verify.commands.cli import build_parser

    os.environ["COLUMNS"] = "88"  # the width that argparse wraps at
    parser = build_parser()
    kind = argparse._SubParsersAction
    (found,) = (action for action in parser._actions if isinstance(action, kind))
    parts = [_title("Command line"), _literal(parser.format_help())]
    for name, command in found.choices.items():
        parts += [_title(f"mtp-verify {name}", "-"), _literal(command.format_help())]
    return "\n".join(parts)


def _literal(text: str) -> str:
    return ".. code-block:: text\n\n" + textwrap.indent(text, "   ")


def _has_identity(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def _entry(path: str, value: Any) -> str:
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return f".. {kind}:: {path}\n   :members:\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {path}\n"
    # Directives of the domain itself put the module's path before the name.
    shown = repr(value)
    lines = [f".. py:data:: {path.rpartition('.')[2]}", f"   :type: {type(value).__name__}"]
    lines += [f"   :value: {shown}"] if len(shown) < 100 else []
    return "\n".join([*lines, ""])


def _title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n"


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def navigation(index: str) -> list[tuple[str, list[str]]]:
    """Return the sections of the index page, each with the pages that it links to."""
    sections = re.split(r"^## ", index, flags=re.MULTILINE)[1:]
    found = [(text.partition("\n")[0].strip(), LINK.findall(text)) for text in sections]
    return [(title, pages) for title, pages in found if pages]


def _toctree(pages: list[str], caption: str = "") -> str:
    options = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
    return "\n```{toctree}\n" + options + "\n" + "\n".join(pages) + "\n```\n"


def _write_source(source: Path) -> None:
    ignored = shutil.ignore_patterns("data", "__pycache__")
    shutil.copytree(DOCS, source, ignore=ignored)
    index = (source / "README.md").read_text()
    for title, pages in navigation(index):
        listed = [*pages, "reference/api/index"] if title == "Reference" else pages
        index += _toctree(listed, title)
    (source / "README.md").unlink()
    (source / "index.md").write_text(index)
    decisions = source / "adr" / "README.md"
    text = decisions.read_text()
    decisions.write_text(text + _toctree(LINK.findall(text)))
    api = source / "reference" / "api"
    api.mkdir()
    for name, page in reference().items():
        (api / name).write_text(page)


def missing(html: Path) -> list[str]:
    """Return the public names that have no entry in the built reference."""
    wrong = []
    for path, names in entries().items():
        page = (html / "reference" / "api" / f"{path}.html").read_text()
        for name, value in names:
            is_there = f'id="{path}.{name}"' in page or f">{name}</span></code>: see" in page
            if not is_there and not isinstance(value, ModuleType):
                wrong.append(f"{path}.{name} has no entry")
    return wrong


def main() -> int:
    """Build and check; return 0 if all is well."""
    shutil.rmtree(BUILD, ignore_errors=True)
    source, html = BUILD / "source", BUILD / "html"
    _write_source(source)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-d", str(BUILD / "doctrees")]
    # Libraries that are imported for their docstrings may warn; Sphinx's own are no such warnings.
    sphinx = [sys.executable, "-W", "ignore", "-m", "sphinx", *options, str(source), str(html)]
    if failed := subprocess.run(sphinx).returncode:
        return failed
    if wrong := missing(html):
        sys.stderr.write("\n".join([*wrong, ""]))
        return 1
    check = [sys.executable, str(Path(__file__).with_name("check_site.py")), str(html)]
    return subprocess.run(check).returncode


if __name__ == "__main__":
    sys.exit(main())
