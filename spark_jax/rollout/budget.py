"""The leaf budget of a tree (paper, Eq. 6 and 7). Plain integers, no tokens, no environments."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from spark_jax.rollout.identity import host_random

Indices = tuple[int, ...]  # path of child indices from the prompt: who a node is


def effective_branch(requested: int, leaves: int, current: int) -> int:
    """b_eff = min(b, N - N_current + 1); at least 1 as long as N_current <= N."""
    return min(requested, leaves - current + 1)


class Grant(NamedTuple):
    who: Indices
    granted: int  # b_eff; child 0 has gone on already, so granted - 1 siblings are new


@dataclasses.dataclass
class Budget:
    """Requests of one tree, decided by depth: those made at step t wait until every running leaf
    has completed step t, and are then granted one by one in an order drawn from the tree's
    identity. So neither latency nor batching ever decides a tree.

    `completed` maps each running leaf to the number of steps it has completed.
    """

    leaves: int
    identity: tuple
    current: int = 0  # N_current: running and finished leaves
    completed: dict[Indices, int] = dataclasses.field(default_factory=dict)
    requests: dict[int, list[tuple[Indices, int]]] = dataclasses.field(default_factory=dict)

    def start(self, who: Indices, completed: int) -> None:
        """A new leaf: a root, or a granted sibling."""
        self.current += 1
        self.completed[who] = completed
        assert self.current <= self.leaves, "the leaf budget was exceeded"

    def advance(self, old: Indices, new: Indices, completed: int) -> None:
        """A running leaf has completed a step and goes on under a longer name."""
        del self.completed[old]
        self.completed[new] = completed

    def finish(self, who: Indices) -> None:
        """A running leaf has become a finished one; it still counts."""
        del self.completed[who]

    def request(self, who: Indices, step: int, branch: int) -> bool:
        """Asks for `branch` children of node `who`; False if nothing is left, so nothing waits."""
        if self.current >= self.leaves or branch <= 1:
            return False
        self.requests.setdefault(step, []).append((who, branch))
        return True

    def withdraw(self, who: Indices) -> None:
        """The step of `who` ended its path after all: it gets nothing."""
        for step, asked in list(self.requests.items()):
            left = [r for r in asked if r[0] != who]
            if left:
                self.requests[step] = left
            else:  # nothing hides the requests of deeper steps
                del self.requests[step]

    def decide(self) -> list[Grant]:
        """Grants whatever can be decided now, shallow depths first. Siblings granted here must be
        entered by `start` before `decide` is called again."""
        if not self.requests:
            return []
        if self.current >= self.leaves:  # nothing is left: nobody waits
            asked = [who for step in sorted(self.requests) for who, _ in self.requests[step]]
            self.requests.clear()
            return [Grant(who, 1) for who in asked]
        step = min(self.requests)
        if any(done < step for done in self.completed.values()):
            return []
        asked = sorted(self.requests.pop(step))
        host_random("grant order", *self.identity, step).shuffle(asked)
        grants, current = [], self.current
        for who, branch in asked:
            granted = effective_branch(branch, self.leaves, current)
            current += granted - 1
            grants.append(Grant(who, granted))
        return grants
