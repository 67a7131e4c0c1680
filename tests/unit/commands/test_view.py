from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import mtp_verify as mv
from mtp_verify.commands import cli
from mtp_verify.commands.drawing.page import to_html
from mtp_verify.commands.drawing.recorder import Recorder, Step
from mtp_verify.commands.drawing.tree import caption, to_lines, to_svg
from mtp_verify.decoder.decode import Decoder
from tests.models import TreeDrafter, tiny_model

WORDS = ["the", "cat", "<sat>", "on", "mat"]


def show(token: int) -> str:
    return WORDS[token]


def step_of(parents: list[int], tokens: list[int], greedy: list[int]) -> Step:
    """A greedy step after the token 0, where the target wants `greedy[i]` after node i."""
    draft = mv.Draft(mv.TokenTree(parents), tokens)
    logits = np.zeros((len(parents), len(WORDS)), np.float32)
    logits[np.arange(len(parents)), greedy] = 5.0
    verdict = mv.verify(draft, logits, mv.SamplingParams(temperature=0), seed=0, position=3)
    return Step(3, 0, draft, verdict)


@pytest.fixture
def step() -> Step:
    #        the
    #   cat       on
    #  <sat>  on   mat
    return step_of([-1, 0, 0, 1, 1, 2], [0, 1, 3, 2, 3, 4], [1, 3, 0, 0, 4, 0])


def test_text_shows_branches_what_was_kept_and_the_bonus(step):
    assert caption(step) == (
        "position 3: 2 of 5 drafted tokens kept (law deterministic, rule greedy)"
    )
    assert to_lines(step, show) == [
        "the",
        "├─ *cat",
        "│  ├─ <sat>",
        "│  └─ *on +mat",
        "└─ on mat",
    ]


def test_bonus_beside_rejected_children_stands_last():
    lines = to_lines(step_of([-1, 0], [0, 1], [4, 0]), show)
    assert lines == ["the", "├─ cat", "└─ +mat"]


def test_colour_marks_accepted_nodes_alone(step):
    coloured = to_lines(step, show, colour=True)
    assert [line.count("\x1b[32m") for line in coloured] == [0, 1, 0, 1, 0]


def test_an_empty_draft_is_drawn():
    step = step_of([-1], [0], [4])
    assert caption(step) == "position 3: nothing drafted"
    assert to_lines(step, show) == ["the", "└─ +mat"]
    assert len(ET.fromstring(to_svg(step, show)).findall(".//rect")) == 2


def test_a_verdict_that_was_cut_has_no_bonus(step):
    cut = Step(step.position, step.root, step.draft, step.verdict.cut(2))
    assert cut.bonus == 3  # its last token was drafted, but the cut makes it the next root
    assert to_lines(cut, show)[1] == "├─ *cat"


def test_picture_has_a_box_for_each_token_and_no_two_in_one_place(step):
    picture = ET.fromstring(to_svg(step, show))
    labels = [text.text for text in picture.iter("text")]
    assert sorted(labels) == sorted(["the", "cat", "on", "<sat>", "on", "mat", "mat"])
    places = [(rect.get("x"), rect.get("y")) for rect in picture.iter("rect")]
    assert len(set(places)) == len(places) == 7
    kinds = [group.get("class") for group in picture.iter("g")]
    assert (kinds.count("kept"), kinds.count("bonus"), kinds.count("lost")) == (2, 1, 3)
    assert len(list(picture.iter("path"))) == 6


def test_deep_drafts_are_drawn():
    nodes = 3_000
    parents = list(range(-1, nodes))
    step = step_of(parents, [0] * (nodes + 1), [0] * (nodes + 1))
    assert len(to_lines(step, show)) == 2
    assert to_svg(step, show).count("<rect") == nodes + 2


def test_page_escapes_text_and_shows_all_of_it(step):
    page = to_html([step], lambda ids: " ".join(map(show, ids)), show, title="<b>", summary="&")
    assert "<b>" not in page
    assert "&lt;sat&gt;" in page
    pre = page[page.index("<pre>") : page.index("</pre>") + 6]
    assert "".join(ET.fromstring(pre).itertext()) == "cat on mat"


def test_recorder_keeps_every_step_and_passes_everything_on():
    model, params = tiny_model("llama"), mv.SamplingParams(temperature=1.0)
    shape = [-1, 0, 0, 1, 2]
    inner = TreeDrafter(shape)
    recorder = Recorder(inner)
    prompt = torch.tensor([[1, 2, 3]])
    made = Decoder(model, recorder, params).generate(prompt, max_new_tokens=12, seed=5)
    plain = Decoder(model, TreeDrafter(shape), params).generate(prompt, max_new_tokens=12, seed=5)
    emitted = [token for step in recorder.steps for token in step.verdict.tokens.tolist()]
    assert emitted == list(made.tokens[0]) == list(plain.tokens[0])
    assert recorder.makes_trees == inner.makes_trees
    positions = [step.position for step in recorder.steps]
    assert positions[0] == 2
    assert positions == sorted(set(positions))


def test_command_reports_steps_and_writes_the_page(capsys, tmp_path):
    page = tmp_path / "steps.html"
    code = cli.main(
        [
            "view",
            "a rose is a rose",
            "--tiny",
            "--max-new-tokens",
            "6",
            "--json",
            "--html",
            str(page),
        ]
    )
    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert sum(len(step["emitted"]) for step in document["steps"]) == 6
    assert page.read_text().count("<svg") == len(document["steps"])
