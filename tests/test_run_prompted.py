"""Episodes of a model behind an endpoint: the rules of trees, the files of checkpoints."""

import json
import re
import sys
import threading
import time

import pytest

pytest.importorskip("urllib3", reason="needs the extra endpoints")

from chat_server import Reply, says, serve  # noqa: E402

from spark_jax.envs.pool import EnvPool  # noqa: E402
from spark_jax.envs.toy import SYSTEM, ToyEnvironment, right_door, solution, toy_tasks  # noqa: E402
from spark_jax.envs.window import Window  # noqa: E402
from spark_jax.evaluate import main  # noqa: E402
from spark_jax.rollout.dialogue import NO_ACTION  # noqa: E402
from spark_jax.run.command_line import exit_code  # noqa: E402
from spark_jax.run.completion import Completion, TooLong  # noqa: E402
from spark_jax.run.config import load_config  # noqa: E402
from spark_jax.run.evalfile import add_evaluation, read_evaluations  # noqa: E402
from spark_jax.run.prompted import play_episode  # noqa: E402
from spark_jax.run.worlds import make_world  # noqa: E402
from spark_jax.threads import in_threads  # noqa: E402
from spark_jax.types import UserError  # noqa: E402

KEY = "sk-secret-0123456789"
TASK = toy_tasks(2, 3, split="L1")[0]
WORLD = make_world(load_config("configs/toy.py", ["env.tasks=doors-2x3", "env.prompt=full"]))
LEFT, RIGHT = solution(TASK)


def respond(action, tag="think"):
    return f"<{tag}>Try it.</{tag}><action>{action}</action>"


def play(*texts, max_steps=6, world=WORLD):
    """An episode in which the model says these texts, and the messages that it saw each time."""
    seen, left = [], list(texts)

    def complete(messages):
        seen.append(list(messages))
        text = left.pop(0)
        if isinstance(text, Exception):
            raise text
        return Completion(text, 10 * len(seen), len(seen))

    with EnvPool(ToyEnvironment, 1) as environment:
        return play_episode(TASK, world, environment, complete, max_steps), seen


def test_the_whole_dialogue_is_in_every_request():
    result, seen = play(respond(LEFT, "explore"), respond(RIGHT))
    assert (result.success, result.score, result.steps, result.explored) == (True, 100.0, 2, 1)
    assert (result.prompt_tokens, result.response_tokens) == (30, 3)
    assert [m["role"] for m in seen[1]] == ["system", "user", "assistant", "user"]
    system, user, assistant, observation = (m["content"] for m in seen[1])
    assert system == SYSTEM and "pass 2 doors" in user and "room. Doors:" in user
    assert assistant == respond(LEFT, "explore") and "room. Doors:" in observation
    assert seen[1][:2] == seen[0]


def test_what_follows_the_first_action_is_dropped():
    more = respond(LEFT) + "\nNext I see a door.\n" + respond(RIGHT)
    result, seen = play(more, respond(RIGHT))
    assert result.success and seen[1][-2]["content"] == respond(LEFT)


def test_a_response_without_an_action_is_a_step():
    result, seen = play("I think I should leave.", "", respond(LEFT), respond("nonsense"),
                        max_steps=4)  # fmt: skip
    assert (result.success, result.steps, result.invalid, result.repeated) == (False, 4, 3, 1)
    assert seen[1][-1]["content"] == NO_ACTION
    assert seen[2][-2]["content"]  # an empty text is refused by some servers
    assert [len(messages) for messages in seen] == [2, 4, 6, 8]
    assert result.score == 50.0 and not result.loose
    assert play(respond(LEFT), "I am lost.", max_steps=2)[0].score == 50.0


def test_with_a_history_the_request_is_made_anew_each_time():
    world = WORLD._replace(window=Window(1, "full"))
    result, seen = play("I am lost.", respond("nonsense"), respond(LEFT), world=world, max_steps=3)
    assert result.steps == 3 and result.score == 50.0
    assert [[m["role"] for m in messages] for messages in seen] == [["system", "user"]] * 3
    first, second, third = (messages[1]["content"] for messages in seen)
    assert second == f"{first}\n\nAction 1: (none)\nObservation 1: {NO_ACTION}"
    assert third == (
        f"{first}\n\n(Step 1 is left out.)\nObservation 1: {NO_ACTION}\n\n"
        "Action 2: nonsense\nObservation 2: Nothing happens."
    )


def test_a_dead_end():
    wrong = next(f"open {c}" for c in ("red", "blue", "green") if f"open {c}" != LEFT)
    result, _ = play(respond(wrong))
    assert (result.success, result.steps, result.invalid) == (False, 1, 0)


def test_a_dialogue_longer_than_the_context_ends_its_episode():
    result, _ = play(respond(LEFT), TooLong("(4096)"))
    assert (result.success, result.steps, result.score) == (False, 1, 50.0)
    with pytest.raises(UserError, match="prompt of doors-2x3 does not fit"):
        play(TooLong("(4096)"))


def test_an_environment_is_free_again_after_an_error():
    with EnvPool(ToyEnvironment, 1) as environment:
        answers = iter([ValueError("no"), respond(LEFT), respond(RIGHT)])

        def complete(_):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return Completion(answer, 0, 0)

        with pytest.raises(ValueError):
            play_episode(TASK, WORLD, environment, complete, 6)
        assert play_episode(TASK, WORLD, environment, complete, 6).success


def test_threads_use_one_tool_each_and_keep_what_ends_after_an_error():
    busy, most, lock, gate = 0, 0, threading.Lock(), threading.Barrier(3, timeout=10)
    got = []

    def work(tool, job):
        nonlocal busy, most
        with lock:
            assert tool not in in_use
            in_use.add(tool)
            busy += 1
            most = max(most, busy)
        if job < 3:
            gate.wait()  # the first three run at the same time
            if job != 1:
                assert failing.wait(10)
                time.sleep(0.1)  # they end after the failure is known
        else:
            time.sleep(0.01)
        with lock:
            in_use.remove(tool)
            busy -= 1
        if job == 1:
            failing.set()
            raise UserError("job 1 failed.")
        return job * job

    in_use, failing = set(), threading.Event()
    with pytest.raises(UserError, match="job 1"):
        in_threads(work, range(200), "abc", lambda job, r: got.append((job, r)), threading.Event())
    assert most == 3 and {(0, 0), (2, 4)} <= set(got) and len(got) < 199


def test_an_interrupted_caller_tells_the_threads():
    stop, started, told = threading.Event(), threading.Event(), []

    def work(tool, job):
        if job == 0:
            assert started.wait(10)
            return 0
        started.set()
        told.append(stop.wait(3))
        raise UserError("stopped")

    def interrupted(job, result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(3), "ab", interrupted, stop)
    assert told and all(told)  # job 2 may have begun too


# --- the command ------------------------------------------------------------------------------


def winner(asked):
    """Plays every toy task right, from what it sees in the last message."""
    text = asked.body["messages"][-1]["content"]
    room, doors = re.search(r"The (\w+) room. Doors: (.*)\.", text).groups()
    return says(respond(f"open {right_door(room, len(doors.split(', ')))}"), 100, 20)


def arguments(url, workdir, *more):
    return [
        str(workdir), "--config=configs/toy.py", "--config.env.tasks=doors-2x3",
        f"--endpoint={url}", "--model=lab/some-model", "--key_env=SPARK_TEST_KEY",
        "--splits=L1,L2", "--episodes=5", *more,
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("SPARK_TEST_KEY", KEY)


def test_the_command_writes_what_an_evaluation_of_a_checkpoint_writes(tmp_path, capfd):
    with serve(winner) as (url, asked):
        main(arguments(url, tmp_path, "--prompt_price=2", "--response_price=10"))
        (entry,) = read_evaluations(tmp_path)
        name = "lab-some-model x1 T0.4 L1,L2 5 tasks"
        assert entry["name"] == name and entry["step"] == 0
        for split in ("L1", "L2"):
            assert entry["splits"][split]["successes"] == 5
            assert entry["splits"][split]["measures"]["score"][0] == 100
        assert len(asked) == 20  # 10 episodes of two steps
        spent = entry["endpoint"]
        assert (spent["prompt_tokens"], spent["response_tokens"]) == (2000, 400)
        assert spent["cost"] == pytest.approx((2000 * 2 + 400 * 10) / 1e6)
        assert (spent["url"], spent["model"]) == (url, "lab/some-model")
        assert asked[0].body["messages"][0] == {"role": "system", "content": SYSTEM}
        assert asked[0].body["temperature"] == 0.4
        main(arguments(url, tmp_path, "--config.env.workers=2"))  # nothing is paid twice
        assert len(asked) == 20
        main(arguments(url, tmp_path, f"--name={name}", "--samples=2"))
        assert len(asked) == 40  # only the second samples are new
        main(arguments(url, tmp_path, f"--name={name}", "--temperature=0.5"))
        assert len(asked) == 60  # other settings: other episodes
    out, err = capfd.readouterr()
    assert "2,000 tokens read, 400 written: 0.0080 at the prices given" in out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"eval.json", f"{name}.jsonl"}
    for text in [out, err, *(path.read_text() for path in files)]:
        assert text and KEY not in text


def test_an_endpoint_and_a_checkpoint_are_compared(tmp_path, capsys):
    with serve(winner) as (url, _):
        main(arguments(url, tmp_path / "b", "--name=same"))
    with serve(lambda _: says(respond("open red"))) as (url, _):
        main(arguments(url, tmp_path / "c", "--name=red"))
    (entry,) = read_evaluations(tmp_path / "b")
    played = [(r["type"], r["variation"]) for r in entry["splits"]["L1"]["results"]]
    config = load_config("configs/toy.py", ["env.tasks=doors-2x3"])
    world = make_world(config)
    from spark_jax.envs.tasks import panel
    from spark_jax.run.evalfile import EpisodeResult

    tasks = panel(world.splits["L1"], 5, 0)  # the panel of checkpoints
    assert played == [(t.type, t.variation) for t in tasks]
    add_evaluation(
        tmp_path / "a", "same", 3, 0.4, {"L1": [EpisodeResult(t, False, 0.0, 1) for t in tasks]}
    )
    capsys.readouterr()
    main(["--compare", str(tmp_path / "a"), str(tmp_path / "b")])
    out = capsys.readouterr().out
    assert "L1, B - A on the 5 tasks" in out and "success, points: +100.0" in out
    main(["--compare", str(tmp_path / "c"), str(tmp_path / "b"), "--evaluations", "red", "same"])
    assert "L2, B - A on the" in capsys.readouterr().out


def test_a_dead_endpoint_loses_nothing(tmp_path, capsys):
    answered = []

    def dies(asked):
        answered.append(asked)
        return winner(asked) if len(answered) <= 7 else Reply({}, 500)

    with serve(dies) as (url, _):
        with pytest.raises(UserError, match="failed 1 times.*it answers 500"):
            main(arguments(url, tmp_path, "--tries=1", "--concurrency=2"))
    (file,) = (tmp_path / "evaluations").iterdir()
    kept = len(file.read_text().splitlines()) - 1
    assert 1 <= kept <= 3 and not read_evaluations(tmp_path)
    with serve(winner) as (url, asked):
        # the same server as far as anybody can tell: addresses are part of what was asked for
        head, *rows = file.read_text().splitlines()
        moved = json.loads(head)
        moved["endpoint"]["url"] = url
        file.write_text("\n".join([json.dumps(moved), *rows]) + "\n")
        main(arguments(url, tmp_path))
        assert len(asked) == 20 - 2 * kept
    assert read_evaluations(tmp_path)[0]["splits"]["L1"]["successes"] == 5


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--model="], "belong together"),
        (["--body=[1]"], "no JSON object"),
        (["--tries=0"], "--tries is 0"),
        (["--timeout=0"], "--timeout is 0"),
        (["--per_minute=-1"], "--per_minute is -1"),
        (["--checkpoint=initial"], "leave them out"),
        (["--seed=1"], "leave them out"),
        (["--splits=L7"], "names 'L7'"),
        (["--key_env=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["--endpoint=host"], "no address"),
        (["--name=../x"], "would be a path"),
        (["--samples=0"], "--samples"),
        (["--modle=x"], "--model"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, capsys, more, sentence):
    code = exit_code(main, arguments("http://127.0.0.1:9/v1", tmp_path / "new", *more))
    err = capsys.readouterr().err
    assert code == 2 and sentence in err and err.count("\n") == 1 and KEY not in err
    assert not (tmp_path / "new").exists()


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "spark_jax.run.endpoint", None)
    assert exit_code(main, arguments("http://127.0.0.1:9/v1", tmp_path / "new")) == 2
    assert "pip install -e '.[endpoints]'" in capsys.readouterr().err
