"""`mtp-verify doctor`: versions, processor, thread policy, extras and engine hooks."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtp_verify import drafters
from mtp_verify._core import Draft
from mtp_verify.commands.command import Command
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.console.libraries import EXTRAS
from mtp_verify.console.report import Report, Table
from mtp_verify.integrations.gate import ENGINES
from mtp_verify.integrations.smollm2 import PACKAGE
from mtp_verify.models import supported
from mtp_verify.verifier.api import build_info, verify
from mtp_verify.verifier.params import SamplingParams

if TYPE_CHECKING:
    import argparse

    from mtp_verify.integrations.gate import Gate

__all__ = ["COMMAND", "add_arguments", "run"]

# How the two statements about a hook begin that make a report fail.
_TOO_OLD, _FAILS = "too old", "fails"
# Instruction sets that decide which kernels run, ours and torch's.
_CPU_FEATURES = (
    "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16",
    "asimd", "bf16", "sve",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--quick", action="store_true", help="measure nothing")


def run(args: argparse.Namespace) -> Report:
    """Examine the installation and the machine.

    The report is not `ok` if the compiled core gives a wrong verdict on a known draft, or if
    transformers is installed and what plugs into it does not give `generate`'s tokens.
    """
    core = _check_core()
    engines = {
        name: {"version": _engine_version(gate), "hook": _hook(name, gate)}
        for name, gate in ENGINES.items()
    }
    extras = {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()}
    # No extra can name it: it is installed with --no-deps, see requirements-model.txt.
    extras["demo"][PACKAGE] = _version(PACKAGE)
    data: dict[str, Any] = {
        "version": build_info()["version"],
        "build": build_info(),
        "core_check": core,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "torch": _torch(measure=not args.quick),
        "extras": extras,
        "engines": engines,
    }
    faults = [] if core == "ok" else [f"the compiled core is broken: {core}"]
    faults += [
        f"{name} {found['version']}: {found['hook']}"
        for name, found in engines.items()
        if str(found["hook"]).startswith((_TOO_OLD, _FAILS))
    ]
    summary = "; ".join(faults) or "all is well"
    return Report("doctor", ok=not faults, data=data, sections=_sections(data), summary=summary)


def _check_core() -> str:
    """Verify one draft whose verdict is known; return "ok" or what was found instead."""
    logits = np.zeros((3, 5), np.float32)
    logits[[0, 1, 2], [2, 4, 1]] = 9.0
    params = SamplingParams(temperature=0.0)
    verdict = verify(Draft.chain([2, 3]), logits, params, seed=0, position=0)
    found = verdict.tokens.tolist()
    return "ok" if found == [2, 4] else f"found tokens {found}, wanted [2, 4]"


def _cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    words: set[str] = set()
    model = platform.processor() or platform.machine()
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                words.update(value.split())
            elif key.strip() == "model name":
                model = value.strip()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "model": model,
        "cores": os.cpu_count(),
        "usable_cores": len(affinity(0)) if affinity is not None else os.cpu_count(),
        "features": [name for name in _CPU_FEATURES if name in words],
    }


def _torch(*, measure: bool) -> dict[str, Any] | None:
    if find_spec("torch") is None:
        return None
    import torch

    policy = None
    if measure and find_spec("transformers") is not None:
        from mtp_verify.commands.shared import threads
        from mtp_verify.models.cpu.fused import fuse

        # SmolLM2 where it is installed: the best count depends on the size of the products.
        is_packaged = _version(PACKAGE) is not None
        # Fused, as the other commands run it: they read what is kept here.
        model = subject_for(tiny=not is_packaged).load("bfloat16")
        fuse(model)
        seen = threads.renew(model)
        policy = {name: value for name, value in vars(seen).items() if name != "cores"}
        policy["model"] = PACKAGE if is_packaged else "tiny random model"
    return {
        "version": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "cuda": bool(torch.cuda.is_available()),
        "policy": policy,
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _engine_version(gate: Gate) -> str | None:
    return next(filter(None, map(_version, gate.distributions)), None)


def _hook(name: str, gate: Gate) -> str:
    """Say whether the place where we plug into an engine is there."""
    version = _engine_version(gate)
    if version is None:
        return "not installed"
    if name != "transformers":
        if gate.knows(version):
            return f"fits: set {gate.variable}=1"
        return f"unsupported version (supported: {gate.supported})"
    if supported.minor_of(version) < supported.FIRST:
        return f"{_TOO_OLD}; tested are {supported.TESTED}"
    if find_spec("torch") is None:
        return "needs torch"
    if failed := _failed_hooks():
        return f"{_FAILS}: " + "; ".join(f"{name} ({why})" for name, why in failed.items())
    if supported.minor_of(version) > supported.LAST:
        return f"works, as tried just now; later than the tested versions ({supported.TESTED})"
    return "fits: generate(custom_generate=...) and Decoder, as tried just now"


def _failed_hooks() -> dict[str, str]:
    """Generate two tokens through each hook; return those that fail, and what happened."""
    failed: dict[str, str] = {}
    wanted = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report says what there is to say
        for name, run in _HOOKS.items():
            try:
                found = run()
            except Exception as error:  # noqa: BLE001 - any error is the finding
                failed[name] = f"{type(error).__name__}: {error}"
                continue
            wanted = wanted or found
            if found != wanted:
                failed[name] = f"found tokens {found}, wanted generate's own {wanted}"
    return failed


def _generate(**settings: Any) -> list[int]:
    """Return two tokens of a tiny model by `generate`, behind a prompt that invites drafts."""
    import torch

    ids = torch.tensor([_PROMPT])
    settings |= {"max_new_tokens": 2, "do_sample": False, "pad_token_id": 0}
    model = subject_for(tiny=True).load("float32")
    text = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return list(text[0, len(_PROMPT) :].tolist())


def _custom_generate() -> list[int]:
    from mtp_verify.integrations import hf

    return _generate(custom_generate=hf.speculative(drafters.NGram(min_ngram=1)))


def _decoder() -> list[int]:
    from mtp_verify.decoder.decode import Decoder

    model = subject_for(tiny=True).load("float32")
    decoder = Decoder(model, drafters.NGram(min_ngram=1), SamplingParams(temperature=0.0))
    return list(decoder.generate(_PROMPT, max_new_tokens=2).tokens[0])


# What is tried, the library's own `generate` first.
_PROMPT = [5, 6, 5, 6, 5]
_HOOKS = {"generate": _generate, "custom_generate": _custom_generate, "Decoder": _decoder}


def _policy_table(policy: dict[str, Any]) -> Table:
    """Show how long a forward takes at each thread count, by its width."""
    times: dict[int, dict[int, float]] = policy["milliseconds"]
    widths = next(iter(times.values()))
    others = "" if policy["others"] is None else f": other programs took {policy['others']:.0%}"
    note = f"not kept{others}; run it again on an idle machine"
    return Table(
        title=f"Threads: {policy['best']} is best here ({policy['model']}, ms a forward)",
        columns=("threads", *(f"{width} token(s)" for width in widths)),
        rows=tuple(
            (str(count), *(f"{row[width]:.1f}" for width in widths)) for count, row in times.items()
        ),
        notes=("kept for the other commands" if policy["is_kept"] else note,),
    )


def _sections(data: dict[str, Any]) -> list[Table | str]:
    cpu, torch = data["cpu"], data["torch"]
    build = "; ".join(
        f"{key.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}"
        for key, value in data["build"].items()
        if key != "version"
    )
    rows = [
        ("mtp-verify", data["version"]),
        ("core", build),
        ("core check", data["core_check"]),
        ("python", f"{data['python']} ({sys.executable})"),
        ("numpy", data["numpy"]),
        ("system", data["system"]),
        ("processor", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores usable"),
        ("features", " ".join(cpu["features"]) or "none that matter"),
    ]
    if torch is None:
        rows.append(("torch", 'not installed; run: pip install "mtp-verify[torch]"'))
    else:
        rows.append(("torch", f"{torch['version']}, {torch['threads']} threads by default"))
        rows.append(("cuda", "yes" if torch["cuda"] else "no"))
    extras = tuple(
        (extra, name, version or "missing")
        for extra, names in data["extras"].items()
        for name, version in names.items()
    )
    engines = tuple(
        (name, found["version"] or "-", str(found["hook"]))
        for name, found in data["engines"].items()
    )
    return [
        Table("", ("item", "found"), tuple(rows), left=2),
        *([_policy_table(torch["policy"])] if torch and torch["policy"] else []),
        Table("Extras", ("extra", "package", "version"), extras, left=3),
        Table("Engines", ("engine", "version", "hook"), engines, left=3),
    ]


COMMAND = Command(
    "doctor",
    "Show versions, CPU features, thread policy, extras and engine hooks.",
    "mtp-verify doctor --json",
    add_arguments,
    run,
    activity="looking, and timing forwards of a model",
)
