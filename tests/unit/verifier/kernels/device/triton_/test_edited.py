"""Rows that penalties change are read by the kernels in Triton as the core changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

import mtp_verify as mv

if TYPE_CHECKING:
    from mtp_verify.verifier.words import Rule

V = 70


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["target_only", "coupled", "lifted"])
def test_changed_rows_are_the_core_s(
    rng: np.random.Generator, rule: Rule, dtype: torch.dtype
) -> None:
    drafts = [
        mv.Draft(mv.TokenTree([-1, 0, 0, 1]), [2, 1, 3, 2]),
        mv.Draft(mv.TokenTree([-1, 0]), [4, 4]),
        mv.Draft(mv.TokenTree([-1]), [5]),
    ]
    params = [
        mv.SamplingParams(
            repetition_penalty=1.6, frequency_penalty=0.5, presence_penalty=-0.2, preset="vllm"
        ),
        mv.SamplingParams(
            logit_bias={1: 2.5, 2: -np.inf}, no_repeat_ngram_size=2, repetition_penalty=0.7
        ),
        mv.SamplingParams(),
    ]
    device = mv.ops.DeviceVerifier(4, 8, V, dtype, device="cpu", backend="triton")
    mask = np.full((7, 3), -1, np.int32)
    mask[1] = 0x33333333
    for seed in range(3):
        logits = torch.tensor(3 * rng.standard_normal((7, V))).to(dtype)
        call = {
            "rule": rule,
            "seeds": [seed, 2, 3],
            "positions": [3, 2, 0],
            "histories": [[1, 2, 1, 2], [4, 4, 4], None],
            "prompt_lens": [1, 2, 0],
        }
        device.plan(drafts, params, **call, bitmask=mask)
        device.verify(logits)
        found = device.host()
        masks = [mask[:4], mask[4:6], mask[6:]]
        wanted = mv.verify_batch(drafts, logits, params, **call, bitmasks=masks)
        assert found.backends == ["triton"] * 3
        assert found.tokens.tolist() == wanted.tokens.tolist()
        assert found.path.tolist() == wanted.path.tolist()
        np.testing.assert_array_max_ulp(found.logprobs, wanted.logprobs, maxulp=1)
