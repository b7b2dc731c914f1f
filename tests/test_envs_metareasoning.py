"""The four tags on expert paths."""

from spark_jax.envs import toy
from spark_jax.envs.metareasoning import mistaken_step, step_tags, tagged_turns
from spark_jax.envs.response import METAREASONING, parse_response
from spark_jax.envs.trajectory import ExpertStep, Trajectory
from spark_jax.types import Start, Task


def path(variation, actions, explores=()):
    steps = [
        ExpertStep(action, f"seen {i}", "why", explore=i in explores)
        for i, action in enumerate(actions)
    ]
    return Trajectory(Task("toy", "t", variation), Start("goal", "room"), tuple(steps), 100.0)


def test_the_rule_by_hand():
    tags = step_tags(path(1, ["go on"] * 8, explores=(0, 2, 5)))
    m = "monitor"
    assert tags == ["planning", m, "explore", m, m, "explore", m, m]
    assert step_tags(path(1, ["go on"] * 6))[5] == "planning"


def test_a_mistake_and_the_reflection_on_it():
    trajectory = path(4, ["look", "open red", "open blue"], explores=(1,))
    assert mistaken_step(trajectory) == 2  # turn 1 among the steps that are more than a verb
    first = (
        ("<planning>why</planning><action>look</action>", "seen 0"),
        ("<explore>why</explore><action>open red</action>", "seen 1"),
    )
    reflection = "<reflection>blue was not understood; say open blue.</reflection>"
    assert tagged_turns(trajectory, "What?") == (
        *first,
        ("<monitor>why</monitor><action>blue</action>", "What?"),
        (f"{reflection}<action>open blue</action>", "seen 2"),
    )
    last = ("<monitor>why</monitor><action>open blue</action>", "seen 2")
    assert tagged_turns(trajectory, "") == (*first, last)
    in_brackets = path(0, ["click[navy blue]"], explores=())
    assert tagged_turns(in_brackets, "What?")[0][0].endswith("<action>navy blue</action>")


def test_one_dialogue_in_four_has_a_mistake():
    wrong = [mistaken_step(path(i, ["go on", "open red"])) for i in range(12)]
    assert wrong == [0, None, None, None, 1, None, None, None, 0, None, None, None]
    assert mistaken_step(path(0, ["look", "wait"])) is None


def test_the_dialogue_is_what_the_environment_would_say():
    """Played in the toy world, mistakes and all, it brings the same observations and succeeds."""
    tags = set()
    for task in toy.toy_tasks(doors=4, choices=3, corridor=2, count=24):
        env = toy.ToyEnvironment()
        start, steps = env.start(task), []
        for action in toy.solution(task):
            steps.append(ExpertStep(action, env.step(action).observation, "why", action > "h"))
        turns = tagged_turns(Trajectory(task, start, tuple(steps), 100.0), toy.NOT_UNDERSTOOD)
        assert env.start(task) == start
        for response, observation in turns:
            parsed = parse_response(response, METAREASONING)
            assert parsed.well_formed
            tags.add(parsed.kind)
            result = env.step(parsed.action)
            assert result.observation == observation
        assert result.success
    assert tags == set(METAREASONING)
