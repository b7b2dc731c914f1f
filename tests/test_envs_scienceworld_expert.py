"""Expert trajectories: played in the real game, annotated by a pure rule."""

import dataclasses
import json

import pytest

from spark_jax.envs.response import parse_response
from spark_jax.envs.scienceworld import expert
from spark_jax.envs.scienceworld.annotate import annotate
from spark_jax.envs.scienceworld.environment import (
    DEFAULT_HELD_OUT,
    DEFAULT_TRAINED,
    ScienceWorldEnvironment,
    split_tasks,
)
from spark_jax.envs.scienceworld.scenes import read_goal
from spark_jax.envs.tasks import by_type, tasks_of_iteration
from spark_jax.envs.trajectory import ExpertStep, rendered_turns
from spark_jax.types import Task, UserError

PICK = {"lifespan-longest-lived": (0, 17), "find-animal": (34,), "find-non-living-thing": (16,)}
PICK |= {"chemistry-mix": (4, 13), "power-component": (9,), "lifespan-shortest-lived": (0,)}
TASKS = [Task("scienceworld", name, v) for name, vs in PICK.items() for v in vs]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("gold")


@pytest.fixture(scope="module")
def trajectories(cache):
    calls = []
    found = expert.gold_paths(
        [*TASKS, TASKS[0]], 2, cache, on_done=lambda i, n: calls.append((i, n))
    )
    assert calls == [(i + 1, len(TASKS)) for i in range(len(TASKS))]  # the double is played once
    return found


def test_every_trajectory_is_a_replayable_success(trajectories):
    assert [t.task for t in trajectories] == [*TASKS, TASKS[0]]
    env = ScienceWorldEnvironment(style="short")
    try:
        for trajectory in trajectories[:-1]:
            assert trajectory.score == 100 and len(trajectory.steps) <= 30
            short = expert.in_style(trajectory, "short")
            assert env.start(trajectory.task) == short.start
            results = [env.step(step.action) for step in short.steps]
            assert [r.observation for r in results] == [s.observation for s in short.steps]
            assert results[-1].success and not any(r.done for r in results[:-1])
            assert all(r.valid for r in results)
    finally:
        env.close()


def test_paths_are_natural(trajectories):
    for trajectory in trajectories:
        actions = [step.action for step in trajectory.steps]
        assert not [a for a in actions if a.startswith("open door")]
        seen = trajectory.start.observation
        for step in trajectory.steps:
            if step.action.startswith("focus on ") and "chemistry" not in trajectory.task.type:
                assert step.action.removeprefix("focus on ") in seen
            seen += step.observation


def test_the_cache_gives_the_same_without_planning(cache, trajectories, monkeypatch):
    monkeypatch.setattr(ScienceWorldEnvironment, "gold_actions", None)  # planning would fail
    assert expert.gold_paths(TASKS[:2], 1, cache, style="short") == [
        expert.in_style(trajectory, "short") for trajectory in trajectories[:2]
    ]


def test_a_broken_cache_is_planned_anew(tmp_path):
    (tmp_path / "gold_paths_1.2.3_easy.json").write_text('{"find-ani')
    assert len(expert.gold_paths([TASKS[1]], 1, tmp_path)) == 1
    [file] = tmp_path.glob("gold_paths_*.json")
    assert json.loads(file.read_text()).keys() == {f"{TASKS[1].type} {TASKS[1].variation}"}
    assert not list(tmp_path.glob("*.tmp"))


def test_the_cache_is_of_one_game_and_may_be_unwritable(tmp_path, monkeypatch):
    """A full disk is no reason to lose the paths."""
    for simplification in ("easy", "teleportAction,openDoors"):
        assert len(expert.gold_paths([TASKS[1]], 1, tmp_path, None, "full", simplification)) == 1
    names = {path.name.split("_")[-1] for path in tmp_path.iterdir()}
    assert names == {"easy.json", "teleportAction-openDoors.json"}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(expert, "keep", full)
    assert len(expert.gold_paths([TASKS[1]], 1, tmp_path / "new")) == 1


@pytest.mark.parametrize("split", ["L0", "L1", "L2"])
def test_tasks_of_other_splits_are_refused(split):
    task = split_tasks("default", "held_out", split)[0]
    with pytest.raises(UserError, match="train tasks only"):
        expert.gold_paths([TASKS[0], task])


def test_warm_up_tasks_never_hold_held_out_types():
    train = by_type(split_tasks("default", "held_out", "train"))
    assert tuple(train) == DEFAULT_TRAINED
    assert not set(train) & set(DEFAULT_HELD_OUT)
    drawn = {task.type for i in range(5) for task in tasks_of_iteration(train, 60, 0, i)}
    assert drawn == set(DEFAULT_TRAINED)


def test_responses_are_well_formed_and_short(trajectories):
    for trajectory in trajectories:
        turns = rendered_turns(expert.in_style(trajectory, "short"))
        for (response, observation), step in zip(turns, trajectory.steps, strict=True):
            parsed = parse_response(response)
            assert parsed.well_formed and parsed.action == step.action
            assert (parsed.kind == "explore") == step.explore
            assert 3 <= len(step.reasoning.split()) <= 22
            assert not observation.startswith("This room")


def test_explore_stands_at_choices(trajectories):
    for trajectory in trajectories:
        marks = [i for i, step in enumerate(trajectory.steps) if step.explore]
        assert len(trajectory.steps) - 1 not in marks  # no fork can follow the last step
        for i in marks:
            options = trajectory.steps[i].alternatives
            taken = {step.action for step in trajectory.steps[i : i + 2]}
            assert options and not taken & set(options)
        if "lifespan" in trajectory.task.type and len(trajectory.steps) > 1:
            assert trajectory.steps[marks[-1] + 1].action.startswith("focus on ")


def test_annotate_is_pure(trajectories):
    for trajectory in trajectories:
        plain = dataclasses.replace(
            trajectory, steps=tuple(ExpertStep(*step[:2]) for step in trajectory.steps)
        )
        assert annotate(plain) == annotate(annotate(plain)) == trajectory
        short = annotate(expert.in_style(plain, "short"))
        assert short == expert.in_style(trajectory, "short")  # reads both styles alike


def test_reasoning_names_only_what_was_seen(trajectories):
    """Animals are named only after a description that shows them."""
    names = {"wolf", "turtle", "crocodile", "bear", "mouse", "parrot", "ant", "rabbit"}
    for trajectory in trajectories:
        seen = trajectory.start.observation
        for step in trajectory.steps:
            for name in names & set(step.reasoning.replace(",", " ").split()):
                assert name in seen, (name, step)
            seen += " " + step.observation


def test_lifespan_compares_what_is_there(trajectories):
    longest = next(t for t in trajectories if t.task.type == "lifespan-longest-lived")
    look, focus = longest.steps[-2:]
    assert look.explore and look.action == "look around"
    assert focus.reasoning == (
        "Of brown bear, mouse and wolf the brown bear lives longest; focus on it."
    )
    assert set(look.alternatives) == {"focus on baby mouse", "focus on baby wolf"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "Your task is to find a(n) animal. First, focus on the thing. Then, move it to the "
            "red box in the kitchen.",
            ("animal", "", "red box", "kitchen", ""),
        ),
        ("Your task is to turn on the red light bulb. First, focus on the red light bulb.",
         ("red light bulb", "", "", "", "")),
        ("Your task is to boil water. For compounds without a boiling point, combust.",
         ("boil water", "", "", "", "")),
    ],
)  # fmt: skip
def test_read_goal(text, parts):
    assert read_goal(text) == parts
