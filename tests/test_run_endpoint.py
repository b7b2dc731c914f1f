"""The client of an OpenAI-compatible endpoint, against real servers: good ones and all bad ones."""

import time

import pytest

pytest.importorskip("urllib3", reason="needs the extra endpoints")

from chat_server import Reply, says, script, serve  # noqa: E402

from spark_jax.run.completion import Completion, Stopped, TooLong  # noqa: E402
from spark_jax.run.endpoint import Endpoint, connect, read_key  # noqa: E402
from spark_jax.types import UserError  # noqa: E402

HELLO = [{"role": "user", "content": "hello"}]
KEY = "sk-secret-0123456789"


def ask(answer, messages=HELLO, sleep=lambda _: None, **settings):
    """One request to a server that answers so; returns the completion and what it was asked."""
    with serve(answer) as (url, asked):
        endpoint = Endpoint(url, "some-model", KEY, **({"timeout": 5.0} | settings))
        return connect(endpoint, sleep)(messages), asked


def fails(answer, **settings):
    """The one sentence that a request ends in, and how often the server was asked."""
    with serve(answer) as (url, asked):
        endpoint = Endpoint(url, "some-model", KEY, **({"timeout": 5.0, "tries": 3} | settings))
        with pytest.raises(UserError) as caught:
            connect(endpoint, lambda _: None)(HELLO)
        text = str(caught.value)
        assert KEY not in text and "\n" not in text and "/v1" in text
        return text, len(asked)


def test_a_request_is_what_the_protocol_says():
    completion, (one,) = ask(script(says("hi", 12, 3)), temperature=0.2, response_tokens=99)
    assert completion == Completion("hi", 12, 3)
    assert one.path == "/v1/chat/completions"
    assert one.headers["Authorization"] == f"Bearer {KEY}"
    assert one.headers["Content-Type"] == "application/json"
    assert one.body == {
        "model": "some-model",
        "messages": HELLO,
        "temperature": 0.2,
        "max_tokens": 99,
    }


def test_more_fields_and_fewer():
    body = {"max_tokens": None, "max_completion_tokens": 7, "temperature": None, "top_p": 0.5}
    _, (one,) = ask(script(says("hi")), body=body)
    expected = {"model": "some-model", "messages": HELLO, "max_completion_tokens": 7, "top_p": 0.5}
    assert one.body == expected


def test_the_query_of_an_address_stays_and_no_key_sends_no_header():
    with serve(script(says("hi"))) as (url, asked):
        connect(Endpoint(f"{url}/?api-version=3", "m"))(HELLO)
    assert asked[0].path == "/v1/chat/completions?api-version=3"
    assert "Authorization" not in asked[0].headers


def test_a_proxy_of_the_environment_is_used_where_no_proxy_does_not_say_otherwise(monkeypatch):
    with serve(script(says("hi"))) as (url, asked):
        monkeypatch.setenv("http_proxy", url.removesuffix("/v1"))
        connect(Endpoint("http://far.invalid/v1", "m"))(HELLO)
        connect(Endpoint(url, "m"))(HELLO)
    paths = ["http://far.invalid/v1/chat/completions", "/v1/chat/completions"]
    assert [one.path for one in asked] == paths


def test_what_files_may_say_has_no_secret():
    endpoint = Endpoint("https://me:pass@host/v1?token=abc", "m", KEY)
    assert endpoint.public()["url"] == "https://host/v1"
    assert KEY not in repr(endpoint) and KEY not in str(endpoint.public())


PASSING = {
    "429": Reply({"error": {"message": "slow down"}}, 429),
    "500": Reply(b"oops", 500),
    "503 of a proxy": Reply(b"<html>busy</html>", 503, {"Content-Type": "text/html"}),
    "no JSON": Reply(b"<html>hello</html>"),
    "half of the JSON": Reply(b'{"choices": [{"mess'),
    "no choices": Reply({"choices": []}),
    "wrong schema": Reply({"choices": [{"text": "an older protocol"}]}),
    "choices are a text": Reply({"choices": "hi"}),
    "a list": Reply([1, 2]),
    "no text": Reply({"choices": [{"message": {"content": None}}]}),
    "parts": Reply({"choices": [{"message": {"content": [{"type": "text", "text": "a"}]}}]}),
    "an error with status 200": Reply({"error": {"message": "provider is down"}}),
    "breaks off": Reply({"choices": ["x" * 5000]}, hang_up=True),
    "stalls": Reply({}, stall=0.6),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_failure_is_tried_again(name):
    timeout = 0.2 if name == "stalls" else 5.0
    completion, asked = ask(script(PASSING[name], PASSING[name], says("hi")), timeout=timeout)
    assert completion.text == "hi" and len(asked) == 3
    assert asked[0].body == asked[2].body


SENTENCES = {
    "429": "it answers 429 (slow down)",
    "500": "it answers 500;",
    "no JSON": "its answer is no JSON",
    "no choices": "its answer has no choices[0].message.content",
    "an error with status 200": "(provider is down)",
    "breaks off": "the connection broke",
    "stalls": "no answer came within 0.2 s",
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_lasting_failure_ends_in_one_sentence(name):
    text, times = fails(script(PASSING[name]), timeout=0.2 if name == "stalls" else 5.0)
    assert SENTENCES[name] in text and "failed 3 times" in text and times == 3


def test_no_server_at_all():
    with serve(script(says("hi"))) as (url, _):
        pass  # its port is closed from here on
    with pytest.raises(UserError, match="failed 2 times.*no connection can be made"):
        connect(Endpoint(url, "m", tries=2), lambda _: None)(HELLO)


@pytest.mark.parametrize("url", ["", "localhost:80/v1", "ftp://host/v1", "http://"])
def test_no_address(url):
    with pytest.raises(UserError, match="is no address"):
        connect(Endpoint(url, "m"))


@pytest.mark.parametrize(
    ("status", "hint"), [(400, "--model and --body"), (401, "the key"), (404, "--endpoint"),
                         (302, "--model and --body")],
)  # fmt: skip
def test_a_refusal_is_final(status, hint):
    reply = Reply({"error": {"message": f"bad\nkey {KEY}."}}, status, {"Location": "http://x/"})
    text, times = fails(script(reply))
    assert times == 1 and f"refuses with {status} (bad key ***): check {hint}" in text


@pytest.mark.parametrize(
    "error",
    [
        {"message": "too many", "code": "context_length_exceeded"},
        {"message": "This model's maximum context length is 4096 tokens. However, you requested"},
        {"message": "the request exceeds the available context size", "type": "invalid"},
        "prompt is longer than the context window",
    ],
)
def test_messages_that_do_not_fit(error):
    with pytest.raises(TooLong):
        ask(script(Reply({"error": error}, 400)))
    # A wrong key is no matter of length, whatever the answer says.
    text, _ = fails(script(Reply({"error": error}, 401)))
    assert "check the key" in text


def test_a_content_filter_ends_no_evaluation():
    """It refuses these messages only: an empty response, and the episode goes on."""
    error = {"message": "The response was filtered by the policy.", "code": "content_filter"}
    completion, asked = ask(script(Reply({"error": error}, 400)))
    assert completion == Completion("", 0, 0) and len(asked) == 1
    error = {"message": "content_filter is no field of a request", "code": "invalid_request"}
    text, _ = fails(script(Reply({"error": error}, 400)))
    assert "check --model and --body" in text


def pauses(*replies, **settings):
    slept = []
    ask(script(*replies, says("hi")), sleep=slept.append, **settings)
    return [seconds for seconds in slept if seconds]


def test_pauses_grow():
    bad = PASSING["500"]
    waited = pauses(*[bad] * 5)
    assert len(waited) == 4  # the first try is repeated at once
    for seconds, at_least in zip(waited, (2, 4, 8, 16), strict=True):
        assert at_least <= seconds <= at_least + 1


def test_retry_after_is_kept_to_with_an_upper_bound():
    def told(value):
        return Reply({}, 429, {"Retry-After": value})

    assert pauses(told("7"), told("3")) == [7, 3]
    assert pauses(told("86400")) == [300]
    assert pauses(told("nonsense")) == []  # the first backoff is 0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    (seconds,) = pauses(told(date))
    assert 25 <= seconds <= 31


def test_requests_a_minute():
    slept = []
    with serve(script(says("hi"))) as (url, _):
        complete = connect(Endpoint(url, "m", per_minute=60), slept.append)
        for _ in range(3):
            complete(HELLO)
    assert slept[0] == 0 and 0.8 < slept[1] <= 1 and 1.6 < slept[2] <= 2


def test_an_interrupted_request_is_not_sent():
    with pytest.raises(Stopped):
        ask(script(says("hi")), sleep=lambda _: True)
    told = iter([False, True])
    with pytest.raises(Stopped):  # nor tried again
        ask(script(PASSING["500"], says("hi")), sleep=lambda _: next(told))


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "3"}, {"prompt_tokens": -1}, [1]])
def test_tokens_that_are_not_told_count_as_none(usage):
    reply = Reply({"choices": [{"message": {"content": "hi"}}], "usage": usage})
    assert ask(script(reply))[0] == Completion("hi", 0, 0)


def test_no_text_for_a_reason():
    assert ask(script(says(None, finish_reason="length")))[0].text == ""
    refused = {"choices": [{"message": {"content": None, "refusal": "I will not."}}]}
    assert ask(script(Reply(refused)))[0].text == "I will not."


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    assert read_key("SOME_KEY") == KEY and read_key("") == ""
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UserError, match="SOME_KEY is not set"):
        read_key("SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "sk-\nbad")
    with pytest.raises(UserError) as caught:
        read_key("SOME_KEY")
    assert "bad" not in str(caught.value)
