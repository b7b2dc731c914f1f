"""How a task becomes tokens: prompt node, and what stands between two responses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from spark_jax.models.chat import Codec
from spark_jax.types import Start

NO_ACTION = "No action found. Answer with <action>...</action>."


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """One growing dialogue per path; text is encoded once, segment by segment."""

    codec: Codec
    system: str
    first_message: Callable[[Start], str]

    def prompt(self, start: Start) -> tuple[str, list[int]]:
        """Text and tokens of the prompt node."""
        user = self.first_message(start)
        return f"{self.system}\n{user}".strip(), self.codec.encode_prompt(self.system, user)

    def turn(self, observation: str, response: list[int]) -> tuple[str, list[int]]:
        """Text and tokens between `response` and the next one. The end-of-turn token is ours
        (a prompt token) unless the model sampled it."""
        ended = response[-1:] == [self.codec.end_of_turn_id]
        return observation, self.codec.encode_turn(observation, ended)

    def text(self, response: list[int]) -> str:
        """Text of sampled tokens, without the end-of-turn token."""
        end = self.codec.end_of_turn_id
        return self.codec.decode([t for t in response if t != end])
