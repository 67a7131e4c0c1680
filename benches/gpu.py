"""Times a step of `DeviceVerifier` on a GPU beside the kernels of engines; without one, its model.

Each case is a batch of drafts over logits that are on the device: B requests, N drafted tokens, V
tokens of a row, a rule, a shaping, an element type. On a GPU the rivals take turns on the same
input: our step eager and as a graph, and the kernels of vLLM, SGLang and FlashInfer where these are
installed and have the rule; "read" reads all logits once, and nothing else. Each turn is made with
the L2 cache as the turn before left it (warm), and overwritten (cold). A profile gives the time of
each of our kernels.

Without a GPU the report holds what needs none: the bytes that a step reads, the floor that follows,
and what `make kernels` found. Times are null then, and the report says "not measured".

    python benches/gpu.py --json build/bench/gpu.json             # everything: minutes on a GPU
    python benches/gpu.py --quick                                 # the smallest of each size
    python benches/gpu.py --quick --device cpu                    # times the operators of torch
"""

import argparse
import importlib
import itertools
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import mtp_verify as mv
from mtp_verify.verifier.words import Law, Rule

BATCHES = (1, 8, 64)
DRAFTED = (4, 8, 16, 64)
VOCABS = (32_000, 128_256, 151_936, 262_144)
ELEMENTS = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# A rule, the law of its drafts, and how many children a node has.
RULES: dict[Rule, tuple[Law, int]] = {
    "greedy": ("deterministic", 1),
    "target_only": ("deterministic", 1),
    "coupled": ("coupled", 1),
    "token": ("chain", 1),
    "block": ("chain", 1),
    "rrsw": ("swor", 2),
    "traversal": ("swor", 2),
}
SHAPINGS: dict[str, dict[str, Any]] = {
    "T=1": {},
    "T=0.7": {"temperature": 0.7},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
}
# Bytes a second of the memory, by NVIDIA's data sheets: H100 SXM and H200.
CARDS = {"H100": 3.35e12, "H200": 4.8e12}
BLOCK = 2048
# More than the L2 cache of any GPU.
FLUSHED = 256 << 20
NOT_MEASURED = "not measured: there is no GPU here"
KERNELS = Path(__file__).parents[1] / "docs" / "data" / "kernels.json"


class Case(NamedTuple):
    """One line of the report."""

    rule: Rule
    shaping: str
    element: str
    batch: int
    drafted: int
    vocab: int

    @property
    def law(self) -> Law:
        """How the tokens were chosen."""
        return RULES[self.rule][0]

    @property
    def is_sampled(self) -> bool:
        """Whether they were drawn from the drafter's rows."""
        return self.law in ("chain", "swor")

    @property
    def parents(self) -> list[int]:
        """Of one tree: nodes in the order of levels, each with as many children."""
        return [-1, *((node // RULES[self.rule][1]) for node in range(self.drafted))]

    @property
    def inner(self) -> int:
        """Nodes of one tree that have children."""
        return len(set(self.parents)) - 1

    @property
    def truncates(self) -> bool:
        """Whether rows are shaped by more than a temperature."""
        return not {"top_k", "top_p"}.isdisjoint(SHAPINGS[self.shaping])

    @property
    def params(self) -> mv.SamplingParams:
        """How the target's rows are shaped."""
        greedy = {"temperature": 0.0} if self.rule == "greedy" else {}
        return mv.SamplingParams(**(SHAPINGS[self.shaping] | greedy))


def cases(*, quick: bool) -> Iterator[Case]:
    """All cases; greedy rows are not shaped."""
    most = 1 if quick else None
    sizes = (BATCHES[:most], DRAFTED[:most], VOCABS[:most])
    kinds = (RULES, list(SHAPINGS)[:most], list(ELEMENTS)[:most])
    for batch, drafted, vocab, rule, shaping, element in itertools.product(*sizes, *kinds):
        if rule != "greedy" or shaping == "T=1":
            yield Case(rule, shaping, element, batch, drafted, vocab)


def floor(batch: int, drafted: int, vocab: int, bandwidth: float, width: int = 2) -> float:
    """Microseconds in which each row of the target can be read once."""
    return 1e6 * batch * (drafted + 1) * vocab * width / bandwidth


def traffic(case: Case) -> dict[str, dict[str, int]]:
    """The bytes of logits and of the drafter's rows that each launch reads, at least and at most.

    How many depends on what is accepted. Single tokens, and what launches leave for each other, are
    not counted: they are a hundredth of it. `test_traffic.py` counts the reads of the kernels.
    """
    width = ELEMENTS[case.element].itemsize
    rows = case.batch * (case.drafted + 1)
    row = case.vocab * width
    # The drafter's probabilities, float32.
    drafted, pair = (4 * case.vocab, row + 4 * case.vocab) if case.is_sampled else (0, row)
    # Nodes that may wait for a mass: one a request in a chain of `token`, else each that is tested.
    masses = {"token": 1, "block": case.drafted, "rrsw": case.inner, "traversal": case.drafted}
    draws = {"target_only": rows, "greedy": 0, "coupled": 0}.get(case.rule, case.batch)
    once = rows * row + case.batch * case.inner * drafted
    # Greedy rows: the block of the largest logit again, for its token.
    found = {"stats": (once, once + (rows * BLOCK * width if case.rule == "greedy" else 0))}
    if case.truncates:
        # Blocks that may reach the cut are listed, and what is left is summed; rows with more
        # candidates than a list holds are read up to five times more.
        found["shaping"] = (0, 7 * rows * row)
    if case.law == "swor":
        # For each but the first of some siblings: the blocks that earlier ones are in.
        later = case.batch * (case.drafted - case.inner)
        found["rest"] = (0, later * RULES[case.rule][1] * BLOCK * 4)
    if case.is_sampled:
        found["mass"] = (0, case.batch * masses[case.rule] * pair)
    if case.rule == "coupled":
        found["race"] = (rows * row, rows * row)
    if draws:
        last = case.vocab % BLOCK or BLOCK
        found["draw"] = (draws * last * width, draws * BLOCK * pair // case.vocab)
    return {name: {"least": least, "most": most} for name, (least, most) in found.items()}


class Setting:
    """The input of a case on a device."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case = case
        generator = torch.Generator(device).manual_seed(7)
        nodes = case.drafted + 1
        rows = case.batch * nodes
        # Peaked rows, as language models have: a few tokens hold most of the mass.
        logits = 2.0 * torch.randn(rows, case.vocab, generator=generator, device=device)
        peaks = torch.randint(case.vocab, (rows, 20), generator=generator, device=device)
        raised = 14.0 * torch.rand(rows, 20, generator=generator, device=device)
        self.logits = logits.scatter_add_(1, peaks, raised).to(ELEMENTS[case.element])
        # The rows after nodes with children, by request; the drafter is the target with noise.
        inner = torch.arange(case.batch, device=device)[:, None] * nodes
        inner = (inner + torch.arange(case.inner, device=device)).flatten()
        noisy = self.logits[inner].float()
        noisy += 0.6 * torch.randn(noisy.shape, generator=generator, device=device)
        self.draft_logits = noisy
        self.probs = noisy.softmax(-1)
        children = min(RULES[case.rule][1], case.drafted)
        drawn = torch.multinomial(self.probs, children, generator=generator)
        tokens = torch.zeros(case.batch, nodes, dtype=torch.long, device=device)
        places = np.arange(1, nodes) - 1
        each = drawn.view(case.batch, case.inner, children)
        tokens[:, 1:] = each[:, places // children, places % children]
        self.tokens = tokens
        follows = np.full((case.batch, nodes), -1)
        follows[:, : case.inner] = np.arange(len(inner)).reshape(case.batch, -1)
        self.drafts = mv.ops.DeviceDrafts(
            offsets=np.arange(case.batch + 1) * nodes,
            parents=case.parents * case.batch,
            tokens=tokens.flatten().cpu().numpy(),
            law=case.law,
            probs=self.probs if case.is_sampled else None,
            rows=follows.flatten() if case.is_sampled else None,
        )

    def verifier(self, passes: int | None = None) -> mv.ops.DeviceVerifier:
        """One with this input planned; with a number of passes its step can be captured."""
        case = self.case
        rows = case.batch * (case.drafted + 1)
        truncates = None if passes is None else case.truncates
        made = mv.ops.DeviceVerifier(
            max_batch=case.batch,
            max_rows=rows,
            vocab=case.vocab,
            dtype=ELEMENTS[case.element],
            device=self.logits.device,
            max_children=RULES[case.rule][1],
            max_passes=passes,
            truncates=truncates,
        )
        made.plan(
            self.drafts,
            case.params,
            rule=case.rule,
            seeds=range(case.batch),
            positions=[100] * case.batch,
        )
        return made


class Clock:
    """Microseconds of a call, on the device where there is one."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        if self.is_cuda:
            event: Any = torch.cuda.Event
            self.start, self.end = (event(enable_timing=True) for _ in range(2))
            self.flushed = torch.empty(FLUSHED, dtype=torch.uint8, device=device)

    def time(self, call: Callable[[], object], *, cold: bool) -> float:
        """One call; `cold`: with nothing of its input in the L2 cache."""
        if not self.is_cuda:
            start = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - start)
        if cold:
            self.flushed.zero_()
        torch.cuda.synchronize()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return 1e3 * float(self.start.elapsed_time(self.end))


def graph_of(call: Callable[[], object]) -> Callable[[], object]:
    """The same call as the replay of a graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def vllm(setting: Setting) -> Callable[[], object]:
    """The second model runner of vLLM: rules `token` and `block`, its drafter's rows as logits."""
    module = importlib.import_module("vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils")
    case, device = setting.case, setting.logits.device
    nodes = case.drafted + 1
    requests = torch.arange(case.batch, dtype=torch.int32, device=device)
    steps = torch.arange(nodes, dtype=torch.int32, device=device)
    values = {
        "target_logits": setting.logits,
        "draft_logits": setting.draft_logits.view(case.batch, case.drafted, case.vocab),
        "draft_sampled": setting.tokens.flatten(),
        "cu_num_logits": torch.arange(case.batch + 1, dtype=torch.int32, device=device) * nodes,
        "pos": (100 + steps).repeat(case.batch).long(),
        "idx_mapping": requests,
        "expanded_idx_mapping": requests.repeat_interleave(nodes),
        "expanded_local_pos": steps.repeat(case.batch),
        "temperature": torch.ones(case.batch, device=device),
        "seed": requests.long(),
        "num_speculative_steps": case.drafted,
        "use_block_verification": case.rule == "block",
    }
    return lambda: module.rejection_sample(**values)


def flashinfer(setting: Setting) -> Callable[[], object]:
    """FlashInfer's kernel for chains by rule `token`: the target's softmax is part of the step."""
    module = importlib.import_module("flashinfer.sampling")
    case = setting.case
    shape = (case.batch, case.drafted + 1, case.vocab)
    drafted = setting.probs.view(case.batch, case.drafted, case.vocab)
    tokens = setting.tokens[:, 1:].int().contiguous()

    def step() -> object:
        target = setting.logits.softmax(-1, dtype=torch.float32).view(shape)
        return module.chain_speculative_sampling(drafted, tokens, target)

    return step


def sglang(setting: Setting) -> Callable[[], object]:
    """SGLang's kernel of rule `target_only`: the target's softmax is part of the step."""
    module = importlib.import_module("sgl_kernel")
    case, device = setting.case, setting.logits.device
    nodes = case.drafted + 1
    shape = (case.batch, nodes, case.vocab)
    steps = torch.arange(nodes, device=device).expand(case.batch, -1)
    chance = torch.rand(case.batch, nodes + 1, device=device)
    following = torch.where(steps < case.drafted, steps + 1, -1)
    none = torch.full_like(steps, -1)
    places = steps + nodes * torch.arange(case.batch, device=device)[:, None]
    drafted = torch.zeros(shape, device=device)

    def made(*size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int32, device=device)

    predicts, accepted, count = made(case.batch * nodes), made(case.batch, nodes), made(case.batch)

    def step() -> object:
        target = setting.logits.softmax(-1, dtype=torch.float32).view(shape)
        drafted.zero_()
        return module.tree_speculative_sampling_target_only(
            predicts=predicts,
            accept_index=accepted,
            accept_token_num=count,
            candidates=setting.tokens,
            retrive_index=places,
            retrive_next_token=following,
            retrive_next_sibling=none,
            uniform_samples=chance[:, :-1].contiguous(),
            uniform_samples_for_final_sampling=chance[:, -1].contiguous(),
            target_probs=target,
            draft_probs=drafted,
        )

    return step


# Which rules a peer has at temperature 1 without truncation.
PEERS: dict[str, tuple[Callable[[Setting], Callable[[], object]], tuple[str, ...]]] = {
    "vllm": (vllm, ("token", "block")),
    "flashinfer": (flashinfer, ("token",)),
    "sgl_kernel": (sglang, ("target_only",)),
}


def standing() -> dict[str, str]:
    """The versions of peers, or why there are none."""
    found = {}
    for name in PEERS:
        try:
            found[name] = str(getattr(importlib.import_module(name), "__version__", "unknown"))
        except ImportError as missing:
            found[name] = f"not measured: {missing}"
    return found


def rivals(setting: Setting, there: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The calls to time, and what a peer failed with."""
    case = setting.case
    first = setting.verifier()
    passes = first.step(setting.logits).capacity.rounds
    eager = setting.verifier(passes)
    calls: dict[str, Callable[[], object]] = {
        "ours, eager": lambda: eager.verify(setting.logits),
        "read": lambda: setting.logits.amax(),
    }
    failed = {}
    if setting.logits.is_cuda:
        captured = setting.verifier(passes)
        calls["ours, graph"] = graph_of(lambda: captured.verify(setting.logits))
    for name, (make, rules) in PEERS.items():
        is_there = not there[name].startswith("not measured")
        if is_there and case.rule in rules and case.shaping == "T=1":
            # A peer of another version than this was written for must not end the bench.
            try:
                call = make(setting)
                call()
                calls[f"{name}, eager"] = call
                calls[f"{name}, graph"] = graph_of(call)
            except Exception as error:  # noqa: BLE001
                failed[name] = f"{type(error).__name__}: {error}"
    return calls, failed


def measure(case: Case, device: torch.device, there: dict[str, str], turns: int) -> dict[str, Any]:
    """Microseconds of each rival (least and median), and of each of our kernels."""
    setting = Setting(case, device)
    calls, failed = rivals(setting, there)
    clock = Clock(device)
    times: dict[str, dict[str, list[float]]] = {}
    order = random.Random(7)
    for turn in range(turns + 2):
        names = list(calls)
        order.shuffle(names)
        for name in names:
            for cold in (False, True) if clock.is_cuda else (False,):
                found = clock.time(calls[name], cold=cold)
                if turn > 1:  # The first turns compile and warm up.
                    kind = times.setdefault(name, {}).setdefault("cold" if cold else "warm", [])
                    kind.append(found)
    line: dict[str, Any] = {
        "microseconds": {
            name: {
                kind: {"least": min(values), "median": statistics.median(values)}
                for kind, values in kinds.items()
            }
            for name, kinds in times.items()
        }
    }
    if failed:
        line["failed"] = failed
    if clock.is_cuda:
        line["kernels"] = profile(calls["ours, eager"])
        best = line["microseconds"]["ours, graph"]["cold"]["least"]
        least = sum(part["least"] for part in traffic(case).values())
        line["bytes_a_second"] = 1e6 * least / best
        name = torch.cuda.get_device_name(device)
        for card, bandwidth in CARDS.items():
            if card in name:
                width = ELEMENTS[case.element].itemsize
                own = floor(case.batch, case.drafted, case.vocab, bandwidth, width)
                line["times_the_floor"] = best / own
    if case.batch == 1:
        line["same_as_core"] = same(setting)
    return line


def profile(call: Callable[[], object], steps: int = 20) -> dict[str, float]:
    """Microseconds a step of each kernel that a call launches."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        for _ in range(steps):
            call()
        torch.cuda.synchronize()
    return {event.key: event.device_time_total / steps for event in found.key_averages()}


def same(setting: Setting) -> bool:
    """Whether the device emits the core's tokens."""
    case = setting.case
    verifier = setting.verifier()
    verifier.verify(setting.logits)
    draft = setting.drafts
    probs = setting.probs.cpu() if case.is_sampled else None
    own = mv.Draft(mv.TokenTree(case.parents), draft.tokens, law=case.law, probs=probs)
    wanted = mv.verify_batch(
        [own], setting.logits.cpu(), [case.params], rule=case.rule, seeds=[0], positions=[100]
    )
    return bool(np.array_equal(verifier.host().tokens, wanted.tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument(
        "--quick", action="store_true", help="the first of each list, and all rules"
    )
    parser.add_argument("--turns", type=int, default=20, help="timed calls of each rival")
    parser.add_argument("--device", help="cuda or cpu; default: cuda, if it is there")
    options = parser.parse_args()
    name = options.device or ("cuda" if torch.cuda.is_available() else None)
    there = standing()
    lines = []
    for case in cases(quick=options.quick):
        line: dict[str, Any] = {**case._asdict(), "bytes": traffic(case), "microseconds": None}
        width = ELEMENTS[case.element].itemsize
        line["floor_microseconds"] = {
            card: floor(case.batch, case.drafted, case.vocab, bandwidth, width)
            for card, bandwidth in CARDS.items()
        }
        told = f"floor {line['floor_microseconds']['H100']:8.1f} us (H100)"
        if name is not None:
            line |= measure(case, torch.device(name), there, options.turns)
            ours = [key for key in ("ours, graph", "ours, eager") if key in line["microseconds"]]
            told = "  ".join(
                f"{key} {kind} {found['median']:8.1f} us"
                for key in ours
                for kind, found in line["microseconds"][key].items()
            )
        lines.append(line)
        print(*(f"{value!s:>12}" for value in case), " ", told, flush=True)
    is_gpu = name is not None and torch.device(name).type == "cuda"
    note = None if is_gpu else NOT_MEASURED
    print(note or torch.cuda.get_device_name())
    report = {
        "bench": "gpu",
        "gpu": torch.cuda.get_device_name() if is_gpu else None,
        "device": name,
        "note": note,
        "peers": there,
        "turns": options.turns if name else None,
        "cases": lines,
        "compiled": json.loads(KERNELS.read_text()),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "build": mv.verifier.build_info(),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
