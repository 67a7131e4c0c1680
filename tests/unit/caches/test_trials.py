"""Models whose rows depend on what else is in the forward: found by trying, and refused or exact.

The families are those of `tests/zoo.py`, of transformers' own classes; what is wrong with others is
made on purpose in a tiny Llama.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, StaticCache

import mtp_verify as mv
from mtp_verify.caches import stretch
from mtp_verify.caches.names import cache_name
from mtp_verify.decoder.decode import Decoder
from mtp_verify.errors import ParamsError, UnsupportedModelError
from mtp_verify.models.target import TransformersTarget
from tests.models import ScriptDrafter, TreeDrafter, prompt, tiny_model
from tests.zoo import FAMILIES, SWITCH, VOCAB, decode_all_ways, tiny

GREEDY = mv.SamplingParams(temperature=0.0)
# One of each kind: full, sliding and chunked attention, experts, shared layers, sinks, learned
# positions, ALiBi, positions behind padding, a switch, no positions, recurrent layers.
FAST = (
    "bloom", "data2vec-text", "falcon, alibi", "gemma4_text", "gpt_neo", "gpt_oss", "lfm2",
    "llama4_text", "llama, longrope", "llama, dynamic", "mixtral", "moshi", "mpt", "opt",
    "phi3, longrope and window", "phimoe, longrope", "prophetnet", "roberta",
)  # fmt: skip


def check(name):
    found = decode_all_ways(tiny(name), (9, 25) if name in FAST else (9, 23, 25))
    assert "wrong" not in (found.chains, found.trees, found.batches)
    assert found.plain in (True, None)
    # What is not run is refused by name.
    assert found.why or (found.chains, found.trees, found.batches) == ("exact",) * 3


@pytest.mark.parametrize("name", FAST)
def test_what_is_allowed_is_exact(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FAST])
def test_what_is_allowed_is_exact_in_all_families(name):
    check(name)


# Families that must not be refused for what rounding does: in half precision it does much.
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["gemma2", "gpt2", "gpt_oss", "llama", "mistral", "mixtral", "opt", "qwen2", "roberta"]
)
def test_rounding_is_no_obstacle(name, dtype):
    target = TransformersTarget(tiny(name).to(dtype))
    assert (target.tree_obstacle, target.batch_obstacle, target.switch_length) == (None,) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_local_attention_by_index_has_chains_alone(dtype):
    # GPT-Neo as it is published: windows of 256 tokens, longer than any text that is tried.
    model = tiny("gpt_neo", window_size=256, max_position_embeddings=1024).to(dtype)
    with pytest.raises(UnsupportedModelError, match="beside siblings its rows are others"):
        Decoder(model, TreeDrafter([-1, 0, 0]))
    with pytest.raises(UnsupportedModelError, match="requests cannot share a forward: beside"):
        Decoder(model, batching="together")
    assert Decoder(model)._storage is None
    assert TransformersTarget(tiny("gpt_neo, global")).batch_obstacle is None


def test_a_window_that_the_model_forgets_is_found_behind_long_texts():
    # Its cache has windows and its masks have none: more than one token sees too much.
    model = tiny("moshi", sliding_window=300, max_position_embeddings=1024)
    with pytest.raises(UnsupportedModelError, match="other rows than the same ones one by one"):
        Decoder(model)


def test_a_mask_that_fails_is_an_obstacle_before_anything_is_generated():
    model = tiny("falcon, alibi")
    with pytest.raises(UnsupportedModelError, match=r"fails on the mask of a tree \(ValueError"):
        Decoder(model, TreeDrafter([-1, 0, 0]))
    with pytest.raises(UnsupportedModelError, match=r"cannot share a forward: .*\(ValueError"):
        Decoder(model, cache="paged")
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY)
    assert len(decoder.generate([[1, 2, 3], [4]], max_new_tokens=4).tokens) == 2


def test_a_model_that_cannot_run_chains_is_refused_before_anything_is_generated():
    with pytest.raises(UnsupportedModelError, match="ProphetNetForCausalLM cannot decode"):
        Decoder(tiny("prophetnet"))


@pytest.mark.parametrize("name", ["gpt_neo", "gpt2"])
def test_static_caches_are_refused_where_their_empty_places_count(name):
    model, ids = tiny(name), prompt(5)
    static = StaticCache(config=model.config, max_cache_len=64)
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY)
    if name == "gpt2":
        drafted = decoder.generate(ids, max_new_tokens=8, past_key_values=static)
        assert drafted.tokens == decoder.generate(ids, max_new_tokens=8).tokens
        return
    with pytest.raises(UnsupportedModelError, match="GPTNeoForCausalLM takes no StaticCache: on"):
        decoder.generate(ids, max_new_tokens=8, past_key_values=static)


# Phi-3 computes its cache anew at the switch, Llama goes on from what it has.
@pytest.mark.parametrize(
    ("name", "forgets"), [("phi3, longrope", True), ("llama, longrope", False)]
)
def test_the_switch_is_found_and_no_forward_reaches_over_it(name, forgets):
    model = tiny(name)
    target = TransformersTarget(model)
    assert (target.switch_length, target.forgets_at_switch) == (SWITCH, forgets)
    assert target.tree_obstacle is None
    assert f"more than {SWITCH} tokens" in target.batch_obstacle
    ids = prompt(12)
    text = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )[0].tolist()  # fmt: skip
    ends = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: ends.append(kwargs["position_ids"][0].aminmax()), with_kwargs=True
    )
    made = Decoder(model, ScriptDrafter(text, 9), GREEDY).generate(ids, max_new_tokens=30)
    handle.remove()
    assert made.tokens[0] == text[12:]
    assert made.stats.tau > 3
    for low, high in ends:
        # Below, above, or all of the text up to the first token above.
        assert high < SWITCH or low >= SWITCH or (low, high) == (0, SWITCH)
    assert ((0, SWITCH) in [(int(low), int(high)) for low, high in ends]) == forgets


def test_a_cache_that_was_read_in_the_other_way_is_computed_anew():
    model = tiny("phi3, longrope")
    ids = prompt(SWITCH + 4)
    expected = Decoder(model, None, GREEDY).generate(ids, max_new_tokens=8)
    with torch.no_grad():
        past = model(ids[:, : SWITCH - 4], use_cache=True).past_key_values
    made = Decoder(model, mv.drafters.NGram(), GREEDY).generate(
        ids, max_new_tokens=8, past_key_values=past
    )
    assert made.tokens == expected.tokens
    assert made.past_key_values is past
    assert past.get_seq_length() == SWITCH + 4 + 7


def test_the_switch_of_real_factors_is_found_in_half_precision():
    # Those of a model with a context of 128k: the lowest ones barely differ.
    short = [1.05] * 3 + [1.1] * 3 + [1.25, 1.25, 1.4] + [1.45] * 3 + [1.55] + [1.9] * 3
    long = [1.03, 1.05, 1.05, 1.08, 1.23, 1.23, 1.3, 1.45]
    long += [1.6, 1.65, 1.9, 2.86, 3.69, 5.4, 5.5, 9.1]
    rope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0, "short_factor": short,
        "long_factor": long, "original_max_position_embeddings": 4096,
    }  # fmt: skip
    model = tiny(
        "phi3", head_dim=32, hidden_size=128, max_position_embeddings=131_072,
        original_max_position_embeddings=4096, rope_parameters=rope, initializer_range=0.05,
    )  # fmt: skip
    assert TransformersTarget(model.to(torch.bfloat16)).switch_length == 4096


def test_more_than_one_switch_ends_the_context_there():
    class Stepwise(nn.Module):
        """Rotary positions whose frequencies depend on the last position by steps of 16."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, position_ids):
            return self.inner(x, position_ids * (1 + position_ids.max().item() // 16))

    model = tiny_model("llama")
    model.model.rotary_emb = Stepwise(model.model.rotary_emb)
    target = TransformersTarget(model)
    assert (target.switch_length, target.max_length) == (None, 16)
    with pytest.warns(UserWarning, match="context of 16"):
        made = Decoder(model, mv.drafters.NGram(), GREEDY).generate(prompt(9), max_new_tokens=20)
    assert len(made.tokens[0]) == 7
    with pytest.raises(ParamsError, match="context of 16"):
        Decoder(model).generate(prompt(16), max_new_tokens=1)


class Wrong(nn.Module):
    """A part of a layer, with something done to what goes in."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, x):
        return self.inner(self.change(x))


def quantised(x):
    """Eight bits with one scale for the whole forward, as dynamic quantisation has it."""
    scale = x.abs().amax() / 127
    return (x / scale).round() * scale


def capacity(x):
    """An expert that takes half of the tokens of a forward, and loses the others."""
    kept = torch.arange(x.shape[1]) < (x.shape[1] + 1) // 2
    return x * kept[None, :, None]


def neighbours(x):
    return x + (x.mean(dim=0, keepdim=True) - x) / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (quantised, "depend on the tokens that come behind"),
        (lambda x: x - x.mean(dim=1, keepdim=True), "depend on the tokens that come behind"),
        (lambda x: x + torch.randn_like(x) / 50, "depend on the tokens that come behind"),
        (capacity, "other rows than the same ones one by one"),
    ],
    ids=["per-tensor scales", "statistics", "dropout", "capacity"],
)
def test_rows_that_depend_on_the_rest_of_a_forward_are_refused(change, message):
    model = tiny_model("llama", max_position_embeddings=64)
    for layer in model.model.layers:
        layer.mlp = Wrong(layer.mlp, change)
        layer.self_attn.o_proj = Wrong(layer.self_attn.o_proj, change)
    for _ in range(2):  # The second answer is remembered.
        with pytest.raises(UnsupportedModelError, match=f"LlamaForCausalLM cannot .*{message}"):
            Decoder(model)


def test_rows_that_depend_on_other_requests_are_refused_in_batches_alone():
    model = tiny_model("llama")
    model.model.layers[0].mlp = Wrong(model.model.layers[0].mlp, neighbours)
    target = TransformersTarget(model)
    assert target.tree_obstacle is None
    assert "beside others its rows are not those alone" in target.batch_obstacle


def test_a_model_is_tried_once_and_again_when_it_is_set_otherwise():
    model = tiny("gpt2")
    count = 0

    def see(*_):
        nonlocal count
        count += 1

    handle = model.register_forward_pre_hook(see)
    Decoder(model)
    assert 0 < count <= 12
    first = count
    Decoder(model, mv.drafters.NGram(), batching="each")
    assert count == first
    model.config._attn_implementation = "eager"
    Decoder(model)
    assert count > first
    handle.remove()


def test_memory_that_runs_out_is_not_held_against_the_model():
    model = tiny_model("llama")

    def fail(*_):
        raise torch.OutOfMemoryError("no memory")

    handle = model.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        Decoder(model)
    handle.remove()
    assert Decoder(model).target.tree_obstacle is None


def test_no_more_is_made_up_than_memory_allows(monkeypatch):
    monkeypatch.setattr(stretch, "_ALWAYS", 1 << 16)
    model = tiny("mistral", sliding_window=4096, max_position_embeddings=8192)
    widest = 0

    def see(layer, _, kwargs):
        nonlocal widest
        widest = max(widest, kwargs[cache_name(model.forward)].get_seq_length())

    handle = model.register_forward_pre_hook(see, with_kwargs=True)
    TransformersTarget(model)
    handle.remove()
    assert 20 < widest < 64


def test_training_goes_on_after_a_model_was_tried():
    model = tiny("phi3, longrope").train()
    model.eval()
    Decoder(model)
    model.train()
    model(prompt(30), labels=prompt(30)).loss.backward()
    assert model.lm_head.weight.grad is not None


def test_an_image_of_an_earlier_call_moves_no_token():
    text = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
        "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]
        },
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    special = {"image_token_id": 29, "video_token_id": 28, "vision_start_token_id": 30}
    torch.manual_seed(1)
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, vision_end_token_id=31, **special
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    decoder = Decoder(model, mv.drafters.NGram(), GREEDY)
    before = decoder.generate(prompt(9), max_new_tokens=16).tokens
    # What `generate` with an image leaves behind.
    model.model.rope_deltas = torch.tensor([[-5]])
    assert decoder.generate(prompt(9), max_new_tokens=16).tokens == before
