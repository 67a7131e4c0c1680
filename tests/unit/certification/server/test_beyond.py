"""What a server promises beside the law."""

from __future__ import annotations

import numpy as np
import pytest

from mtp_verify.certification.server.beyond import look_beyond, refuse_other_checkpoint
from mtp_verify.certification.server.sampler import ServerSampler
from mtp_verify.errors import ServerError
from mtp_verify.testing.server import ToyServer
from tests.toys import PROMPTS, ROWS, client_of, sampler_of


def looked(*faults, **options):
    sampler = sampler_of(*faults, **options)
    with sampler.client:
        return look_beyond(sampler, PROMPTS)


def broken(findings):
    return [finding.name for finding in findings if finding.ok is False]


def test_a_right_server_keeps_its_promises():
    assert [finding.ok for finding in looked()] == [True] * 5


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("ignores_seed", "a seed gives the same text again"),
        ("not_greedy", "greedy texts are the reference's"),
        ("one_too_many", "max_tokens ends texts, with the reason 'length'"),
        ("runs_past_stop", "a stop string ends the text in front of it, with the reason 'stop'"),
        ("wrong_logprobs", "log-probabilities are those of the law"),
    ],
)
def test_each_broken_promise_is_named_and_no_other(fault, name):
    assert broken(looked(fault)) == [name]


def test_a_near_tie_is_named_and_is_no_failure():
    def tied(path):
        row = np.array(ROWS(path), np.float64)
        order = np.argsort(-row)
        row[order[1]] = row[order[0]] - 1e-6
        return row

    def rounded(path):
        row = tied(path)
        row[np.argsort(-row)[1]] += 1e-5
        return row

    for rows, is_other in ((tied, False), (rounded, True)):
        with client_of(ToyServer(rows)) as client:
            greedy = look_beyond(ServerSampler(client, tied), PROMPTS, tie=1e-4)[1]
        assert greedy.ok
        assert ("near ties: token 1 after" in greedy.words) == is_other


def test_what_is_not_served_is_no_failure():
    class NoLogprobs(ToyServer):
        def _choices(self, asked, *, is_batch):
            asked.pop("logprobs", None)
            return super()._choices(asked, is_batch=is_batch)

    client = client_of(NoLogprobs(ROWS))
    with client:
        found = look_beyond(ServerSampler(client, ROWS), PROMPTS)[-1]
    assert (found.ok, found.words) == (None, "the server gives none")
    assert looked(eos=3)[2].ok is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spread", [1.0, 8.0])
@pytest.mark.parametrize("masked", [0, 1, 3])
def test_peaked_and_masked_rows_keep_their_promises(spread, masked):
    def rows(path):
        allowed = (np.arange(4) + len(path)) % 4 >= masked
        return np.where(allowed, spread * np.asarray(ROWS(path)), -np.inf)

    with client_of(ToyServer(rows)) as client:
        found = look_beyond(ServerSampler(client, rows), PROMPTS)
        refuse_other_checkpoint(ServerSampler(client, rows), PROMPTS)
    assert [finding.ok for finding in found] == [True] * 5


def test_another_checkpoint_is_refused():
    sampler = sampler_of("other_weights")
    with sampler.client, pytest.raises(ServerError, match="is not this checkpoint") as caught:
        refuse_other_checkpoint(sampler, PROMPTS)
    assert caught.value.slug == "wrong_checkpoint"


def test_a_larger_vocabulary_is_another_checkpoint():
    wide = client_of(ToyServer(lambda path: np.zeros(9)))
    with wide, pytest.raises(ServerError, match="is not this checkpoint"):
        refuse_other_checkpoint(ServerSampler(wide, ROWS), PROMPTS)


@pytest.mark.parametrize("fault", ["wrong_logprobs", "bias", "not_greedy", None])
def test_a_faulty_server_of_the_same_checkpoint_is_not_taken_for_another(fault):
    sampler = sampler_of(*filter(None, [fault]))
    with sampler.client:
        refuse_other_checkpoint(sampler, PROMPTS)
