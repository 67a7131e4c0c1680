"""A store of past texts that requests share: memory, look-ups, threads, prompts that come again.

The store is filled with texts of random phrases that recur by Zipf's law, so that many contexts
have several continuations. Look-ups are timed on texts that continue a stored one and on new ones,
in time of their thread, which other processes do not take. Then eight threads read requests and
look up, while a ninth adds texts. At last SmolLM2 answers prompts, and answers them again, with a
store that holds the other texts as well.

    python benches/suffix_store.py --json build/bench/suffix_store.json
"""

import argparse
import json
import os
import platform
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import mtp_verify as mv
from mtp_verify.commands.shared.prompts import OWN, pick
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.drafters import Request, Suffix, SuffixStore
from mtp_verify.models.cpu.fused import fuse

VOCAB = 49_152
THREADS = 8
TEXT = 256
GREEDY = mv.SamplingParams(temperature=0.0)
SHAPES = {
    "greedy": GREEDY,
    "temperature 0.8": mv.SamplingParams(temperature=0.8, top_p=0.95),
}


class Texts:
    """Texts of phrases, the frequent ones first by Zipf's law."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        ids = self.rng.zipf(1.2, size=(20_000, 12)) % VOCAB
        self.phrases = [row[: 4 + at % 9].tolist() for at, row in enumerate(ids)]

    def text(self) -> list[int]:
        """One of `TEXT` tokens."""
        found: list[int] = []
        while len(found) < TEXT:
            found += self.phrases[int(self.rng.zipf(1.1)) % len(self.phrases)]
        return found[:TEXT]


def resident() -> int:
    """Bytes of this process in memory, 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def fill(store: SuffixStore, texts: list[list[int]]) -> float:
    """Microseconds of this thread that a token takes to be added."""
    start = time.thread_time()
    for text in texts:
        store.add(text)
    return 1e6 * (time.thread_time() - start) / sum(map(len, texts))


def memory(store: SuffixStore, maker: Texts) -> dict[str, Any]:
    """Fill a store, then twice as much as it holds again."""
    count = store.max_tokens // (TEXT + 16)
    texts = [maker.text() for _ in range(count)]
    before = resident()
    line: dict[str, Any] = {"microseconds_a_token": fill(store, texts)}
    line |= {"tokens": store.num_tokens, "texts": store.num_texts, "bytes": store.num_bytes}
    line["resident_bytes"] = resident() - before
    most = 0
    took = []
    for _ in range(8):
        took.append(fill(store, [maker.text() for _ in range(max(count // 4, 1))]))
        most = max(most, store.num_bytes)
        assert store.num_tokens + 16 * store.num_texts <= store.max_tokens
    line |= {"microseconds_a_token_when_full": statistics.median(took), "most_bytes": most}
    line["resident_bytes_in_the_end"] = resident() - before
    return line


def lookups(drafter: Suffix, texts: list[list[int]], rounds: int) -> dict[str, float]:
    """Microseconds of `propose` for a request whose text was read, and how often it drafts."""
    took, hits = [], 0
    for turn in range(rounds):
        text = texts[turn % len(texts)]
        length = 40 + turn % (TEXT - 60)
        request = Request(turn, text[:length], length, GREEDY, seed=turn)
        drafter.start(request)
        start = time.thread_time()
        (draft,) = drafter.propose([request], [16])
        took.append(1e6 * (time.thread_time() - start))
        hits += draft.num_nodes > 1
        drafter.release(request)
    took.sort()
    return {
        "median": statistics.median(took),
        "99%": took[int(0.99 * len(took))],
        "drafted": hits / rounds,
    }


def crowd(
    store: SuffixStore, texts: list[list[int]], readers: int, rounds: int
) -> dict[str, float]:
    """Requests of 80 tokens a second that threads read and look up, while another adds texts."""
    drafter = Suffix(store=store)
    done = threading.Event()
    added = 0

    def write() -> None:
        nonlocal added
        while not done.is_set():
            store.add(texts[added % len(texts)])
            added += 1
            time.sleep(0.01)  # A hundred answers a second.

    def read(part: int) -> None:
        for number in range(part * rounds, (part + 1) * rounds):
            request = Request(number, texts[number % len(texts)][:80], 80, GREEDY, seed=0)
            drafter.propose([request], [16])
            drafter.release(request)

    with ThreadPoolExecutor(readers + 1) as pool:
        writer = pool.submit(write)
        start = time.perf_counter()
        jobs = [pool.submit(read, part) for part in range(readers)]
        for job in jobs:
            job.result()
        spent = time.perf_counter() - start
        done.set()
        writer.result()
    return {"requests_a_second": readers * rounds / spent, "texts_added": added}


def answers(
    model: Any, prompts: list[list[int]], store: SuffixStore, count: int, shape: str
) -> list[dict[str, Any]]:
    """Every prompt once, and once more: without a store, and with one."""
    params = SHAPES[shape]
    lines = []
    seeds = iter(range(1, 1_000_000))
    for time_asked in (1, 2, 3):
        line: dict[str, Any] = {"shape": shape, "time_asked": time_asked}
        for name in ("own text", "store"):
            whose: Any = {"store": store, "tenant": shape, "reads": [""]} if name == "store" else {}
            decoder = mv.Decoder(model, Suffix(**whose), params)
            before = store.num_lookups, store.num_hits
            spent, emitted, steps = 0.0, 0, 0
            for ids in prompts:
                start = time.perf_counter()
                made = decoder.generate(
                    ids, max_new_tokens=count, eos_token_id=(), seed=next(seeds)
                )
                spent += time.perf_counter() - start
                emitted += len(made.tokens[0])
                steps += made.stats.steps
            line[name] = {"tau": emitted / steps, "tokens_per_second": emitted / spent}
            asked = store.num_lookups - before[0]
            if name == "store":
                line[name]["hit_rate"] = (store.num_hits - before[1]) / max(asked, 1)
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="most tokens of the store")
    parser.add_argument("--rounds", type=int, default=4000, help="timed look-ups of each kind")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--per-category", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    store, maker = SuffixStore(options.tokens), Texts(1)
    held = memory(store, maker)
    print(
        f"{held['tokens']:,} tokens in {held['texts']:,} texts: {held['bytes'] / 2**20:.1f} MiB,"
        f" at most {held['most_bytes'] / 2**20:.1f} (resident {held['resident_bytes'] / 2**20:.1f},"
        f" {held['resident_bytes_in_the_end'] / 2**20:.1f} in the end); microseconds a token"
        f" {held['microseconds_a_token']:.2f}, when full"
        f" {held['microseconds_a_token_when_full']:.2f}"
    )
    known = [maker.text() for _ in range(64)]
    for text in known:
        store.add(text)
    kinds = {"stored texts": known, "new texts": [maker.text() for _ in range(64)]}
    timed = {
        name: {
            "own text": lookups(Suffix(), texts, options.rounds),
            "store": lookups(Suffix(store=store), texts, options.rounds),
        }
        for name, texts in kinds.items()
    }
    for name, line in timed.items():
        parts = ", ".join(
            f"{way}: median {found['median']:.0f} us, 99 % {found['99%']:.0f} us, drafted"
            f" {found['drafted']:.0%}"
            for way, found in line.items()
        )
        print(f"{name}: {parts}")
    threads = {str(count): crowd(store, known, count, options.rounds) for count in (1, THREADS)}
    for count, found in threads.items():
        print(
            f"{count} threads: {found['requests_a_second']:,.0f} requests/s,"
            f" {found['texts_added']} texts added meanwhile"
        )
    subject = subject_for()
    model = subject.load(options.dtype)
    fuse(model)
    prompts = [subject.encode(prompt.prompt) for prompt in pick(OWN, options.per_category)]
    repeated = [
        line
        for shape in SHAPES
        for line in answers(model, prompts, store, options.max_new_tokens, shape)
    ]
    print(f"{subject.name}, {options.dtype}, {len(prompts)} prompts, tau (tokens/s)")
    for line in repeated:
        own, shared = line["own text"], line["store"]
        print(
            f"{line['shape']}, asked {line['time_asked']}: own text {own['tau']:.2f}"
            f" ({own['tokens_per_second']:.1f}), store {shared['tau']:.2f}"
            f" ({shared['tokens_per_second']:.1f}), hit rate {shared['hit_rate']:.0%}"
        )
    report = {
        "bench": "suffix_store",
        "memory": held,
        "microseconds_of_propose": timed,
        "threads": threads,
        "repeated_prompts": {
            "model": subject.name,
            "dtype": options.dtype,
            "prompts": len(prompts),
            "max_new_tokens": options.max_new_tokens,
            "lines": repeated,
        },
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "build": mv.verifier.build_info(),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
