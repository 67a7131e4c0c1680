"""Requests to a server: what goes wrong is named, and what passes is waited for."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from email.utils import formatdate

import httpx2
import pytest

from mtp_verify.certification.server.client import Client, Limits
from mtp_verify.errors import ParamsError, ServerError
from mtp_verify.testing.server import ToyServer
from tests.toys import QUICK, ROWS, client_of, served

BODY = {"prompt": [1, 2], "max_tokens": 3, "n": 1, "seed": 1, "return_token_ids": True}


class Replies:
    """A server that lists a model, then gives answers in turn: statuses, errors, responses."""

    def __init__(self, *answers):
        self.left, self.asked = list(answers), []

    def __call__(self, request):
        self.asked.append(request)
        if request.method == "GET":
            return httpx2.Response(200, json={"data": [{"id": "m"}]})
        answer = self.left.pop(0) if self.left else 200
        if isinstance(answer, Exception):
            raise answer
        if answer == 200:
            return httpx2.Response(200, json={"choices": [{"token_ids": [1], "text": "t1"}]})
        return answer if isinstance(answer, httpx2.Response) else httpx2.Response(answer)


def client_with(*answers, **limits):
    transport = httpx2.MockTransport(Replies(*answers))
    return Client("http://m/v1", limits=Limits(**(QUICK | limits)), transport=transport)


def test_answers_come_in_the_order_of_the_requests_and_no_more_run_at_a_time_than_allowed():
    app = ToyServer(ROWS)
    with client_of(app, concurrency=3) as client:
        found = client.complete([BODY | {"seed": seed} for seed in range(20)])
        again = [client.complete([BODY | {"seed": seed}])[0] for seed in range(20)]
        assert found == again
        assert len({choice.tokens for (choice,) in found}) > 10
        assert app.most_at_once == 3
        client.complete([BODY] * 4, concurrency=1)
        assert client.num_requests == 1 + 40 + 4


def test_requests_keep_to_the_rate():
    with client_of(ToyServer(ROWS), per_second=100) as client:
        start = time.monotonic()
        client.complete([BODY] * 21)
        assert time.monotonic() - start > 0.19


def test_it_works_where_an_event_loop_runs():
    async def inside():
        with client_of(ToyServer(ROWS)) as client:
            return client.complete([BODY])

    assert asyncio.run(inside())[0][0].tokens


@pytest.mark.parametrize(
    "passing",
    [429, 500, 503, httpx2.ConnectError("gone"), httpx2.ReadTimeout("slow"),
     httpx2.RemoteProtocolError("cut off")],
    ids=str,
)  # fmt: skip
def test_what_may_pass_is_tried_again(passing):
    with client_with(passing, passing) as client:
        assert client.complete([BODY])[0][0].tokens == (1,)
        assert client.num_retries == 2


def test_a_server_says_how_long_to_wait():
    with client_with(
        httpx2.Response(429, headers={"Retry-After": "0.2"}), longest_wait=5
    ) as client:
        start = time.monotonic()
        client.complete([BODY])
        assert time.monotonic() - start > 0.19


@pytest.mark.parametrize(
    "value", ["30", formatdate(time.time() + 86_400, usegmt=True)], ids=["seconds", "date"]
)
def test_a_wait_that_is_too_long_ends_the_run_at_once(value):
    busy = httpx2.Response(429, headers={"Retry-After": value})
    with client_with(busy, longest_wait=5) as client, pytest.raises(ServerError) as caught:
        client.complete([BODY])
    assert caught.value.slug == "rate_limited"


def test_a_wait_that_is_no_number_is_the_usual_one():
    with client_with(httpx2.Response(429, headers={"Retry-After": "soon"})) as client:
        assert client.complete([BODY])


@pytest.mark.parametrize(
    ("answer", "slug", "part"),
    [
        (429, "rate_limited", "it limits the rate"),
        (503, "server_stopped", "it answered 1 requests and then no more (status 503"),
        (httpx2.ConnectError("gone"), "server_stopped", "--resume"),
        (400, "refused_request", "status 400"),
        (401, "not_allowed", "OPENAI_API_KEY is not set"),
        (httpx2.Response(200, text="<html>"), "bad_answer", "wanted JSON"),
        (httpx2.Response(200, json=[1]), "bad_answer", "wanted a completion"),
        (httpx2.Response(200, json={"choices": []}), "bad_answer", "ignores n"),
    ],
)
def test_what_does_not_pass_is_named(answer, slug, part, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with client_with(*[answer] * 9) as client, pytest.raises(ServerError) as caught:
        client.complete([BODY])
    assert caught.value.slug == slug
    assert part in str(caught.value)


def test_nothing_listens_there():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with pytest.raises(ServerError, match="does not answer") as caught:
        Client(f"http://127.0.0.1:{port}/v1", limits=Limits(retries=1, first_wait=0.001))
    assert caught.value.slug == "server_unreachable"


def test_a_model_that_is_not_served_is_named_with_those_that_are():
    with pytest.raises(ServerError, match=r"'gpt': .* it serves: toy") as caught:
        client_of(ToyServer(ROWS), "gpt")
    assert caught.value.slug == "unknown_model"


def test_an_address_without_its_end_is_named():
    app = ToyServer(ROWS)
    with pytest.raises(ServerError, match="HOST:PORT/v1") as caught:
        Client("http://toy", transport=httpx2.ASGITransport(app))
    assert caught.value.slug == "no_such_address"


@pytest.mark.parametrize(
    "url", ["", "toy:8000", "ftp://toy/v1", "http://", "http://me:secret@toy/v1", "http://t/v1?k=s"]
)
def test_what_is_no_address_is_refused_and_no_key_is_repeated(url):
    with pytest.raises(ParamsError, match="wanted http://HOST:PORT/v1") as caught:
        Client(url)
    assert "secret" not in str(caught.value)
    assert caught.value.slug == "bad_address"


@pytest.mark.parametrize("name", ["concurrency", "per_second", "timeout", "longest_wait"])
def test_limits_that_forbid_all_are_refused(name):
    with pytest.raises(ParamsError, match=name):
        Limits(**{name: 0})


def test_the_key_goes_to_the_server_and_into_no_message(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc")
    replies = Replies(httpx2.Response(400, text="no such key: sk-abc"))
    client = Client("http://m/v1", transport=httpx2.MockTransport(replies))
    with client, pytest.raises(ServerError) as caught:
        client.complete([BODY])
    assert replies.asked[-1].headers["Authorization"] == "Bearer sk-abc"
    assert "sk-abc" not in str(caught.value)
    assert "sk-abc" not in repr(vars(client))


def test_a_stream_says_what_a_whole_answer_says():
    with client_of(ToyServer(ROWS)) as client:
        bodies = [BODY | {"n": 3, "seed": seed, "logprobs": 2} for seed in range(5)]
        bodies = [body | {"return_tokens_as_token_ids": True} for body in bodies]
        streams = client.complete([body | {"stream": True} for body in bodies])
        assert streams == client.complete(bodies)


def test_a_stream_that_is_cut_off_is_asked_for_again():
    cut = httpx2.Response(200, text='data: {"choices": [{"index": 0, "text": "t1"}]}\n\n')
    whole = 'data: {"choices": [{"index": 0, "text": "t1", "finish_reason": "length"}]}\n\n'
    with client_with(cut, httpx2.Response(200, text=whole)) as client:
        assert client.complete([BODY | {"stream": True}])[0][0].text == "t1"
        assert client.num_retries == 1


def test_ctrl_c_ends_the_requests_and_the_client_can_be_closed(ctrl_c):
    class Slow(ToyServer):
        async def respond(self, method, path, body):
            if method == "POST":
                await asyncio.sleep(30)
            return await super().respond(method, path, body)

    with client_of(Slow(ROWS)) as client:
        timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.complete([BODY] * 50)
    timer.join()
    assert time.monotonic() - start < 20
    with pytest.raises(ParamsError, match="found a closed one"):
        client.complete([BODY])


def test_over_a_network():
    with served(ToyServer(ROWS)) as url:
        with Client(url) as client:
            assert client.models() == ["toy"]
            found = client.complete([BODY] * 8)
        with client_of(ToyServer(ROWS)) as other:
            assert found == other.complete([BODY] * 8)
