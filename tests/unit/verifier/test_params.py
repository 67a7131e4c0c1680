"""`SamplingParams`: ranges, presets, what needs the tokens before."""

import dataclasses

import numpy as np
import pytest

import mtp_verify as mv


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, float("nan"), float("inf"), "hot", None, True]),
        ("top_k", [-2, 1.5, "many"]),
        ("top_p", [0, -0.1, 1.1, float("nan")]),
        ("min_p", [-0.1, 1.1, float("nan")]),
        ("preset", ["llama.cpp"]),
        ("repetition_penalty", [0, -1.0, float("nan"), float("inf"), None]),
        ("presence_penalty", [float("nan"), float("inf"), "much"]),
        ("frequency_penalty", [float("nan"), float("-inf")]),
        ("no_repeat_ngram_size", [-1, 1.5]),
        ("logit_bias", [{-1: 1.0}, {1.5: 1.0}, {1: "much"}, {1: float("nan")}, {1: float("inf")}]),
        ("banned", [[-1], [1.5], [1 << 32]]),
        ("min_new_tokens", [-1, True]),
        ("stop_ids", [[-2], ["end"]]),
    ],
)
def test_values_outside_their_range_are_named(field: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(mv.errors.ParamsError, match=f"^{field}: found"):
            mv.SamplingParams(**{field: value})


def test_off_and_edge_values_are_legal() -> None:
    mv.SamplingParams(temperature=0, top_k=-1, top_p=1, min_p=1)
    mv.SamplingParams(temperature=np.float32(0.5), top_k=np.int64(3), top_p=np.float64(0.1))


@pytest.mark.parametrize(
    ("params", "greedy"),
    [
        (mv.SamplingParams(temperature=0), True),
        (mv.SamplingParams(temperature=1e-6), False),
        (mv.SamplingParams(temperature=1e-6, preset="vllm"), True),
        (mv.SamplingParams(temperature=1e-5, preset="vllm"), False),
        (mv.SamplingParams(), False),
    ],
)
def test_greedy_by_preset(params: mv.SamplingParams, *, greedy: bool) -> None:
    assert params.is_greedy is greedy


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        mv.SamplingParams().temperature = 2


def test_what_needs_history_says_so() -> None:
    needing: list[dict[str, object]] = [
        {"repetition_penalty": 1.2},
        {"presence_penalty": -0.5},
        {"frequency_penalty": 0.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 2, "stop_ids": [3]},
    ]
    for fields in needing:
        assert mv.SamplingParams(**fields).needs_history  # type: ignore[arg-type]
    free: list[dict[str, object]] = [
        {},
        {"banned": [1], "stop_ids": [3], "logit_bias": {1: 0.5}},
        {"min_new_tokens": 2},
    ]
    for fields in free:
        assert not mv.SamplingParams(**fields).needs_history  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{}, {"temperature": 0.5}, 0.7, mv.SamplingParams])
def test_whatever_takes_parameters_names_what_is_none(wrong: object) -> None:
    pytest.importorskip("torch")
    from tests.models import tiny_model

    model = tiny_model("llama")
    decoder = mv.Decoder(model)
    for call in (
        lambda: mv.Decoder(model, params=wrong),
        lambda: mv.drafters.Model(model, params=wrong),
        lambda: mv.drafters.ModelTree(model, params=wrong),
        lambda: decoder.submit([1, 2], max_new_tokens=1, params=wrong),
        lambda: decoder.generate([1, 2], max_new_tokens=1, params=wrong),
        lambda: mv.certify(lambda *_: None, rows=lambda *_: None, params=wrong),
        lambda: mv.testing.exact_law(lambda *_: None, (1,), 1, wrong),
    ):
        with pytest.raises(
            mv.errors.ParamsError, match=r"params: (found .*, )?wanted (a|one) SamplingPar"
        ):
            call()
