"""The ways in which servers give tokens."""

from __future__ import annotations

import math

import pytest

from mtp_verify.certification.server.answers import choices_of, joined
from mtp_verify.errors import ServerError

CONTENT = [
    {"id": 5, "token": "a", "logprob": -0.5, "top_logprobs": [{"id": 5, "logprob": -0.5}]},
    {"id": 7, "token": "b", "logprob": -1.5, "top_logprobs": [{"id": 2, "logprob": -0.1}]},
]
NAMED = {
    "tokens": ["token_id:5", "token_id:7"],
    "token_logprobs": [None, -1.5],
    "top_logprobs": [None, {"token_id:2": -0.1}],
}


@pytest.mark.parametrize(
    ("choice", "tokens"),
    [
        ({"token_ids": [5, 7]}, (5, 7)),  # vLLM
        ({"tokens": [5, 7]}, (5, 7)),  # llama.cpp
        ({"logprobs": NAMED}, (5, 7)),  # vLLM, without return_token_ids
        ({"logprobs": {"content": CONTENT}}, (5, 7)),  # llama.cpp's own form
        ({"logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1, -2]}}, None),  # OpenAI
        ({"logprobs": None}, None),
        ({"text": "a b"}, None),
    ],
)
def test_tokens_are_found_wherever_they_are(choice, tokens):
    (found,) = choices_of({"choices": [{"text": "a b", "finish_reason": "length"} | choice]})
    assert found.tokens == tokens
    assert (found.text, found.finish) == ("a b", "length")


def test_log_probabilities_are_found_in_both_forms():
    (named,) = choices_of({"choices": [{"logprobs": NAMED}]})
    assert math.isnan(named.logprobs[0])
    assert named.top == ({}, {2: -0.1})
    (content,) = choices_of({"choices": [{"logprobs": {"content": CONTENT}}]})
    assert (content.logprobs, content.top) == ((-0.5, -1.5), ({5: -0.5}, {2: -0.1}))


def test_choices_are_put_in_order():
    found = choices_of({"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}]})
    assert [choice.text for choice in found] == ["a", "b"]


@pytest.mark.parametrize("document", [None, 3, {}, {"choices": 3}, {"choices": [3]}, [], "text"])
def test_what_is_no_completion_is_refused(document):
    with pytest.raises(ServerError, match="wanted a completion") as caught:
        choices_of(document)
    assert caught.value.slug == "bad_answer"


def test_parts_of_a_stream_are_joined_by_their_choice():
    events = [
        {"choices": [{"index": 0, "text": "a", "token_ids": [1]}]},
        {"choices": [{"index": 1, "text": "b", "token_ids": [2]}]},
        {"choices": [{"index": 0, "text": "c", "token_ids": [3], "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {}},
    ]
    one, other = joined(events)
    assert (one.text, one.tokens, one.finish) == ("ac", (1, 3), "stop")
    assert (other.text, other.tokens, other.finish) == ("b", (2,), "length")
