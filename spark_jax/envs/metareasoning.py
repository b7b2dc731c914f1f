"""Expert paths with RLVMR's four tags (arXiv 2507.22844), as a pure function of what was seen.

The method's authors let a large model tag their warm-up data. Here a rule does it:

- the first step is `planning`, and every PLAN_EVERY-th step after it looks at the plan again,
- a step that `annotate` marked as a real choice is `explore`,
- every other step is `monitor`: it goes on with the plan,
- `reflection` needs a mistake, and experts make none. In one dialogue of REFLECT_EVERY the action
  of one step is first said without its verb, which no environment understands: it answers with
  its refusal and nothing changes; then the step itself, tagged `reflection`, says it right. What
  was refused is read and not imitated.
"""

from __future__ import annotations

import re

from spark_jax.envs.response import Kind, render_tagged
from spark_jax.envs.trajectory import Trajectory

PLAN_EVERY = 5  # steps
REFLECT_EVERY = 4  # dialogues, by the number of the variation


def step_tags(trajectory: Trajectory) -> list[Kind]:
    """The tag of each step, without mistakes."""

    def tag(i: int, explore: bool) -> Kind:
        if i == 0:
            return "planning"
        if explore:
            return "explore"
        return "monitor" if i % PLAN_EVERY else "planning"

    return [tag(i, step.explore) for i, step in enumerate(trajectory.steps)]


def mistaken_step(trajectory: Trajectory) -> int | None:
    """Index of the step whose action goes wrong first, None for most trajectories: by the
    variation's number, among the steps whose action is a verb and more."""
    places = [i for i, step in enumerate(trajectory.steps) if _without_verb(step.action)]
    turn, rest = divmod(trajectory.task.variation, REFLECT_EVERY)
    return places[turn % len(places)] if places and rest == 0 else None


def tagged_turns(trajectory: Trajectory, refusal: str) -> tuple[tuple[str, str], ...]:
    """(response, the observation it brings) of each step.

    Args:
      refusal: what the environment says to an action that it does not understand, without any
        change of its state; "" if it has no such answer: then there are no mistakes.
    """
    wrong_at = mistaken_step(trajectory) if refusal else None
    turns = []
    for i, (step, tag) in enumerate(zip(trajectory.steps, step_tags(trajectory), strict=True)):
        reasoning = step.reasoning
        if i == wrong_at:
            wrong = _without_verb(step.action)
            turns.append((render_tagged(reasoning, tag, wrong), refusal))
            tag, reasoning = "reflection", f"{wrong} was not understood; say {step.action}."
        turns.append((render_tagged(reasoning, tag, step.action), step.observation))
    return tuple(turns)


def _without_verb(action: str) -> str:
    """ "red door" of "open red door", "red" of "click[red]"; "" of a verb alone."""
    said = re.fullmatch(r"\s*[^\s\[]+(?: +(.+)|\[(.+)\])", action.rstrip())
    return (said[1] or said[2]) if said else ""
