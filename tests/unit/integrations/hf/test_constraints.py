"""`mv.hf.speculative(constraint=...)` against the library's own `prefix_allowed_tokens_fn`."""

from __future__ import annotations

import pytest
import torch

import mtp_verify as mv
from tests.grammars import EOS, TOKENS, Finite, allowed_after
from tests.models import tiny_model

WORDS = frozenset(b"ab" * n + b"d" for n in range(1, 9)) | {b"abcab", b"bcbc"}
PROMPT = torch.tensor([[5, 6, 3]])


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=len(TOKENS), eos_token_id=EOS)


def allowed(batch: int, ids: torch.Tensor) -> list[int]:
    path = ids[PROMPT.shape[1] :].tolist()
    return list(range(len(TOKENS))) if EOS in path else sorted(allowed_after(path, WORDS))


@pytest.mark.parametrize("drafter", [None, mv.drafters.NGram(num_tokens=4)], ids=["plain", "ngram"])
def test_greedy_output_and_scores_equal_the_librarys_constraint(model, drafter):
    options = {
        "attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 14, "do_sample": False,
        "pad_token_id": EOS, "return_dict_in_generate": True, "output_scores": True,
        "output_logits": True,
    }  # fmt: skip
    seen = []

    def see(_ids, scores, **_options):
        seen.append(scores[-1])
        return torch.zeros(1, dtype=torch.bool)

    wanted = model.generate(PROMPT, prefix_allowed_tokens_fn=allowed, **options)
    run = mv.hf.speculative(drafter, constraint=Finite(WORDS))
    found = model.generate(PROMPT, custom_generate=run, stopping_criteria=[see], **options)
    assert torch.equal(torch.cat(seen), torch.cat(found.scores))
    assert torch.equal(found.sequences, wanted.sequences)
    assert len(found.scores) == len(wanted.scores)
    for ours, theirs in zip(
        found.scores + found.logits, wanted.scores + wanted.logits, strict=True
    ):
        assert torch.equal(torch.isinf(ours), torch.isinf(theirs))
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_sampled_rows_of_a_batch_obey_each_its_own(model):
    run = mv.hf.speculative(
        mv.drafters.NGram(), seed=3, constraint=[Finite(WORDS), None, Finite({b"c"})]
    )
    ids = PROMPT.repeat(3, 1)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), custom_generate=run, do_sample=True,
        max_new_tokens=12, pad_token_id=EOS, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    rows = output.sequences[:, ids.shape[1] :].tolist()
    texts = [b"".join(TOKENS[token] for token in row if token != EOS) for row in rows]
    assert texts[0] in WORDS
    assert texts[2] == b"c"
    first = torch.isfinite(torch.stack(output.scores)[0])
    assert set(first[0].nonzero().flatten().tolist()) <= allowed_after([], WORDS)
    assert first[2].nonzero().flatten().tolist() == [2]
