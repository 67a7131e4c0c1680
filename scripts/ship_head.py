"""Put a head that `mtp-verify train` made for SmolLM2 into its package, in bfloat16.

    mtp-verify train --model smollm2 --out FOLDER
    python scripts/ship_head.py FOLDER --note "how it was run, and on what"

The record of its training goes with it: recipe, text, steps, curve. The picture of the curve
(`docs/img/head-training.svg`) is drawn from that; without a folder, from the head that is there.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure

import mtp_verify as mv
from mtp_verify.integrations import smollm2

_LIMIT = 10_000_000  # bytes
_ROOT = Path(__file__).parents[1]
_FOLDER = _ROOT / "packages" / "smollm2-head" / "src" / "mtp_verify_smollm2_head"
_PICTURE = _ROOT / "docs" / "img" / "head-training.svg"


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw acceptance on held-out topics against the steps, the runs one after the other."""
    runs = [record]
    while "start" in runs[0]:
        runs.insert(0, runs[0]["start"])
    steps: list[float] = []
    curves: list[list[float]] = [[], [], [], [], []]
    before = 0
    ends = []
    for run in runs:
        for point in run["curve"]:
            steps.append(before + point["step"])
            for curve, value in zip(curves, [point["tau"], *point["by_depth"]], strict=True):
                curve.append(value)
        before += run["steps"]
        ends.append(before)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtp-verify", "font.size": 9}):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(steps, curves[0], "o-", color="#0072b2", markersize=3)
        left.set_ylabel("tokens per step, chains of 4")
        for depth, curve in enumerate(curves[1:], 1):
            right.plot(steps, curve, "o-", markersize=3, label=f"depth {depth}")
        right.set_ylabel("accepted, of those reached")
        right.legend(frameon=False)
        for panel in (left, right):
            panel.set_xlabel("optimizer steps")
            panel.grid(linewidth=0.3)
            for end in ends[:-1]:
                panel.axvline(end, color="black", linewidth=0.6, linestyle=":")
        figure.suptitle("Greedy drafts on topics that were held out")
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Read the options and write the head."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of the run")
    parser.add_argument("--note", default="", help="kept in the record")
    options = parser.parse_args()
    if options.folder is None:
        draw(mv.heads.load(_FOLDER).record, _PICTURE)
        return
    model, tokenizer = smollm2.load("bfloat16")
    head = mv.heads.load(options.folder / "head", model, dtype=torch.bfloat16)
    record = {**head.record, "note": options.note, "target": "SmolLM2-135M-Instruct"}
    folder = _FOLDER
    mv.heads.save(head, folder, target=model, tokenizer=tokenizer, record=record)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if size > _LIMIT:
        raise SystemExit(f"{size:,} bytes; a head that ships has at most {_LIMIT:,}")
    draw(record, _PICTURE)
    best = max(record["curve"], key=lambda point: point["tau"])
    print(json.dumps({"folder": folder.name, "bytes": size, "best": best}))


if __name__ == "__main__":
    main()
