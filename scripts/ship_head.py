"""Put a head that `mtp-verify train` made for SmolLM2 into the package, in bfloat16.

    mtp-verify train --model smollm2 --out FOLDER
    python scripts/ship_head.py FOLDER --note "how it was run, and on what"

The record of its training goes with it: recipe, text, steps, curve.
"""

import argparse
import json
from pathlib import Path

import torch

import mtp_verify as mv
from mtp_verify.integrations import smollm2

_LIMIT = 10_000_000  # bytes


def main() -> None:
    """Read the options and write the head."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--note", required=True, help="kept in the record")
    options = parser.parse_args()
    model, tokenizer = smollm2.load("bfloat16")
    head = mv.heads.load(options.folder / "head", model, dtype=torch.bfloat16)
    record = {**head.record, "note": options.note, "target": "SmolLM2-135M-Instruct"}
    folder = smollm2.HEAD_FOLDER
    mv.heads.save(head, folder, target=model, tokenizer=tokenizer, record=record)
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > _LIMIT:
        raise SystemExit(f"{size:,} bytes; a head that ships has at most {_LIMIT:,}")
    best = max(record["curve"], key=lambda point: point["tau"])
    print(json.dumps({"folder": folder.name, "bytes": size, "best": best}))


if __name__ == "__main__":
    main()
