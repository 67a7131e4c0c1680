"""Times batched decoding of SmolLM2: ours plain, ours with drafts, and transformers' `generate`.

For each batch size, the rivals take turns on the same prompts of different lengths. Greedy, every
row to the same number of tokens, the prompts' forwards included. "ours" is the share of a batch's
time that is not spent in the model: drafting, verifying, committing and the loop itself.

    python benches/decode_batch.py --json build/bench/decode_batch.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

import mtp_verify as mv
from mtp_verify.commands.shared.prompts import OWN, load
from mtp_verify.decoder.decode import Decoder, Stats
from mtp_verify.integrations import smollm2
from mtp_verify.models.cpu.fused import fuse
from mtp_verify.models.cpu.packing import prepack

SIZES = (1, 4, 8)
# The rivals: transformers, ours without drafts, with drafts of fixed size, with planned ones.
COLOURS = {"transformers": "#9ca3af", "plain": "#60a5fa", "suffix": "#86efac", "planned": "#15803d"}
OURS = ("plain", "suffix", "planned")
GREEDY = mv.SamplingParams(temperature=0.0)


def tokenized(tokenizer: Any, texts: list[str], count: int) -> list[list[int]]:
    """Prompts as the model's chat wants them, the first `count`, repeated if there are fewer."""
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        for text in texts[:count]
    ]
    rows = [tokenizer(chat, add_special_tokens=False)["input_ids"] for chat in chats]
    return [rows[i % len(rows)] for i in range(count)]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """One tensor, padded on the left, with its mask."""
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def take_turns(
    rivals: dict[str, Callable[[], Stats | None]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Stats | None]]:
    """Seconds of each rival, one after the other in each round, and the last figures of each."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    figures: dict[str, Stats | None] = {}
    for turn in range(rounds + 1):
        for name, run in rivals.items():
            start = time.perf_counter()
            figures[name] = run()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    return times, figures


def measure(model: Any, rows: list[list[int]], count: int, rounds: int) -> dict[str, Any]:
    """One line of the report."""
    ids, mask = padded(rows)

    def ours(name: str) -> Callable[[], Stats]:
        drafter = None if name == "plain" else mv.drafters.Suffix()
        planner: Literal["auto"] | None = "auto" if name == "planned" else None
        decoder = Decoder(model, drafter, GREEDY, planner=planner)
        return lambda: decoder.generate(ids, mask, max_new_tokens=count, eos_token_id=()).stats

    def theirs() -> None:
        model.generate(
            ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    times, figures = take_turns(
        {"transformers": theirs, **{name: ours(name) for name in OURS}}, rounds
    )
    total = count * len(rows)
    line: dict[str, Any] = {"batch": len(rows), "tokens": total}
    for name, spent in times.items():
        line[name] = {
            "tokens_per_second": {
                "best": total / min(spent), "median": total / statistics.median(spent)
            },
            "over_transformers": statistics.median(
                other / mine for other, mine in zip(times["transformers"], spent, strict=True)
            ),
        }  # fmt: skip
        stats = figures[name]
        if stats is not None:
            line[name]["tau"] = stats.tau
            line[name]["ours"] = 1.0 - stats.share("target")
            line[name]["parts"] = {part: stats.share(part) for part in (*stats.seconds, "other")}
    return line


def draw(report: dict[str, Any], path: Path) -> None:
    """Tokens per second by batch size: the median as a bar, the best run as a tick."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lines = report["lines"]
    # Text stays text in an SVG, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 9}):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        panel = figure.subplots()
        for rank, (name, colour) in enumerate(COLOURS.items()):
            places = [place + 0.21 * (rank - 1.5) for place in range(len(lines))]
            speeds = [line[name]["tokens_per_second"] for line in lines]
            panel.bar(places, [s["median"] for s in speeds], 0.2, color=colour, label=name)
            panel.plot(places, [s["best"] for s in speeds], "_", color="black", markersize=9)
        panel.set_xticks(range(len(lines)), [f"batch {line['batch']}" for line in lines])
        panel.set_ylabel("tokens/s, whole batch")
        panel.set_title(
            f"{report['model']}, {report['dtype']}, {report['threads']} threads, greedy"
        )
        panel.grid(axis="y", linewidth=0.3)
        panel.legend(frameon=False)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--plot", type=Path, help="draw it here (.svg or .png; needs matplotlib)")
    parser.add_argument("--prompts", type=Path, help="JSON lines, as `bench decode` takes them")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each rival")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    model, tokenizer = smollm2.load(options.dtype)
    prepack(model)  # for all rivals
    fuse(model)
    prompts = load(options.prompts) if options.prompts else list(OWN)
    texts = [prompt.prompt for prompt in prompts]
    lines = []
    print(f"SmolLM2-135M, {options.dtype}, {torch.get_num_threads()} threads, greedy, tokens/s")
    print("batch      HF" + "".join(f"{name:>9}  /HF  tau  ours" for name in OURS))
    for size in SIZES:
        rows = tokenized(tokenizer, texts, size)
        line = measure(model, rows, options.max_new_tokens, options.rounds)
        lines.append(line)
        found = [f"{size:5}{line['transformers']['tokens_per_second']['median']:8.1f}"]
        for name in OURS:
            entry = line[name]
            found.append(
                f"{entry['tokens_per_second']['median']:9.1f}{entry['over_transformers']:5.2f}"
                f"{entry['tau']:5.2f}{entry['ours']:6.1%}"
            )
        print("".join(found), flush=True)
    report = {
        "bench": "decode_batch",
        "model": "SmolLM2-135M-Instruct",
        "dtype": options.dtype,
        "peer": f"transformers {transformers.__version__} generate, greedy, left-padded batch",
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
    if options.plot:
        draw(report, options.plot)


if __name__ == "__main__":
    main()
