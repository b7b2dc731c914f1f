"""The tree expander: grows the trees of an iteration, all of them in one padded decode batch.

Host Python only. Three parties take turns in `grow_trees`:
  the engine   samples one response at the end of each path (rollout/engine.py),
  the pool     plays actions in real environments, replays and verifies forks (envs/pool.py); what
               one path of a task has played is remembered for the others (envs/remember.py),
  the budget   decides forks by depth (rollout/budget.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spark_jax.cache.pool import Pages, common_prefix
from spark_jax.envs.pool import EnvPool
from spark_jax.envs.remember import RememberingPool
from spark_jax.envs.response import parse_response
from spark_jax.rollout.budget import Indices
from spark_jax.rollout.dialogue import NO_ACTION, Dialogue
from spark_jax.rollout.engine import Engine
from spark_jax.rollout.engines import Engines
from spark_jax.rollout.growing import Fork, Growing, Limits, Path, TreeRule
from spark_jax.rollout.identity import row_key
from spark_jax.rollout.reinvest import Place, share_out
from spark_jax.rollout.row import Row
from spark_jax.rollout.signals import Step
from spark_jax.rollout.stops import EXPLORED, state_after, stop_patterns
from spark_jax.types import Node, Outcome, PastStep, Start, StepResult, Task, Tree, UserError


def grow_trees(
    tasks: Sequence[Task],
    engine: Engine | Engines,
    environments: EnvPool,
    dialogues: Sequence[Dialogue],
    rules: Sequence[TreeRule],
    limits: Limits,
    identity: tuple,
    deterministic: bool = True,
    on_tree: Callable[[Tree], None] | None = None,
) -> list[Tree]:
    """Grows one tree per task; returns them in the order of `tasks`.

    Args:
      dialogues, rules: one per task.
      identity: (seed, phase, iteration); together with a task's occurrence in `tasks` and the path
        of child indices it keys every random draw.
      deterministic: take environment results at fixed points of the schedule, so that batches do
        not depend on how long environments take. The trees are the same either way up to rounding.
      on_tree: called with each finished tree, for progress.
    """
    grower = _Grower(engine, environments, limits)
    seen: dict[Task, int] = {}
    todo = []
    for task, dialogue, rule in zip(tasks, dialogues, rules, strict=True):
        seen[task] = seen.get(task, -1) + 1
        who = (task.env, task.type, task.variation, task.seed, seen[task])
        todo.append(Growing(task, dialogue, (*identity, who), rule))
    grower.run(todo, deterministic, on_tree)
    engine.rest()
    return [growing.tree() for growing in todo]


def leaf_reward(kind: str, outcome: Outcome, score: float) -> float:
    """R of a leaf: 1 for success and 0 otherwise (the paper's), or, with kind `score`, the share of
    the environment's full score, which tells failures apart; a negative score is 0."""
    if kind == "score":
        return min(max(score, 0.0), 100.0) / 100
    return 1.0 if outcome == "success" else 0.0


class _Grower:
    """State of one call of `grow_trees`."""

    def __init__(self, engine, environments, limits):
        self.engine: Engine | Engines = engine
        self.environments = RememberingPool(environments)
        self.limits: Limits = limits
        self.owner: dict[Row, tuple[Growing, Path | None]] = {}
        self.playing: dict[tuple, tuple[Growing, Path | None]] = {}
        self.numbers: dict[Growing, int] = {}

    def run(self, todo, deterministic, on_tree) -> None:
        unopened, open_trees = list(todo), []
        self.numbers = {growing: i for i, growing in enumerate(todo)}
        while unopened or open_trees:
            while unopened and self._may_open(open_trees):
                open_trees.append(unopened.pop(0))
                self._open(open_trees[-1])
            finished = self.engine.round() if self.engine.busy else []
            # Jobs handed out before this round ran beside it; taking them now, and those of this
            # round's rows only after the next one, overlaps the two without racing them.
            idle = not finished and not self.engine.busy
            wait = "all" if deterministic else ("any" if idle else "none")
            for key, result in self.environments.collect(wait):
                self._on_result(key, result)
            for row in finished:
                self._on_row(row)
            for key, result in self.environments.remembered():
                self._on_result(key, result)
            for growing in open_trees:
                self._decide(growing)
                if growing.finished:
                    self._reinvest(growing)
                self._start_siblings(growing)
            done = [growing for growing in open_trees if growing.finished]
            for growing in done:
                open_trees.remove(growing)
                if on_tree:
                    on_tree(growing.tree())

    # --- opening ----------------------------------------------------------------------------

    def _may_open(self, open_trees: Sequence[Growing]) -> bool:
        """New trees start while workers would idle: fewer paths compete for environments, so
        fewer are replayed. At least one tree is open."""
        roots = sum(growing.rule.roots for growing in open_trees)
        return not open_trees or (
            roots < max(self.environments.workers, self.engine.capacity)
            and not self.environments.waiting()
        )

    def _key(self, growing: Growing, indices: Indices) -> tuple:
        return (self.numbers[growing], indices)

    def _open(self, growing: Growing) -> None:
        key = self._key(growing, ())
        self.playing[key] = (growing, None)
        self.environments.submit(key, growing.task, (), None)

    def _plant(self, growing: Growing, start: Start) -> None:
        """The prompt node: brought into the cache once, shared by the roots."""
        text, tokens = growing.dialogue.prompt(start)
        if len(tokens) + self.limits.response_tokens > self.limits.path_tokens:
            raise UserError(
                f"the prompt of {growing.task.type} has {len(tokens)} tokens and leaves no room "
                f"for a response in rollout.path_tokens={self.limits.path_tokens}: raise it"
            )
        growing.nodes[()] = Node(
            0, -1, 0, context_ids=tokens, prompt=text, observation=start.observation,
            requested=growing.rule.roots, granted=growing.rule.roots,
        )  # fmt: skip
        growing.start = start
        row = Row(list(tokens), row_key(*growing.identity, ()), budget=0)
        self.owner[row] = (growing, None)
        self.engine.add(row)

    def _roots(self, growing: Growing, prompt: Row) -> None:
        prompt.prefix = prompt.pages
        fork = Fork((), prompt, prompt.tokens, (), step=1, score=0.0)
        self._grant(growing, fork, range(growing.rule.roots))
        self.environments.rename(self._key(growing, ()), self._key(growing, (0,)))

    def _start(
        self, growing: Growing, indices: Indices, tokens: list[int], pages: Pages,
        past: tuple[PastStep, ...], step: int, score: float, head: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """A new leaf, known to the budget already, begins to sample its first own response."""
        row = self._row(growing, indices, tokens, pages, head)
        path = Path(indices, indices[:-1], step, row, past, score, head)
        growing.paths[indices] = path
        self.owner[row] = (growing, path)
        self.engine.add(row)

    def _row(self, growing, indices, tokens, pages, head: tuple[int, ...]) -> Row:
        key = row_key(*growing.identity, indices)
        row = Row(list(tokens), key, self.limits.response_tokens - len(head), pages)
        if head:  # its last token may hold the beginning of another tag, as `></` does
            behind = growing.dialogue.text(list(head)).rpartition(EXPLORED)[2]
            row.stop = state_after(behind, stop_patterns(growing.rule.fork_at))
        return row

    # --- a response is complete -------------------------------------------------------------

    def _on_row(self, row: Row) -> None:
        growing, path = self.owner.pop(row)
        if path is None:
            self._roots(growing, row)
            return
        response = [*path.head, *row.response]
        text = growing.dialogue.text(response)
        parsed = parse_response(text, growing.rule.tags)
        node = Node(
            -1, -1, path.step, response_ids=row.response, logprobs=row.logprobs,
            response=growing.dialogue.text(row.response), action=parsed.action,
            spark=parsed.kind == "explore" and not path.head, score=path.score,
            tag=parsed.kind if parsed.well_formed else "",
        )  # fmt: skip
        if growing.rule.surprise:
            node.surprise = growing.dialogue.surprise(row.response, row.logprobs)
        growing.nodes[path.indices] = node
        if self._splits_here(growing, path, parsed):
            self._after_reasoning(growing, path, node)
        elif parsed.action:
            key = self._key(growing, path.indices)
            self.playing[key] = (growing, path)
            self.environments.submit(key, growing.task, path.past, parsed.action)
        else:
            result = StepResult(NO_ACTION, path.score, False, False, False)
            self._after_step(growing, path, node, result, played=False)

    def _splits_here(self, growing: Growing, path: Path, parsed) -> bool:
        return (
            growing.rule.fork_at == "same_step"
            and not path.head
            and parsed.kind == "explore"
            and not parsed.action
            and len(path.row.response) < self.limits.response_tokens
            and path.row.response[-1] != self.engine.end_of_turn
        )

    def _after_reasoning(self, growing: Growing, path: Path, node: Node) -> None:
        """fork_at = same_step: the reasoning is a node; child 0 goes on with its action."""
        head = tuple(path.row.response)
        self._go_on(growing, path, node, path.row.tokens, path.past, path.step, path.score, head)

    # --- the environment has answered -------------------------------------------------------

    def _on_result(self, key: tuple, result: Start | StepResult) -> None:
        growing, path = self.playing.pop(key)
        if path is None:
            self._plant(growing, result)
        else:
            self._after_step(growing, path, growing.nodes[path.indices], result, played=True)

    def _after_step(self, growing, path: Path, node: Node, result: StepResult, played) -> None:
        node.observation, node.score, node.valid = result.observation, result.score, result.valid
        past = path.past
        if played:
            past = (*past, PastStep(node.action, result.observation))
        rebuilt = growing.dialogue.window.steps > 0
        if rebuilt:
            text, context = growing.dialogue.prompt(growing.start, growing.past(path.indices))
            tokens = context
        else:
            text, context = growing.dialogue.turn(result.observation, path.row.response)
            tokens = path.row.tokens + context
        outcome = self._outcome(growing, path, result, len(tokens))
        if outcome:
            node.done, node.outcome = True, outcome
            node.reward = leaf_reward(growing.rule.reward, outcome, result.score)
            node.requested = node.granted = 0 if node.spark else 1
            self._finish(growing, path)
            return
        if rebuilt:  # the next prompt keeps what it shares with this path
            shared = common_prefix(path.row.tokens, tokens)
            self.engine.keep(path.row.pages, min(shared, len(tokens) - 1))
        node.prompt, node.context_ids = text, context
        self._go_on(growing, path, node, tokens, past, path.step + 1, result.score)

    def _outcome(
        self, growing: Growing, path: Path, result: StepResult, tokens: int
    ) -> Outcome | None:
        if result.success:
            return "success"
        if result.done:
            return "failure"
        patience = growing.rule.patience
        if patience and growing.refusals(path.indices) >= patience:
            return "refused"
        if path.step >= self.limits.max_steps:
            return "step_limit"
        if tokens + self.limits.response_tokens > self.limits.path_tokens:
            return "token_limit"
        return None

    def _finish(self, growing: Growing, path: Path) -> None:
        if path.head and path.indices[-1] == 0:  # same_step: a step that ends its path
            growing.nodes[path.parent].requested = 1  # asks for nothing
            growing.budget.withdraw(path.parent)
            if growing.forks.pop(path.parent, None):
                self._drop_prefix(path.row)
        growing.budget.finish(path.indices)
        del growing.paths[path.indices]
        self.engine.release(path.row.pages)
        self.environments.release(self._key(growing, path.indices))

    def _go_on(
        self, growing, path: Path, node: Node, tokens, past, step: int, score: float, head=()
    ) -> None:
        """Child 0 goes on at once; a fork that was asked for waits for its depth's decision."""
        child = (*path.indices, 0)
        row = self._row(growing, child, tokens, path.row.pages, head)
        rule = growing.rule
        may_fork = bool(head) or rule.fork_at == "next_step"
        names = (path.indices[: i + 1] for i in range(len(path.indices)))
        surprises = tuple(growing.nodes[name].surprise for name in names)
        look = Step(node.spark, surprises, (*growing.identity, path.indices))
        node.requested = rule.branch if may_fork and rule.signal(look) else 1
        if growing.budget.request(path.indices, path.step, node.requested):
            fork = Fork(path.indices, row, list(tokens), past, step, score, head)
            growing.forks[path.indices] = fork
            row.keep_prefix = True
        old = path.indices
        del growing.paths[old]
        follower = Path(child, old, step, row, past, score, head)
        growing.paths[child] = follower
        growing.budget.advance(old, child, step - 1)
        self.environments.rename(self._key(growing, old), self._key(growing, child))
        self.owner[row] = (growing, follower)
        self.engine.add(row)

    # --- forks ------------------------------------------------------------------------------

    def _decide(self, growing: Growing) -> None:
        for grant in growing.budget.decide():
            fork = growing.forks.pop(grant.who)
            growing.nodes[grant.who].granted = grant.granted
            if grant.granted > 1:
                self._grant(growing, fork, range(1, grant.granted))
            else:
                self._drop_prefix(fork.source)

    def _grant(self, growing: Growing, fork: Fork, siblings: Sequence[int]) -> None:
        """`siblings` are new leaves below `fork.parent`."""
        fork.siblings = siblings
        for i in siblings:
            growing.budget.start((*fork.parent, i), fork.step - 1)
        growing.granted.append(fork)

    def _reinvest(self, growing: Growing) -> None:
        """All paths have ended: what is left of the budget goes to where the outcome is open."""
        ended = [(who, node.outcome) for who, node in growing.nodes.items() if node.done]
        places = []
        for who in growing.spare:
            below = [outcome for leaf, outcome in ended if leaf[: len(who)] == who]
            places.append(Place(who, below.count("success"), len(below)))
        left = growing.rule.leaves - growing.budget.current if places else 0
        for who, count in share_out(places, left).items():
            node = growing.nodes[who]
            node.reinvested = count
            first = node.granted
            self._grant(growing, growing.spare.pop(who), range(first, first + count))

    def _start_siblings(self, growing: Growing) -> None:
        """Granted siblings begin once the shared prefix is in the cache. It is kept as long as
        leaves may be left over for it; where the engine has taken its pages meanwhile, they are
        made again from its tokens."""
        for fork in list(growing.granted):
            if fork.source.prefix is None:
                continue
            growing.granted.remove(fork)
            for i in fork.siblings:
                pages = self.engine.fork(fork.source.prefix)
                self._start(
                    growing, (*fork.parent, i), fork.tokens, pages, fork.past, fork.step,
                    fork.score, fork.head,
                )  # fmt: skip
            growing.spare[fork.parent] = fork
        if not growing.rule.reinvest or growing.budget.current >= growing.rule.leaves:
            for fork in growing.spare.values():
                self._drop_prefix(fork.source)
            growing.spare.clear()

    def _drop_prefix(self, row: Row) -> None:
        row.keep_prefix = False
        if row.prefix is not None:
            self.engine.release(row.prefix)
            row.prefix = None
