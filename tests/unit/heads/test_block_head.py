"""Block heads by their published names, against a forward of our own."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from mtp_verify.heads import load, save
from mtp_verify.heads.block_head import BlockHead
from mtp_verify.verifier.tree_shape import TreeShape
from tests.block_heads import KINDS, row, slots, write_block_head
from tests.heads import random_hidden, tiny_head
from tests.models import VOCAB, prompt, tiny_model
from tests.published import eagle3_tensors, llama_config, write

TOLERANCE = 1e-5
NAMES = list(KINDS)


@pytest.fixture(scope="module")
def target():
    return tiny_model("llama")


@pytest.fixture(params=NAMES)
def published(request, tmp_path, target):
    """A head that was written under its published names: kind, tensors, and the head as loaded."""
    kind = KINDS[request.param]
    tensors = write_block_head(tmp_path, kind, target)
    return kind, tensors, load(tmp_path, target, probe=False)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0.0)


def test_rows_of_every_path_are_those_of_the_paper(published):
    kind, tensors, head = published
    assert head.spec.family == kind.family
    assert head.max_depth == kind.slots - kind.skipped
    assert head.hidden_layers == kind.hidden
    hidden = random_hidden(head, 9)
    words = torch.randint(VOCAB, (9,), generator=torch.Generator().manual_seed(2))
    state = head.new_state()
    # Three reads, so that keys and values are kept from one draft to the next.
    for start, end in ((0, 4), (4, 5), (5, 9)):
        found = head.read(state, [h[start:end] for h in hidden], words[start:end])
        root = int(words[end - 1])
        wanted = slots(kind, tensors, [h[:end] for h in hidden], root)
        close(found[0], row(kind, tensors, wanted, [root]))
        # Two nodes below the root, two below each, and one chain to the last level.
        paths = {0: [root]}
        below = [(0, 7), (0, 12), (1, 3), (1, 30), (2, 7), (2, 9)]
        for node, (parent, token) in enumerate(below, 1):
            paths[node] = [*paths[parent], token]
        for first, last in ((1, 2), (3, 6)):
            some = below[first - 1 : last]
            tokens = torch.tensor([token for _, token in some])
            rows = head.step(state, [parent for parent, _ in some], tokens)
            for own, node in zip(rows, range(first, last + 1), strict=True):
                close(own, row(kind, tensors, wanted, paths[node]))
        node = 6
        while len(paths[node]) < head.max_depth:
            paths[node + 1] = [*paths[node], 5]
            own = head.step(state, [node], torch.tensor([5]))
            node += 1
            close(own[0], row(kind, tensors, wanted, paths[node]))
        with pytest.raises(mv.errors.DraftError, match="has no level") as caught:
            head.step(state, [node], torch.tensor([5]))
        assert caught.value.slug == "draft_too_deep"


def test_parents_that_only_a_device_knows_give_the_same_rows(published):
    _, _, head = published
    hidden = random_hidden(head, 4)
    states = [head.new_state(), head.new_state()]
    for state in states:
        head.read(state, hidden, torch.tensor([1, 2, 3, 4]))
    parents, tokens = [0, 0], torch.tensor([6, 9])
    known = [
        head.step(states[0], parents, tokens),
        head.step(states[0], [2, 1, 2], tokens[[0, 1, 1]]),
    ]
    away = [
        head.step(states[1], torch.tensor(parents), tokens),
        head.step(states[1], torch.tensor([1, 0, 1]), tokens[[0, 1, 1]]),
    ]
    for one, other in zip(known, away, strict=True):
        close(other, one)


def test_a_batch_of_sequences_gives_the_rows_of_each(published):
    _, _, head = published
    hidden = random_hidden(head, 8)
    words = torch.arange(8) + 3
    parts = [(0, 3), (1, 8), (4, 5)]
    alone, together = [], [head.new_state() for _ in parts]
    for start, end in parts:
        state = head.new_state()
        first = head.read(state, [h[start:end] for h in hidden], words[start:end])
        alone.append((first, head.step(state, [0, 0], torch.tensor([4, 8]))))
    read = head.read_batch(
        together,
        [[h[start:end] for h in hidden] for start, end in parts],
        [words[start:end] for start, end in parts],
    )
    stepped = head.step_batch(together, [[0, 0]] * 3, [torch.tensor([4, 8])] * 3)
    for (first, second), *found in zip(alone, read, stepped, strict=True):
        close(found[0], first)
        close(found[1], second)


def test_saved_heads_come_back_bit_for_bit(published, target, tmp_path):
    _, _, head = published
    save(head, tmp_path / "saved", target=target)
    again = load(tmp_path / "saved", target)
    assert again.spec == head.spec
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


FORMS = {
    "chain": {"num_tokens": 3},
    "product tree": {"max_nodes": 6},
    "fixed tree": {"shape": TreeShape.by_depth(2, 2), "law": "deterministic"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_decoding_equals_plain(name, form, tmp_path, target):
    write_block_head(tmp_path, KINDS[name], target)
    head = load(tmp_path, target, probe=False)
    drafter = mv.drafters.Heads(head, **FORMS[form])
    ids = prompt(5)
    greedy = mv.SamplingParams(temperature=0.0)
    plain = mv.Decoder(target, params=greedy).generate(ids, max_new_tokens=24)
    found = mv.Decoder(target, drafter, greedy).generate(ids, max_new_tokens=24)
    assert found.tokens == plain.tokens
    assert found.stats.drafted > 0


@pytest.mark.parametrize("name", ["dflash", "dspark", "dspark of speculators", "domino"])
def test_the_probe_reads_a_head_as_it_was_made(name, tmp_path, target):
    """A random head agrees with nothing, so no reading replaces its own."""
    write_block_head(tmp_path, KINDS[name], target)
    loaded, plain = load(tmp_path, target), load(tmp_path, target, probe=False)
    assert loaded.spec.disputed == ()
    assert loaded.spec == plain.spec.replace(disputed=())


def test_the_probe_measures_what_every_reading_has(tmp_path, target):
    """Read in place the head has a level less than where it predicts the token after."""
    kind = KINDS["dflash, from the root"]
    write_block_head(tmp_path, kind, target)
    head = load(tmp_path, target, probe=False)
    head.choose(disputed=("offset", "in_block"), block_size=3)
    found = mv.heads.probe(head, target, num_tokens=64, depth=5)
    assert [len(reading.accepted) for reading in found.readings] == [2] * 6
    assert (head.spec.offset, head.spec.in_block) == ("next", "sliding")


MISTAKES = {
    "block_size": ({"block_size": 0}, "block_size: found 0"),
    "no mask": ({"dflash_config": {"target_layer_ids": [0, 1]}}, "mask_token_id: found None"),
    "a mask of no vocabulary": (
        {"dflash_config": {"mask_token_id": 99, "target_layer_ids": [0, 1]}},
        "mask_token_id: found 99",
    ),
    "layers": (
        {"dflash_config": {"mask_token_id": 3, "target_layer_ids": "all"}}, "target_layer_ids",
    ),
    "scale": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: found 30.0"),
    "windows": ({"layer_types": ["sliding_attention"] * 2}, "sliding_window: found None"),
    "a kind of layer": ({"layer_types": ["chunked_attention"] * 2}, "layer_types: found"),
    "a flag": ({"is_causal": "yes"}, "is_causal: found yes, wanted true or false"),
    "one slot": ({"block_size": 1}, "block_size: found 1, wanted"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_configurations_that_make_no_head_are_named(name, tmp_path, target):
    config, wanted = MISTAKES[name]
    kind = KINDS["dflash"]
    changed = type(kind)(kind.family, {**kind.config, **config})
    write_block_head(tmp_path, changed, target)
    with pytest.raises(mv.errors.UnsupportedModelError, match=wanted):
        load(tmp_path, target, probe=False)


def test_a_step_before_a_read_is_named(published):
    _, _, head = published
    for parents in ([0], torch.tensor([0])):
        with pytest.raises(mv.errors.DraftError):
            head.step(head.new_state(), parents, torch.tensor([1]))


@pytest.mark.parametrize("name", ["dflash", "dspark"])
@pytest.mark.parametrize("offset", ["place", "next"])
@pytest.mark.parametrize("in_block", ["full", "causal"])
def test_exported_heads_are_read_back(name, offset, in_block, tmp_path, target):
    write_block_head(tmp_path / "published", KINDS[name], target)
    head = load(tmp_path / "published", target, probe=False)
    head.choose(offset=offset, in_block=in_block, disputed=())
    mv.heads.export(head, tmp_path / "exported", name)
    again = load(tmp_path / "exported", target, probe=False)
    assert again.spec.replace(disputed=()) == head.spec
    for label, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[label], tensor), label


P_EAGLE = {
    "speculators": ("layers.0", {"speculators_model_type": "peagle", "mask_token_id": 3}),
    "vllm": ("midlayer", {"architectures": ["LlamaForCausalLMEagle3"], "pard_token": 3}),
}


@pytest.mark.parametrize("layout", P_EAGLE)
@pytest.mark.parametrize("each", [False, True])
def test_p_eagle_is_eagle_3_over_pairs_of_a_mask(layout, each, tmp_path, target):
    """Against EAGLE-3's own forward over one sequence, the masked pairs at its end."""
    block, config = P_EAGLE[layout]
    norm = "each" if each else "none"
    eagle = tiny_head("eagle3", target, aux_layers=(0, 1, 2), feature_norm=norm)
    config = config | {
        "draft_vocab_size": 20, "eagle_aux_hidden_state_layer_ids": [0, 1, 2],
        "norm_before_residual": False, "transformer_layer_config": llama_config(),
        "speculators_config": {"proposal_methods": [{"speculative_tokens": 4}]},
    }  # fmt: skip
    mask_hidden = torch.randn(1, 1, 3 * 32, generator=torch.Generator().manual_seed(8))
    tensors = eagle3_tensors(eagle, block) | {"mask_hidden": mask_hidden}
    write(tmp_path, llama_config() | config, tensors)
    head = load(tmp_path, target, probe=False)
    assert (head.spec.family, head.max_depth, head.spec.mask_token) == ("peagle", 4, 3)
    hidden = random_hidden(head, 7)
    words = torch.randint(VOCAB, (7,), generator=torch.Generator().manual_seed(2))
    state = head.new_state()
    for start, end in ((0, 3), (3, 4), (4, 7)):
        found = [head.read(state, [h[start:end] for h in hidden], words[start:end])]
        found += [head.step(state, [depth], torch.tensor([9])) for depth in range(3)]
        masked = mask_hidden[0].expand(3, -1).chunk(3, dim=-1)
        rows = [torch.cat((h[:end], m)) for h, m in zip(hidden, masked, strict=True)]
        tokens = torch.cat((words[:end], torch.full((3,), 3)))
        count = end + 3
        causal = torch.ones(count, count, dtype=torch.bool).tril()
        output, _ = eagle(
            eagle.fuse_features(rows)[None], tokens[None], torch.arange(count)[None], causal
        )
        close(torch.cat(found), eagle.logits(output[0])[end - 1 :])
    drafter = mv.drafters.Heads(head, max_nodes=5)
    greedy = mv.SamplingParams(temperature=0.0)
    plain = mv.Decoder(target, params=greedy).generate(prompt(5), max_new_tokens=16)
    assert mv.Decoder(target, drafter, greedy).generate(prompt(5), max_new_tokens=16).tokens == (
        plain.tokens
    )


WRONG_SPECS = {
    "kind": ({"kind": "causal"}, "is not a block head"),
    "layers": ({"aux_layers": ()}, "is not a block head"),
    "rows of its own and a mask": ({"fusion": "he"}, "is not a block head"),
    "blocks": ({"block": "llama"}, "block: found 'llama', wanted 'slots'"),
    "mask": ({"mask_token": VOCAB}, f"mask_token: found {VOCAB}, wanted a token below {VOCAB}"),
    "windows": ({"windows": (3,)}, r"windows: found \(3,\), wanted a width >= 0 for each of 2"),
    "a width": ({"windows": (3, -1)}, r"windows: found \(3, -1\)"),
    "slots": ({"block_size": 1}, "block_size: found 1, wanted more"),
    "rank": ({"correction": "markov"}, "rank, gru_size: found 0, 0, wanted widths >= 1"),
    "state": ({"correction": "gru", "rank": 3}, "rank, gru_size: found 3, 0"),
}


@pytest.mark.parametrize("name", WRONG_SPECS)
def test_specs_of_no_block_head_are_named(name, target):
    changes, wanted = WRONG_SPECS[name]
    spec = tiny_head("dflash", target).spec.replace(**changes)
    with pytest.raises(mv.errors.ParamsError, match=wanted):
        BlockHead(spec)


def test_a_head_that_learns_on_corrects_by_its_new_weights(target):
    """The product with the output rows is kept between steps, and made anew where they change."""
    head = tiny_head("block", target)
    hidden, tokens = random_hidden(head, 4), torch.tensor([1, 2, 3, 4])

    def rows(subject):
        with torch.no_grad():
            return subject.read(subject.new_state(), hidden, tokens)

    before = rows(head)
    with torch.no_grad():
        head.correction.output.weight.mul_(2.0)
    fresh = tiny_head("block", target)
    fresh.load_state_dict(head.state_dict())
    fresh.set_vocab(head.vocab)
    assert torch.equal(rows(head), rows(fresh))
    assert not torch.equal(rows(head), before)
