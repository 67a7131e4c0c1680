"""Causal heads: equal to independent references, with and without caches, and to each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

import mtp_verify as mv
from mtp_verify.heads import CausalHead, family
from tests.heads import CAUSAL, SIZES, VARIANTS, random_hidden, randomised, tiny_head
from tests.host_reads import HostReads
from tests.models import VOCAB, tiny_model


def assert_close(found, wanted):
    """Equal to float32 rounding, at the scale of the largest entry."""
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=2e-5 * max(scale, 1.0))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def tokens_of(count, seed=21):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (count,), generator=generator)


def replayed(head, hidden, tokens, path):
    """Logits after each token of a path, computed afresh without any cache.

    Level k runs over all pairs that it ever sees: those of the true tokens, and for a module that
    is used again those of the path.
    """
    modules = head.spec.num_modules
    stream = head.fuse_features(hidden)[None]
    text = torch.cat((tokens, torch.tensor(path, dtype=torch.int64)))
    rows = []
    for level in range(len(path) + 1):
        module = min(level, modules - 1)
        count = stream.shape[1]
        own = text[None, module : module + count]
        positions = torch.arange(count)[None] + module
        mask = torch.ones((count, count), dtype=torch.bool).tril()
        if head.spec.sizes.window is not None:
            mask &= ~torch.ones_like(mask).tril(-head.spec.sizes.window)
        output, recycled = head(stream, own, positions, mask[None, None], module)
        rows.append(head.logits(output[0, -1:], module))
        # The next level: another module at the same positions, or this one, one position further.
        stream = recycled if level < modules - 1 else torch.cat((stream, recycled[:, -1:]), dim=1)
    return torch.cat(rows)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_cached_chain_equals_a_computation_without_caches(name, model):
    head = tiny_head(name, model)
    text, path = tokens_of(12), [3, 9, 1, 30]
    hidden = random_hidden(head, 12)
    state = head.new_state()
    for start, end in ((0, 7), (7, 8), (8, 12)):
        row = head.read(state, [h[start:end] for h in hidden], text[start:end])
        rows = [row]
        for node, token in enumerate(path):
            rows.append(head.step(state, [node], torch.tensor([token])))
        wanted = replayed(head, [h[:end] for h in hidden], text[:end], path)
        assert_close(torch.cat(rows), wanted)
        assert state.num_nodes == 1 + len(path)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_tree_nodes_see_their_own_path_alone(name, model):
    #      0
    #    1   2       level by level, then two levels in one call
    #   3 4   5
    #   6
    head = tiny_head(name, model)
    text, hidden = tokens_of(6), random_hidden(head, 6)
    parents = [0, 0, 1, 1, 2, 3]
    drafted = [4, 7, 2, 9, 2, 11]
    state = head.new_state()
    rows = [head.read(state, hidden, text)]
    rows += [
        head.step(state, parents[level], torch.tensor(drafted[level]))
        for level in (slice(0, 2), slice(2, 5), slice(5, 6))
    ]
    rows.append(head.step(state, [2, 6], torch.tensor([8, 8])))
    logits = torch.cat(rows)
    paths = [[], [4], [7], [4, 2], [4, 9], [7, 2], [4, 2, 11], [7, 8], [4, 2, 11, 8]]
    for node, path in enumerate(paths):
        wanted = replayed(head, hidden, text, path)[-1]
        assert_close(logits[node], wanted)


@pytest.mark.parametrize("name", ["eagle", "deepseek-2"])
@torch.no_grad()
def test_sliding_attention_hides_what_lies_behind_the_window(name, model):
    head = tiny_head(name, model, sizes=SIZES.__class__(**{**vars(SIZES), "window": 3}))
    text, hidden, path = tokens_of(8), random_hidden(head, 8), [3, 9, 1, 30]
    state = head.new_state()
    head.read(state, [h[:5] for h in hidden], text[:5])
    rows = [head.read(state, [h[5:] for h in hidden], text[5:])]
    rows += [head.step(state, [node], torch.tensor([token])) for node, token in enumerate(path)]
    assert_close(torch.cat(rows), replayed(head, hidden, text, path))


@torch.no_grad()
def test_first_pairs_may_be_fewer_than_the_modules(model):
    head = tiny_head("deepseek-3", model)
    text, hidden = tokens_of(4), random_hidden(head, 4)
    state = head.new_state()
    for end in range(1, 5):
        rows = [head.read(state, [h[end - 1 : end] for h in hidden], text[end - 1 : end])]
        rows += [head.step(state, [node], torch.tensor([node + 5])) for node in range(3)]
        wanted = replayed(head, [h[:end] for h in hidden], text[:end], [5, 6, 7])
        assert_close(torch.cat(rows), wanted)


@torch.no_grad()
def test_eagle_is_a_deepseek_module_with_four_norms_left_out(model):
    parts = dict.fromkeys(("embed_norm", "hidden_norm", "input_norm", "output_norm"), False)
    turned = tiny_head("deepseek", model, zero_first=False, **parts)
    eagle = tiny_head("eagle", model)
    eagle.load_state_dict(turned.state_dict())  # The same parts by the same names.
    text, hidden = tokens_of(9), random_hidden(eagle, 9)
    for first, second in zip(
        drafted_rows(eagle, hidden, text), drafted_rows(turned, hidden, text), strict=True
    ):
        assert torch.equal(first, second)
    fields = {**vars(family("deepseek_v3")), "block": "llama", "zero_first": False, **parts}
    others = ("family", "layout", "disputed")
    assert {name: value for name, value in fields.items() if name not in others} == {
        name: value for name, value in vars(family("eagle")).items() if name not in others
    }


def drafted_rows(head, hidden, text):
    state = head.new_state()
    rows = [head.read(state, hidden, text)]
    return [*rows, *(head.step(state, [n], torch.tensor([n + 2])) for n in range(4))]


def llama_layer(head, weights):
    sizes = head.spec.sizes
    config = LlamaConfig(
        hidden_size=sizes.hidden_size, intermediate_size=sizes.intermediate_size,
        num_attention_heads=sizes.num_heads, num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim, rms_norm_eps=sizes.norm_eps, attn_implementation="eager",
    )  # fmt: skip
    layer = LlamaDecoderLayer(config, 0)
    if not head.spec.input_norm:
        layer.input_layernorm = torch.nn.Identity()
    layer.load_state_dict(weights.state_dict())
    return layer, LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("name", ["deepseek", "mimo", "eagle"])
@torch.no_grad()
def test_module_equals_transformers_own_layer(name, model):
    head = tiny_head(name, model)
    spec, level = head.spec, head.levels[0]
    text, hidden = tokens_of(10), random_hidden(head, 10)

    def rms(x, norm):
        if isinstance(norm, torch.nn.Identity):
            return x
        return functional.rms_norm(x, (32,), norm.weight, spec.sizes.norm_eps)

    embeds = model.get_input_embeddings()(text)
    if spec.zero_first:
        embeds[0] = 0.0
    parts = [rms(embeds, level.embed_norm), rms(hidden[0], level.hidden_norm)]
    if spec.fusion == "he":
        parts.reverse()
    x = functional.linear(torch.cat(parts, -1), level.fusion.weight)[None]
    layer, rotary = llama_layer(head, level.layers[0])
    positions = torch.arange(10)[None]
    mask = torch.full((10, 10), -math.inf).triu(1)[None, None]
    x = layer(x, attention_mask=mask, position_embeddings=rotary(x, positions))
    wanted = model.lm_head(rms(x, level.norm))[0, -1:]
    assert_close(head.read(head.new_state(), hidden, text), wanted)


@torch.no_grad()
def test_eagle3_equals_its_definition(model):
    # Written out from the paper's equations: three layers fused, both halves normalised, the
    # residual stream from the fused state itself, logits over the draft vocabulary.
    head = tiny_head("eagle3", model)
    text, hidden = tokens_of(7), random_hidden(head, 7)
    level, sizes = head.levels[0], head.spec.sizes
    block = level.layers[0]
    fused = torch.cat(hidden, -1) @ head.features.weight.T

    def rms(x, weight):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + sizes.norm_eps) * weight

    both = torch.cat(
        [
            rms(model.get_input_embeddings()(text), level.embed_norm.weight),
            rms(fused, level.hidden_norm.weight),
        ],
        -1,
    )

    def heads(projection, count):
        return (both @ projection.weight.T).view(7, count, 8).transpose(0, 1)

    angles = torch.arange(7.0)[:, None] / 10_000.0 ** (torch.arange(0, 8, 2) / 8)

    def turned(x):
        first, second = x[..., :4], x[..., 4:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    attention = block.self_attn
    queries = turned(heads(attention.q_proj, 4))
    keys = turned(heads(attention.k_proj, 2)).repeat_interleave(2, 0)
    values = heads(attention.v_proj, 2).repeat_interleave(2, 0)
    scores = queries @ keys.transpose(1, 2) / math.sqrt(8)
    scores += torch.full((7, 7), -math.inf).triu(1)
    mixed = (scores.softmax(-1) @ values).transpose(0, 1).reshape(7, 32)
    x = fused + mixed @ attention.o_proj.weight.T
    y = rms(x, block.post_attention_layernorm.weight)
    mlp = block.mlp
    y = (functional.silu(y @ mlp.gate_proj.weight.T) * (y @ mlp.up_proj.weight.T)) @ (
        mlp.down_proj.weight.T
    )
    wanted = rms(x + y, level.norm.weight)[-1:] @ level.output.weight.T
    row = head.read(head.new_state(), hidden, text)
    assert row.shape == (1, 20)
    assert_close(row, wanted)


@pytest.mark.parametrize("feature_norm", ["all", "each"])
@torch.no_grad()
def test_feature_norms_come_before_the_projection(feature_norm, model):
    head = tiny_head("eagle3", model, feature_norm=feature_norm)
    hidden = random_hidden(head, 3)

    def rms(x, norm):
        return functional.rms_norm(x, norm.weight.shape, norm.weight, 1e-6)

    if feature_norm == "all":
        joined = rms(torch.cat(hidden, -1), head.feature_norms[0])
    else:
        joined = torch.cat([rms(h, n) for h, n in zip(hidden, head.feature_norms, strict=True)], -1)
    assert_close(head.fuse_features(hidden), joined @ head.features.weight.T)


@torch.no_grad()
def test_draft_vocabulary_takes_the_targets_output_rows(model):
    head = tiny_head("deepseek", model, draft_vocab_size=9)
    full = tiny_head("deepseek", model)
    full.load_state_dict(head.state_dict())
    text, hidden = tokens_of(5), random_hidden(head, 5)
    row = head.read(head.new_state(), hidden, text)
    whole = full.read(full.new_state(), hidden, text)
    assert_close(row, whole[:, head.vocab])


def test_attached_target_adds_no_parameters(model):
    head = tiny_head("deepseek", model)
    assert not {id(p) for p in head.parameters()} & {id(p) for p in model.parameters()}
    assert not any("embed_tokens" in name for name in head.state_dict())


def test_own_embedding_is_used(model):
    head = tiny_head("eagle", model, own_embedding=True)
    assert torch.equal(head.embed(torch.tensor([3])), head.embedding.weight[3:4])


def test_head_of_another_target_is_refused():
    other = tiny_model("llama", hidden_size=16)
    with pytest.raises(
        mv.errors.UnsupportedModelError, match=r"width 32 and 32 tokens.* 16 and 32"
    ):
        tiny_head("eagle", other)


def test_head_without_a_target_says_so():
    head = CausalHead(family("eagle").replace(sizes=SIZES))
    with pytest.raises(mv.errors.ParamsError, match="not attached"):
        head.embed(torch.tensor([1]))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"family": "deepseek_v4"}, mv.errors.UnsupportedModelError, "hyper-connections"),
        ({"family": "medusa"}, mv.errors.ParamsError, "not a causal head"),
        ({"family": "glm4_moe"}, mv.errors.ParamsError, "target's own kind"),
        ({"family": "eagle3"}, mv.errors.ParamsError, "aux_layers"),
    ],
)
def test_specs_that_cannot_be_run_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        CausalHead(family(changes["family"]).replace(sizes=SIZES))


@torch.no_grad()
def test_wrong_shapes_and_parents_are_named(model):
    head = tiny_head("eagle", model)
    state = head.new_state()
    for hidden, count in (([], 2), ([torch.zeros(2, 31)], 2), ([torch.zeros(3, 32)], 2)):
        with pytest.raises(
            mv.errors.DraftError, match=r"reads 1 hidden state\(s\) of shape \(n, 32\)"
        ):
            head.read(state, hidden, tokens_of(count))
    head.read(state, random_hidden(head, 2), tokens_of(2))
    before = state.num_entries
    with pytest.raises(mv.errors.DraftError, match="node 1 was not run"):
        head.step(state, [0, 1], torch.tensor([3, 4]))
    assert (state.num_nodes, state.num_entries) == (1, before)


@torch.no_grad()
def test_rollback_drops_what_was_drafted(model):
    head = tiny_head("deepseek-2", model)
    state = head.new_state()
    head.read(state, random_hidden(head, 4), tokens_of(4))
    before = state.num_entries
    assert before == [4, 3]
    head.step(state, [0, 0], torch.tensor([1, 2]))
    head.step(state, [1], torch.tensor([1]))
    assert state.num_entries == [4, 6]
    state.rollback()
    assert (state.num_entries, state.num_nodes) == (before, 1)


def test_draft_vocabulary_is_checked(model):
    head = tiny_head("eagle3", model)
    for bad in (torch.arange(19), torch.arange(20).flip(0), torch.arange(13, 33)):
        with pytest.raises(
            mv.errors.ParamsError, match="20 distinct token ids below 32, ascending"
        ):
            head.set_vocab(bad)
    assert randomised(head).vocab.shape == (20,)


@pytest.mark.parametrize("name", VARIANTS)
def test_parents_may_be_known_to_the_device_alone(name):
    """A tensor of parents gives the rows, and the nodes, of the same list."""
    head = tiny_head(name, tiny_model("llama"))
    states = [head.new_state(), head.new_state()]
    tokens = torch.tensor([4, 9, 2, 7, 1])
    for state in states:
        head.read(state, random_hidden(head, len(tokens)), tokens)
    levels = [[0, 0, 0], [2, 0, 2, 1], [3, 1], [0, 1, 1, 0]]
    first = 0
    for above in levels[: head.max_depth and head.max_depth - 1]:
        words = torch.tensor([5, 3, 11, 8][: len(above)])
        begin, first = first, states[0].num_nodes
        wanted = head.step(states[0], [begin + place for place in above], words)
        with HostReads() as reads:
            found = head.step(states[1], torch.tensor(above), words)
        assert reads.places == []
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
