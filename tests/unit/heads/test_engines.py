"""Exported heads in the programs that they are exported for; each in an environment of its own.

`VLLM_VENV` (`make vllm` makes `.venv-vllm`) and `SPECULATORS_VENV` (any environment with
`pip install speculators==0.9.0`) say where; what is not there is skipped.
"""

from __future__ import annotations

import subprocess

import pytest

import mtp_verify as mv
from mtp_verify.decoder.decode import Decoder
from mtp_verify.drafters import Heads
from mtp_verify.heads import Sizes, export
from tests.engines import interpreter, run_vllm
from tests.heads import tiny_head
from tests.models import tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
DEPTH, LENGTH = 3, 48
PROMPTS = [[first, second, 1] for first in range(4) for second in range(4, 8)]

# Every weight that the loader took from the file is the file's, and none is missing.
LOADER = """
import sys
import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel
model = SpeculatorModel.from_pretrained(sys.argv[1])
state = model.state_dict()
for name, tensor in load_file(f"{sys.argv[1]}/model.safetensors").items():
    assert torch.equal(state[name], tensor), name
print(type(model).__name__)
"""


def exported(kind, folder):
    """A tiny target, a random head, and what vLLM is told about where they are."""
    model = tiny_model(
        "llama", vocab_size=8, hidden_size=64, head_dim=32, num_attention_heads=2,
        num_key_value_heads=1, num_hidden_layers=3,
    )  # fmt: skip
    model.save_pretrained(folder / "base")
    changes = {"aux_layers": (0, 1, 2), "draft_vocab_size": 6} if kind == "eagle3" else {}
    head = tiny_head(kind, model, sizes=Sizes.of(model.config), **changes)
    layout = "speculators" if kind == "eagle3" else "in_checkpoint"
    export(head, folder / "out", layout, base=folder / "base")
    inside = {"method": "mtp", "num_speculative_tokens": DEPTH}
    beside = {"method": "eagle3", "model": str(folder / "out"), "num_speculative_tokens": DEPTH}
    where, speculation = ("base", beside) if kind == "eagle3" else ("out", inside)
    return model, head, folder / where, speculation


def request(model, speculation):
    return {
        "model": str(model), "speculation": speculation, "prompts": PROMPTS, "dtype": "float32",
        "max_length": 128, "max_tokens": LENGTH,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_speculators_loads_what_is_exported(tmp_path):
    python = interpreter("SPECULATORS_VENV", ".venv-speculators", "speculators")
    exported("eagle3", tmp_path)
    words = [python, "-c", LOADER, tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "Eagle3DraftModel"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["mimo", "eagle3"])
def test_vllm_drafts_with_what_is_exported_as_we_do(kind, tmp_path):
    python = interpreter("VLLM_VENV", ".venv-vllm", "vllm")
    model, head, folder, speculation = exported(kind, tmp_path)
    theirs = run_vllm(python, tmp_path, request(folder, speculation))
    stats = []
    decoder = Decoder(model, Heads(head, num_tokens=DEPTH), GREEDY)
    for prompt, tokens in zip(PROMPTS, theirs["tokens"], strict=True):
        result = decoder.generate([prompt], max_new_tokens=LENGTH)
        assert result.tokens == [tokens]
        stats.append(result.stats)
    ours = [sum(one.accepted_at[depth] for one in stats) for depth in range(DEPTH)]
    # The same drafts, but for those that reach beyond the end, which we do not make.
    assert ours[0] > 50
    assert theirs["accepted"] == pytest.approx(ours, abs=len(PROMPTS), rel=0.02)
