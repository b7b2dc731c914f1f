"""The plain values that every part of the project passes around. No JAX here.

Shape legend, used in names everywhere (`logits_BTV`): B rows of a batch, T positions, N = flattened
tokens, R packed rows, M targets (sampled tokens that carry loss), G segments (nodes) of a tree,
D model width, F feed-forward width, H query heads, K key/value heads, C channels of a head,
L layers, P pages of the pool, S slots of a page, W pages of a row, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

Outcome = Literal["success", "failure", "step_limit", "token_limit", "refused"]


class UserError(Exception):
    """Bad input from the user. The message is one sentence: what was wrong, what would be right.

    `main` prints it without a traceback and exits with code 2.
    """


@dataclasses.dataclass(frozen=True, order=True)
class Task:
    """One problem instance."""

    env: str  # "scienceworld", "toy", ...
    type: str  # task type, e.g. "find-plant"
    variation: int  # variation or game index inside the type
    seed: int = 0  # seed of the environment itself
    split: str = "train"  # "train", "L0", "L1", "L2"


class Start(NamedTuple):
    """What an environment says when a task begins."""

    goal: str  # task description
    observation: str  # first observation


class StepResult(NamedTuple):
    """What an environment says to one action."""

    observation: str
    score: float  # 0..100, cumulative
    done: bool  # the environment itself ended the episode
    success: bool  # by the rule of `env.success`
    valid: bool  # False: the environment did not understand the action


class PastStep(NamedTuple):
    """One played step: enough to replay it and to check the replay."""

    action: str
    observation: str


@dataclasses.dataclass
class Node:
    """One step of a tree, or (id 0) the prompt.

    Its segment of tokens is `response_ids` (sampled) followed by `context_ids` (end-of-turn,
    observation, header of the next assistant turn; for node 0 the whole prompt; empty on leaves).
    In a tree of rebuilt prompts `context_ids` is the whole prompt of the next response instead.
    """

    id: int
    parent: int  # -1 for the prompt node
    step: int  # environment turns played up to and including this node; 0 for the prompt
    response_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)  # of response_ids, as sampled
    context_ids: list[int] = dataclasses.field(default_factory=list)
    response: str = ""
    prompt: str = ""  # text of context_ids
    action: str = ""
    observation: str = ""  # what the environment answered to `action`
    spark: bool = False  # the response holds a complete <explore>…</explore>
    requested: int = 1  # children asked for
    granted: int = 1  # b_eff, children given
    reinvested: int = 0  # children given besides, from leaves that were left over in the end
    valid: bool = True  # the environment understood the action
    score: float = 0.0  # environment score after the step, 0..100
    reward: float = 0.0  # on leaves only: 1 for success, or the share of the full score
    done: bool = False  # the path ends here
    outcome: Outcome | None = None  # leaves only
    advantage: float | None = None  # filled in by the learner, for the record
    tag: str = ""  # kind of reasoning of a well-formed response; "": the format is bad
    surprise: float = 0.0  # mean -log p of the reasoning's tokens, nats; where a signal needs it


@dataclasses.dataclass
class Tree:
    """All paths sampled for one task; its leaves are one GRPO group. `nodes[i].id == i`, and a
    parent always comes before its children."""

    task: Task
    leaves: int  # N, the leaf budget
    roots: int  # M
    branch: int  # B
    signal: str
    nodes: list[Node]
    rebuilt: bool = False  # each step has a prompt of its own (env.history > 0)

    def children(self) -> list[list[int]]:
        """Ids of the children of each node, in order."""
        out: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes[1:]:
            out[node.parent].append(node.id)
        return out

    def leaf_ids(self) -> list[int]:
        """Ids of the nodes without children (the prompt alone is no leaf)."""
        return [i for i, kids in enumerate(self.children()) if not kids and i > 0]

    def path(self, node_id: int) -> list[int]:
        """Ids from the prompt node to `node_id`, both included."""
        out = []
        while node_id >= 0:
            out.append(node_id)
            node_id = self.nodes[node_id].parent
        return out[::-1]
