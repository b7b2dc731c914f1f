"""The embedded games in the real engine: the walkthroughs and the searching expert win.

With SPARK_ALFWORLD_GAMES=<alfworld_games.jsonl.xz> the expert plays a sample of the official games
too.
"""

import functools
import importlib.util
import json
import lzma
import os

import pytest

from spark_jax.envs.alfworld import tasks
from spark_jax.envs.alfworld.environment import NOTHING, AlfWorldEnvironment
from spark_jax.envs.alfworld.expert import misjudged, play, play_surely
from spark_jax.envs.alfworld.games import TASK_TYPES, Game
from spark_jax.envs.response import parse_response
from spark_jax.envs.trajectory import rendered_turns, winning_paths
from spark_jax.types import Task

MISSING = [p for p in ("textworld", "alfworld", "fast_downward") if not importlib.util.find_spec(p)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed ('.[alfworld]')")

SAMPLE = {  # one game of each type, and of one type more
    split: tasks.split_tasks("default", "all_types", "", split)[3::step]
    for split, step in (("train", 720), ("L1", 23))
}


@pytest.fixture(scope="module")
def env():
    player = AlfWorldEnvironment(lambda task: tasks.find_game("", task))
    yield player
    player.close()


def explore_density(trajectories, parts=6):
    """Share of explore steps in steps 1-5, 6-10, … of each path (0 where there are no steps)."""
    counts = [[0, 0] for _ in range(parts)]
    for trajectory in trajectories:
        for i, step in enumerate(trajectory.steps):
            if i // 5 < len(counts):
                counts[i // 5][0] += step.explore
                counts[i // 5][1] += 1
    return [explores / steps if steps else 0.0 for explores, steps in counts]


def everything(split):
    assert {task.type for task in SAMPLE[split]} == set(TASK_TYPES)
    return SAMPLE[split]


def wins(environments, wanted, max_steps, on_done=lambda *counts: None):
    """What the expert wins there."""
    play_on = functools.partial(play_surely, max_steps=max_steps)
    return winning_paths(play_on, environments, wanted, max_steps, on_done)


@pytest.mark.parametrize("split", ["train", "L1"])
def test_walkthroughs_win_with_their_last_action(env, split):
    for task in everything(split):
        env.start(task)
        *before, last = tasks.find_game("", task).walkthrough
        for action in before:
            result = env.step(action)
            assert result.valid and not result.done, (task, action)
        assert env.step(last).success, task


@pytest.mark.parametrize("split", ["train", "L1"])
def test_the_expert_wins_by_searching(env, split):
    done = []
    paths = wins([env], everything(split), 20, lambda *counts: done.append(counts))
    assert len(paths) == len(SAMPLE[split]) == len(done)
    shortest = [len(tasks.find_game("", path.task).walkthrough) for path in paths]
    assert all(len(p.steps) >= n for p, n in zip(paths, shortest, strict=True))
    assert sum(len(p.steps) for p in paths) > sum(shortest)  # it does not know where things are
    for path in paths:
        assert "Nothing happens." not in [step.observation for step in path.steps]
        assert not path.steps[-1].explore  # no fork can follow
        for step in path.steps:
            assert step.explore == bool(step.alternatives)
            assert step.action not in step.alternatives
            # The goal, the wanted thing and two places: 133 characters in these games.
            assert len(step.reasoning) < 150 and step.reasoning[0].isupper()
            assert all(a.startswith("go to ") for a in step.alternatives)
    density = explore_density(paths)
    assert 0.1 < density[0] < 0.35 and max(density) < 0.35 and density[5] == 0.0


def test_who_takes_what_is_not_there_is_refused_and_can_go_on(env):
    judged = 0
    for task in everything("train"):
        path = play(env, task)
        steps = [parse_response(response) for response, _ in rendered_turns(path)]
        seen = [step.observation for step in path.steps]
        env.start(task)
        for i, step in enumerate(path.steps):
            if wrong := misjudged(steps, seen, i):
                reasoning, action = wrong
                assert "not here" in step.reasoning and reasoning.endswith(
                    "1: it is here; take it."
                )
                assert env.step(action).observation == NOTHING, action
                judged += 1
                kind = action.split()[1]
                there = [f"{seen[i - 1][:-1]}, and a {kind} 3."] * len(seen)
                assert misjudged(steps, there, i) is None
            else:
                assert "not here" not in step.reasoning
            assert env.step(step.action).observation == step.observation
    assert judged > 3


def test_the_expert_does_the_same_again(env):
    task = SAMPLE["train"][2]
    again = AlfWorldEnvironment(lambda task: tasks.find_game("", task))
    try:
        assert play(env, task) == play(again, task)
    finally:
        again.close()


def test_two_at_once_do_what_one_does(env):
    make_env = lambda: AlfWorldEnvironment(lambda task: tasks.find_game("", task))  # noqa: E731
    wanted, two = SAMPLE["train"][:4], [make_env(), make_env()]
    try:
        assert wins(two, wanted, 20) == wins([env], wanted, 20)
    finally:
        for other in two:
            other.close()


def test_it_stops_at_the_step_limit(env):
    path = play(env, SAMPLE["train"][0], max_steps=2)
    assert len(path.steps) == 2 and path.score == 0.0
    assert wins([env], SAMPLE["train"][:1], 2) == []


def test_lists_of_actions_do_not_confuse_it():
    find_game = lambda task: tasks.find_game("", task)  # noqa: E731
    verbose = AlfWorldEnvironment(find_game, show_admissible=True)
    plain = AlfWorldEnvironment(find_game)
    try:
        task = SAMPLE["L1"][1]
        one, two = play(verbose, task), play(plain, task)
        assert [s.action for s in one.steps] == [s.action for s in two.steps]
        assert one.score == 100.0
    finally:
        verbose.close()
        plain.close()


def test_the_expert_wins_official_games():
    file = os.environ.get("SPARK_ALFWORLD_GAMES", "")
    if not file:
        pytest.skip("needs the official games: set SPARK_ALFWORLD_GAMES to alfworld_games.jsonl.xz")
    with lzma.open(file, "rt") as lines:
        rows = [row for row in map(json.loads, lines) if "/valid_unseen/" in row["path"]][::12]
    chosen = [
        Game(
            row["path"],
            row["path"].split("/")[2].partition("-")[0],
            row["task"].partition("Your task is to: ")[2],
            row["pddl_problem"],
        )
        for row in rows
    ]
    player = AlfWorldEnvironment(lambda task: chosen[task.variation])
    try:
        wanted = [Task("alfworld", game.type, i, split="L1") for i, game in enumerate(chosen)]
        assert len(wins([player], wanted, 50)) >= 0.9 * len(wanted)
    finally:
        player.close()
