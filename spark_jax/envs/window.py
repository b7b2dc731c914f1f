"""The prompt that is rebuilt at each step (`env.history` > 0): what it shows of the steps so far.

The user's message is the world's first message (task and first observation; rules are in the
system text) and, below it, the last k pairs of an observation and the action it was answered with,
then the observation that the action to come answers. While no more than k steps are played nothing
is left out, and the first observation stands in the first message already. The reasoning of past
steps is not shown; a response without an action block is the action "(none)". With k = 2, after one
step and after four:

    short                                   full
    | find the key                          | find the key
    | A hall.                               | A hall.
    | >go north                             |
    | A kitchen.                            | Action 1: go north
                                            | Observation 1: A kitchen.

    | find the key                          | find the key
    | A hall.                               | A hall.
    | ...                                   |
    | A shed.                               | (Steps 1 to 2 are left out.)
    | >look                                 | Observation 2: A shed.
    | A box.                                |
    | >open box                             | Action 3: look
    | The key.                              | Observation 3: A box.
                                            | …

What comes first changes least, so consecutive prompts have a long head in common. The short style
is for small models trained from scratch: there is no blank before an action, so that its tokens are
those of the response, where it follows a tag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from spark_jax.types import PastStep

NO_ACTION_TAKEN = "(none)"


class Window(NamedTuple):
    """How much of a path a prompt shows."""

    steps: int = 0  # k = env.history; 0: all of it, as one growing dialogue
    style: Literal["short", "full"] = "short"  # env.prompt


WHOLE_PATH = Window()


def window_message(first_message: str, past: Sequence[PastStep], window: Window) -> str:
    """The user's message after the steps `past` (module docstring); `window.steps` is 1 or more.

    Args:
      first_message: of the world, task and first observation.
      past: every step of the path, those without an action (action "") included.
    """
    left_out = max(0, len(past) - window.steps)
    shown = list(enumerate(past[left_out:], left_out + 1))
    if window.style == "short":
        lines = ["...", past[left_out - 1].observation] if left_out else []
        for _, step in shown:
            lines += [f">{step.action or NO_ACTION_TAKEN}", step.observation]
        return "\n".join([first_message, *lines])
    parts = []
    if left_out:
        last = past[left_out - 1].observation
        which = "Step 1 is" if left_out == 1 else f"Steps 1 to {left_out} are"
        parts.append(f"({which} left out.)\nObservation {left_out}: {last}")
    for number, step in shown:
        action = step.action or NO_ACTION_TAKEN
        parts.append(f"Action {number}: {action}\nObservation {number}: {step.observation}")
    return "\n\n".join([first_message, *parts])
