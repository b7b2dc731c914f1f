"""A model behind an OpenAI-compatible endpoint: messages in, text and token counts out. No JAX.

The protocol is POST BASE_URL/chat/completions as OpenAI, vLLM, llama.cpp, Ollama, OpenRouter and
others speak it. The key stands in the header of a request and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import urllib3

from spark_jax.run.completion import Complete, Completion, Message, Stopped, TooLong
from spark_jax.types import UserError

_PASSING = (408, 409, 425, 429)  # and everything from 500 on: may be another answer a moment later
_LONGEST_PAUSE = 300  # seconds that we wait at most, whatever Retry-After says


class _Unusable(Exception):
    """An answer, or none, that another try may better."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where a model is and how it is asked."""

    url: str  # base, e.g. https://api.openai.com/v1; a query (?api-version=…) stays at the end
    model: str
    key: str = dataclasses.field(default="", repr=False)
    temperature: float = 0.4
    response_tokens: int = 512  # at most, in one response
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # over ours; None: left out
    timeout: float = 120.0  # seconds without a byte
    tries: int = 6  # of one request
    per_minute: float = 0.0  # requests of all threads, tries included; 0: no limit

    def public(self) -> dict[str, Any]:
        """What files may say of it: no key, and of the address neither user nor query."""
        where = urllib3.util.parse_url(self.url)
        return {
            "url": where._replace(auth=None, query=None, fragment=None).url,
            "model": self.model,
            "temperature": self.temperature,
            "response_tokens": self.response_tokens,
            "body": dict(self.body),
        }


def read_key(name: str) -> str:
    """The key in the environment variable `name`; "" for the name "" (a server without keys).

    Raises UserError when it is not set, or cannot be a key.
    """
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {name} is not set; put the endpoint's key into it, name "
            "another with --key_env, or say --key_env= for a server that asks for no key."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"the environment variable {name} holds letters that no key has.")
    return key


def connect(endpoint: Endpoint, sleep: Callable[[float], Any] = time.sleep) -> Complete:
    """A function that asks the endpoint; several threads may call it at once.

    It raises UserError when `tries` tries in a row failed, or when the endpoint refuses for good
    (a wrong key, no such model); TooLong; and Stopped where `sleep` returns something true.
    Failed tries are repeated at once, then after 2, 4, 8, … seconds (60 at most, up to one more by
    chance), or when the answer's Retry-After says, 300 seconds at most.
    """
    no_address = UserError(  # it may hold a password, so it is not repeated
        "--endpoint is no address; it has to be the base URL of an OpenAI-compatible server, for "
        "example https://api.openai.com/v1."
    )
    try:
        where = urllib3.util.parse_url(endpoint.url)
    except urllib3.exceptions.LocationParseError:
        raise no_address from None
    if where.scheme not in ("http", "https") or not where.host:
        raise no_address
    path = (where.path or "").rstrip("/") + "/chat/completions"
    url = where._replace(path=path, fragment=None).url
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    http = _manager(where.scheme, where.host)
    timeout = urllib3.Timeout(connect=min(20.0, endpoint.timeout), read=endpoint.timeout)
    wait_for_turn = _pace(endpoint.per_minute, sleep)

    def ask(body: bytes) -> urllib3.BaseHTTPResponse:
        return http.request(
            "POST", url, body=body, headers=headers, timeout=timeout, retries=False, redirect=False
        )

    def complete(messages: Sequence[Message]) -> Completion:
        body = json.dumps(_request(endpoint, messages)).encode()
        # Decides how long to wait; we ask it by hand, so that an answer which makes no sense
        # counts as a failed try too, and every try keeps to `per_minute`.
        retries = urllib3.Retry(
            total=endpoint.tries - 1,
            allowed_methods=None,
            backoff_factor=1.0,
            backoff_max=60.0,
            backoff_jitter=1.0,
            retry_after_max=_LONGEST_PAUSE,
        )
        while True:
            if wait_for_turn():
                raise Stopped
            response = None
            try:
                response = ask(body)
                return _completion(response, endpoint)
            except (urllib3.exceptions.HTTPError, _Unusable) as error:
                try:
                    retries = retries.increment("POST", path, error=error)
                except urllib3.exceptions.MaxRetryError:
                    raise UserError(
                        f"{endpoint.public()['url']} failed {endpoint.tries} times, the last time "
                        f"because {_reason(error, endpoint)}; try again later: what is finished "
                        "is kept."
                    ) from None
                if sleep(_pause(retries, response)):
                    raise Stopped from None

    return complete


def _request(endpoint: Endpoint, messages: Sequence[Message]) -> dict[str, Any]:
    fields = {
        "model": endpoint.model,
        "messages": list(messages),
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.response_tokens,
        **endpoint.body,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _completion(response: urllib3.BaseHTTPResponse, endpoint: Endpoint) -> Completion:
    """Reads an answer, whatever it is."""
    try:
        answer = json.loads(response.data)
    except (ValueError, RecursionError):
        answer = None
    said = _said(answer, endpoint)
    if response.status in _PASSING or response.status >= 500:
        raise _Unusable(f"it answers {response.status}{said}")
    if response.status != 200:
        if response.status in (400, 413, 422):  # about these messages, not about all requests
            if _is_filtered(answer):
                return Completion("", 0, 0)
            if _is_too_long(answer):
                raise TooLong(said)
        hint = {401: "the key", 403: "the key", 404: "--endpoint and --model"}
        raise UserError(
            f"{endpoint.public()['url']} refuses with {response.status}{said}: check "
            f"{hint.get(response.status, '--model and --body')}."
        )
    if answer is None:
        raise _Unusable("its answer is no JSON")
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
        if content is None:  # all tokens spent on hidden reasoning, or a refusal
            content = choice["message"].get("refusal") or ""
            if not content and choice.get("finish_reason") not in ("length", "content_filter"):
                raise TypeError("no content")
        if not isinstance(content, str):
            raise TypeError("content is no text")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Unusable(f"its answer has no choices[0].message.content{said}") from None
    usage = answer.get("usage")
    return Completion(content, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else 0


def _said(answer: Any, endpoint: Endpoint) -> str:
    """The message of an error answer, in parentheses, shortened and without the key."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    if not isinstance(message, str) or not message.strip():
        return ""
    return f" ({_safe(message, endpoint)})"


def _safe(text: str, endpoint: Endpoint) -> str:
    text = " ".join(text.split())
    if endpoint.key:
        text = text.replace(endpoint.key, "***")
    return (text if len(text) <= 200 else text[:197] + "...").rstrip(".")


def _is_filtered(answer: Any) -> bool:
    """The endpoint's content filter refuses to read these messages. That is the model's answer to
    them: an empty one, as when the filter cuts what it wrote."""
    error = answer.get("error") if isinstance(answer, dict) else None
    inner = error.get("innererror") if isinstance(error, dict) else None
    codes = [part.get("code") for part in (error, inner) if isinstance(part, dict)]
    return "content_filter" in codes or "ResponsibleAIPolicyViolation" in codes


def _is_too_long(answer: Any) -> bool:
    """The endpoint refuses because the messages do not fit the model's context: OpenAI has a code
    for it, others say so in words."""
    error = answer.get("error", answer) if isinstance(answer, dict) else None
    text = json.dumps(error).lower()
    if "context_length_exceeded" in text or "exceed_context_size" in text:
        return True
    return "context" in text and any(word in text for word in ("length", "window", "size"))


def _reason(error: Exception, endpoint: Endpoint) -> str:
    if isinstance(error, _Unusable):
        return str(error)
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.SSLError):
        return f"no connection can be made ({_safe(str(error), endpoint)})"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection came about in time"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return f"no answer came within {endpoint.timeout:g} s"
    return f"the connection broke ({_safe(str(error), endpoint)})"


def _pause(retries: urllib3.Retry, response: urllib3.BaseHTTPResponse | None) -> float:
    """Seconds until the next try."""
    try:
        told = retries.get_retry_after(response) if response is not None else None
    except urllib3.exceptions.InvalidHeader:
        told = None
    return retries.get_backoff_time() if told is None else told


def _pace(per_minute: float, sleep: Callable[[float], Any]) -> Callable[[], Any]:
    """Waits until the caller's request may be made; returns what `sleep` did."""
    lock, free_at = threading.Lock(), 0.0

    def wait_for_turn() -> Any:
        nonlocal free_at
        if not per_minute:
            return sleep(0.0)
        with lock:
            now = time.monotonic()
            turn = max(free_at, now)
            free_at = turn + 60.0 / per_minute
        return sleep(turn - now)

    return wait_for_turn


def _manager(scheme: str, host: str) -> urllib3.PoolManager:
    """Connections, through the proxy that the environment names (http_proxy, no_proxy)."""
    proxy = urllib.request.getproxies().get(scheme)
    size = {"maxsize": 64}  # connections that stay open, one for each thread
    if proxy and not urllib.request.proxy_bypass(host):
        return urllib3.ProxyManager(proxy, **size)
    return urllib3.PoolManager(**size)
