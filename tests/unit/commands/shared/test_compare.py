"""Races and identity checks: what they report, not how fast anything is."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.commands.shared.compare import Identity, identical, race
from mtp_verify.decoder.decode import Decoder
from tests.models import ScriptDrafter, greedy_tokens, prompt, tiny_model

GREEDY = mv.SamplingParams(temperature=0.0)
SAMPLED = mv.SamplingParams(temperature=0.8, top_p=0.9)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, None], ids=["greedy", "sampled", "default"])
def test_race_reports_three_speeds(params):
    model = tiny_model("llama")
    decoder = Decoder(model, mv.drafters.NGram(), params)
    result = race(model, decoder, prompt(), max_new_tokens=8, repeats=2)
    assert set(result.tokens_per_second) == {"transformers", "plain", "speculative"}
    assert min(result.tokens_per_second.values()) > 0
    assert result.stats.tau >= 1
    assert 0 < result.stats.share("verify") < 1
    assert len(result.tokens) == 8
    speeds = result.tokens_per_second
    assert result.speedup_over("plain") == speeds["speculative"] / speeds["plain"]
    assert result.speedup_over("transformers") == speeds["speculative"] / speeds["transformers"]


def test_race_leaves_torchs_generator_alone():
    model = tiny_model("llama")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    race(model, Decoder(model, mv.drafters.NGram()), prompt(), max_new_tokens=2)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("params", "rule"), [(GREEDY, "auto"), (SAMPLED, "coupled")])
def test_equal_runs_are_identical(params, rule):
    model = tiny_model("llama")
    drafter = ScriptDrafter(prompt()[0].tolist() + greedy_tokens(model, prompt(), 12))
    decoder = Decoder(model, drafter, params, rule)
    result = identical(model, decoder, prompt(), max_new_tokens=12)
    assert result == Identity(is_identical=True, num_tokens=12)


def test_difference_is_located_and_measured(monkeypatch):
    model = tiny_model("llama")
    tokens = greedy_tokens(model, prompt(), 12)
    with torch.no_grad():
        row = model(torch.tensor([prompt()[0].tolist() + tokens[:5]])).logits[0, -1]
    second = int(row.topk(2).indices[1])
    original = Decoder.generate

    def slipping(self, *args, speculate, **options):
        result = original(self, *args, speculate=speculate, **options)
        if speculate:
            result.tokens[0][5] = second
        return result

    monkeypatch.setattr(Decoder, "generate", slipping)
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY)
    result = identical(model, decoder, prompt(), max_new_tokens=12)
    assert not result.is_identical
    assert result.first_difference == 5
    assert result.gap == pytest.approx(float(row.max() - row[second]), rel=1e-4)
    assert not result.is_tie


def test_tie_is_a_gap_of_rounding_size():
    close = Identity(is_identical=False, num_tokens=3, first_difference=1, gap=1e-6, scale=1e-6)
    assert close.is_tie
    assert not Identity(is_identical=False, num_tokens=3, first_difference=1).is_tie
