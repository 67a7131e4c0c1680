"""Times the bookkeeping of a decoding step over a paged cache, beside vLLM's own manager.

Sixty-four sequences, a tree of sixteen drafted nodes each, blocks of sixteen slots. One step is
`reserve_batch`, `block_table` and `slot_mapping` into buffers that the caller keeps, and
`commit_batch` of drafts and verdicts in packed arrays; a sequence that has grown long is replaced
by a new one, outside the clock. The floor is what one step writes: the block table and the slots,
copied by NumPy.

The peer is vLLM's `KVCacheManager` on the same trace, where it is installed: slots for each
request, block ids into rows, slots by NumPy. It knows no trees: it keeps the surplus, and moves
nothing. Where vLLM is missing, the report says so. economize 0.3.2 has no table of blocks to
compare with: rows have fixed slots, and accepted paths are gathered over the tensors themselves.

    python benches/block_table.py --json build/bench/block_table.json
"""

import argparse
import importlib
import inspect
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import mtp_verify as mv

SEQUENCES = 64
DRAFTED = 16
BLOCK_SIZE = 16
SHORT, LONG = 256, 1024
POOL = 64
MAX_BLOCKS = (LONG + 2 * DRAFTED) // BLOCK_SIZE + 1
NUM_BLOCKS = SEQUENCES * MAX_BLOCKS
PHASES = ("reserve_batch", "block_table", "slot_mapping", "commit_batch")


class Trace:
    """The same trees, accepted paths and prompts for every rival."""

    def __init__(self, steps: int) -> None:
        rng = np.random.default_rng(7)
        parents = [-1, *(max(0, (node - 1) // 2) for node in range(1, DRAFTED + 1))]
        offsets = np.arange(SEQUENCES + 1) * len(parents)
        self.drafts, self.verdicts, self.accepted = [], [], []
        # A pool of different decisions; making them is no bookkeeping.
        for position in range(POOL):
            tokens = np.zeros((SEQUENCES, len(parents)), int)
            tokens[:, 1:] = [rng.permutation(DRAFTED) for _ in range(SEQUENCES)]
            drafts = mv.DraftBatch(
                offsets, np.tile(parents, SEQUENCES), tokens.ravel(), "deterministic"
            )
            logits = 2.0 * rng.standard_normal((tokens.size, DRAFTED)).astype(np.float32)
            positions = [position] * SEQUENCES
            verdicts = mv.verify_batch(drafts, logits, seeds=range(SEQUENCES), positions=positions)
            self.drafts.append(drafts)
            self.verdicts.append(verdicts)
            self.accepted.append(verdicts.num_accepted.tolist())
        self.choice = rng.integers(0, POOL, steps).tolist()
        self.prompts = rng.integers(SHORT // 2, SHORT, 1 << 16)


class Ours:
    """A step over `mv.kv.BlockTable`."""

    def __init__(self, trace: Trace, *, prefix_cache: bool) -> None:
        self.trace = trace
        self.table = mv.kv.BlockTable(NUM_BLOCKS, BLOCK_SIZE, prefix_cache)
        self.seqs = np.arange(SEQUENCES)
        self.counts = np.full(SEQUENCES, DRAFTED + 1)
        self.prompt = iter(trace.prompts.tolist())
        for seq in range(SEQUENCES):
            self.add(seq)
        self.rows = np.empty((SEQUENCES, MAX_BLOCKS), np.int32)
        self.slots = np.empty(SEQUENCES * (DRAFTED + 1), np.int64)
        self.moves = 0

    def add(self, seq: int) -> None:
        """A prompt of the next length."""
        length = next(self.prompt)
        self.table.add_sequence(seq, length, np.arange(length) + 31 * seq)

    def step(self, index: int) -> list[float]:
        """Seconds of each phase."""
        chosen = self.trace.choice[index]
        drafts, verdicts = self.trace.drafts[chosen], self.trace.verdicts[chosen]
        clock = [time.perf_counter()]
        copies = self.table.reserve_batch(self.seqs, self.counts).copies
        clock.append(time.perf_counter())
        self.table.block_table(self.seqs, out=self.rows)
        clock.append(time.perf_counter())
        self.table.slot_mapping(self.seqs, out=self.slots)
        clock.append(time.perf_counter())
        plans = self.table.commit_batch(self.seqs, drafts, verdicts)
        self.moves += len(plans.moves) + len(copies)
        clock.append(time.perf_counter())
        for seq, length in enumerate(plans.lengths):
            if length > LONG:
                self.table.release(seq)
                self.add(seq)
        return np.diff(clock).tolist()


class Vllm:
    """The same step over vLLM's manager: allocation, block table rows, slots, rollback."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        torch = importlib.import_module("torch")
        interface = importlib.import_module("vllm.v1.kv_cache_interface")
        managers = importlib.import_module("vllm.v1.core.kv_cache_manager")
        self.request_class = importlib.import_module("vllm.v1.request").Request
        self.params = importlib.import_module("vllm").SamplingParams(max_tokens=LONG)
        spec = given(
            interface.FullAttentionSpec,
            block_size=BLOCK_SIZE,
            num_kv_heads=1,
            head_size=1,
            dtype=torch.float32,
            use_mla=False,
        )
        config = interface.KVCacheConfig(
            num_blocks=NUM_BLOCKS + 1,  # Its block 0 is the null block.
            kv_cache_tensors=[],
            kv_cache_groups=[interface.KVCacheGroupSpec(["layer"], spec)],
        )
        self.manager = given(
            managers.KVCacheManager,
            kv_cache_config=config,
            max_model_len=MAX_BLOCKS * BLOCK_SIZE,
            enable_caching=False,
            scheduler_block_size=BLOCK_SIZE,
            hash_block_size=BLOCK_SIZE,
        )
        self.prompt = iter(trace.prompts.tolist())
        self.requests = [self.add(seq) for seq in range(SEQUENCES)]
        self.rows = np.zeros((SEQUENCES, MAX_BLOCKS), np.int32)
        self.offsets = np.arange(DRAFTED + 1)

    def add(self, seq: int) -> Any:
        """A request of the next length, its prompt computed."""
        length = next(self.prompt)
        request = given(
            self.request_class,
            request_id=f"{seq}-{length}",
            prompt_token_ids=list(range(length)),
            sampling_params=self.params,
            pooling_params=None,
            multi_modal_kwargs=None,
            multi_modal_hashes=None,
            multi_modal_placeholders=None,
            mm_features=None,
            eos_token_id=None,
            arrival_time=0.0,
        )
        if self.manager.allocate_slots(request, length) is None:
            raise MemoryError("vLLM's pool is too small for the trace")
        request.num_computed_tokens = length
        return request

    def step(self, index: int) -> list[float]:
        """Seconds of each phase."""
        accepted = self.trace.accepted[self.trace.choice[index]]
        clock = [time.perf_counter()]
        for request in self.requests:
            if self.manager.allocate_slots(request, DRAFTED + 1) is None:
                raise MemoryError("vLLM's pool is too small for the trace")
        clock.append(time.perf_counter())
        for row, request in zip(self.rows, self.requests, strict=True):
            (ids,) = self.manager.get_block_ids(request.request_id)
            row[: len(ids)] = ids
        clock.append(time.perf_counter())
        starts = np.array([request.num_computed_tokens for request in self.requests])
        entries = starts[:, None] + self.offsets
        blocks = np.take_along_axis(self.rows, entries // BLOCK_SIZE, axis=1)
        self.slots = (blocks * BLOCK_SIZE + entries % BLOCK_SIZE).ravel()
        clock.append(time.perf_counter())
        for request, count in zip(self.requests, accepted, strict=True):
            request.num_computed_tokens += 1 + count
        clock.append(time.perf_counter())
        for seq, request in enumerate(self.requests):
            if request.num_computed_tokens > LONG:
                self.manager.free(request)
                self.requests[seq] = self.add(seq)
        return np.diff(clock).tolist()


def given(kind: Any, **values: object) -> Any:
    """An instance, given those of the values that this version of vLLM asks for."""
    known = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in values.items() if name in known})


def peer(trace: Trace) -> tuple[Vllm | None, str]:
    """VLLM's manager, or why there is none."""
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as missing:
        return None, f"not measured: vLLM is not installed here ({missing})"
    return Vllm(trace), f"vllm {vllm.__version__} KVCacheManager"


class Floor:
    """Copies what a step writes, and nothing else."""

    def __init__(self, ours: Ours) -> None:
        self.rows, self.slots = ours.rows.copy(), ours.slots.copy()
        self.ours = ours

    def step(self, _index: int) -> list[float]:
        """Seconds of the copies."""
        start = time.perf_counter()
        self.rows[:] = self.ours.rows
        self.slots[:] = self.ours.slots
        return [time.perf_counter() - start]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--steps", type=int, default=2000, help="timed steps of each rival")
    options = parser.parse_args()
    trace = Trace(options.steps + 1)
    ours = Ours(trace, prefix_cache=False)
    rivals: dict[str, Ours | Vllm | Floor] = {
        "ours": ours,
        "ours, prefix cache": Ours(trace, prefix_cache=True),
    }
    theirs, standing = peer(trace)
    if theirs is not None:
        rivals["vllm"] = theirs
    rivals["floor"] = Floor(ours)
    times: dict[str, list[list[float]]] = {name: [] for name in rivals}
    for index in range(options.steps + 1):
        for name, rival in rivals.items():
            phases = rival.step(index)
            if index:  # The first turn warms up.
                times[name].append(phases)
    ours.table.check_integrity()
    lines: dict[str, dict[str, Any]] = {}
    print(f"B={SEQUENCES}, {DRAFTED}-node trees, blocks of {BLOCK_SIZE}; microseconds a step")
    for name, steps in times.items():
        totals = [1e6 * sum(phases) for phases in steps]
        medians = [1e6 * statistics.median(phase) for phase in zip(*steps, strict=True)]
        lines[name] = {"min": min(totals), "median": statistics.median(totals)}
        if len(medians) == len(PHASES):
            lines[name] |= {"phases": dict(zip(PHASES, medians, strict=True))}
        detail = "  ".join(f"{value:8.1f}" for value in medians if len(medians) > 1)
        print(f"{name:20} {lines[name]['min']:8.1f} {lines[name]['median']:8.1f}  {detail}")
    print(f"peer: {standing}")
    ratio = None
    if theirs is not None:
        ratio = {key: lines["vllm"][key] / lines["ours"][key] for key in ("min", "median")}
        print(f"times faster: {ratio['median']:.1f} (medians), {ratio['min']:.1f} (best)")
    report = {
        "bench": "block_table",
        "peer": standing,
        "sequences": SEQUENCES,
        "drafted": DRAFTED,
        "block_size": BLOCK_SIZE,
        "steps": options.steps,
        "moves_a_step": ours.moves / (options.steps + 1),
        "microseconds": lines,
        "times_faster": ratio,
        "machine": platform.processor() or platform.machine(),
        "build": mv.verifier.build_info(),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
