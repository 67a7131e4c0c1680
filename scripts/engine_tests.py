"""Run an engine's own sampler tests, first as they are and then with this package, and compare.

    PYTHON scripts/engine_tests.py vllm   ROOT/tests/v1/sample/test_rejection_sampler.py
    PYTHON scripts/engine_tests.py sglang ROOT/tests/speculative/test_speculative_sampling.py

PYTHON has the engine, this package and pytest. Nothing is fetched: ROOT is a checkout of the
engine's repository at the tag of the release that is installed (vLLM's source distribution holds
its tests, too; for SGLang it is the folder `sgl-kernel`). Exit status 1 means that a test fails
with this package and not without it, or that there were none; `--report FILE` keeps every outcome
as JSON. vLLM on a CPU wants VLLM_TARGET_DEVICE=cpu.

What stands in for the engine, since its tests call parts of it alone:

- vLLM: tests mock the bonus token and leave its row of logits out. The engine's logits have such
  rows, and the plug-in draws from them; here they are put in, with all of the weight on that token.
- SGLang: tests call its kernels with coins. Ours take their place and have noise of their own, so
  tests of rows with one likely token are comparable, and no others. Without a GPU, tensors that
  they ask for there are on the CPU, and go through the device path all the same. Thresholds below
  1 are left to the engine's kernel, and skipped where it is not installed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest
    from torch import Tensor

ENGINES = ("vllm", "sglang")
# What a run of the tests is told: the engine, whether we take part, and where outcomes go.
_ENGINE, _OURS, _OUTCOMES = "ENGINE_TESTS_OF", "ENGINE_TESTS_OURS", "ENGINE_TESTS_OUTCOMES"
# Modules of SGLang, by release, that hold the kernels.
_KERNELS = ("sgl_kernel", "sglang.kernels.ops.speculative.sampling")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, print what differs, and return the exit status."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="engine_tests", description=summary)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("tests", nargs="+", type=Path, help="files of the engine's repository")
    parser.add_argument("--report", type=Path, help="write the outcomes of both runs there")
    options = parser.parse_args(arguments)
    for path in options.tests:
        if not path.is_file() or "tests" not in path.resolve().parts[:-1]:
            parser.error(f"{path}: found no such file, wanted one below `tests` of the repository")
    without, found = (
        outcomes_of(options.engine, options.tests, is_ours=is_ours) for is_ours in (False, True)
    )
    if options.report is not None:
        report = {"engine": options.engine, "without": without, "with": found}
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    text, is_right = compared(without, found)
    print(text)
    return 0 if is_right else 1


def outcomes_of(engine: str, tests: Sequence[Path], *, is_ours: bool) -> dict[str, str]:
    """Run the tests in a process of their own; return "passed", "failed" or "skipped" of each."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = Path(folder) / "outcomes.json"
        # Their repository is importable by its tests alone: the engine is the installed one. Its
        # settings and fixtures stay out.
        root = _root(tests[0].resolve())
        (Path(folder) / "tests").symlink_to(root / "tests")
        paths = [str(path.resolve().relative_to(root)) for path in tests]
        known = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        places = [str(Path(__file__).parent), folder, *map(os.path.abspath, known)]
        variables = {
            "PYTHONPATH": os.pathsep.join(places),
            _ENGINE: engine,
            _OURS: "1" if is_ours else "",
            _OUTCOMES: str(outcomes),
        }
        command = [
            sys.executable, "-m", "pytest", "-p", "engine_tests", "-p", "no:cacheprovider", "-q",
            "--import-mode=importlib", "--noconftest", "-c", os.devnull, f"--rootdir={folder}",
            *paths,
        ]  # fmt: skip
        subprocess.run(command, env={**os.environ, **variables}, cwd=folder, check=False)
        found: dict[str, str] = json.loads(outcomes.read_text()) if outcomes.exists() else {}
        return found


def _root(path: Path) -> Path:
    """Return the folder that holds the outermost "tests" of a path."""
    names = path.parts
    return Path(*names[: names.index("tests")])


def compared(without: dict[str, str], found: dict[str, str]) -> tuple[str, bool]:
    """Return what to say, and whether no test is worse with this package.

    Tests that did not run without it (their kernels are not installed) must not fail with it.
    """
    worse, better = [], []
    for name in sorted(without | found):
        before, after = without.get(name, "not run"), found.get(name, "not run")
        if before != "failed" and after in ("failed", "not run"):
            worse.append(f"worse: {name}: {before}, then {after}")
        elif before == "failed" and after == "passed":
            better.append(f"better: {name}")
    lines = [
        *better,
        *worse,
        f"as it is: {_counted(without)}",
        f"with mtp-verify: {_counted(found)}",
    ]
    if not without:
        lines.append("the engine alone ran no test: what fails with mtp-verify counts as worse")
    return "\n".join(lines), bool(found) and not worse


def _counted(outcomes: dict[str, str]) -> str:
    kinds = {kind: list(outcomes.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


# ---- in the process of the tests: this file is a plug-in of pytest there ------------------------

_outcomes: dict[str, str] = {}


def pytest_configure() -> None:
    """Put the engine, and this package where that is asked for, in place."""
    engine, is_ours = os.environ.get(_ENGINE), bool(os.environ.get(_OURS))
    if engine == "vllm":
        start_vllm()
    if engine == "vllm" and is_ours:
        replace_in_vllm()
    if engine == "sglang" and is_ours:
        replace_in_sglang()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended; a failure to set it up or to tear it down is one of the test."""
    if report.failed:
        _outcomes[report.nodeid] = "failed"
    elif report.when == "call" or report.skipped:
        _outcomes.setdefault(report.nodeid, report.outcome)


def pytest_sessionfinish() -> None:
    """Hand the outcomes over."""
    if place := os.environ.get(_OUTCOMES):
        Path(place).write_text(json.dumps(_outcomes))


def start_vllm() -> None:
    """Do what its workers do on a CPU without Triton: other functions take its kernels' places."""
    platform = importlib.import_module("vllm.platforms").current_platform
    for name in ("import_kernels", "register_triton_kernel_overrides"):
        getattr(platform, name, bool)()


def replace_in_vllm() -> None:
    """Switch the plug-in on, and give it the rows that tests leave out."""
    from mtp_verify.integrations.vllm import install

    install()
    sampler = importlib.import_module("vllm.v1.sample.rejection_sampler").RejectionSampler
    sampler.forward = with_bonus_rows(sampler.forward)


def with_bonus_rows(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return `RejectionSampler.forward` for steps whose bonus tokens are mocked."""
    import torch

    @functools.wraps(forward)
    def replaced(
        self: Any, metadata: Any, draft_probs: Any, logits: Tensor, sampling_metadata: Any
    ) -> Any:
        if isinstance(self.sampler, Mock) and len(logits) == sum(metadata.num_draft_tokens):
            self.sampler.apply_logits_processors = lambda rows, *_, **__: rows
            bonus = self.sampler.return_value.sampled_token_ids.flatten().long()
            counts = torch.tensor(metadata.num_draft_tokens, device=logits.device)
            last = (counts + 1).cumsum(0) - 1
            rows = logits.new_full((len(logits) + len(last), logits.shape[1]), -torch.inf)
            is_target = torch.ones(len(rows), dtype=torch.bool, device=logits.device)
            is_target[last] = False
            rows[is_target] = logits
            rows[last, bonus] = 0
            metadata, logits = copy.copy(metadata), rows
            metadata.bonus_logits_indices = last
            metadata.target_logits_indices = is_target.nonzero()[:, 0]
        return forward(self, metadata, draft_probs, logits, sampling_metadata)

    return replaced


def replace_in_sglang() -> None:
    """Put our verification in the place of the engine's kernels."""
    import torch

    from mtp_verify.integrations.sglang import trees

    if not torch.cuda.is_available():
        _on_cpu().__enter__()
        vars(trees)["is_on_host"] = lambda _: False
    found = []
    for name in _KERNELS:
        try:
            found.append(importlib.import_module(name))
        except ImportError:
            continue
    if not found:
        found = [sys.modules.setdefault(_KERNELS[0], ModuleType(_KERNELS[0]))]
    for module in found:
        engines = getattr(module, "tree_speculative_sampling_target_only", None)
        for function in (verify_tree_greedy, sampled(engines)):
            setattr(module, function.__name__, function)


def _on_cpu() -> Any:
    """Return a mode in which what is asked for on "cuda" is on the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._pytree import tree_map

    def moved(value: Any) -> Any:
        is_device = isinstance(value, str | torch.device) and str(value).startswith("cuda")
        return "cpu" if is_device else value

    class OnCpu(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return func(*tree_map(moved, args), **tree_map(moved, kwargs or {}))

    return OnCpu()


def sampled(engines: Callable[..., Any] | None) -> Callable[..., None]:
    """Return what takes the place of the engine's kernel for sampled requests."""

    def tree_speculative_sampling_target_only(
        *, target_probs: Tensor, threshold_single: float = 1, threshold_acc: float = 1, **given: Any
    ) -> None:
        if min(threshold_single, threshold_acc) >= 1:
            _verify(target_probs.log(), temperature=1.0, **given)
        elif engines is None:
            import pytest

            pytest.skip("thresholds below 1 are left to the engine's kernel, which is not there")
        else:
            thresholds = {"threshold_single": threshold_single, "threshold_acc": threshold_acc}
            engines(target_probs=target_probs, **thresholds, **given)

    return tree_speculative_sampling_target_only


def verify_tree_greedy(*, target_predict: Tensor, **given: Any) -> None:
    """Take the place of the engine's kernel for greedy requests."""
    from torch.nn.functional import one_hot

    vocab = 1 + int(max(target_predict.max(), given["candidates"].max()))
    _verify(one_hot(target_predict.long(), vocab).float(), temperature=0.0, **given)


def _verify(logits: Tensor, *, temperature: float, **given: Any) -> None:
    """Verify trees; `logits` are (B, D, V), names are the engine's in either spelling."""
    from mtp_verify.integrations.sglang import verify_trees
    from mtp_verify.verifier.params import SamplingParams

    tensors = {name.replace("retrieve", "retrive"): value for name, value in given.items()}
    names = ("predicts", "accept_index", "accept_token_num", "candidates", "retrive_index")
    links = ("retrive_next_token", "retrive_next_sibling")
    batch = len(logits)
    verify_trees(
        **{name: tensors[name] for name in (*names, *links)},
        logits=logits.flatten(0, 1),
        params=[SamplingParams(temperature)] * batch,
        seeds=range(batch),
        positions=[0] * batch,
    )


if __name__ == "__main__":
    sys.exit(main())
