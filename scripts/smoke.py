"""Check an installed wheel: verify a small draft in an environment with its own dependencies alone.

`make wheel` runs this with the interpreter of an empty environment, outside the source tree.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np

import mtp_verify as mv
from mtp_verify import _core, testing

HEAVY = ("torch", "transformers", "triton", "hypothesis")
OF_COMMANDS = ("rich", "platformdirs")  # installed, and loaded when they are used


def check(condition: bool, message: str) -> None:
    """Stop with `message` unless `condition` holds (an assert would vanish under -O)."""
    if not condition:
        sys.exit(f"smoke test failed: {message}")


def main() -> None:
    """Verify three kinds of drafts; look at refusals and at what the wheel holds."""
    for name in HEAVY:
        check(importlib.util.find_spec(name) is None, f"{name} is installed here; it must not be")

    logits = np.full((4, 8), -5.0, np.float32)
    logits[np.arange(4), [3, 1, 4, 1]] = 5.0
    before = logits.copy()

    # The draft agrees with the target twice (3, 1), then says 5 where the target says 4.
    draft = mv.Draft.chain([3, 1, 5])
    greedy = mv.verify(draft, logits, mv.SamplingParams(temperature=0.0), seed=1, position=6)
    check(greedy.tokens.tolist() == [3, 1, 4], f"greedy verdict is {greedy.tokens.tolist()}")
    check(greedy.num_accepted == 2, f"{greedy.num_accepted} accepted, 2 expected")
    check(greedy.lossless, "the verdict is not marked lossless")

    # A drafter whose law is the target's own is always accepted.
    weights = np.exp(logits.astype(np.float64))
    own = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    same = mv.verify(mv.Draft.chain([3, 1, 4], probs=own), logits, seed=1, position=6)
    check(same.num_accepted == 3, f"{same.num_accepted} of the target's own tokens accepted")
    check(len(same.tokens) == 4, "no bonus token")

    # The same address gives the same verdict; an empty draft is plain sampling.
    again = mv.verify(mv.Draft.chain([3, 1, 4], probs=own), logits, seed=1, position=6)
    check(again.tokens.tolist() == same.tokens.tolist(), "the same seed gave other tokens")
    plain = mv.verify(mv.Draft(mv.TokenTree([-1]), [0]), logits[:1], seed=1, position=6)
    check(plain.tokens.shape == (1,), "plain sampling emits one token")
    check(bool((logits == before).all()), "verify modified the logits")

    try:
        mv.verify(draft, logits[:2], seed=1, position=6)
    except mv.MtpVerifyError:
        pass
    else:
        check(False, "logits of the wrong shape were accepted")

    # The wheel holds no prover, no study and no weights.
    check(not hasattr(_core, "prove_rules"), "the wheel holds the prover")
    check(importlib.util.find_spec("studies") is None, "the wheel holds the studies")
    files = [path for path in Path(mv.__file__).parent.rglob("*") if path.is_file()]
    weights = [path.name for path in files if path.suffix in (".safetensors", ".gguf", ".bin")]
    check(not weights, f"the wheel holds weights: {weights}")

    rows = testing.recorded_logits()
    check(rows.shape == (48, 2, 512), f"the recorded rows have the shape {rows.shape}")

    for name in (*HEAVY, *OF_COMMANDS):
        check(name not in sys.modules, f"{name} was imported")
    info = mv.verifier.build_info()
    print(f"smoke test passed: mtp-verify {mv.__version__}, numpy {np.__version__}, {info}")


if __name__ == "__main__":
    main()
