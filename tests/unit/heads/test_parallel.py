"""Parallel heads: equal to their definitions, incrementally too, and equal for all of a level."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import mtp_verify as mv
from mtp_verify.heads import ParallelHead, Sizes, family
from tests.heads import PARALLEL, SIZES, random_hidden, tiny_head
from tests.models import tiny_model

TOKENS = torch.tensor([3, 8, 1, 12, 5, 9])


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def assert_close(found, wanted):
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-5 * max(scale, 1.0))


def chain(head, hidden, tokens, path):
    state = head.new_state()
    rows = [head.read(state, hidden, tokens)]
    rows += [head.step(state, [node], torch.tensor([token])) for node, token in enumerate(path)]
    return torch.cat(rows)


@pytest.mark.parametrize("name", ["medusa", "koala-parallel"])
@torch.no_grad()
def test_medusa_equals_its_definition(name, model):
    head = tiny_head(name, model)
    hidden = random_hidden(head, 6)
    wanted = []
    for level in head.levels:
        x = hidden[0][-1]
        for block in level.layers:
            x = x + functional.silu(block.linear.weight @ x + block.linear.bias)
        wanted.append(level.output.weight @ x)
    rows = chain(head, hidden, TOKENS, [4, 4, 4, 4][: len(head.levels) - 1])
    assert_close(rows, torch.stack(wanted))


@torch.no_grad()
def test_new_residual_blocks_pass_their_input_on(model):
    head = ParallelHead(family("medusa").replace(sizes=SIZES, output_head="shared")).attach(model)
    hidden = random_hidden(head, 2)
    row = head.read(head.new_state(), hidden, TOKENS[:2])
    assert_close(row, model.lm_head(hidden[0][-1:]))


@torch.no_grad()
def test_hydra_reads_the_path_from_the_root_on(model):
    head = tiny_head("hydra", model)
    hidden, path = random_hidden(head, 6), [4, 7]
    embed = model.get_input_embeddings()
    wanted = []
    for index, level in enumerate(head.levels):
        text = torch.tensor([int(TOKENS[-1]), *path[:index]])
        x = level.fusion(torch.cat([hidden[0][-1], *embed(text)]))
        for block in level.layers:
            x = x + functional.silu(block.linear.weight @ x + block.linear.bias)
        wanted.append(model.lm_head(x))
    assert_close(chain(head, hidden, TOKENS, path), torch.stack(wanted))


@torch.no_grad()
def test_metas_blocks_stand_where_the_targets_last_layer_does(model):
    # With the weights of that layer, a head's row is the target's own next-token row.
    head = tiny_head("meta", model, sizes=Sizes.of(model.config), num_modules=2)
    for level in head.levels:
        level.layers[0].load_state_dict(model.model.layers[-1].state_dict())
    output = model(TOKENS[None], output_hidden_states=True)
    trunk = output.hidden_states[1][0]
    assert head.hidden_layers == (1,)
    state = head.new_state()
    for start, end in ((0, 3), (3, 4), (4, 6)):
        row = head.read(state, [trunk[start:end]], TOKENS[start:end])
        assert_close(row, output.logits[0, end - 1 : end])
        assert_close(head.step(state, [0], torch.tensor([2])), output.logits[0, end - 1 : end])


@pytest.mark.parametrize("name", PARALLEL)
@torch.no_grad()
def test_trees_are_run_level_by_level_or_mixed(name, model):
    head = tiny_head(name, model)
    hidden = random_hidden(head, 6)
    state = head.new_state()
    rows = [head.read(state, hidden, TOKENS)]
    rows.append(head.step(state, [0, 0], torch.tensor([4, 7])))
    rows.append(head.step(state, [1, 2], torch.tensor([5, 6])))
    logits = torch.cat(rows)
    assert_close(logits[[0, 1, 3]], chain(head, hidden, TOKENS, [4, 5])[:3])
    assert_close(logits[[0, 2, 4]], chain(head, hidden, TOKENS, [7, 6])[:3])
    assert torch.equal(logits[1], logits[2]) == (name != "hydra")
    head.read(state, [h[-1:] for h in hidden], TOKENS[-1:])
    assert state.num_nodes == 1


@torch.no_grad()
def test_levels_that_do_not_exist_are_refused(model):
    head = tiny_head("koala-parallel", model)
    assert head.max_depth == 3
    state = head.new_state()
    head.read(state, random_hidden(head, 6), TOKENS)
    head.step(state, [0], torch.tensor([1]))
    head.step(state, [1], torch.tensor([1]))
    with pytest.raises(mv.errors.DraftError, match="node 2 has no level below it: the head has 3"):
        head.step(state, [2], torch.tensor([1]))
    with pytest.raises(mv.errors.DraftError, match="node 7 was not run"):
        head.step(state, [7], torch.tensor([1]))
    assert state.num_nodes == 3


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [("eagle", {}, "not a parallel head"), ("meta", {}, "one hidden state")],
)
def test_specs_that_cannot_be_run_are_refused(name, changes, message):
    with pytest.raises(mv.errors.ParamsError, match=message):
        ParallelHead(family(name).replace(sizes=SIZES, **changes))
