"""How a task becomes tokens: prompt node, and what stands between two responses."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence

from spark_jax.envs.window import WHOLE_PATH, Window, window_message
from spark_jax.models.chat import Codec
from spark_jax.types import PastStep, Start

_REASONED = re.compile(rb"</(?!action>)\w+>")
NO_ACTION = "No action found. Answer with <action>...</action>."


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One growing dialogue per path; text is encoded once, segment by segment. With a `window` each
    step has a prompt of its own instead.

    `swap` (token -> token, its own inverse) makes the model read and write other words for some
    things: texts are those of the environment, tokens are those of the model.
    """

    codec: Codec
    system: str
    first_message: Callable[[Start], str]
    swap: Mapping[int, int] = dataclasses.field(default_factory=dict)
    window: Window = WHOLE_PATH

    def prompt(self, start: Start, past: Sequence[PastStep] = ()) -> tuple[str, list[int]]:
        """Text and tokens of the prompt node; with a window, of the prompt after the steps
        `past`."""
        user = self.first_message(start)
        if past:
            user = window_message(user, past, self.window)
        tokens = self.codec.encode_prompt(self.system, user)
        return f"{self.system}\n{user}".strip(), self._swapped(tokens)

    def turn(self, observation: str, response: list[int]) -> tuple[str, list[int]]:
        """Text and tokens between `response` and the next one. The end-of-turn token is ours
        (a prompt token) unless the model sampled it."""
        ended = response[-1:] == [self.codec.end_of_turn_id]
        return observation, self._swapped(self.codec.encode_turn(observation, ended))

    def text(self, response: list[int]) -> str:
        """Text of sampled tokens, without the end-of-turn token."""
        end = self.codec.end_of_turn_id
        return self.codec.decode(self._swapped([t for t in response if t != end]))

    def surprise(self, response: list[int], logprobs: Sequence[float]) -> float:
        """Mean -log p of the tokens of the reasoning, in nats a token: of those up to the one that
        completes a block that is not the action; of the whole response where there is none."""
        if not response:
            return 0.0
        table = self.codec.token_bytes()
        pieces = [table[token] for token in self._swapped(response)]
        if complete := _REASONED.search(b"".join(pieces)):
            ends = list(itertools.accumulate(map(len, pieces)))
            logprobs = logprobs[: bisect.bisect_left(ends, complete.end()) + 1]
        return -math.fsum(logprobs) / len(logprobs)

    def _swapped(self, tokens: list[int]) -> list[int]:
        return [self.swap.get(token, token) for token in tokens] if self.swap else tokens
