"""Times queues of requests that gain differently, eight at a time: with drafts against without.

"mixed" are the kinds of prompts in turn; in "half copy" every second request asks for a text again
that the chat has had twice, the others chat. As one ends, the next one starts, as where people
serve. The rivals take turns; what counts is the ratio within a turn. Every request to the same
number of tokens, the prompts' forwards included.

    python benches/mixed_batches.py --json build/bench/mixed_batches.json
"""

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from decode_batch import take_turns

import mtp_verify as mv
from mtp_verify.commands.shared.prompts import OWN, load
from mtp_verify.decoder.decode import Decoder, Stats
from mtp_verify.integrations import smollm2
from mtp_verify.models.cpu.fused import fuse
from mtp_verify.models.cpu.packing import prepack

MODES = {
    "greedy": mv.SamplingParams(temperature=0.0),
    "sampled": mv.SamplingParams(temperature=0.8, top_p=0.95),
}
DRAFTED: dict[str, Literal["auto"] | None] = {"suffix": None, "planned": "auto"}
SIZE = 8


def queues(prompts: Sequence[Any], count: int) -> dict[str, list[list[dict[str, str]]]]:
    """The chats of each queue."""
    by_kind: dict[str, list[str]] = {}
    for prompt in prompts:
        by_kind.setdefault(prompt.category, []).append(prompt.prompt)
    mixed: list[str] = []
    while len(mixed) < count:  # Kinds in turn.
        mixed += [texts[len(mixed) // len(by_kind) % len(texts)] for texts in by_kind.values()]
    prose = sorted((p.prompt for p in prompts if "```" not in p.prompt), key=len)
    copies = [_again(text[:700]) for text in prose[-2:]]
    topics = ("rain", "trams", "bees", "salt", "a lighthouse", "chess")
    letters = [_asked(f"Write a letter about {topic}.") for topic in topics]
    half = [
        (copies, letters)[place % 2][place // 2 % (len(copies), len(letters))[place % 2]]
        for place in range(count)
    ]
    return {"mixed": [_asked(text) for text in mixed[:count]], "half copy": half}


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _again(text: str) -> list[dict[str, str]]:
    turns = [("user", f"Repeat word for word:\n\n{text}")]
    turns += [("assistant", text), ("user", "Again, please.")] * 2
    return [{"role": role, "content": content} for role, content in turns]


def tokenized(tokenizer: Any, chats: list[list[dict[str, str]]]) -> list[list[int]]:
    """Chats as the model wants them."""
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    texts = [tokenizer.apply_chat_template(chat, **options) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def measure(
    model: Any, rows: list[list[int]], mode: str, count: int, rounds: int
) -> dict[str, Any]:
    """One line of the report."""

    def ours(drafter: mv.Drafter | None, planner: Literal["auto"] | None) -> Callable[[], Stats]:
        decoder = Decoder(model, drafter, MODES[mode], planner=planner, max_batch=SIZE)
        return lambda: decoder.generate(rows, max_new_tokens=count, eos_token_id=(), seed=1).stats

    rivals: dict[str, Callable[[], Stats | None]] = {"plain": ours(None, None)}
    for name, planner in DRAFTED.items():
        rivals[name] = ours(mv.drafters.Suffix(), planner)
    times, figures = take_turns(rivals, rounds)
    line: dict[str, Any] = {"plain": {"seconds": times["plain"]}}
    for name in DRAFTED:
        gains = [one / other for one, other in zip(times["plain"], times[name], strict=True)]
        stats = figures[name]
        assert stats is not None
        line[name] = {
            "seconds": times[name], "tau": stats.tau, "over_plain": gains,
            "median": statistics.median(gains), "least": min(gains),
        }  # fmt: skip
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--prompts", type=Path, help="JSON lines, as `bench decode` takes them")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each rival")
    parser.add_argument("--requests", type=int, default=24, help="in a queue")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    options = parser.parse_args()
    lines = []
    print("dtype     queue      mode    " + "".join(f"{name:>24}" for name in DRAFTED))
    for dtype in options.dtypes:
        model, tokenizer = smollm2.load(dtype)
        prepack(model)
        fuse(model)
        prompts = load(options.prompts) if options.prompts else list(OWN)
        for queue, chats in queues(prompts, options.requests).items():
            rows = tokenized(tokenizer, chats)
            for mode in MODES:
                line = measure(model, rows, mode, options.max_new_tokens, options.rounds)
                lines.append({"dtype": dtype, "queue": queue, "mode": mode, **line})
                print(
                    f"{dtype:10}{queue:11}{mode:8}"
                    + "".join(
                        f"  {line[name]['median']:6.2f}x (least {line[name]['least']:.2f},"
                        f" tau {line[name]['tau']:.2f})"
                        for name in DRAFTED
                    ),
                    flush=True,
                )
    report = {
        "bench": "mixed_batches",
        "model": "SmolLM2-135M-Instruct",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "build": mv.verifier.build_info(),
        "torch": torch.__version__,
        "lines": lines,
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
