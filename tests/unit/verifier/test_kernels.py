"""The seam between rows and kernels: nothing decides, draws or looks for a device beside it."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify import _core
from mtp_verify.verifier import kernels
from mtp_verify.verifier.kernels.host import Host

ROOT = Path(mv.__file__).parent
ROWS = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5], [0.125, 0.375, 0.5]], np.float32))
DECISIONS = ("verify", "verify_batch", "expected_accepted", "draw")
# The rooms that hold rows to be verified, and what only a kernel may do with them.
OVER_ROWS = ("decoder", "drafters", "integrations", "verifier")
OF_THE_CORE = {*DECISIONS, "verdicts"}
OF_DEVICES = {"cpu", "is_cpu", "is_cuda"}
# It names the device for which costs were measured, and decides nothing.
NAMES_DEVICES = "decoder/planning/store.py"


class Counting(Host):
    """The host's kernel, with a count of its calls."""

    def __init__(self):
        self.calls = Counter()

    def __getattribute__(self, name):
        if name in (*DECISIONS, "extend"):
            self.calls[name] += 1
        return super().__getattribute__(name)


@pytest.fixture
def counted(monkeypatch):
    """The calls that the kernel sees, and those that the core gets."""
    cores = Counter()

    def watch(name):
        original = getattr(_core, name)

        def wrapper(*args, **options):
            cores[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(_core, name, wrapper)

    for name in DECISIONS:
        watch(name)
    kernel = Counting()
    with kernels.using(kernel):
        yield kernel.calls, cores


def check(draft):
    return mv.verify(draft, ROWS[: draft.num_nodes], seed=0, position=3)


def in_a_batch():
    drafts = [mv.Draft.chain([1]), mv.Draft.chain([2, 0])]
    mv.verify_batch(drafts, [ROWS[:2], ROWS], seeds=[0, 1], positions=[3, 4])


def with_torch():
    ops, torch = mv.ops, pytest.importorskip("torch")
    ops.verify_batch(
        torch.tensor([[0, 1, 2]]), torch.from_numpy(ROWS)[None],
        seeds=torch.tensor([1]), positions=torch.tensor([3]),
    )  # fmt: skip


def decoded(count, drafter):
    def run():
        pytest.importorskip("torch")
        from mtp_verify.testing import BatchTableTarget, TableTarget

        table = TableTarget if count == 1 else BatchTableTarget
        target = table(lambda path: ROWS[len(path) % 3].tolist(), 3)
        prompts = [1] if count == 1 else [[1], [2]]
        mv.Decoder(target, drafter(target)).generate(prompts, max_new_tokens=5, seed=1)

    return run


def model(target):
    return mv.drafters.Model(target, num_tokens=2)


def assisted():
    pytest.importorskip("transformers")
    from tests.models import prompt, tiny_model

    with mv.hf.patch():
        tiny_model("llama", 1, vocab_size=4).generate(
            prompt(5) % 4,
            assistant_model=tiny_model("llama", 2, vocab_size=4),
            max_new_tokens=4,
            do_sample=True,
        )


@pytest.mark.parametrize(
    ("run", "seen"),
    {
        "verify": (lambda: check(mv.Draft.chain([1, 2])), {"verify"}),
        "expected": (lambda: mv.expected_accepted(mv.Draft.chain([1]), ROWS[:2]),
                     {"expected_accepted"}),
        "batch": (in_a_batch, {"verify_batch"}),
        "grower": (lambda: check(mv.growers.Chain(2, seed=0, position=3).grow(
            lambda paths: ROWS[[len(path) for path in paths]])), {"verify", "extend"}),
        "operator": (with_torch, {"verify_batch"}),
        "decoder": (decoded(1, lambda _: mv.drafters.NGram()), {"verify_batch"}),
        "decoder of many": (decoded(2, lambda _: mv.drafters.NGram()), {"verify_batch"}),
        "model": (decoded(1, model), {"verify_batch", "draw"}),
        "transformers": (assisted, {"verify"}),
    }.values(),
    ids=lambda value: None,
)  # fmt: skip
def test_every_decision_goes_through_the_kernel(counted, run, seen):
    calls, cores = counted
    run()
    assert set(calls) == seen
    assert {name: calls[name] for name in DECISIONS if calls[name]} == dict(cores)


def test_the_kernel_before_comes_back():
    before, kernel = kernels.select(ROWS), Counting()
    with kernels.using(kernel):
        assert kernels.select(ROWS) is kernel
    assert kernels.select(ROWS) is before
    with pytest.raises(mv.errors.ParamsError), kernels.using(kernel):
        mv.verify(mv.Draft.chain([1]), ROWS[:2], seed=-1, position=0)
    assert kernels.select(ROWS) is before


def test_nothing_beside_the_seam_decides():
    """Neither a decision of the core nor a question for a device stands outside of the kernels."""
    beside = []
    sources = [path for room in OVER_ROWS for path in sorted((ROOT / room).rglob("*.py"))]
    for path in sources:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("verifier/kernels/") or name == NAMES_DEVICES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            of_core = isinstance(node.value, ast.Name) and node.value.id == "_core"
            # `device.type` decides as `is_cpu` does; `mtp_verify.models.cpu` is a module.
            of_device = node.attr == "type" and ast.unparse(node.value).endswith("device")
            if of_device or node.attr in (OF_THE_CORE if of_core else OF_DEVICES):
                beside.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert beside == []
