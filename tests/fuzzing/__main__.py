"""Many cases of `tests.fuzzing` in a row: python -m tests.fuzzing --cases 100000."""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections import Counter

from tests.fuzzing.cases import InvariantError, run

# Address space of the process: a call that asks for all memory fails, and the machine goes on.
_MOST_BYTES = 8 << 30


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, resource.RLIM_INFINITY))
    found: Counter[str] = Counter()
    failures, started = [], time.perf_counter()
    for case in range(options.start, options.start + options.cases):
        try:
            found[run(options.seed, case)] += 1
        except InvariantError as failure:
            failures.append(case)
            print(f"case {case}: {failure}", file=sys.stderr)
            if len(failures) == 20:
                break
    seconds = time.perf_counter() - started
    total = sum(found.values())
    print(f"seed {options.seed}, from {options.start}: {total} passed in {seconds:.1f} s", end=" ")
    print(f"({total / seconds:.0f} a second), {len(failures)} failed")
    kinds: dict[str, Counter[str]] = {}
    for name, count in found.items():
        kind, _, end = name.partition(" ")
        kinds.setdefault(kind, Counter())[end] += count
    for kind, ends in sorted(kinds.items()):
        print(f"    {kind}: " + ", ".join(f"{end} {n}" for end, n in sorted(ends.items())))
    for case in failures:
        print(f"again: python -m tests.fuzzing --seed {options.seed} --start {case} --cases 1")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
