"""A model behind an endpoint annotates expert paths: asked well, held to the form, never lost."""

import json
import re

import pytest

pytest.importorskip("urllib3", reason="needs the extra endpoints")

from chat_server import Reply, says, serve  # noqa: E402

from spark_jax.annotate import main  # noqa: E402
from spark_jax.envs.response import parse_response  # noqa: E402
from spark_jax.envs.tasks import distinct_tasks  # noqa: E402
from spark_jax.envs.toy import rooms, solution, toy_tasks  # noqa: E402
from spark_jax.run.command_line import exit_code  # noqa: E402
from spark_jax.run.completion import Completion, TooLong  # noqa: E402
from spark_jax.run.config import load_config  # noqa: E402
from spark_jax.run.examples import warm_up_examples  # noqa: E402
from spark_jax.run.teacher import SYSTEM, annotate_path, question, read_thought  # noqa: E402
from spark_jax.run.warmup import expert_examples, given_examples, load_examples  # noqa: E402
from spark_jax.run.worlds import make_world  # noqa: E402
from spark_jax.types import UserError  # noqa: E402

TOY = ["env.tasks=doors-3x3"]
WORLD = make_world(load_config("configs/toy.py", TOY))
TASK = next(task for task in toy_tasks(3, 3) if len(set(rooms(task))) == 3)
(PATH,) = WORLD.experts([TASK], 1, None, lambda *_: None)
KEY = "sk-secret-0123456789"


@pytest.mark.parametrize(
    ("text", "thought"),
    [
        ("<think>Go on.</think>", ("Go on.", False)),
        ("\n <explore>Red or\n blue; try red</explore>\n", ("Red or blue; try red", True)),
        ("<think>It costs 3.50 here</think>", ("It costs 3.50 here", False)),
        (f"<think>{'a ' * 30}</think>", (" ".join("a" * 30), False)),
    ],
)
def test_a_good_thought(text, thought):
    assert read_thought(text) == thought


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "exactly one"),
        ("Go on.", "exactly one"),
        ("<think>Go on.", "exactly one"),
        ("<think>Go on.</explore>", "exactly one"),
        ("<think>a</think><explore>b</explore>", "exactly one"),
        ("<think>a</think><think>b</think>", "exactly one"),
        ("<think><explore>a</explore></think>", "exactly one"),
        ("Sure! <think>Go on.</think>", "exactly one"),
        ("<think>a</think><action>open red</action>", "exactly one"),
        ("<think> \n</think>", "empty"),
        (f"<think>{'a ' * 31}</think>", "longer than"),
        (f"<think>{'a' * 300}</think>", "longer than"),
        ("<think>First this. Then that.</think>", "more than one sentence"),
        ("<think>Why? Because.</think>", "more than one sentence"),
    ],
)
def test_a_bad_thought(text, fault):
    with pytest.raises(ValueError, match=fault):
        read_thought(text)


def test_the_question_shows_the_past_and_the_action_and_not_what_comes():
    system, user = question(PATH, PATH.steps[:1], "pass 3 doors")
    assert system == {"role": "system", "content": SYSTEM}
    text = user["content"]
    assert text.startswith("pass 3 doors\n")
    assert f"Action: {PATH.steps[0].action}\n{PATH.steps[0].observation}\n" in text
    assert text.endswith(f"next action: {PATH.steps[1].action}")
    assert PATH.steps[1].observation not in text and "You are out" not in text


def annotate(*answers, tries=3):
    seen, left = [], list(answers)

    def complete(messages):
        seen.append(list(messages))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer, 100, 10)

    done = annotate_path(PATH, WORLD, complete, tries)
    assert not left
    assert [s.action for s in done.path.steps] == [s.action for s in PATH.steps]
    assert [s.observation for s in done.path.steps] == [s.observation for s in PATH.steps]
    return done, seen


def test_the_teachers_thoughts_take_the_place_of_ours():
    done, seen = annotate("<think>One.</think>", "<explore>Two.</explore>", "<think>3.</think>")
    thoughts = [(s.reasoning, s.explore) for s in done.path.steps]
    assert thoughts == [("One.", False), ("Two.", True), ("3.", False)]
    assert (done.fallbacks, done.requests) == (0, 3)
    assert (done.prompt_tokens, done.response_tokens) == (300, 30)
    assert "Thought: One." in seen[1][1]["content"]


def test_a_bad_answer_is_asked_for_again_and_then_ours_stays():
    good = "<think>Fine.</think>"
    done, seen = annotate("bad", good, "bad", "<think>", "", good)
    assert [s.reasoning for s in done.path.steps] == ["Fine.", PATH.steps[1].reasoning, "Fine."]
    assert [s.explore for s in done.path.steps] == [False, True, False]
    assert (done.fallbacks, done.requests, done.prompt_tokens) == (1, 6, 600)
    assert [m["role"] for m in seen[1]] == ["system", "user", "assistant", "user"]
    assert "exactly one" in seen[1][-1]["content"] and seen[4][-2]["content"] == "<think>"
    assert len(seen[5]) == 2  # the next step begins anew


def test_no_fork_can_follow_the_last_step():
    done, _ = annotate(*["<explore>Which?</explore>"] * 3)
    assert [s.explore for s in done.path.steps] == [True, True, False]


def test_a_path_longer_than_the_context_keeps_our_thoughts():
    done, _ = annotate("<think>A.</think>", TooLong(""), TooLong(""))
    assert (done.fallbacks, done.requests) == (2, 3)


# --- the command ------------------------------------------------------------------------------


def teacher(asked):
    """Explores at red doors, and has nothing to say about green ones."""
    action = asked.body["messages"][1]["content"].rsplit(": ", 1)[1]
    if action == "open green":
        return says("green", 50, 5)
    tag = "explore" if action == "open red" else "think"
    return says(f"<{tag}>Let me {action}.</{tag}>", 50, 5)


def arguments(url, out, *more):
    return [
        "--config=configs/toy.py", "--config.env.tasks=doors-3x3", f"--endpoint={url}",
        "--model=m", "--key_env=SPARK_TEST_KEY", f"--out={out}", *more,
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("SPARK_TEST_KEY", KEY)


def test_dialogues_are_those_of_the_warm_up_with_other_thoughts(tmp_path, capfd):
    out = tmp_path / "dialogues.jsonl"
    with serve(teacher) as (url, asked):
        main(arguments(url, out, "--paths=20", "--response_price=1000"))
        paid = len(asked)
        text = out.read_text()
        main(arguments(url, out, "--paths=20"))  # nothing is paid twice
        assert len(asked) == paid and out.read_text() == text
        main(arguments(url, out, "--paths=22"))  # only new paths are
        assert paid < len(asked) <= paid + 2 * 3 * 3
    ours = expert_examples(WORLD, 20, 0, 1, None, lambda *_: None)
    theirs = load_examples(out)[:20]
    kept = explores = 0
    for mine, yours in zip(ours, theirs, strict=True):
        assert (mine.task, mine.system, mine.user) == (yours.task, yours.system, yours.user)
        for i, ((a, seen), (b, also)) in enumerate(zip(mine.turns, yours.turns, strict=True)):
            action = parse_response(a).action
            told = parse_response(b)
            assert seen == also and told.action == action and told.well_formed
            if action == "open green":
                assert a == b
                kept += 1
            else:
                assert told.reasoning == f"Let me {action}."
                assert (told.kind == "explore") == (action == "open red" and i < 2)
            explores += told.kind == "explore"
    assert kept and paid == 60 + 2 * kept
    said, err = capfd.readouterr()
    assert f"20 paths, 60 steps, {explores} of them explore; {kept} kept our own thought" in said
    assert f"{50 * paid:,} tokens read, {5 * paid:,} written: {5 * paid / 1000:.4f}" in said
    for text in [said, err, *(p.read_text() for p in tmp_path.iterdir())]:
        assert text and KEY not in text


def test_an_endpoint_that_dies_loses_no_path_and_leaves_no_file(tmp_path):
    out, count = tmp_path / "dialogues.jsonl", []

    def dies(asked):
        count.append(1)
        return Reply({}, 500) if len(count) > 13 else says("<think>A.</think>")

    with serve(dies) as (url, _):
        with pytest.raises(UserError, match="it answers 500"):
            main(arguments(url, out, "--paths=9", "--tries=1", "--concurrency=1"))
    journal = tmp_path / "dialogues.jsonl.journal"
    head, *rows = journal.read_text().splitlines()
    assert len(rows) == 4 and not out.exists()
    with serve(teacher) as (url, asked):
        moved = json.loads(head)
        moved["endpoint"]["url"] = url  # as if the same server had come back
        journal.write_text("\n".join([json.dumps(moved), *rows]) + "\n")
        main(arguments(url, out, "--paths=9"))
    tasks = distinct_tasks(WORLD.train, 9, 0)
    assert [e.task for e in load_examples(out)] == tasks
    asked_for = {re.search(r"The \w+ room", a.body["messages"][1]["content"])[0] for a in asked}
    assert asked_for and len(asked) >= 5 * 3


def test_a_run_learns_from_the_file(tmp_path):
    out, workdir = tmp_path / "dialogues.jsonl", tmp_path / "run"
    with serve(lambda _: says("<think>The teacher said so.</think>")) as (url, _):
        main(arguments(url, out, "--paths=14", "--config.env.tasks=doors-2x3"))
    overrides = ["env.tasks=doors-2x3", "sft.trajectories=12", f"sft.dialogues={out}"]
    config = load_config("configs/toy.py", overrides)
    examples = warm_up_examples(config, workdir, make_world(config))
    learned = (workdir / "warmup.jsonl").read_text().splitlines()
    assert learned == out.read_text().splitlines()[:12]  # sft.trajectories of them
    assert all("The teacher said so." in line for line in learned)
    out.unlink()  # from here on the work folder has its own
    assert warm_up_examples(config, workdir, make_world(config)) == examples
    assert examples == load_examples(workdir / "warmup.jsonl") and len(examples) == 12


def example_row(**changes):
    row = {
        "task": vars(TASK),
        "system": "",
        "user": "pass",
        "turns": [["<think>a</think><action>open red</action>", "x"]],
    }
    return json.dumps(row | changes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read"),
        ("{", "holds no dialogues"),
        ("[]", "holds no dialogues"),
        ('{"task": {}}', "holds no dialogues"),
        (example_row(turns=[["one"]]), "holds no dialogues"),
        (example_row(task=vars(toy_tasks(3, 3, split="L1")[0])), "no train task of this run"),
        (example_row(task=vars(toy_tasks(2, 3)[0])), "line 1 .*no train task of this run"),
        (example_row(system="Be good."), "another system prompt"),
    ],
)
def test_a_file_that_does_not_fit_the_run_is_refused(tmp_path, content, sentence):
    file = tmp_path / "dialogues.jsonl"
    if content is not None:
        file.write_text(content + "\n")
    with pytest.raises(UserError, match=sentence):
        given_examples(file, WORLD, 5)
    file.write_text(example_row() + "\n" + example_row() + "\n")
    assert len(given_examples(file, WORLD, 5)) == 2 and len(given_examples(file, WORLD, 1)) == 1


def test_two_sources_of_a_warm_up_are_one_too_many():
    with pytest.raises(UserError, match="leave one out"):
        load_config("configs/toy.py", ["sft.dialogues=a", "sft.from_run=b"])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--out="], "--out=dialogues.jsonl"),
        (["--paths=-1"], "--paths"),
        (["--answers=0"], "--answers"),
        (["--endpoint="], "belong together"),
        (["--key_env=NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, capsys, more, sentence):
    out = tmp_path / "new" / "dialogues.jsonl"
    assert exit_code(main, arguments("http://127.0.0.1:9/v1", out, *more)) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not out.parent.exists()


def test_the_folder_of_a_run_is_no_file_to_write(tmp_path, capsys):
    assert exit_code(main, arguments("http://127.0.0.1:9/v1", tmp_path)) == 2
    assert "is a folder" in capsys.readouterr().err


def test_the_scripted_answers_are_those_of_experts():
    assert [s.action for s in PATH.steps] == solution(TASK)
