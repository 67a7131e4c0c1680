from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.testing import exact_law, model_rows
from tests.models import tiny_model


def test_law_is_the_product_of_the_rows():
    def rows(path):
        return [0.0, math.log(2.0)] if len(path) % 2 else [0.0, 0.0]

    law = exact_law(rows, [0], 3)
    assert law.probs.sum() == pytest.approx(1.0)
    assert law.probs[law.indices(np.array([[1, 0, 1]]))[0]] == pytest.approx(2 / 3 / 2 * 2 / 3)
    assert law.marginal(1).tolist() == pytest.approx([0.5, 0.5])


def test_shaping_is_that_of_the_parameters():
    law = exact_law(lambda path: [3.0, 2.0, 1.0], [0], 2, mv.SamplingParams(top_k=1))
    assert law.probs[0] == 1.0
    assert np.count_nonzero(law.probs) == 1


def test_penalties_see_the_prompt_and_the_string_so_far():
    params = mv.SamplingParams(repetition_penalty=2.0, no_repeat_ngram_size=2)
    law = exact_law(lambda path: [2.0, 1.0, -1.0], [0, 1], 2, params)
    first = np.exp([1.0, 0.5, -1.0]) / np.exp([1.0, 0.5, -1.0]).sum()
    assert law.marginal(0) == pytest.approx(first)
    # After 0, 1, 0 a 1 would make the pair (0, 1) twice.
    after = np.exp([1.0, -np.inf, -1.0]) / np.exp([1.0, -1.0]).sum()
    assert law.probs[:3] == pytest.approx(first[0] * after)


def test_strings_and_indices_are_inverse():
    law = exact_law(lambda path: [0.0, 1.0, 2.0], [0], 3)
    strings = [law.string(i) for i in range(27)]
    assert law.indices(np.array(strings)).tolist() == list(range(27))


def test_law_of_a_model_is_that_of_its_rows_in_float64():
    model = tiny_model("llama", vocab_size=4)
    law = exact_law(model_rows(model), [1, 2], 2)
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        first = model(torch.tensor([[1, 2]])).logits[0, -1].softmax(-1)
        second = model(torch.tensor([[1, 2, 3]])).logits[0, -1].softmax(-1)
    assert law.probs[3 * 4 + 1] == pytest.approx(float(first[3] * second[1]), rel=1e-4)
    assert next(model.parameters()).dtype == torch.float32


def test_too_large_a_law_is_refused_with_the_limit():
    with pytest.raises(
        mv.errors.ParamsError, match=r"1000\*\*3 strings; the limit .* 65536"
    ) as error:
        exact_law(lambda path: np.zeros(1000), [0], 3)
    assert error.value.slug == "law_too_large"


@pytest.mark.parametrize(
    "samples", [[[0, 1]], [[0.0, 1.0, 0.0]], [0, 1, 0], [[0, 1, 2]], [[0, -1, 0]]]
)
def test_samples_that_are_not_strings_of_tokens_are_refused(samples):
    law = exact_law(lambda path: [0.0, 1.0], [0], 3)
    with pytest.raises(mv.errors.ParamsError, match="wanted"):
        law.counts(np.array(samples))


def test_rows_of_a_mixture_of_experts_are_those_of_the_model():
    torch = pytest.importorskip("torch")
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    torch.manual_seed(0)
    config = Glm4MoeConfig(
        vocab_size=4, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        n_routed_experts=2, num_experts_per_tok=1, n_shared_experts=1, first_k_dense_replace=1,
        max_position_embeddings=64, n_group=1, topk_group=1, bos_token_id=None, eos_token_id=None,
        pad_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    model = Glm4MoeForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.ones_like(weight) if weight.dim() == 1 else weight.normal_(0, 0.2))
    experts = model.config._experts_implementation
    rows = model_rows(model)
    with torch.no_grad():
        wanted = model(torch.tensor([[1, 2, 3]])).logits[0, -1].numpy()
    assert rows((1, 2, 3)) == pytest.approx(wanted, abs=1e-4)
    assert model.config._experts_implementation == experts


def test_rows_that_can_be_had_at_once_are_asked_for_once_a_token():
    class Rows:
        asked: ClassVar = []

        def __call__(self, path):
            return [0.0, 0.0, -np.inf]

        def prefetch(self, prompt, strings):
            self.asked.append((prompt, strings.tolist()))

    exact_law(Rows(), [7], 3)
    # What cannot occur is left out.
    assert Rows.asked == [((7,), [[0], [1]]), ((7,), [[0, 0], [0, 1], [1, 0], [1, 1]])]
