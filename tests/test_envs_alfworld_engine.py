"""ALFWorld's engine: the official layout, texts against the engine as it comes, speed, replay,
failures. With SPARK_ALFWORLD_GAMES=<packed official games> those are played as well, and
SPARK_ALFWORLD_STOCK=<number> of them are held against the stock engine (default 3)."""

import collections
import functools
import importlib.util
import json
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Pipe

import pytest
from alfworld_game import (
    GAMES,
    WASHED,
    needs_engine,
    needs_games,
    small_game,
    stock,
    unpack,
    write_official,
)

from spark_jax.envs.alfworld import (
    engine,
    environment,
    generate,
    official,
    translations,
    worker,
)
from spark_jax.envs.alfworld.environment import NOTHING, AlfWorldEnvironment
from spark_jax.envs.alfworld.games import HELD_OUT, TASK_TYPES, Game, game_of_file
from spark_jax.envs.pool import EnvPool
from spark_jax.types import PastStep, Task, UserError

SMALL = [small_game(t, shelves=i + 1, name=f"small_{i}") for i, t in enumerate(WASHED)]
TASK = Task("alfworld", SMALL[1].type, 1)


def find_small(task):
    return SMALL[task.variation]


@pytest.fixture(scope="module")
def env():
    made = AlfWorldEnvironment(find_small)
    yield made
    made.close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    official._listed.cache_clear()
    yield tmp_path
    official._listed.cache_clear()


# ---- without the engine: games and their files


def fields(**changes):
    grammar = '"task": [{"rhs": "Your task is to: put a \\"clean\\" mug in desk."}], "x": []'
    return {"grammar": grammar, "pddl_problem": "(define)", "solvable": True} | changes


def test_a_game_is_read_from_the_fields_of_its_file():
    game = game_of_file("a", TASK_TYPES[0], fields(walkthrough=["look", "put mug 1 in/on desk 1"]))
    assert game == Game(
        "a",
        TASK_TYPES[0],
        'put a "clean" mug in desk.',
        "(define)",
        ("look", "move mug 1 to desk 1"),
    )
    assert game_of_file("a", TASK_TYPES[0], fields(walkthrough=None)).walkthrough == ()
    # As files have it whose whole sentence was put in.
    bare = fields(grammar='{"rhs":"Your task is to: look."}')
    assert game_of_file("a", TASK_TYPES[0], bare).goal == "look."


@pytest.mark.parametrize("key", ["grammar", "pddl_problem"])
def test_a_file_without_its_parts_is_no_game(key):
    with pytest.raises(ValueError, match=f"no {key}"):
        game_of_file("a", TASK_TYPES[0], fields(**{key: None}))
    with pytest.raises(ValueError, match="Your task is to"):
        game_of_file("a", TASK_TYPES[0], fields(grammar="{}"))


def write_plain(folder, split, task_type, number=0, **changes):
    trial = folder / "json_2.1.1" / split / f"{task_type}-Mug-None-{number}" / "trial_T1"
    trial.mkdir(parents=True)
    (trial / "traj_data.json").write_text("{}")
    (trial / "game.tw-pddl").write_text(json.dumps(fields(**changes)))
    return trial / "game.tw-pddl"


def test_splits_of_the_official_layout(home):
    counts = {"train": ("train", 2), "L0": ("valid_seen", 1), "L1": ("valid_unseen", 3)}
    for split, count in counts.values():
        for task_type in TASK_TYPES:
            for number in range(count):
                write_plain(home, split, task_type, number)
    for which, split, count in (
        ("train", "train", 2),
        ("L0", "valid_seen", 1),
        ("L1", "valid_unseen", 3),
    ):
        tasks = official.split_tasks("default", "all_types", str(home), which)
        assert [t.type for t in tasks] == [n for n in sorted(TASK_TYPES) for _ in range(count)]
        assert {t.split for t in tasks} == {which} and len(set(tasks)) == len(tasks)
        game = official.find_game(str(home), tasks[-1])
        assert game.name == f"{split}/{tasks[-1].type}-Mug-None-{count - 1}/trial_T1/game.tw-pddl"
        assert game.goal == 'put a "clean" mug in desk.'
    held = functools.partial(official.split_tasks, "default", "held_out", str(home))
    assert {t.type for t in held("L2")} == set(HELD_OUT) and len(held("L2")) == 6
    for which in ("train", "L0", "L1"):
        assert {t.type for t in held(which)} == set(TASK_TYPES) - set(HELD_OUT)
    # L2 is a part of valid_unseen.
    assert official.find_game(str(home), held("L2")[0]).name.startswith("valid_unseen/")
    one = official.split_tasks(TASK_TYPES[2], "all_types", str(home), "train")
    assert {t.type for t in one} == {TASK_TYPES[2]}


def test_the_folder_comes_from_the_variable_of_alfworld(home, monkeypatch):
    write_plain(home / "data", "train", TASK_TYPES[0])
    with pytest.raises(UserError, match=r"no ALFWorld games in .*\.cache/alfworld: run"):
        official.data_folder()
    monkeypatch.setenv("ALFWORLD_DATA", str(home / "data"))
    assert official.data_folder() == home / "data" / "json_2.1.1"
    assert official.data_folder(str(home / "data" / "json_2.1.1")) == home / "data" / "json_2.1.1"
    monkeypatch.delenv("ALFWORLD_DATA")
    write_plain(home / "home" / ".cache" / "alfworld", "train", TASK_TYPES[0])
    assert official.data_folder() == home / "home" / ".cache" / "alfworld" / "json_2.1.1"


def test_games_that_alfworld_leaves_out_are_left_out(home):
    kind = TASK_TYPES[0]
    write_plain(home, "train", kind, 0)
    write_plain(home, "train", kind, 1, solvable=False)
    write_plain(home, "train", kind, 2, solvable=None)
    write_plain(home, "train", kind, "Sliced-3")
    write_plain(home, "train", "pick_and_place_with_movable_recep", 4)
    write_plain(home, "train", kind, 5).with_name("traj_data.json").unlink()
    tasks = official.split_tasks("default", "all_types", str(home), "train")
    assert tasks == [Task("alfworld", kind, 0, split="train")]


def test_only_changed_files_are_read_again(home, monkeypatch):
    paths = [write_plain(home, "train", TASK_TYPES[0], i) for i in range(3)]
    read = []
    real = official._checked_fields
    monkeypatch.setattr(official, "_checked_fields", lambda path: read.append(path) or real(path))

    def count():
        official._listed.cache_clear()  # as another process would see it
        return len(official.split_tasks("default", "all_types", str(home), "train"))

    assert count() == 3 and read == paths
    assert count() == 3 and len(read) == 3
    paths[1].write_text(json.dumps(fields(solvable=False)))
    assert count() == 2 and read[3:] == [paths[1]]
    index = official._index_file(home / "json_2.1.1", "train")
    index.write_text("[broken")
    assert count() == 2 and len(read) == 7


def test_the_file_of_a_game_is_read_once(home, monkeypatch):
    write_plain(home, "train", TASK_TYPES[0])
    task = Task("alfworld", TASK_TYPES[0], 0)
    game = official.find_game(str(home), task)
    monkeypatch.delattr(official, "_checked_fields")
    assert official.find_game(str(home), task) == game


def split_of(folder, tasks, protocol, split):
    return official.split_tasks(tasks, protocol, folder, split)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: split_of(d, "cook", "all_types", "L0"), "no task type 'cook'.*pick_and"),
        (lambda d: split_of(d, "default", "all", "L0"), "env.protocol is 'all'"),
        (lambda d: split_of(d, "default", "all_types", "L3"), "'L3' does not exist"),
        (lambda d: split_of(d, "default", "all_types", "L2"), "There is no L2"),
        (lambda d: split_of(d, HELD_OUT[0], "held_out", "train"), "leaves no task type"),
        (lambda d: split_of(d, "default", "all_types", "L0"), "no games of .*valid_seen"),
        (lambda d: official.find_game(d, Task("alfworld", TASK_TYPES[0], 1)), "no game 1 .*0 to 0"),
        (lambda d: official.find_game(d, Task("alfworld", TASK_TYPES[1], 0)), "none of this type"),
    ],
)  # fmt: skip
def test_bad_names_get_one_sentence(home, call, words):
    write_plain(home, "train", TASK_TYPES[0])
    with pytest.raises(UserError, match=words):
        call(str(home))


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_file_is_named(home, text):
    path = write_plain(home, "train", TASK_TYPES[0])
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path} is no game of ALFWorld .*alfworld-download"):
        official.split_tasks("default", "all_types", str(home), "train")


def test_missing_packages_and_compilers_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(engine.shutil, "which", lambda tool: None if tool == "g++" else tool)
    env = AlfWorldEnvironment(find_small)
    with pytest.raises(UserError) as caught:
        env.start(TASK)
    assert str(caught.value) == (
        "ALFWorld needs textworld and alfworld and its planner: install g++ (the planner is "
        f"compiled), then run `{engine.INSTALL}`."
    )
    monkeypatch.setattr(engine.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "alfworld" or None)
    with pytest.raises(UserError, match="ALFWorld needs alfworld: run `pip install"):
        env.start(TASK)
    env.close()


# ---- the engine


def played(env, task, actions):
    said = [env.start(task).observation]
    return said + [env.step(action).observation for action in actions]


@needs_engine
@pytest.mark.parametrize("number", range(len(SMALL)))
def test_walkthroughs_win(env, number):
    game = SMALL[number]
    start = env.start(Task("alfworld", game.type, number))
    assert start.goal == game.goal
    assert start.observation.startswith("You are in the middle of a room. Looking quickly around")
    assert "task" not in start.observation and "Welcome" not in start.observation
    results = [env.step(action) for action in game.walkthrough]
    assert all(r.valid for r in results)
    assert [(r.done, r.success, r.score) for r in results[:-1]] == [(False, False, 0.0)] * (
        len(results) - 1
    )
    assert results[-1].done and results[-1].success and results[-1].score == 100.0
    with pytest.raises(ValueError, match="after the end"):
        env.step("look")


@needs_engine
def test_actions_that_mean_nothing(env):
    env.start(TASK)
    long = "go to cabinet 1" + " and on" * 100
    for action in ("", "dance", "take mug 1 from cabinet 1", "go to cabinet 9", "{r}", "#intro#",
                   "go to cabinet 1\n\nlook", long, "ä\x00"):  # fmt: skip
        result = env.step(action)
        assert result.observation == NOTHING and not result.valid and not result.done, action
    assert env.step("  LOOK ").valid
    assert env.step("Go to  Cabinet 1").valid


@needs_engine
def test_the_list_of_commands_is_optional(env):
    bare = played(env, TASK, ["go to shelf 1"])
    assert "move mug 1 to shelf 1" not in env.admissible and "look" in env.admissible
    listing = AlfWorldEnvironment(find_small, show_admissible=True)
    try:
        shown = played(listing, TASK, ["go to shelf 1"])
        assert shown[1] == f"{bare[1]}\nAdmissible actions: {', '.join(env.admissible)}"
        assert shown[0].startswith(f"{bare[0]}\nAdmissible actions: ")
        assert not listing.step("dance").valid
    finally:
        listing.close()


def wandering(game, rng):
    """The walkthrough; for half of the games with other actions in between, so that it fails."""
    if rng.random() < 0.5:
        return list(game.walkthrough)
    extra = (
        "look",
        "inventory",
        "help",
        "dance",
        "examine mug 1",
        "open fridge 1",
        "go to shelf 1",
    )
    return [a for action in game.walkthrough for a in (*rng.sample(extra, 1), action)]


def agree_with_stock(env, games, paths, walks, scratch):
    expected = stock(list(zip(paths, walks, strict=True)), scratch)
    for number, (game, actions, said) in enumerate(zip(games, walks, expected, strict=True)):
        start = env.start(Task("alfworld", game.type, number))
        text, won, commands = said[0]
        head = "-= Welcome to TextWorld, ALFRED! =-\n\n"
        assert f"{head}{start.observation}\n\nYour task is to: {game.goal}" == text.strip()
        assert list(env.admissible) == commands
        for action, (text, won, commands) in zip(actions, said[1:], strict=True):
            if env._done:
                break  # the stock engine plays on
            result = env.step(action)
            assert (result.observation, result.done) == (text.strip(), won), (game.name, action)
            assert list(env.admissible) == commands


@needs_engine
def test_texts_are_those_of_the_stock_engine(env, tmp_path):
    rng = random.Random(0)
    paths = [write_official(tmp_path, "train", game, i) for i, game in enumerate(SMALL)]
    agree_with_stock(env, SMALL, paths, [wandering(game, rng) for game in SMALL], tmp_path)


@needs_engine
def test_official_files_are_played(home):
    for number, game in enumerate(SMALL):
        write_official(home, "valid_seen", game, number)
    tasks = official.split_tasks("default", "all_types", str(home), "L0")
    make_env = functools.partial(
        AlfWorldEnvironment, functools.partial(official.find_game, str(home)), False
    )
    make_env = pickle.loads(pickle.dumps(make_env))
    env = make_env()
    try:
        for task in tasks:
            game = official.find_game(str(home), task)
            assert env.start(task).goal == game.goal
            assert [env.step(action) for action in game.walkthrough][-1].success
    finally:
        env.close()


@needs_engine
def test_two_environments_do_not_disturb_each_other(env):
    other = AlfWorldEnvironment(find_small)
    first, second = (Task("alfworld", SMALL[i].type, i) for i in (1, 2))
    alone = [played(env, t, SMALL[t.variation].walkthrough) for t in (first, second)]
    try:
        said = [[env.start(first).observation], [other.start(second).observation]]
        walks = (SMALL[1].walkthrough, SMALL[2].walkthrough)
        for mine, theirs in zip(*walks, strict=True):
            said[0].append(env.step(mine).observation)
            said[1].append(other.step(theirs).observation)
        assert said == alone and alone[0] != alone[1]
    finally:
        other.close()


@needs_engine
def test_the_pool_replays_after_a_death():
    envs = []

    def make_env():
        envs.append(AlfWorldEnvironment(find_small))
        return envs[-1]

    with EnvPool(make_env, 1) as pool:
        past = ()
        for action in SMALL[1].walkthrough[:3]:
            pool.submit("a", TASK, past, action)
            ((_, result),) = pool.collect()
            past += (PastStep(action, result.observation),)
        os.kill(envs[0].pid, 9)
        for action in SMALL[1].walkthrough[3:]:
            pool.submit("a", TASK, past, action)
            ((_, result),) = pool.collect()
            past += (PastStep(action, result.observation),)
        assert result.success
        # The path that follows starts from a replay in an environment that has played another.
        pool.release("a")
        pool.submit("b", TASK, past[:4], SMALL[1].walkthrough[4])
        ((_, result),) = pool.collect()
        assert result.observation == past[4].observation
        assert pool.stats["worker_restarts"] == 1 and pool.stats["replay_mismatches"] == 0
        assert pool.stats["replay_steps"] == 3 + 4


@needs_engine
def test_a_game_that_is_none_is_named(env):
    broken = SMALL[0]._replace(name="odd", problem="(define (problem odd) (:domain alfred)")
    bad = AlfWorldEnvironment(lambda task: broken if task.variation else SMALL[0])
    try:
        with pytest.raises(UserError, match="cannot open the game odd"):
            bad.start(Task("alfworld", broken.type, 1))
        assert bad.start(Task("alfworld", broken.type, 0)).observation  # it lives on
    finally:
        bad.close()
        bad.close()


@needs_engine
def test_an_engine_that_cannot_be_opened_is_told(monkeypatch, tmp_path):
    (tmp_path / "textworld.py").write_text("raise ImportError('built for another numpy')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    env = AlfWorldEnvironment(find_small)
    with pytest.raises(
        UserError, match="cannot be opened .ImportError: built for .*: run `pip inst"
    ):
        env.start(TASK)
    env.close()


@pytest.fixture
def answers(monkeypatch):
    """What `ask` gets from a process whose engine is made by a function of our own."""
    lines = []

    def ask(make_engine):
        monkeypatch.setattr(worker, "Engine", make_engine)
        ours, theirs = Pipe()
        lines.append(ours)
        threading.Thread(target=worker.serve, args=(theirs,), daemon=True).start()
        return worker.ask(worker.Worker(None, ours, None), "step", "look")

    yield ask
    for line in lines:
        line.close()


def raises(error):
    def fail(*_):
        raise error

    return fail


def test_only_a_missing_package_is_a_matter_of_installing(answers):
    with pytest.raises(UserError, match="ImportError: built for .*: run `pip inst"):
        answers(raises(ImportError("built for another numpy")))
    for error in (MemoryError("no room"), OSError(28, "No space left on device"), KeyError("x")):
        with pytest.raises(RuntimeError, match=f"failed .{type(error).__name__}: "):
            answers(raises(error))


class Failing:
    """An engine whose steps fail."""

    def __init__(self, error):
        self.step = raises(error)


def test_a_full_machine_is_no_fault_of_the_game(answers):
    for error in (MemoryError("no room"), OSError(28, "No space left on device")):
        with pytest.raises(RuntimeError, match=f"failed .{type(error).__name__}: "):
            answers(lambda error=error: Failing(error))
    with pytest.raises(worker.Refused, match="KeyError: 'x'"):
        answers(lambda: Failing(KeyError("x")))


def test_the_last_words_of_a_process_are_told(monkeypatch, tmp_path):
    script = tmp_path / "python"
    lines = "for i in 1 2 3 4 5 6; do echo line $i >&2; done; echo 'libdownward: out of it' >&2"
    script.write_text(f"#!/bin/sh\n{lines}\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    dying = worker.start_worker()
    words = r"ended .code 3., after it wrote: line 5 / line 6 / libdownward: out of it$"
    with pytest.raises(RuntimeError, match=words):
        worker.ask(dying, "step", "look")
    worker.stop_worker(dying)


def test_a_process_that_hangs_is_given_up_and_ended(monkeypatch):
    monkeypatch.setattr(worker, "_ANSWER_TIMEOUT_S", 0.2)
    hanging = worker.start_worker()
    os.kill(hanging.process.pid, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="did not answer for 0.2 s"):
        worker.ask(hanging, "step", "look")
    worker.stop_worker(hanging)
    assert hanging.process.returncode == -signal.SIGKILL


@needs_engine
def test_the_pool_replaces_a_process_that_hangs(monkeypatch):
    made = []

    def make_env():
        monkeypatch.setattr(worker, "_ANSWER_TIMEOUT_S", 120.0)  # for the one that follows
        made.append(AlfWorldEnvironment(find_small))
        return made[-1]

    with EnvPool(make_env, 1) as pool:
        pool.submit("a", TASK)
        pool.collect()
        os.kill(made[0].pid, signal.SIGSTOP)
        monkeypatch.setattr(worker, "_ANSWER_TIMEOUT_S", 0.2)
        pool.submit("a", TASK, (), SMALL[1].walkthrough[0])
        ((_, result),) = pool.collect()
        assert result.valid and len(made) == 2 and pool.stats["worker_restarts"] == 1


@needs_engine
def test_the_process_ends_with_its_parent():
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from test_envs_alfworld_engine import *\n"
        "env = AlfWorldEnvironment(find_small); env.start(TASK)\n"
        "print(env.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    root = pathlib.Path(__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    pid = int(out.stdout)
    for _ in range(100):
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    raise AssertionError("the engine lives on")


@needs_engine
def test_the_process_has_no_jax_and_stays_small(env):
    env.start(TASK)
    maps = pathlib.Path(f"/proc/{env.pid}/maps").read_text()
    assert "libdownward" in maps and "jaxlib" not in maps
    status = pathlib.Path(f"/proc/{env.pid}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 250e3


@needs_engine
def test_a_game_is_translated_once_for_all_environments(env, monkeypatch, home):
    asked = []
    ask = environment.ask
    monkeypatch.setattr(environment, "ask", lambda *a: asked.append(a[1]) or ask(*a))
    monkeypatch.setattr(translations, "_kept", collections.OrderedDict())
    monkeypatch.setattr(translations, "_MOST", 1)
    other = AlfWorldEnvironment(find_small)
    try:
        env.start(TASK)
        other.start(TASK)
        assert asked == ["translate", "start", "start"]
        first = env.start(Task("alfworld", SMALL[0].type, 0))
        env.start(TASK)  # no longer in memory, but on disk
        assert asked[3:] == ["translate", "start", "start"] and len(translations._kept) == 1
        for file in translations.folder().iterdir():
            file.write_bytes(file.read_bytes()[:-9])
        assert env.start(Task("alfworld", SMALL[0].type, 0)) == first
        assert asked[6:] == ["translate", "start"]
    finally:
        other.close()


def test_a_translation_that_cannot_be_kept_is_made_again(home, monkeypatch):
    monkeypatch.setattr(translations, "_kept", collections.OrderedDict())
    monkeypatch.setattr(translations, "_made_by", lambda: "")
    translations.folder().parent.mkdir(parents=True)
    translations.folder().write_text("in the way")
    assert translations.translation("problem", lambda text: b"made of " + text.encode()) == (
        b"made of problem"
    )


def used(env):
    """Seconds of processor time of the engine, so that a busy machine does not count."""
    ticks = pathlib.Path(f"/proc/{env.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@needs_engine
def test_what_was_asked_for_once_is_remembered(env):
    played(env, TASK, SMALL[1].walkthrough)
    began = used(env)
    for _ in range(20):
        env.start(TASK)
    started = used(env)
    for _ in range(10):
        played(env, TASK, SMALL[1].walkthrough)
    a_start = (started - began) / 20
    a_step = (used(env) - started - 10 * a_start) / 10 / len(SMALL[1].walkthrough)
    assert a_start < 0.05 and a_step < 0.01


@needs_engine
def test_a_new_game_begins_soon(home, monkeypatch):
    monkeypatch.setattr(translations, "_kept", collections.OrderedDict())
    env = AlfWorldEnvironment(lambda task: generate.games("L0")[task.variation])
    try:
        env.start(Task("alfworld", "", 0))
        began = used(env)
        for number in range(1, 21):
            env.start(Task("alfworld", "", 7 * number))
        assert (used(env) - began) / 20 < 0.04
    finally:
        env.close()


# ---- official games


@needs_games
def test_official_games_are_won_and_read_as_in_the_stock_engine(home):
    stocked = int(os.environ.get("SPARK_ALFWORLD_STOCK", 3))
    # Spread over the files, all splits among them.
    count = max(24, stocked)
    numbers = {round(i * 4026 / count) for i in range(count)}
    found = unpack(GAMES, home, lambda number, path: number in numbers)
    games = [
        official.read_game(path, path.parts[-3].partition("-")[0], str(path)) for path, _ in found
    ]
    env = AlfWorldEnvironment(lambda task: games[task.variation])
    try:
        for number, (game, (_, walkthrough)) in enumerate(zip(games, found, strict=True)):
            env.start(Task("alfworld", game.type, number))
            assert [env.step(action) for action in walkthrough][-1].success, game.name
        rng = random.Random(0)
        chosen = rng.sample(range(len(games)), stocked)
        walks = [wandering(games[i], rng) for i in chosen]
        agree_with_stock(
            env_of := AlfWorldEnvironment(lambda task: games[chosen[task.variation]]),
            [games[i] for i in chosen], [found[i][0] for i in chosen], walks, home,
        )  # fmt: skip
        env_of.close()
    finally:
        env.close()


@needs_games
def test_the_official_splits_have_their_sizes(home):
    unpack(GAMES, home, lambda number, path: "/valid_" in path)
    sizes = {
        which: len(official.split_tasks("default", "all_types", str(home), which))
        for which in ("L0", "L1")
    }
    assert sizes == {"L0": 140, "L1": 134}
    assert len(official.split_tasks("default", "held_out", str(home), "L2")) == 38
