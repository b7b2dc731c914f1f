"""A local server that speaks the chat-completions protocol, from a script or a function."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from unittest import mock


class Asked(NamedTuple):
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Reply(NamedTuple):
    """What the server sends; `stall` seconds pass first, `hang_up` breaks off in the middle."""

    body: Any = None  # an object becomes JSON, bytes stay
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    stall: float = 0.0
    hang_up: bool = False


def says(text: str | None, prompt_tokens: int = 10, response_tokens: int = 5, **choice) -> Reply:
    """An answer as OpenAI's reference has it."""
    return Reply(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, **choice},
            ],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": response_tokens},
        }
    )


@contextlib.contextmanager
def serve(answer: Callable[[Asked], Reply]) -> Iterator[tuple[str, list[Asked]]]:
    """Base URL of the server, and what it was asked so far."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            one = Asked(self.path, dict(self.headers), json.loads(self.rfile.read(length)))
            asked.append(one)
            reply = answer(one)
            time.sleep(reply.stall)
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with contextlib.suppress(OSError):  # a client that waits no longer
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if reply.hang_up else data)
            if reply.hang_up:
                self.close_connection = True

        def log_message(self, *_):
            pass

    # Not by way of the proxy that this machine may have, unless a test says so.
    here = {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with mock.patch.dict(os.environ, here):
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def script(*replies: Reply) -> Callable[[Asked], Reply]:
    """These answers one after the other, the last one for ever."""
    left, lock = list(replies), threading.Lock()

    def answer(_: Asked) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer
