"""Type checkers see the types of all public names, and refuse what is misspelt.

`make lint` holds `user_script.py` to strict mypy and pyright. Here it runs, `typos.py` is refused,
and what mypy makes of every public name and member is read.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtp_verify as mv

ROOT = Path(__file__).parents[2]
TYPOS = ROOT / "tests" / "typing" / "typos.py"
PACKAGES = ("mtp_verify", "mtp_verify.drafters", "mtp_verify.testing")
# Where users find what the README and docs/ name.
PARTS = (
    "",
    ".certification",
    ".commands.shared.compare",
    ".decoder.constraints",
    ".decoder.decode",
    ".drafters",
    ".errors",
    ".verifier.growers",
    ".heads",
    ".integrations.hf",
    ".verifier.lossy",
    ".integrations.ops",
    ".verifier.params",
    ".decoder.planning",
    ".verifier.processors",
    ".verifier.tree_shape",
    ".testing",
)
# What depends on other libraries: the model's cache, a head's state, what `generate` returns.
ANY = {
    "decoder.decode.Generation.past_key_values",
    "heads.Head.new_state",
    "integrations.hf.generate",
    "integrations.hf.speculative",
    "testing.BatchTableTarget.new_kv",
}

# mypy takes seconds where `make lint` has just run, some more without its cache.
pytestmark = pytest.mark.timeout(180)


def members(kind: type) -> set[str]:
    """The public members that a class, or one of ours above it, defines."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("mtp_verify")]
    names = {name for base in ours for name in (*vars(base), *inspect.get_annotations(base))}
    return {name for name in names if not name.startswith("_")}


def expressions() -> dict[str, str]:
    """Every public name, and every public member of an instance, by its full name."""
    found = {}
    for part in PARTS:
        module = importlib.import_module(f"mtp_verify{part}")
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            found[full.removeprefix("mtp_verify.")] = full
            value = getattr(module, name)
            if inspect.isclass(value):
                for member in members(value):
                    found[f"{full.removeprefix('mtp_verify.')}.{member}"] = f"{full}:{member}"
    return found


def reveal(found: dict[str, str]) -> str:
    """A script that asks for each type, one line each."""
    lines = [f"import mtp_verify{part}" for part in PARTS]
    for index, expression in enumerate(found.values()):
        full, _, member = expression.partition(":")
        if member:
            lines.append(f"def _{index}(x: {full}) -> object: return reveal_type(x.{member})")
        else:
            lines.append(f"reveal_type({full})")
    return "\n".join(lines)


@functools.cache
def mypy(folder: Path) -> tuple[str, dict[str, str]]:
    """What mypy says of the misspelt script; and the type of each name."""
    found = expressions()
    script = folder / "reveal.py"
    script.write_text(reveal(found))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context",
         "--no-pretty", str(TYPOS), str(script)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    lines = done.stdout.splitlines()
    pattern = re.compile(r".*reveal\.py:(\d+): note: Revealed type is \"(.*)\"$")
    revealed = {int(m[1]): m[2] for line in lines if (m := pattern.match(line))}
    assert not [line for line in lines if "reveal.py" in line and ": error:" in line]
    names = list(found)
    types = {names[line - 1 - len(PARTS)]: text for line, text in revealed.items()}
    assert set(types) == set(names)
    return "\n".join(line for line in lines if "typos.py" in line), types


@pytest.fixture
def said(tmp_path_factory) -> tuple[str, dict[str, str]]:
    return mypy(tmp_path_factory.getbasetemp())


def test_each_typo_is_refused_and_nothing_else(said):
    found = re.findall(r"typos\.py:(\d+): error: .*\[([a-z-]+)\]", said[0])
    marks = {
        number: mark.group(1)
        for number, line in enumerate(TYPOS.read_text().splitlines(), 1)
        if (mark := re.search(r"# error: ([a-z-]+)$", line))
    }
    assert len(marks) > 30
    assert [(int(line), code) for line, code in found] == list(marks.items())


def test_no_public_name_or_member_is_any(said):
    untyped = {name for name, text in said[1].items() if text == "Any" or text.endswith("-> Any")}
    assert untyped == ANY


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_what_is_loaded_on_first_use(name):
    package = importlib.import_module(name)
    source = ast.parse(Path(package.__file__).read_text())
    blocks = [
        node
        for node in source.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen: dict[str, object] = {}
    for block in blocks:
        exec(compile(ast.Module(block.body, []), package.__file__, "exec"), seen)
    del seen["__builtins__"]
    hook = vars(package)["__getattr__"]
    lazy = {key for key in package.__all__ if is_lazy(hook, key)}
    assert set(seen) == lazy
    for key, value in seen.items():
        assert getattr(package, key) is value


def is_lazy(hook, name: str) -> bool:
    try:
        hook(name)
    except AttributeError:
        return False
    return True


def test_every_package_that_loads_lazily_is_compared():
    folder = Path(mv.__file__).parent
    lazy = {
        ".".join(path.parent.relative_to(folder.parent).parts)
        for path in folder.rglob("__init__.py")
        if "def __getattr__" in path.read_text()
    }
    assert lazy == set(PACKAGES)


def test_the_user_script_runs_and_names_all_of_the_package():
    path = ROOT / "tests" / "typing" / "user_script.py"
    spec = importlib.util.spec_from_file_location("user_script", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.verify_one().rule == "target_only"
    script.verify_many()
    assert len(script.read_records()) == len(mv.rules())
    assert script.generate("coupled").finish_reasons == ["length"]
    assert script.generate_with_own_parts().finish_reasons == ["length"]
    assert script.grow().law == "iid"
    assert script.certify().verdict == "not enough data"
    assert set(script.catch()) == {"none", "out_of_blocks"}
    used = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    for module in ("mv", "mv.errors", "mv.kv", "mv.verifier"):
        names = eval(module).__all__
        assert {f"{module}.{name}" for name in names} <= used | {"mv.errors.MtpVerifyError"}
