"""Compile every specialisation of the Triton kernels, and check what came out; no GPU is needed.

    make kernels                   # against docs/data/kernels.json
    make kernels ARGS=--renew      # store what was found there

A `DeviceVerifier` runs steps of every kind, with Triton told that the device is each of the targets
in turn, and with every launch noted in place of being made. So what is compiled is what production
launches. Kinds are so chosen that every option is in one of them; `--together 2` has all pairs of
options, and so on. Fails if

- a kernel needs local memory (registers that spill, or a stack),
- it needs more registers than stored; a bound is a multiple of 8, the unit they are given out in,
- its PTX fuses, approximates or flushes where the source does not say so,
- it is launched with fusion of multiplications and additions allowed,
- a kernel of the package is launched by no step.

Compiled kernels are kept in build/kernels, by source and target.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import itertools
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompilationError
from triton.errors import TritonError
from triton.runtime.jit import JITFunction

from mtp_verify.verifier.kernels.device.drafts import DeviceDrafts
from mtp_verify.verifier.kernels.device.layout import Edited
from mtp_verify.verifier.kernels.device.verifier import DeviceVerifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]
BOUNDS = ROOT / "docs" / "data" / "kernels.json"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PACKAGE = "mtp_verify.verifier.kernels.device.triton_"


ELEMENTS = (torch.float32, torch.bfloat16, torch.float16)
# Rows that are read 16 bytes at a time, and rows that are not.
VOCABULARIES = (151_936, 32_003)
COLUMNS = 32_000


class Kind(NamedTuple):
    """What a step's launches are specialised for.

    Attributes:
        element: Of the target's logits.
        vocab: V.
        drafted: The element type of the drafter's rows, or None without.
        logits: Whether those are logits, else probabilities.
        columns: Whether they are of a sub-vocabulary.
        truncates: Whether rows are shaped by more than a temperature.
        bitmask: Whether tokens are masked.
        shadow: Whether rows are edited.
        given: Whether numbers take the place of noise.
    """

    element: torch.dtype
    vocab: int
    drafted: torch.dtype | None
    logits: bool
    columns: bool
    truncates: bool
    bitmask: bool
    shadow: bool
    given: bool

    def run(self) -> None:
        """Run a step of this kind, as on a device; what its rows hold is never read."""
        columns = COLUMNS if self.columns else self.vocab
        verifier = DeviceVerifier(
            max_batch=2,
            max_rows=12,
            vocab=self.vocab,
            dtype=self.element,
            device="cpu",
            max_depth=3,
            max_children=2,
            max_passes=1,
            columns=columns,
            truncates=self.truncates,
            backend="triton",
        )
        rows = None if self.drafted is None else torch.empty(8, columns, dtype=self.drafted)
        drafts = DeviceDrafts(
            offsets=[0, 4, 8],
            parents=[-1, 0, 1, 2] * 2,
            tokens=[0, 1, 2, 3] * 2,
            law="deterministic" if rows is None else "chain",
            probs=None if self.logits else rows,
            logits=rows if self.logits else None,
            vocab=range(COLUMNS) if self.columns else None,
        )
        verifier.plan(drafts, rule="topdown", seeds=[1, 2], positions=[5, 6])
        step = verifier.step(torch.empty(8, self.vocab, dtype=self.element))
        words = torch.empty(8, -(-self.vocab // 32), dtype=torch.int32)
        edited = Edited(
            bitmask=words if self.bitmask else None,
            shadow=torch.empty(2, self.vocab) if self.shadow else None,
            shadow_of=torch.empty(8, dtype=torch.int32) if self.shadow else None,
        )
        given = torch.empty(8, 2, dtype=torch.float64) if self.given else None
        backend = importlib.import_module(PACKAGE)
        workspace = backend.Workspace(step.capacity, "cpu")
        backend.run(step._replace(edited=edited, given=given), workspace)


def kinds() -> list[Kind]:
    """Return every kind of step."""
    switch = (False, True)
    sources = [
        (None, False, False),
        *itertools.product((torch.float32,), (False,), switch),
        *itertools.product(ELEMENTS, (True,), switch),
    ]
    switches = list(itertools.product(switch, repeat=4))
    factors = itertools.product(ELEMENTS, VOCABULARIES, sources, switches)
    return [Kind(element, vocab, *source, *rest) for element, vocab, source, rest in factors]


def joint(kind: Kind, count: int) -> set[tuple[object, ...]]:
    """Return what of a kind is there together, so many options at a time.

    What is known of the drafter's rows counts as one option.
    """
    element, vocab, drafted, logits, columns, *switches = kind
    factors = (element, vocab, (drafted, logits, columns), *switches)
    return set(itertools.combinations(enumerate(factors), count))


def few(every: list[Kind], together: int) -> Iterator[Kind]:
    """Yield some kinds: each choice of so many options is in one of them."""
    left = set().union(*(joint(kind, together) for kind in every))
    seen: set[tuple[object, ...]] = set()

    def worth(kind: Kind) -> tuple[int, int]:
        return len(joint(kind, together) & left), len(joint(kind, together + 1) - seen)

    while left:
        best = max(every, key=worth)
        left -= joint(best, together)
        seen |= joint(best, together + 1)
        yield best


class Found(NamedTuple):
    """What a compiled kernel needs, and what is wrong with it."""

    registers: int
    shared: int
    faults: list[str]


class Job(NamedTuple):
    """A kernel with all that Triton specialises it for."""

    target: str
    function: JITFunction[Any]
    signature: dict[str, str]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    @property
    def kernel(self) -> str:
        """The kernel's module and name."""
        return f"{self.function.module.rpartition('.')[2]}.{self.function.fn.__name__}"

    def __str__(self) -> str:
        """The target, the kernel, and what it is specialised for."""
        names = list(self.signature)
        values = [
            f"{'.'.join([names[place], *map(str, inside)])}={value}"
            for (place, *inside), value in self.constants.items()
        ]
        types = [f"{name}: {kind}" for name, kind in self.signature.items()]
        return f"{self.target} {self.kernel}({', '.join(types + values)})"


class Pretended:
    """A driver for a GPU that is not there: what Triton asks before it compiles for it."""

    def __init__(self) -> None:
        self.device = 0

    def get_current_device(self) -> int:
        """Return the device's number: Triton keeps what it knows of a target by it."""
        return self.device

    def get_current_stream(self, _device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return what is compiled for."""
        return list(TARGETS.values())[self.device]


def trace(run: Callable[[], object]) -> list[Job]:
    """Call `run` for each target, and return the distinct kernels that it launched."""
    jobs: dict[str, Job] = {}
    names = list(TARGETS)

    def note(*, repr: str, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        given = json.loads(compile["specialization_data"])["options"]
        options = {name: value for name, value in given.items() if not isinstance(value, list)}
        job = Job(
            names[compile["device"]],
            fn.jit_function,
            compile["signature"],
            compile["constants"],
            compile["configs"][0],
            options,
        )
        jobs.setdefault(f"{job}{repr}{job.attributes}{options}", job)
        return True  # Neither compile nor launch.

    launch = JITFunction.run

    def without(self: Any, *args: object, **kwargs: object) -> object:
        """Launch as with a torch for the target, which has no options of ptxas if that is AMD's."""
        if driver.get_current_target().backend == "hip":
            kwargs.pop("ptx_options", None)
        return launch(self, *args, **kwargs)

    driver = Pretended()
    triton.runtime.driver.set_active(driver)
    triton.knobs.runtime.jit_cache_hook = note
    JITFunction.run = without
    try:
        for driver.device in range(len(names)):
            run()
    finally:
        triton.knobs.runtime.jit_cache_hook = None
        JITFunction.run = launch
    return list(jobs.values())


def compiled(job: Job) -> Found:
    """Compile a kernel, or take it from the cache, and look at the result."""
    source = ASTSource(job.function, job.signature, job.constants, job.attributes)
    kernel = triton.compile(source, target=TARGETS[job.target], options=job.options)
    read = _amd if TARGETS[job.target].backend == "hip" else _nvidia
    found = read(kernel)
    if job.options.get("enable_fp_fusion", True):
        found.faults.append("launched without enable_fp_fusion=False")
    return found


def _nvidia(kernel: Any) -> Found:
    """Registers and memory as the cubin states them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        call = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(call, check=True, capture_output=True, text=True).stdout
    used = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", said)}
    local = [f"{used[name]} bytes of {name}" for name in ("STACK", "LOCAL") if used[name]]
    return Found(used["REG"], used["SHARED"], [*local, *forbidden(kernel.asm)])


def _amd(kernel: Any) -> Found:
    """Registers and memory as the assembly's metadata states them."""
    used = {
        name: int(value)
        for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", kernel.asm["amdgcn"], re.MULTILINE)
    }
    # Scalar registers spill to lanes of vector registers: a frame is reserved, but not used.
    scratch = set(re.findall(r"\bscratch_\w+", kernel.asm["amdgcn"]))
    local = [f"vgpr_spill_count {used['vgpr_spill_count']}"] if used["vgpr_spill_count"] else []
    return Found(used["vgpr_count"], used["group_segment_fixed_size"], [*local, *sorted(scratch)])


def forbidden(asm: dict[str, str]) -> list[str]:
    """Return the instructions of the PTX that round otherwise than the source says.

    A fused multiply-add needs a `math.fma` or a logarithm of its type in Triton's own code; the
    logarithm alone may approximate, and flush what is subnormal.
    """
    fused, flushed = (
        {kind for kind in ("f32", "f64") if re.search(rf"math\.{name} .*{kind}\b", asm["ttir"])}
        for name in ("(?:fma|log)", "log")
    )
    found = set()
    for name in re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z]\w*(?:\.\w+)+)", asm["ptx"], re.MULTILINE):
        # Newer GPUs do two at once: f32x2.
        parts = name.removesuffix("x2").split(".")
        if parts[0] == "fma" and parts[-1] not in fused:
            found.add(name)
        if {"approx", "ftz", "full"} & set(parts) and parts[-1] not in flushed:
            found.add(name)
    return [f"PTX {name}" for name in sorted(found)]


def modules(package: str) -> list[ModuleType]:
    """Import a package and all its modules."""
    top = importlib.import_module(package)
    names = [name for _, name, _ in pkgutil.walk_packages(top.__path__, f"{package}.")]
    return [top, *map(importlib.import_module, names)]


def uncovered(found: Iterable[ModuleType], launched: Iterable[JITFunction[Any]]) -> list[str]:
    """Return the jitted functions of `found` that no launched kernel is or calls."""
    functions = {
        f"{value.module}.{value.fn.__name__}": value
        for module in found
        for value in vars(module).values()
        if isinstance(value, JITFunction) and value.module == module.__name__
    }
    reached: set[str] = set()
    ahead = [f"{value.module}.{value.fn.__name__}" for value in launched]
    while ahead:
        name = ahead.pop()
        if name in reached or name not in functions:
            continue
        reached.add(name)
        function = functions[name].fn
        words = function.__code__.co_names
        places = [inspect.getmodule(function), *map(function.__globals__.get, words)]
        called = [
            getattr(place, word, None)
            for place in places
            if isinstance(place, ModuleType)
            for word in words
        ]
        ahead += [
            f"{one.module}.{one.fn.__name__}" for one in called if isinstance(one, JITFunction)
        ]
    return sorted(functions.keys() - reached)


def needed(jobs: list[Job], found: list[Found]) -> dict[str, dict[str, dict[str, int]]]:
    """Return the most that any specialisation needs: kernel -> target -> what -> number."""
    most: dict[str, dict[str, dict[str, int]]] = {}
    for job, one in zip(jobs, found, strict=True):
        entry = most.setdefault(job.kernel, {}).setdefault(
            job.target, {"specialisations": 0, "registers": 0, "shared": 0}
        )
        entry["specialisations"] += 1
        entry["registers"] = max(entry["registers"], one.registers)
        entry["shared"] = max(entry["shared"], one.shared)
    return {kernel: most[kernel] for kernel in sorted(most)}


def exceeded(
    needs: dict[str, dict[str, dict[str, int]]], bounds: dict[str, dict[str, dict[str, int]]]
) -> list[str]:
    """Return what is above the stored bounds, or has none."""
    faults = []
    for kernel, targets in needs.items():
        for target, need in targets.items():
            bound = bounds.get(kernel, {}).get(target, {}).get("registers", 0)
            if need["registers"] > -(-bound // 8) * 8:
                faults.append(f"{target} {kernel}: {need['registers']} registers, bound {bound}")
    return faults


_jobs: list[Job] = []


def _compiled(place: int) -> Found:
    """Compile one of the jobs that a process was forked with."""
    try:
        return compiled(_jobs[place])
    except (TritonError, RuntimeError, subprocess.CalledProcessError) as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        places = [str(cause) for cause in causes if isinstance(cause, CompilationError)]
        return Found(0, 0, [f"does not compile: {causes[-1]}\n{''.join(places[-1:])}"])


def compile_all(jobs: list[Job], processes: int) -> list[Found]:
    """Compile all, in forked processes: jobs hold functions, which cannot be sent."""
    _jobs[:] = jobs
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        found = []
        for job, one in zip(jobs, pool.imap(_compiled, range(len(jobs))), strict=True):
            found.append(one)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{len(found)}/{len(jobs)} {job.target} {job.kernel:20}\r")
        return found


def main() -> int:
    """Compile, report, compare; return 0 if all is well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--renew", action="store_true", help="store what was found as the bounds")
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        help="options of which all combinations are compiled: 1 (minutes), 2, to 7 (hours)",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    triton.knobs.cache.dir = str(ROOT / "build" / "kernels")
    start = time.perf_counter()
    found = modules(PACKAGE)
    chosen = list(few(kinds(), options.together))
    jobs = trace(lambda: [kind.run() for kind in chosen])
    results = compile_all(jobs, options.processes)
    needs = needed(jobs, results)
    faults = [
        f"{job}: {fault}" for job, one in zip(jobs, results, strict=True) for fault in one.faults
    ]
    lost = uncovered(found, {job.function for job in jobs})
    faults += [f"{name}: no step launches or calls it" for name in lost]
    if options.renew:
        report = {"triton": triton.__version__, "kernels": needs}
        BOUNDS.write_text(json.dumps(report, indent=1) + "\n")
    else:
        stored = json.loads(BOUNDS.read_text())
        faults += exceeded(needs, stored["kernels"])
        faults += [f"{name}: stored, but not launched" for name in stored["kernels"].keys() - needs]
    for kernel, targets in needs.items():
        told = "  ".join(f"{target} {need['registers']:3}" for target, need in targets.items())
        count = next(iter(targets.values()))["specialisations"]
        print(f"{kernel:28} {count:4} specialisations, registers: {told}")
    print(f"{len(jobs)} compiled, {len(faults)} faults, {time.perf_counter() - start:.0f} s")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
