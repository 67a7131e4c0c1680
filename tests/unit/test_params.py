"""`SamplingParams`: ranges, presets, what is refused."""

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
    ],
)
def test_values_outside_their_range_are_named(field: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(mv.ParamsError, match=f"^{field}: found"):
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


def test_unsupported_fields_are_listed() -> None:
    params = mv.SamplingParams(banned=[1], min_new_tokens=2, stop_ids=[3], logit_bias={})
    assert params.unsupported == ("banned", "min_new_tokens")
    assert mv.SamplingParams().unsupported == ()
