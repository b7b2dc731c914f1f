"""What a model that is not ours is, here: a function from messages to a text. No JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": …}


class Completion(NamedTuple):
    text: str
    prompt_tokens: int  # as the endpoint counts them; 0 where it does not say
    response_tokens: int


# Raises UserError, TooLong or Stopped; several threads may call it at once.
Complete = Callable[[Sequence[Message]], Completion]


class Prices(NamedTuple):
    """Of a million tokens, in any currency."""

    prompt: float = 0.0
    response: float = 0.0


class TooLong(Exception):
    """The messages are longer than the context of the model."""


class Stopped(Exception):
    """The work that this request belongs to has been interrupted."""


def cost(prompt_tokens: int, response_tokens: int, prices: Prices) -> float:
    """What so many tokens cost, in the currency of the prices."""
    return (prompt_tokens * prices.prompt + response_tokens * prices.response) / 1e6
