"""The options of commands that ask a model behind an endpoint."""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

from spark_jax.run.command_line import Parser
from spark_jax.run.completion import Complete, Prices
from spark_jax.types import UserError


def add_endpoint_options(parser: Parser) -> None:
    """`--endpoint` and what belongs to it."""
    add = parser.add_argument
    add("--endpoint", default="", metavar="BASE_URL",
        help="of an OpenAI-compatible server, for example https://api.openai.com/v1")  # fmt: skip
    add("--model", default="", help="its name there")
    add("--key_env", default="OPENAI_API_KEY", help="environment variable of the key; empty: none")
    add("--response_tokens", type=int, default=512, help="of one response at most")
    add("--body", default="{}", help="JSON: more fields of a request; null leaves one of ours out")
    add("--concurrency", type=int, default=4, help="requests at the same time")
    add("--per_minute", type=float, default=0.0, help="requests a minute at most; 0: no limit")
    add("--timeout", type=float, default=120.0, help="seconds without an answer")
    add("--tries", type=int, default=6, help="of one request")
    add("--prompt_price", type=float, default=0.0, help="of a million tokens read")
    add("--response_price", type=float, default=0.0, help="of a million tokens written")


def connected(
    options: argparse.Namespace, temperature: float, stop: threading.Event
) -> tuple[Complete, dict[str, Any]]:
    """The model that the options name, and what files may say of it.

    Raises UserError for a bad option, or where a package is missing.
    """
    if not options.endpoint or not options.model:
        raise UserError(
            "--endpoint=BASE_URL and --model=NAME belong together; give both, for example "
            "--endpoint=http://localhost:8000/v1 --model=Qwen/Qwen2.5-7B-Instruct."
        )
    for name in ("response_tokens", "concurrency", "tries"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}; it has to be 1 or more.")
    if not options.timeout > 0:
        raise UserError(f"--timeout is {options.timeout:g}; it has to be more than 0.")
    for name in ("per_minute", "prompt_price", "response_price"):
        if not getattr(options, name) >= 0:
            raise UserError(f"--{name} is {getattr(options, name):g}; it has to be 0 or more.")
    try:
        body = json.loads(options.body)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UserError(f'--body={options.body} is no JSON object such as {{"top_p": 0.9}}.')
    try:
        from spark_jax.run.endpoint import Endpoint, connect, read_key
    except ImportError as error:  # an extra, though other dependencies often bring it
        raise UserError(
            f"endpoints need a package more ({error}): pip install -e '.[endpoints]'."
        ) from error
    endpoint = Endpoint(
        options.endpoint, options.model, read_key(options.key_env), temperature,
        options.response_tokens, body, options.timeout, options.tries, options.per_minute,
    )  # fmt: skip
    return connect(endpoint, stop.wait), endpoint.public()


def prices_of(options: argparse.Namespace) -> Prices:
    return Prices(options.prompt_price, options.response_price)


def describe_cost(spent: dict, prices: Prices) -> str:
    """`12,345 tokens read, 678 written: 0.02`, and what is not known of it."""
    read, written = spent["prompt_tokens"], spent["response_tokens"]
    if not read and not written:
        return "the endpoint does not count tokens, so what was spent is not known"
    text = f"{read:,} tokens read, {written:,} written"
    return f"{text}: {spent['cost']:.4f} at the prices given" if any(prices) else text
