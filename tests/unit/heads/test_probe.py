"""The probe: finds the reading under which a head was made, and leaves ties alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

import mtp_verify as mv
from mtp_verify.heads import CausalHead, Sizes, family, load, probe, resolve_disputed
from mtp_verify.models.hidden import BEFORE_NORM, HiddenStates
from tests.heads import tiny_head
from tests.models import VOCAB, prompt, tiny_model
from tests.published import write_in_checkpoint

READINGS = list(itertools.product(("post", "pre"), ("post", "pre")))


def text_of(model, count=160):
    starts = torch.randint(VOCAB, (8, 1), generator=torch.Generator().manual_seed(5))
    return model.generate(starts, max_new_tokens=count // 8, do_sample=False, pad_token_id=0)


def trained(model, feed, recycle, steps=60):
    """A head that learned its target's text under one reading, two levels deep."""
    torch.manual_seed(2)
    spec = family("mimo").replace(
        sizes=Sizes.of(model.config), feed=feed, recycle=recycle, zero_first=False,
        disputed=("feed", "recycle"),
    )  # fmt: skip
    head = CausalHead(spec).attach(model)
    ids = text_of(model)
    with torch.no_grad(), HiddenStates(model, (-1, BEFORE_NORM)) as states:
        post, pre = states.of(model(ids, **states.options))
    hidden = post if feed == "post" else pre
    # Parts under the norms differ in scale, so that a wrong reading shows.
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    count = ids.shape[1] - 3
    mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
    positions = torch.arange(count)[None]
    for _ in range(steps):
        first, passed = head(hidden[:, :count], ids[:, 1 : count + 1], positions, mask)
        second, _ = head(passed, ids[:, 2 : count + 2], positions + 1, mask, level=1)
        loss = sum(
            functional.cross_entropy(head.logits(rows).mT, ids[:, k : count + k])
            for rows, k in ((first, 2), (second, 3))
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


def test_probe_finds_the_reading_under_which_a_head_was_trained():
    model = tiny_model("llama", seed=6)
    with torch.no_grad():
        # A final norm that turns what it scales makes the states before and behind it differ.
        model.model.norm.weight.uniform_(-2.0, 2.0)
    head = trained(model, "pre", "post")
    starts = text_of(model)[:, :1].tolist()
    for feed, recycle in READINGS[1:3]:
        head.choose(feed=feed, recycle=recycle, disputed=("feed", "recycle"))
        found = resolve_disputed(head, model, prompts=starts, num_tokens=160)
        assert head.spec.feed == "pre"
        assert head.spec.disputed == ()
        assert len(found.readings) == 4
        best = found.readings[found.best]
        assert best.accepted[0] > 0.5
        assert list(best.accepted) == sorted(best.accepted, reverse=True)
    table = found.table().to_text()
    assert "kept" in table
    assert "depth 3" in table


def test_perfect_head_agrees_at_every_depth():
    model = tiny_model("llama")
    head = tiny_head("medusa", model, num_modules=2)
    ids = text_of(model)
    # A target that repeats itself for ever is followed by a head that says the same token.
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[7] = 0.0
        for level in head.levels:
            level.output.weight.zero_()
    found = probe(head, model, prompts=[ids[0, :4].tolist()], num_tokens=30)
    assert found.readings[0].accepted == (1.0, 1.0)  # Token 0 for ever.
    assert found.readings[0].choices == {}


@pytest.mark.parametrize("name", ["mimo", "eagle3", "medusa", "meta", "hydra", "deepseek-2"])
def test_shares_equal_what_the_decoder_accepts(name):
    # The decoder's greedy chains start at the roots that it visits; the probe at all positions.
    model = tiny_model("llama", seed=3)
    head = tiny_head(name, model)
    start = prompt()[0].tolist()
    found = probe(head, model, prompts=[start], num_tokens=40)
    drafter = mv.drafters.Heads(head, num_tokens=1)
    stats = mv.Decoder(model, drafter, mv.SamplingParams(temperature=0.0)).generate(
        prompt(), max_new_tokens=40
    ).stats  # fmt: skip
    assert abs(found.readings[0].accepted[0] - stats.accepted / max(1, stats.drafted)) < 0.25


def test_tokens_of_the_context_are_drafted_and_counted():
    model = tiny_model("llama", seed=3)
    changes = {"output_head": "shared", "draft_vocab_size": 3, "context_tokens": True}
    head = tiny_head("mimo", model, **changes)
    # Its rows grow: the logits behind the third are of tokens that the text has shown.
    drafted = []
    read = head.read

    def reading(state, hidden, tokens):
        row = read(state, hidden, tokens)
        drafted.append(head.token_at(state.context_tokens, int(row.argmax())))
        assert row.shape[-1] == 3 + len(state.context_tokens.ids)
        return row

    head.read = reading
    found = probe(head, model, prompts=[prompt()[0].tolist()], num_tokens=40)
    assert 0 <= found.readings[0].accepted[0] <= 1
    assert max(drafted) > 2
    assert set(drafted) <= set(range(VOCAB))


def test_ties_keep_the_engines_own_reading():
    model = tiny_model("llama")
    head = tiny_head("eagle", model, disputed=("recycle",))  # No output norm: both are one.
    found = resolve_disputed(head, model, num_tokens=60)
    assert found.best == 0
    assert head.spec.recycle == "post"


def test_load_resolves_what_is_disputed(tmp_path):
    model, _ = write_in_checkpoint("glm4_moe", tmp_path)
    assert load(tmp_path, model, probe=False).spec.disputed == ("recycle",)
    assert load(tmp_path, model).spec.disputed == ()


def test_probe_changes_nothing_and_needs_text():
    model = tiny_model("llama")
    head = tiny_head("mimo", model)
    before = head.spec
    probe(head, model, num_tokens=40)
    assert head.spec is not None
    assert head.spec == before
    for options in ({"prompts": [[]]}, {"num_tokens": 3}):
        with pytest.raises(mv.errors.ParamsError, match="too few"):
            probe(head, model, **options)
