"""Fused forwards: what the model's own code computes, and who may have them."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.cache_utils import StaticCache

import mtp_verify as mv
from mtp_verify.caches.settings import Paged
from mtp_verify.caches.slots import SlotCache
from mtp_verify.errors import UnsupportedModelError
from mtp_verify.models.cpu import fused
from mtp_verify.models.cpu.fused import fuse, fused_model, fused_part
from mtp_verify.models.cpu.packing import can_prepack, is_prepacked
from mtp_verify.models.hidden import BEFORE_NORM
from mtp_verify.models.target import TransformersTarget
from tests.heads import BLOCK, CAUSAL, random_hidden, round_weights, tiny_head
from tests.models import (
    VOCAB,
    TreeDrafter,
    greedy_tokens,
    on_measured_cpus,
    prompt,
    tiny_model,
)

ATOL = 5e-5  # Both are up to 2.5e-5 from what the formulas give in 64 bits; see the test of that.
LAYERS = (-1, 0, 1, -2, BEFORE_NORM)
TREE = [-1, 0, 0, 1, 1, 2, 5]
GREEDY = mv.SamplingParams(temperature=0.0)


def family(name: str) -> Any:
    """A random model of each family; biases and norms are random too, so that they count."""
    if name == "llama":
        model = tiny_model("llama", attention_bias=True, mlp_bias=True)
    elif name == "mistral":
        model = tiny_model("mistral", sliding_window=None)
    else:
        kinds: dict[str, tuple[Any, Any]] = {
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
            "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        }
        make_config, make_model = kinds[name]
        torch.manual_seed(1)
        options = {**tiny_model("llama").config.to_dict(), "use_sliding_window": False}
        for key in ("model_type", "architectures", "layer_types", "attention_bias", "mlp_bias"):
            options.pop(key, None)
        model = make_model(make_config(**options)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.4)
    return model


@pytest.fixture(params=["llama", "mistral", "qwen2", "qwen3"])
def pair(request: pytest.FixtureRequest) -> tuple[TransformersTarget, TransformersTarget]:
    """A target whose forwards are the model's own, and one of the same weights that is fused."""
    model = family(request.param)
    twin = copy.deepcopy(model)
    assert fuse(twin) > 0
    assert fused_model(twin) is not None
    assert fused_model(model) is None
    return TransformersTarget(model), TransformersTarget(twin)


def agree(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=ATOL)
    assert (one[1] is None) == (other[1] is None)
    for mine, its in zip(one[1] or (), other[1] or (), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=ATOL)


@torch.inference_mode()
def test_forwards_of_every_kind_agree(pair: Any) -> None:
    """A prompt, one token, a chain and a tree behind it, with every hidden state."""
    tree = mv.TokenTree(TREE)
    ancestors = torch.from_numpy(tree.mask()).bool()
    depths = torch.from_numpy(tree.depths.astype("int64"))
    found: list[list[Any]] = []
    for target in pair:
        cache = target.new_cache()
        rows = [target.forward(prompt(9), None, None, cache, LAYERS, num_logits=9)]
        rows.append(target.forward(prompt(1, seed=5), None, None, cache, num_logits=1))
        rows.append(target.forward(prompt(4, seed=6), None, None, cache, LAYERS, num_logits=2))
        positions = (cache.length + depths)[None]
        nodes = prompt(len(TREE), seed=7)
        rows.append(target.forward(nodes, positions, ancestors, cache, num_logits=len(TREE)))
        cache.crop(10)
        rows.append(target.forward(prompt(2, seed=8), None, None, cache, num_logits=2))
        found.append(rows)
    for one, other in zip(*found, strict=True):
        agree(one, other)


@torch.inference_mode()
def test_rounding_is_no_worse_than_the_models_own(pair: Any) -> None:
    """Mean distance from the logits in 64 bits, over 30 prompts of 40 tokens."""
    exact = copy.deepcopy(pair[0].model).double()
    distances = []
    for target in pair:
        errors = []
        for seed in range(30):
            ids = prompt(40, seed=seed)
            rows, _ = target.forward(ids, None, None, target.new_cache(), num_logits=40)
            errors.append((rows - exact(ids).logits[0]).abs().mean())
        distances.append(float(torch.stack(errors).mean()))
    assert distances[1] < 1.2 * distances[0] < 3e-6


@torch.inference_mode()
def test_forwards_of_many_sequences_agree(pair: Any) -> None:
    """Sequences of other lengths, one of which drafts less."""
    generator = torch.Generator().manual_seed(0)
    found: list[list[Any]] = []
    ancestors = torch.from_numpy(mv.TokenTree(TREE).mask()).bool().repeat(3, 1, 1)
    ancestors[2] = torch.eye(len(TREE)).bool()
    steps = [torch.randint(0, VOCAB, (3, len(TREE)), generator=generator) for _ in range(2)]
    for target in pair:
        cache = SlotCache(target.new_kv())
        for _ in range(3):
            cache.add()
        rows = []
        for nodes in steps:
            starts = torch.tensor(cache.lengths)[:, None]
            positions = starts + torch.from_numpy(mv.TokenTree(TREE).depths)
            rows.append(target.forward_slots(nodes, positions, ancestors, cache, (-1, 1)))
            for slot in range(3):
                cache.extend(slot, slot + 1)
        found.append(rows)
    for one, other in zip(*found, strict=True):
        agree(one, other)


@pytest.mark.parametrize("size", [1, 4])
def test_entries_in_a_pool_are_those_of_buffers(pair: Any, size: int) -> None:
    """Gathered for each forward and brought back; drafts of different sizes, shared blocks."""
    _, twin = pair
    prompts = [prompt(n, seed=n)[0].tolist() for n in (9, 5, 9)] * 2
    made = []
    for cache in (None, Paged(num_blocks=240 // size, block_size=size)):
        text = [*prompts[0], *greedy_tokens(twin.model, prompt(9, seed=9), 20)]
        drafter = TreeDrafter(TREE, text=text)
        decoder = mv.Decoder(twin.model, drafter, GREEDY, cache=cache, batching="together")
        made.append(decoder.generate(prompts, max_new_tokens=20).tokens)
    assert made[0] == made[1]


@pytest.mark.parametrize("count", [1, 3])
def test_generations_are_those_of_the_library(pair: Any, count: int) -> None:
    plain, twin = pair
    ids = prompt(6)
    text = greedy_tokens(plain.model, ids, 24)
    drafter = TreeDrafter(TREE, text=[*ids[0].tolist(), *text])
    prompts = [ids[0].tolist()] * count
    made = mv.Decoder(twin.model, drafter, GREEDY).generate(prompts, max_new_tokens=24)
    assert made.tokens == [text] * count
    assert made.stats.steps < 24 * count


def test_the_models_own_generation_stays_as_it_was(pair: Any) -> None:
    plain, twin = pair
    assert greedy_tokens(twin.model, prompt(6), 12) == greedy_tokens(plain.model, prompt(6), 12)
    assert not is_prepacked(twin.model)


def test_custom_generate_runs_fused(counted: Any) -> None:
    target, calls = counted
    ids = torch.tensor([[5, 9, 2, 5, 9]])
    plain = greedy_tokens(target.model, ids, 16)
    assert calls.count == 0
    made = target.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False,
        pad_token_id=0, custom_generate=mv.hf.speculative(drafter=mv.drafters.Suffix()),
    )  # fmt: skip
    assert made[0, 5:].tolist() == plain
    assert calls.count > 0


class _Calls:
    """Counts the calls of a fused model."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.count = inner, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        return self.inner(*args, **options)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[TransformersTarget, _Calls]:
    model = tiny_model("llama")
    fuse(model)
    watch, inner = fused._MODELS[model]
    calls = _Calls(inner)
    monkeypatch.setitem(fused._MODELS, model, (watch, calls))
    target = TransformersTarget(model)
    calls.count = 0  # A model is tried on a few tokens first.
    return target, calls


def test_narrow_forwards_are_fused_and_others_are_not(counted: Any) -> None:
    target, calls = counted
    static = target.new_cache(StaticCache(config=target.model.config, max_cache_len=32))
    calls.count = 0
    with torch.inference_mode():
        target.forward(prompt(128), None, None, target.new_cache(), num_logits=1)
        assert calls.count == 1
        target.forward(prompt(129), None, None, target.new_cache(), num_logits=1)
        target.forward(prompt(3), None, None, static, num_logits=1)
        assert calls.count == 1
    target.forward(prompt(3), None, None, target.new_cache(), num_logits=1)  # with gradients
    assert calls.count == 1


@pytest.mark.parametrize("name", [*CAUSAL, *BLOCK])
@torch.inference_mode()
def test_heads_draft_the_same(name: str) -> None:
    """True pairs, a level of a tree below them, true pairs again; the state is rolled back.

    Weights that eight bits hold exactly make a fused head the same as its own code, but that what
    they multiply is rounded to sixteen bits.
    """
    model = round_weights(tiny_model("llama"))
    head = round_weights(tiny_head(name, model))
    twin = round_weights(tiny_head(name, model))
    fuse(twin)
    parts = {type(part).__name__ for part in twin.modules() if fused_part(part) is not None}
    # Qwen's norms store their weight's difference from 1; EAGLE-3's block reads twice the width.
    blocks = {"SlotBlock"} if name in BLOCK and name != "peagle" else {"LlamaBlock"}
    wanted = set() if name in ("qwen", "eagle3") else blocks
    if name in CAUSAL or name == "peagle":
        wanted |= {"CausalModule"}
    # What shares the target's whole output head has none of its own.
    if name in ("eagle3", "dflash-sliding", "block", "peagle"):
        wanted |= {type(twin).__name__}
    assert parts == wanted
    found: list[list[torch.Tensor]] = []
    for subject in (head, twin):
        state = subject.new_state()
        rows = [subject.read(state, random_hidden(subject, 6), prompt(6)[0])]
        rows.append(subject.step(state, [0, 0, 0], prompt(3, seed=4)[0]))
        rows.append(subject.step(state, [1, 1, 2], prompt(3, seed=5)[0]))
        rows.append(subject.read(state, random_hidden(subject, 2, seed=3), prompt(2, seed=6)[0]))
        found.append(rows)
    for one, other in zip(*found, strict=True):
        distance = (one - other).abs() / one.std()
        assert distance.mean() < 1e-3
        assert distance.max() < 1e-2


def test_a_layer_that_does_not_exist_is_named(counted: Any) -> None:
    target, _ = counted
    cache = target.new_cache()
    with torch.inference_mode(), pytest.raises(UnsupportedModelError, match="hidden state 9 was"):
        target.forward(prompt(3), None, None, cache, (9,), num_logits=1)


class _Adapted(nn.Linear):
    """Stands for a layer with an adapter, or of quantised weights."""


def _adapt(model: Any) -> None:
    old = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = _Adapted(old.in_features, old.out_features, bias=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: model.model.layers[1].register_forward_hook(lambda *_: None),
        _adapt,
    ],
    ids=["training", "eager", "hook", "adapter"],
)
def test_models_that_compute_something_else_are_left_alone(change: Any) -> None:
    model = tiny_model("llama")
    change(model)
    assert fuse(model) == 0
    assert fused_model(model) is None


@pytest.mark.parametrize("kind", ["mistral", "gemma3", "gpt2", "lfm2"])
def test_other_families_are_prepacked_at_most(kind: str) -> None:
    model = tiny_model(kind)
    assert fuse(model) == 0
    assert fused_model(model) is None
    half = tiny_model(kind).to(torch.bfloat16)
    if can_prepack(half) and kind != "gpt2":  # its layers are no nn.Linear but the last
        assert fuse(half) > 0
        assert is_prepacked(half)


def _unsigned(sin: torch.Tensor) -> torch.Tensor:
    return sin


def _no_mlp(layer: Any, x: torch.Tensor, attend: Any) -> torch.Tensor:
    return x + layer._out(attend(layer._project(x)))


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [(fused, "_signed", _unsigned), (fused.FusedLayer, "__call__", _no_mlp)],
)
def test_a_probe_finds_what_computes_something_else(
    owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be after a change in the library's own code."""
    monkeypatch.setattr(owner, name, wrong)
    model = tiny_model("llama")
    assert fuse(model) == 0
    assert fused_model(model) is None


def test_bfloat16_is_laid_out_and_agrees_by_rounding() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    target = TransformersTarget(model)
    rows = []
    with torch.inference_mode():
        for _ in range(2):
            rows.append(target.forward(prompt(7), None, None, target.new_cache(), num_logits=7)[0])
            assert fuse(model) > 0
    assert torch.allclose(rows[0].float(), rows[1].float(), atol=0.1)


@pytest.fixture(scope="module")
def narrow() -> TransformersTarget:
    """A fused target in bfloat16, with products of every kind."""
    model = tiny_model("llama", intermediate_size=1040).to(torch.bfloat16)
    assert fuse(model) > 0
    return TransformersTarget(model)


@on_measured_cpus
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_any_company(narrow: TransformersTarget) -> None:
    """So that chains change no token in bfloat16 either."""
    text = prompt(60)
    for past in (3, 14, 15, 16, 40):
        rows = []
        for widths in ([1] * 12, [2, 3, 7], [12], [5, 1, 6]):
            cache, start, found = narrow.new_cache(), past, []
            narrow.forward(text[:, :past], None, None, cache, num_logits=1)
            for width in widths:
                some = text[:, start : start + width]
                found.append(narrow.forward(some, None, None, cache, num_logits=width)[0])
                start += width
            rows.append(torch.cat(found))
        for other in rows[1:]:
            assert torch.equal(other, rows[0]), past


@on_measured_cpus
@torch.inference_mode()
def test_nodes_of_trees_and_of_batches_have_the_bits_of_their_paths(narrow: Any) -> None:
    text, tree = prompt(40), mv.TokenTree(TREE)
    size, depths = len(TREE), torch.from_numpy(tree.depths)
    mask = torch.zeros((9, 9), dtype=torch.bool)[:size, :size]  # As a drafter may cut it.
    mask[:] = torch.from_numpy(tree.mask()).bool()
    nodes = prompt(size, seed=7)
    for past in (3, 16, 40):
        cache = narrow.new_cache()
        narrow.forward(text[:, :past], None, None, cache, num_logits=1)
        alone = []
        for node in range(size):
            path = nodes[:, mask[node].nonzero()[:, 0]]
            alone.append(narrow.forward(path, None, None, cache, num_logits=1)[0][0])
            cache.crop(past)
        positions = (past + depths)[None]
        rows, _ = narrow.forward(nodes, positions, mask, cache, num_logits=size)
        assert torch.equal(rows, torch.stack(alone))
        many = SlotCache(narrow.new_kv())
        for slot, length in enumerate((5, past, 1)):
            many.add()
            many.aim(length, narrow.device, slot)
            narrow.forward(text[:, :length], None, None, many, num_logits=1)
            many.extend(slot, length)
        places = torch.tensor(many.lengths)[:, None] + depths
        masks = mask.repeat(3, 1, 1)
        for counts in (None, [2, size, 1]):
            rows, _ = narrow.forward_slots(nodes.repeat(3, 1), places, masks, many, (), counts)
            assert torch.equal(rows[1], torch.stack(alone)), (past, counts)


@on_measured_cpus
@pytest.mark.parametrize("seed", range(4))
def test_trees_and_companions_change_no_token_in_bfloat16(narrow: Any, seed: int) -> None:
    prompts = [prompt(length, seed)[0].tolist() for length in (12, 5, 90)]
    plain = [mv.Decoder(narrow, None, GREEDY).generate([p], max_new_tokens=60) for p in prompts]
    text = [*prompts[0], *plain[0].tokens[0]]
    drafter = mv.drafters.Combined([TreeDrafter(TREE, text=text), mv.drafters.NGram()])
    made = mv.Decoder(narrow, drafter, GREEDY).generate(prompts, max_new_tokens=60)
    assert made.tokens == [one.tokens[0] for one in plain]
    assert 0 < made.stats.accepted < made.stats.drafted


@on_measured_cpus
@pytest.mark.parametrize("seed", range(4))
def test_chains_change_no_token_in_bfloat16(narrow: TransformersTarget, seed: int) -> None:
    plain, drafted = (
        mv.Decoder(narrow, drafter, GREEDY).generate(prompt(12, seed), max_new_tokens=120)
        for drafter in (None, mv.drafters.NGram(num_tokens=6, min_ngram=1))
    )
    assert drafted.tokens == plain.tokens
    assert 0 < drafted.stats.accepted < drafted.stats.drafted


def _write(model: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.mul_(2.0)


@pytest.mark.parametrize(
    "change",
    [
        _write,
        lambda model: model.load_state_dict(tiny_model("llama", seed=2).state_dict()),
        lambda model: model.double(),
    ],
    ids=["in place", "loaded", "dtype"],
)
def test_weights_that_change_are_noticed(change: Any) -> None:
    """The model's own code runs then, until `fuse` is called again."""
    model = tiny_model("llama")
    target = TransformersTarget(model)
    fuse(model)
    change(model)
    assert fused_model(model) is None
    for _ in range(2):
        with torch.inference_mode():
            mine = target.forward(prompt(5), None, None, target.new_cache(), num_logits=5)[0]
            # Rows of 64 bits are read in 32.
            wanted = model(prompt(5)).logits[0].to(mine.dtype)
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
        fuse(model)
    assert (fused_model(model) is not None) == (model.dtype is torch.float32)


def test_a_heads_weights_that_change_are_noticed() -> None:
    head = tiny_head("mimo", tiny_model("llama"))
    fuse(head)
    parts = [head.levels[0], head.levels[0].layers[0]]
    assert all(fused_part(part) is not None for part in parts)
    with torch.no_grad():
        head.levels[0].layers[0].mlp.up_proj.weight.zero_()
    assert all(fused_part(part) is None for part in parts)


def test_a_model_that_is_dropped_is_forgotten() -> None:
    model = tiny_model("llama")
    fuse(model)
    watch = weakref.ref(model)
    del model
    gc.collect()
    assert watch() is None
