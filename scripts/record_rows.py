"""Record the rows of logits that `mtp_verify.testing.draw_logits` draws from.

    python scripts/record_rows.py

SmolLM2-135M-Instruct continues texts of our own at temperature 1. Of some positions two rows are
kept: the model's with the whole text before it, as a target has it, and the model's with only the
last few tokens, which stands for a drafter that knows less. 512 columns of each: the most likely
tokens of both, and others at random; their order is that of the tokens' ids.
"""

from pathlib import Path

import numpy as np
import torch

import mtp_verify.testing
from mtp_verify.integrations import smollm2

_FILE = Path(mtp_verify.testing.__file__).parent / "recorded_rows.npy"
_TEXTS = [
    "The lighthouse keeper wrote in his log book every evening, and on that evening he",
    "def mean(values):\n    total = 0\n    for value in values:\n",
    "1, 2, 4, 8, 16, 32, 64, 128,",
    "Ingredients: two eggs, a cup of flour, a pinch of salt. Method: first",
    '{"name": "Ada", "born": 1815, "city": "London"}\n{"name": "Emmy", "born": 1882, "city": "',
    "Question: Why is the sky blue?\nAnswer:",
    "My favourite thing about trains is",
    "the cat sat on the mat, the cat sat on the mat, the cat sat on the mat, the cat",
]
_NUM_NEW, _PER_TEXT, _NUM_SHORT = 60, 6, 4
_NUM_COLUMNS, _NUM_LIKELY = 512, (288, 96)


def main() -> None:
    """Write the file; says how peaked the rows are."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, tokenizer = smollm2.load("float32")
    pairs = []
    for text in _TEXTS:
        prompt = tokenizer(text, return_tensors="pt").input_ids
        tokens = model.generate(prompt, max_new_tokens=_NUM_NEW, do_sample=True, top_k=0)
        with torch.no_grad():
            logits = model(tokens).logits[0]
        # The sixth part of what was continued; at the end may stand tokens after the end of a text.
        places = np.linspace(prompt.shape[1] - 1, tokens.shape[1] - 2, _PER_TEXT).astype(int)
        for place in places:
            with torch.no_grad():
                known = tokens[:, max(place + 1 - _NUM_SHORT, 0) : place + 1]
                rows = torch.stack([logits[place], model(known).logits[0, -1]])
            likely = [
                row.argsort(descending=True)[:count]
                for row, count in zip(rows, _NUM_LIKELY, strict=True)
            ]
            columns = set(torch.cat(likely).tolist())
            for token in rng.permutation(rows.shape[1]):
                if len(columns) == _NUM_COLUMNS:
                    break
                columns.add(int(token))
            pairs.append(rows[:, sorted(columns)].numpy().astype(np.float16))
    found = np.stack(pairs)
    np.save(_FILE, found, allow_pickle=False)
    print(f"{_FILE.name}: {found.shape}, {_FILE.stat().st_size / 1000:.0f} kB")
    for temperature in (0.05, 0.2, 0.7, 1.0, 1.5):
        shares = []
        for side in (0, 1):
            scaled = found[:, side].astype(np.float64) / temperature
            weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
            rest = 1 - weights.max(axis=1) / weights.sum(axis=1)
            shares.append(float(np.mean(rest < 1e-6)))
        print(f"temperature {temperature}: 1 - max p < 1e-6 in {shares[0]:.0%} and {shares[1]:.0%}")


if __name__ == "__main__":
    main()
