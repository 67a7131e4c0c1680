"""`studies training-to-inference`: the modules' loss, and the experiment in its small form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from studies import training_to_inference as study
from studies.spelling import Spelling, small_target

if TYPE_CHECKING:
    from pathlib import Path


def test_each_module_is_asked_for_the_token_behind_those_it_reads() -> None:
    trunk = small_target(width=32, num_layers=1, intermediate_size=64)
    head = study._modules(trunk, seed=0)
    tokens = Spelling().write(1, 7, seed=0)
    with torch.no_grad():
        hidden = trunk(tokens, output_hidden_states=True).hidden_states[-1]
        longer = study.level_losses(head, tokens[:1, :7], hidden[:1, :7])
        shorter = study.level_losses(head, tokens[:1, :6], hidden[:1, :6])
        # The row that the last token adds to each loss, as drafting computes it.
        row = head.read(head.new_state(), [hidden[0, :5]], tokens[0, 1:6])
        state = head.new_state()
        head.read(state, [hidden[0, :4]], tokens[0, 1:5])
        below = head.step(state, [0], tokens[0, 5:6])
    for level, (count, logits) in enumerate(((5, row), (4, below))):
        added = functional.cross_entropy(logits, tokens[0, 6:7])
        mean = ((count - 1) * shorter[level] + added) / count
        assert torch.allclose(longer[level], mean, atol=1e-4)


@pytest.mark.timeout(120)
def test_the_small_form_measures_trunks_and_modules(tmp_path: Path) -> None:
    found = study.run(quick=True)
    (run,) = found.data["runs"]
    assert set(run["figures"]) == {
        study.UNTRAINED, study.TOGETHER, study.ONE, study.AFTERWARDS
    }  # fmt: skip
    assert [step for step, _ in run["curve"]] == [0, 1, 2, 3, 4]
    assert run["loss_alone"] > 0.0
    assert run["loss_joint"] == pytest.approx(run["loss_alone"], rel=0.3)
    pytest.importorskip("matplotlib")
    found.draw(tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")
