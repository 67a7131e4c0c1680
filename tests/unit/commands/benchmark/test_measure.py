from __future__ import annotations

import pytest
import torch

from mtp_verify.commands.benchmark.measure import LIBRARY, PLAIN, measure
from mtp_verify.commands.shared.entrants import ENTRANTS
from tests.heads import tiny_head
from tests.models import greedy_tokens, prompt, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_every_way_runs_once_a_prompt_and_mode_in_rotating_order(model):
    prompts = [prompt(seed=seed)[0].tolist() for seed in (1, 2)]
    entrants = [ENTRANTS["ngram"], ENTRANTS["self"]]
    told = []
    runs = list(
        measure(
            model,
            prompts,
            entrants,
            ["greedy", "sampled"],
            max_new_tokens=6,
            tell=lambda *words: told.append(words),
        )
    )
    assert [(run.prompt, run.mode, run.entrant) for run in runs] == told
    assert [name for _, _, name in told[:4]] == [PLAIN, LIBRARY, "ngram", "self"]
    assert [name for _, _, name in told[8:12]] == [LIBRARY, "ngram", "self", PLAIN]
    assert len(set(told)) == len(told) == 16
    for run in runs:
        assert run.stats.emitted == len(run.tokens) == 6
        if run.entrant in (PLAIN, LIBRARY):
            assert run.stats.tau == 1


@pytest.mark.parametrize("length", [1, 9])
def test_runs_emit_what_plain_generation_emits(model, length, monkeypatch):
    """And their clocks leave out the step that reads the prompt."""
    from mtp_verify.decoder.decode import Decoder

    head = tiny_head("mimo", model)
    seen = []
    original = Decoder.generate

    def watching(self, *args, **options):
        made = original(self, *args, **options)
        seen.append(made.tokens[0])
        return made

    monkeypatch.setattr(Decoder, "generate", watching)
    ids = prompt(length)
    runs = list(
        measure(
            model,
            [ids[0].tolist()],
            list(ENTRANTS.values()),
            ["greedy"],
            max_new_tokens=8,
            head=head,
        )
    )
    assert len(seen) == 1 + len(ENTRANTS)
    assert len(runs) == 2 + len(ENTRANTS)
    assert all(run.tokens == seen[0] for run in runs)
    assert all(0 < run.late_tokens < 8 and run.late_seconds > 0 for run in runs)
    assert {run.late_tokens for run in runs if run.entrant in (PLAIN, LIBRARY)} == {7}
    assert all(tokens == greedy_tokens(model, ids, 8) for tokens in seen)


def test_target_as_its_own_drafter_is_the_best_of_all(model):
    runs = list(
        measure(
            model,
            [prompt()[0].tolist()],
            list(ENTRANTS.values()),
            ["sampled"],
            max_new_tokens=48,
            head=tiny_head("mimo", model),
        )
    )
    taus = {run.entrant: run.stats.tau for run in runs}
    assert max(taus, key=taus.__getitem__) == "self"
    assert torch.is_grad_enabled()
