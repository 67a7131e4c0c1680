"""`assert_lossless`: whole decoders, by enumeration and by samples (error rates 1e-9)."""

from __future__ import annotations

import numpy as np
import pytest

import mtp_verify as mv
from mtp_verify.drafters import NGram
from mtp_verify.testing import TableTarget, assert_lossless
from mtp_verify.verifier.growers import Chain

TABLE = (np.random.default_rng(1).normal(size=(3, 3)) * 1.2).astype(np.float32)
OTHER = (np.random.default_rng(2).normal(size=(3, 3)) * 1.2).astype(np.float32)


def target(table=TABLE):
    return TableTarget(lambda path: table[path[-1]], 3)


class Grown(mv.Drafter):
    laws = ("chain",)

    def propose(self, requests, budgets):
        return [self.draft(*pair) for pair in zip(requests, budgets, strict=True)]

    def draft(self, request, budget):
        place = {"seed": request.seed, "position": request.position, "root": request.tokens[-1]}
        chain = Chain(min(2, budget), **place)
        return chain.grow(lambda paths: OTHER[[(request.tokens + path)[-1] for path in paths]])


class Drops(Grown):
    """Leaves out what came out improbable."""

    def draft(self, request, budget):
        draft = super().draft(request, budget)
        return draft if draft.num_nodes < 2 or draft.tokens[1] == 0 else mv.Draft.chain([])


@pytest.mark.parametrize("drafter", [NGram, Grown], ids=["copies", "draws"])
@pytest.mark.parametrize("rule", ["auto", "target_only"])
def test_right_decoders_pass(drafter, rule):
    params = mv.SamplingParams(temperature=0.7, top_k=2)
    found = assert_lossless(lambda: mv.Decoder(target(), drafter(), params, rule=rule), [0, 1])
    assert found < 1e-6


def test_a_prompt_of_one_token():
    assert assert_lossless(lambda: mv.Decoder(target(), NGram()), [0]) < 1e-6


def test_a_biased_loop_is_found():
    with pytest.raises(AssertionError, match="the law differs: total variation 0"):
        assert_lossless(lambda: mv.Decoder(target(), Drops()), [0, 1])


def test_a_target_that_forgets_to_roll_back_is_found():
    class Forgets(TableTarget):
        """Reads the number of tokens that it has ever run."""

        ran = 0

        def forward(self, tokens, *args, **options):
            logits, hidden = super().forward(tokens, *args, **options)
            self.ran += tokens.shape[1]
            return logits + (self.ran % 3 == 0) * logits.flip(1), hidden

    table = TABLE[0]
    with pytest.raises(AssertionError, match="the law differs"):
        assert_lossless(lambda: mv.Decoder(Forgets(lambda path: table, 3), NGram()), [0, 0])


def test_samples_of_a_generator_of_its_own():
    class Own(Grown):
        said = 1.0

        def draft(self, request, budget):
            if not budget:
                return mv.Draft.chain([])
            row = np.exp(OTHER[request.tokens[-1]].astype(float))
            rng = np.random.default_rng([request.seed, request.position])
            token = int(rng.choice(3, p=row / row.sum()))
            said = row**self.said
            return mv.Draft.chain([token], probs=(said / said.sum())[None])

    # 9 strings: 5,400 samples for a bias of 0.1.
    right = mv.Decoder(target(), Own())
    assert assert_lossless(lambda: right, [0, 1], 2, sample=True, min_tv=0.1) == 0
    with pytest.raises(AssertionError, match="needs sample=True"):
        assert_lossless(lambda: mv.Decoder(target(), Own()), [0, 1])
    wrong = Own()
    wrong.said = 0.0
    with pytest.raises(AssertionError, match="the law differs"):
        assert_lossless(lambda: mv.Decoder(target(), wrong), [0, 1], 2, sample=True, min_tv=0.1)


def test_what_it_is_given_is_checked():
    with pytest.raises(TypeError, match=r"make: found .*, wanted a function"):
        assert_lossless(mv.Decoder(target()), [1])
    with pytest.raises(TypeError, match=r"make: found TableTarget from make\(\), wanted a mv.Dec"):
        assert_lossless(target, [1])
    with pytest.raises(mv.errors.ParamsError, match="prompt: found no tokens"):
        assert_lossless(lambda: mv.Decoder(target()), [])
