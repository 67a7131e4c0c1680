"""transformers' own assisted decoding with our accept function inside."""

from __future__ import annotations

import inspect
import itertools
import sys

import numpy as np
import pytest
import torch
from transformers import Gemma4TextConfig, Glm4MoeConfig, Glm4MoeForCausalLM
from transformers.generation import candidate_generator, utils
from transformers.modeling_layers import MtpModel

import mtp_verify as mv
from mtp_verify.certification import certify, engines
from mtp_verify.certification.settings import Setting
from mtp_verify.testing import assert_same_law, exact_law, model_rows
from mtp_verify.testing.asserts import assert_sampler_has_law
from mtp_verify.testing.mutants import table_rows
from tests.models import prompt, tiny_model

if "is_done_candidate" in inspect.signature(utils._speculative_sampling).parameters:
    pytest.skip("mv.hf.patch needs transformers 5.18", allow_module_level=True)

LIBRARYS = utils._speculative_sampling
GEMMA = candidate_generator.SinglePositionMultiTokenCandidateGenerator
GEMMAS = GEMMA.get_candidates


@pytest.fixture(autouse=True)
def library_is_put_back():
    yield
    assert utils._speculative_sampling is LIBRARYS
    assert GEMMA.get_candidates is GEMMAS


@pytest.fixture(scope="module")
def pair():
    drafter = tiny_model("llama", 2, vocab_size=4)
    drafter.generation_config.num_assistant_tokens = 3
    drafter.generation_config.num_assistant_tokens_schedule = "constant"
    return tiny_model("llama", 1, vocab_size=4), drafter


def step(target, drafter, tokens):
    """One call of the accept function as the library's loop makes it."""
    rows = [torch.tensor(np.log(rows), dtype=torch.float32)[None] for rows in (drafter, target)]
    ids = torch.tensor([[0, 0, *tokens]])
    valid, num = utils._speculative_sampling(ids, rows[0], len(tokens), rows[1])
    assert valid.shape == (1, int(num) + 1)
    assert num.dim() == 0
    return valid[0].tolist()


def generate(model, **options):
    settings = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    return model.generate(
        prompt(5) % 4, attention_mask=torch.ones(1, 5, dtype=torch.int64), **settings | options
    )


def test_assisted_generation_comes_through_and_counts(pair):
    with mv.hf.patch() as stats:
        found = generate(pair[0], assistant_model=pair[1])
    assert found.shape == (1, 13)
    assert stats.steps > 0
    assert stats.drafted >= stats.steps
    assert stats.emitted == stats.accepted + stats.steps


def test_torchs_seed_reproduces(pair):
    outputs = []
    for _ in range(2):
        torch.manual_seed(4)
        with mv.hf.patch("token"):
            outputs.append(generate(pair[0], assistant_model=pair[1]))
    assert torch.equal(*outputs)


def test_greedy_and_lookup_do_not_come_through(pair):
    with mv.hf.patch() as stats:
        greedy = generate(pair[0], assistant_model=pair[1], do_sample=False)
        generate(pair[0], prompt_lookup_num_tokens=2)
    assert torch.equal(greedy, generate(pair[0], do_sample=False))
    assert stats.steps == 0


@pytest.mark.parametrize("rule", ["auto", "token", "block", "target_only", "coupled"])
def test_three_tokens_have_exactly_the_targets_law(rule):
    # 27 strings and TV 0.05: 31,334 calls for error rates of 1e-9 each.
    target, drafter = (table_rows(3, seed) for seed in (1, 2))
    law = exact_law(target, [0], 3)
    rng = np.random.default_rng(3)

    def row(table, path):
        weights = np.exp(table((0, *path)))
        return weights / weights.sum()

    table = {
        path: (row(target, path), row(drafter, path))
        for num in range(3)
        for path in itertools.product(range(3), repeat=num)
    }

    def draw(path, which):
        return int(rng.choice(3, p=table[tuple(path)][which]))

    def samples(start, count):
        torch.manual_seed(start)
        out = np.empty((count, 3), np.int64)
        for i in range(count):
            first = draw((), 1)
            drafted = [first, draw((first,), 1)]
            rows = [table[tuple(drafted[:num])] for num in range(3)]
            string = step([p for p, _ in rows], [q for _, q in rows[:2]], drafted)
            while len(string) < 3:  # continued by the target, as the next step would
                string.append(draw(string, 0))
            out[i] = string
        return out

    with mv.hf.patch(rule):
        assert_sampler_has_law(samples, law, min_tv=0.08)


def test_a_uniform_of_zero_accepts_nothing_impossible(monkeypatch):
    with np.errstate(divide="ignore"):
        rows = ([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], [[0.25, 0.25, 0.5]], [2])
        monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
        assert step(*rows)[0] == 2  # the library's own: target probability 0
        with mv.hf.patch():
            assert all(step(*rows)[0] in (0, 1) for _ in range(50))


def test_block_verification_accepts_more_than_the_librarys_rule():
    # Figures of both rules are exact means; the patch runs the first.
    rng = np.random.default_rng(5)
    q, p = rng.dirichlet(np.ones(6), 4), rng.dirichlet(np.ones(6), 5)
    drafts = [mv.Draft.chain([int(rng.choice(6, p=row)) for row in q], q) for _ in range(60)]
    means = [
        np.mean([mv.expected_accepted(d, np.log(p).astype(np.float32), rule=rule) for d in drafts])
        for rule in ("block", "token")
    ]
    assert mv.best_rule(drafts[0]) == "block"
    assert means[0] > means[1]


def test_nested_blocks_use_the_innermost_rule_and_count_apart():
    rows = ([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5]], [1])
    with mv.hf.patch("token") as outer:
        step(*rows)
        with mv.hf.patch("block") as inner:
            step(*rows)
            step(*rows)
        assert utils._speculative_sampling is not LIBRARYS
        step(*rows)
    assert (outer.steps, inner.steps) == (2, 2)


def test_blocks_that_end_out_of_order_put_the_library_back():
    first, second = mv.hf.patch(), mv.hf.patch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert utils._speculative_sampling is not LIBRARYS
    second.__exit__(None, None, None)
    assert utils._speculative_sampling is LIBRARYS


def test_an_exception_puts_the_library_back():
    with pytest.raises(KeyError), mv.hf.patch():
        raise KeyError


def test_another_replacement_on_top_of_ours_stays(monkeypatch):
    calls = []
    with mv.hf.patch():
        ours = utils._speculative_sampling

        def theirs(*args, **kwargs):
            calls.append(1)
            return ours(*args, **kwargs)

        monkeypatch.setattr(utils, "_speculative_sampling", theirs)
    assert utils._speculative_sampling is theirs
    step([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5]], [1])
    assert calls == [1]
    monkeypatch.undo()
    utils._speculative_sampling = LIBRARYS  # undo puts ours back, which was there before theirs


@pytest.mark.parametrize("version", ["5.17.2", "5.25.0", "6.0.0", "5.24.0.dev0", "main"])
def test_unknown_versions_are_refused_and_left_alone(monkeypatch, version):
    # The lazy module replaces itself: a name bound while it was loading is another object.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(mv.errors.UnsupportedModelError, match=r"5\.18 to 5\.24"), mv.hf.patch():
        pass


def test_another_signature_is_refused_and_left_alone(monkeypatch):
    def other(candidate_input_ids, candidate_logits, is_done_candidate):
        raise AssertionError

    monkeypatch.setattr(utils, "_speculative_sampling", other)
    with (
        pytest.raises(mv.errors.UnsupportedModelError, match=r"wanted \(candidate_input_ids"),
        mv.hf.patch(),
    ):
        pass
    assert utils._speculative_sampling is other
    assert GEMMA.get_candidates is GEMMAS
    monkeypatch.undo()


def test_a_function_that_was_replaced_already_is_refused(monkeypatch):
    def same(
        candidate_input_ids, candidate_logits, candidate_length, new_logits,
        assistant_ensemble_weight=None,
    ):  # fmt: skip
        raise AssertionError

    monkeypatch.setattr(utils, "_speculative_sampling", same)
    with pytest.raises(mv.errors.UnsupportedModelError, match="already replaced by"), mv.hf.patch():
        pass
    monkeypatch.undo()


def test_a_drafter_that_samples_is_not_given_one_hot_rows(monkeypatch):
    def get_candidates(self, ids):
        return torch.multinomial(ids, 1), None

    monkeypatch.setattr(GEMMA, "get_candidates", get_candidates)
    with pytest.raises(mv.errors.UnsupportedModelError, match="most likely"), mv.hf.patch():
        pass
    monkeypatch.undo()


@pytest.mark.parametrize("rule", ["greedy", "traversal", "no such rule"])
def test_illegal_rules_are_refused_at_once(rule):
    with pytest.raises(mv.errors.RuleError), mv.hf.patch(rule):
        pass


def test_lossy_ensemble_is_refused(pair):
    with (
        mv.hf.patch(),
        pytest.raises(mv.errors.ParamsError, match="assistant_ensemble_weight"),
    ):
        generate(pair[0], assistant_model=pair[1], assistant_ensemble_weight=0.5)


def test_a_token_that_its_row_excludes_is_refused():
    with (
        np.errstate(divide="ignore"),
        mv.hf.patch(),
        pytest.raises(mv.errors.DraftError, match="node 1"),
    ):
        step([[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0]], [1])


def through_patch(engine):
    """The same engine, drawn inside the patch."""

    def sample(prompt, n, seed):
        with mv.hf.patch():
            return engine.sample(prompt, n, seed)

    return engines.Engine(f"{engine.name}, patched", sample, engine.rows, engine.params)


def make(mode, folder, temperature=1.0):
    params = mv.SamplingParams(temperature=temperature)
    return engines.make_engine(
        "transformers", mode, params=params, folder=folder, setting=Setting(8)
    )


@pytest.mark.skipif(
    not hasattr(Gemma4TextConfig, "kv_sharing_modes"), reason="needs a later transformers"
)
@pytest.mark.timeout(180)
def test_the_assistant_of_gemma_4_is_exact_with_the_patch(tmp_path):
    engine = make("gemma4", tmp_path)
    assert certify(engine, length=2, horizon=2, min_tv=0.4).verdict == "biased"
    found = certify(through_patch(engine), length=2, horizon=2, min_tv=0.3)
    assert found.verdict == "pass"
    assert found.is_sound


def mtp_target(monkeypatch):
    """A tiny random model with two MTP layers; the library's loader is given them."""
    torch.manual_seed(0)
    config = Glm4MoeConfig(
        vocab_size=4, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        n_routed_experts=2, num_experts_per_tok=1, n_shared_experts=1, first_k_dense_replace=1,
        max_position_embeddings=64, n_group=1, topk_group=1, num_mtp_layers=2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    model = Glm4MoeForCausalLM(config).eval()
    layers = MtpModel(model, 2).eval()
    with torch.no_grad():
        for weight in layers.layers.parameters():
            weight.copy_(torch.ones_like(weight) if weight.dim() == 1 else weight.normal_(0, 0.2))
    monkeypatch.setattr(MtpModel, "from_pretrained", lambda *args, **kwargs: layers)
    return model


def test_mtp_layers_draft_through_the_patch(monkeypatch):
    model = mtp_target(monkeypatch)
    with mv.hf.patch() as stats:
        found = generate(model, use_mtp=True)
    assert found.shape == (1, 13)
    assert stats.drafted == 2 * stats.steps > 0


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["assisted", "gemma4"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_librarys_assistants_have_the_targets_law(tmp_path, mode, temperature):
    # alpha 1e-4 and power 0.99 at TV 0.1, by the certifier's own sample sizes.
    engine = through_patch(make(mode, tmp_path, temperature))
    assert certify(engine, length=2, min_tv=0.1).verdict == "pass"


@pytest.mark.slow
@pytest.mark.stat
@pytest.mark.timeout(1800)
def test_mtp_layers_have_the_targets_law(monkeypatch):
    # 16 strings: 6,363 samples for TV 0.1 with both error rates 1e-9.
    model = mtp_target(monkeypatch)
    start = (prompt(5) % 4)[0].tolist()
    torch.manual_seed(1)
    with mv.hf.patch():
        found = [generate(model, use_mtp=True, max_new_tokens=5)[0, 5:] for _ in range(6_400)]
    assert_same_law(torch.stack(found).numpy(), exact_law(model_rows(model), start, 2), min_tv=0.1)
