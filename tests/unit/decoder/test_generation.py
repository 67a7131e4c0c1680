"""Statistics of generations: how steps are counted and merged."""

from __future__ import annotations

import json

import pytest

from mtp_verify.decoder.generation import Stats
from mtp_verify.errors import ParamsError


def test_steps_are_counted_by_depth():
    stats = Stats()
    stats.record(depth=3, num_nodes=5, num_accepted=1, num_emitted=2)
    stats.record(depth=1, num_nodes=1, num_accepted=1, num_emitted=2)
    stats.record(depth=0, num_nodes=0, num_accepted=0, num_emitted=1)
    assert stats.attempted == [2, 1, 0]
    assert stats.accepted_at == [2, 0, 0]
    assert stats.lengths == [0, 1, 2]
    assert (stats.steps, stats.drafted, stats.accepted, stats.emitted) == (3, 6, 2, 5)
    assert stats.tau == pytest.approx(5 / 3)


def test_shares_cover_the_total():
    stats = Stats(total_seconds=2.0)
    stats.seconds.update(draft=0.25, target=1.0, verify=0.5)
    assert stats.share("verify") == 0.25
    assert stats.share("other") == 0.125
    assert stats.as_dict()["seconds"]["other"] == pytest.approx(0.25)


def test_empty_statistics_have_no_rates():
    stats = Stats()
    assert stats.tau == stats.tokens_per_second == stats.share("verify") == 0.0


def test_merge_adds_lists_of_different_lengths():
    one, other = Stats(total_seconds=1.0), Stats(total_seconds=3.0)
    one.record(depth=1, num_nodes=1, num_accepted=0, num_emitted=1)
    other.record(depth=2, num_nodes=2, num_accepted=2, num_emitted=3)
    one.merge(other)
    assert one.attempted == [2, 1]
    assert one.lengths == [0, 1, 0, 1]
    assert one.tokens_per_second == 1.0
    assert json.loads(json.dumps(one.as_dict()))["emitted"] == 4


def test_counters_have_the_names_and_the_meaning_of_vllms():
    stats = Stats()
    stats.record(depth=3, num_nodes=5, num_accepted=1, num_emitted=2)
    stats.record(depth=2, num_nodes=2, num_accepted=2, num_emitted=3)
    stats.record(depth=0, num_nodes=0, num_accepted=0, num_emitted=1)  # No draft, no count.
    assert stats.as_prometheus().splitlines() == [
        "# TYPE vllm:spec_decode_num_drafts_total counter",
        "vllm:spec_decode_num_drafts_total 2.0",
        "# TYPE vllm:spec_decode_num_draft_tokens_total counter",
        "vllm:spec_decode_num_draft_tokens_total 7.0",
        "# TYPE vllm:spec_decode_num_accepted_tokens_total counter",
        "vllm:spec_decode_num_accepted_tokens_total 3.0",
        "# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter",
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 2.0',
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 1.0',
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="2"} 0.0',
    ]


def test_counters_before_the_first_step_are_zero():
    values = [line.split()[-1] for line in Stats().as_prometheus().splitlines() if line[0] != "#"]
    assert values == ["0.0"] * 3


def test_labels_are_escaped():
    line = Stats().as_prometheus({"model_name": 'a"b\\c\nd', "engine": "0"}).splitlines()[1]
    assert line == ('vllm:spec_decode_num_drafts_total{model_name="a\\"b\\\\c\\nd",engine="0"} 0.0')


@pytest.mark.parametrize("name", ["", "1a", "a-b", "__own", "position", 3])
def test_labels_that_prometheus_does_not_take_are_refused(name):
    with pytest.raises(ParamsError, match=f"labels: found {name!r}, wanted"):
        Stats().as_prometheus({name: "x"})
