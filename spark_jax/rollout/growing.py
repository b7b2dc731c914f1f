"""A tree while it grows: its rule, its running paths, the forks that wait. Nothing is played here
(rollout/expand.py does that)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from spark_jax.envs.response import THINKING, Kind
from spark_jax.rollout.budget import Budget, Indices
from spark_jax.rollout.dialogue import Dialogue
from spark_jax.rollout.row import Row
from spark_jax.rollout.signals import Signal
from spark_jax.types import Node, PastStep, Start, Task, Tree


@dataclasses.dataclass(frozen=True)
class TreeRule:
    """Shape of a tree."""

    leaves: int  # N
    roots: int  # M
    branch: int  # B
    signal_name: str
    signal: Signal
    fork_at: str = "next_step"  # or "same_step": keep the reasoning, resample the action
    tags: tuple[Kind, ...] = THINKING  # kinds of reasoning that a response may begin with
    reinvest: bool = False  # leaves that are left in the end are spent (rollout/reinvest.py)
    surprise: bool = False  # the signal looks at `Node.surprise`, which is 0 otherwise
    patience: int = 0  # refused actions in a row that end a path; 0: it goes on to its limits
    reward: str = "success"  # of a leaf: 1 for success, or the share of the score ("score")


@dataclasses.dataclass(frozen=True)
class Limits:
    max_steps: int  # environment turns of a path
    response_tokens: int  # sampled tokens of a step
    path_tokens: int  # tokens of a path


@dataclasses.dataclass(eq=False)
class Path:
    """A running leaf: what has been played, and the response being sampled."""

    indices: Indices  # identity of the node being made
    parent: Indices  # the node it will hang under
    step: int  # number of the environment turn being played, from 1
    row: Row
    past: tuple[PastStep, ...]
    score: float = 0.0
    head: tuple[int, ...] = ()  # sampled tokens of this step that stand in a node of their own


@dataclasses.dataclass(eq=False)
class Fork:
    """Children of one node, asked for or given: everything that a further one starts from."""

    parent: Indices
    source: Row  # its prefix is shared: the row of child 0, or the prompt's
    tokens: list[int]
    past: tuple[PastStep, ...]
    step: int
    score: float
    head: tuple[int, ...] = ()
    siblings: Sequence[int] = ()  # indices of the children that are to be started


class Growing:
    """One tree while it grows. Nodes are keyed by their path of child indices; they get their
    numbers at the end, in depth-first order, so timing never shows in the result."""

    def __init__(self, task: Task, dialogue: Dialogue, identity: tuple, rule: TreeRule):
        self.task, self.dialogue, self.identity, self.rule = task, dialogue, identity, rule
        self.nodes: dict[Indices, Node] = {}
        self.budget = Budget(rule.leaves, identity)
        self.paths: dict[Indices, Path] = {}
        self.forks: dict[Indices, Fork] = {}  # asked for, not decided
        self.granted: list[Fork] = []  # decided, waiting for the shared prefix
        self.spare: dict[Indices, Fork] = {}  # places for leaves that are left in the end
        self.start: Start | None = None

    @property
    def finished(self) -> bool:
        return len(self.nodes) > 1 and not (self.paths or self.forks or self.granted)

    def past(self, indices: Indices) -> list[PastStep]:
        """The steps of the path down to a node, those included that no environment saw."""
        nodes = (self.nodes[indices[: i + 1]] for i in range(len(indices)))
        return [PastStep(n.action, n.observation) for n in nodes if n.action or n.observation]

    def refusals(self, indices: Indices) -> int:
        """Actions in a row, up to that of a node, that the environment did not understand."""
        count = 0
        for i in range(len(indices), 0, -1):
            node = self.nodes[indices[:i]]
            if node.valid and node.action:
                break
            count += not node.valid  # a node of reasoning alone (same_step) is no action
        return count

    def tree(self) -> Tree:
        order = sorted(self.nodes)  # a prefix sorts before what extends it: depth-first
        number = {indices: i for i, indices in enumerate(order)}
        for indices in order:
            node = self.nodes[indices]
            node.id = number[indices]
            node.parent = number[indices[:-1]] if indices else -1
        return Tree(
            task=self.task,
            leaves=self.rule.leaves,
            roots=self.rule.roots,
            branch=self.rule.branch,
            signal=self.rule.signal_name,
            nodes=[self.nodes[indices] for indices in order],
            rebuilt=self.dialogue.window.steps > 0,
        )
