"""metrics.jsonl, trees/*.jsonl and eval.json: contracts, crashes, resumed runs."""

import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from spark_jax.main import main
from spark_jax.run import files
from spark_jax.run.alone import alone
from spark_jax.run.command_line import exit_code
from spark_jax.run.evalfile import (
    EpisodeResult,
    add_evaluation,
    eval_metrics,
    read_evaluations,
    split_summary,
)
from spark_jax.run.metrics import MetricsWriter, read_metrics
from spark_jax.run.statistics import wilson
from spark_jax.run.summary import compare, print_summary
from spark_jax.run.treefile import (
    drop_later_trees,
    read_trees,
    tree_iterations,
    tree_path,
    write_trees,
)
from spark_jax.types import Node, Task, Tree, UserError


def test_metrics_are_one_json_object_a_line(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "sft", {"train/loss": jnp.float32(0.5), "n": np.int64(3), "left out": None})
        writer.write(2, "rl", {"rollout/leaves": 8, "ok": True})
        assert writer.lines == 2
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "phase": "sft", "train/loss": 0.5, "n": 3}
    assert lines[1] == '{"step": 2, "phase": "rl", "rollout/leaves": 8, "ok": 1}'
    assert read_metrics(tmp_path) == [json.loads(line) for line in lines]


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), jnp.float32(-jnp.inf)])
def test_a_value_that_is_not_finite_stops_the_run_and_is_not_written(tmp_path, value):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, "rl", {"train/loss": 1.0})
        with pytest.raises(UserError, match=r"train/loss is .* at step 2 .*rl\.learning_rate"):
            writer.write(2, "rl", {"train/kl": 0.1, "train/loss": value})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]


def test_only_numbers_and_known_phases(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        with pytest.raises(TypeError, match="not a number"):
            writer.write(1, "rl", {"x": "text"})
        with pytest.raises(ValueError, match="phase"):
            writer.write(1, "test", {})


def write_steps(path, steps, **options):
    with MetricsWriter(path, **options) as writer:
        for step in steps:
            writer.write(step, "rl", {"x": step})


def test_resume_drops_lines_after_the_checkpoint(tmp_path):
    write_steps(tmp_path, [1, 2, 3, 4, 5])
    write_steps(tmp_path, [4, 5, 6], last_step=3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_resume_by_number_of_lines_tells_lines_of_one_step_apart(tmp_path):
    write_steps(tmp_path, [1, 2, 2, 2])
    write_steps(tmp_path, [2, 3], last_step=2, lines=2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 2, 3]


def test_a_resumed_run_equals_one_that_was_not_killed(tmp_path):
    write_steps(tmp_path / "whole", range(8))
    write_steps(tmp_path / "killed", range(5))
    with open(tmp_path / "killed" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "pha')  # cut short by the kill
    write_steps(tmp_path / "killed", range(4, 8), last_step=3)
    whole, killed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
    assert killed.read_bytes() == whole.read_bytes()


def test_a_line_cut_short_is_dropped_even_without_a_checkpoint(tmp_path):
    write_steps(tmp_path, [1])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')
    assert len(read_metrics(tmp_path)) == 1
    write_steps(tmp_path, [2])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="no metrics.jsonl"):
        read_metrics(tmp_path / "nowhere")


def events(folder):
    """(tag, value, step) of every scalar in TensorBoard's files, purged ones left out."""
    out = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # records: length, checksum, bytes, checksum
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == event_pb2.SessionLog.START:
                out = [row for row in out if row[2] < event.step]
            out += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
    return out


def test_tensorboard_shows_what_the_metrics_hold(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, "sft", {"x": 0.5})
        writer.write(3, "rl", {"x": 1, "y": 2.0})
    assert events(tmp_path / "tensorboard") == [("x", 0.5, 2), ("x", 1.0, 3), ("y", 2.0, 3)]
    with MetricsWriter(tmp_path, last_step=2) as writer:  # resumed: step 3 happens again
        writer.write(3, "rl", {"x": 4.0})
    assert events(tmp_path / "tensorboard") == [("x", 0.5, 2), ("x", 4.0, 3)]


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.json"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


TREE = Tree(
    Task("scienceworld", "find-plant", 3, 7, "L0"),
    leaves=8,
    roots=4,
    branch=2,
    signal="explore",
    nodes=[
        Node(0, -1, 0, context_ids=[1, 2, 3], prompt="system…\u2028goal"),
        Node(
            1, 0, 1, [4, 5], [-0.5, -0.25], [6], "<explore>a</explore><action>look</action>", "<u>",
            "look", "a \x85 room", spark=True, requested=2, granted=2, advantage=0.5,
        ),
        Node(2, 1, 2, [7], [-1.0], [], "r", reward=1.0, done=True, outcome="success", score=100.0,
             requested=0, granted=0),
        Node(3, 1, 2, [8], [-2.0], [], "\udc80", done=True, outcome="step_limit"),
    ],
)  # fmt: skip


def test_tree_file_has_exactly_the_fields_of_the_contract(tmp_path):
    path = write_trees(tmp_path, 12, [TREE, TREE])
    assert path == tmp_path / "trees" / "12.jsonl" == tree_path(tmp_path, 12)
    first, second = read_trees(path)
    assert first == second
    assert list(first) == ["task", "leaves", "roots", "branch", "signal", "nodes"]
    assert first["task"] == {
        "env": "scienceworld", "type": "find-plant", "variation": 3, "seed": 7, "split": "L0",
    }  # fmt: skip
    assert first["nodes"][1] == {
        "id": 1, "parent": 0, "step": 1, "prompt": "<u>",
        "response": "<explore>a</explore><action>look</action>", "action": "look",
        "observation": "a \x85 room", "spark": True, "requested": 2, "granted": 2, "reinvested": 0,
        "prompt_tokens": 1, "response_tokens": 2, "logprob": -0.75, "reward": 0.0, "done": False,
        "outcome": None, "advantage": 0.5,
    }  # fmt: skip
    assert first["nodes"][0]["parent"] == -1 and first["nodes"][0]["prompt_tokens"] == 3
    assert first["nodes"][2]["outcome"] == "success" and first["nodes"][2]["requested"] == 0
    assert first["nodes"][3]["advantage"] is None


def test_tree_files_of_dropped_iterations_go(tmp_path):
    for iteration in (1, 2, 10):
        write_trees(tmp_path, iteration, [TREE])
    assert tree_iterations(tmp_path) == [1, 2, 10]
    drop_later_trees(tmp_path, 2)
    assert tree_iterations(tmp_path) == [1, 2]
    assert tree_iterations(tmp_path / "nowhere") == []


def test_line_separators_inside_texts_do_not_end_a_line(tmp_path):
    path = write_trees(tmp_path, 1, [TREE])
    path.write_text(path.read_text().replace("\\u2028", "\u2028").replace("\\u0085", "\u0085"))
    (tree,) = read_trees(path)
    assert tree["nodes"][0]["prompt"] == "system…\u2028goal"


def test_damaged_tree_files(tmp_path):
    path = write_trees(tmp_path, 1, [TREE])
    path.write_text(path.read_text() + '{"nodes": [{"id": 1, "parent": -1}]}\n')
    with pytest.raises(UserError, match="line 2"):
        read_trees(path)
    with pytest.raises(UserError, match="no tree file"):
        read_trees(tmp_path / "none.jsonl")


def results(*successes):
    return [
        EpisodeResult(Task("toy", "ab"[i % 2], i), bool(s), 100.0 * s, 5)
        for i, s in enumerate(successes)
    ]


def test_evaluation_entries(tmp_path):
    summary = split_summary(results(1, 0, 1, 1))
    assert (summary["episodes"], summary["successes"], summary["success_rate"]) == (4, 3, 0.75)
    assert summary["interval"] == list(wilson(3, 4))[1:]
    assert summary["types"] == {
        "a": {"episodes": 2, "successes": 2},
        "b": {"episodes": 2, "successes": 1},
    }
    assert summary["results"][1].items() >= {
        "type": "b", "variation": 1, "seed": 0, "success": 0, "score": 0.0, "steps": 5,
    }.items()  # fmt: skip
    again = split_summary([r._replace(repeated=i, steps=4) for i, r in enumerate(results(1, 0))])
    assert again["measures"]["repeat_ratio"][0] == 0.125  # of (0/4, 1/4)
    low, high = again["measures"]["score"][1:]
    assert (low, high) == (0.0, 100.0)

    assert read_evaluations(tmp_path) == []
    add_evaluation(tmp_path, "after RL", 9, 0.4, {"L0": results(1, 1)})
    add_evaluation(tmp_path, "after warm-up", 0, 0.4, {"L0": results(0, 0)})
    add_evaluation(tmp_path, "after RL", 9, 0.4, {"L0": results(1, 0)})  # a resumed run: replaced
    entries = read_evaluations(tmp_path)
    assert [e["name"] for e in entries] == ["after warm-up", "after RL"]
    assert entries[1]["splits"]["L0"]["successes"] == 1
    values = eval_metrics(entries[1])
    assert values["eval/L0/success_rate"] == 0.5 and values["eval/L0/steps"] == 5.0
    (tmp_path / "eval.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_evaluations(tmp_path)


def test_closing_table(tmp_path):
    add_evaluation(tmp_path, "after warm-up", 0, 0.4, {"L0": results(*[0] * 10), "L1": results(1)})
    add_evaluation(tmp_path, "after RL", 5, 0.4, {"L0": results(*[1] * 5, *[0] * 5)})
    entries = read_evaluations(tmp_path)
    difference = compare(*entries, "L0")
    assert difference.estimate == 0.5 and difference.p_value == 2 * 0.5**5
    out = io.StringIO()
    print_summary(entries, out)
    row = next(line for line in out.getvalue().splitlines() if "L0" in line)
    for cell in ("0.0 [0.0, 27.8]", "50.0 [23.7, 76.3]", "+50.0 [", "0.062"):
        assert cell in row
    before, after = [line for line in out.getvalue().splitlines() if "L0" in line][1:]
    assert "after warm-up" in before and "0.0 [0.0, 0.0]" in before
    low, high = entries[1]["splits"]["L0"]["measures"]["score"][1:]
    assert "after RL" in after and f"50.0 [{low:.1f}, {high:.1f}]" in after
    print_summary([], out)


def test_comparison_pairs_episodes_by_task_not_by_position():
    played = results(1, 1, 0, 0)
    first, second = ({"splits": {"L0": split_summary(r)}} for r in (played, played[::-1]))
    assert compare(first, second, "L0") == (0.0, 0.0, 0.0, 1.0)
    other = [r._replace(task=Task("toy", "other", 0)) for r in results(1)]
    assert compare(first, {"splits": {"L0": split_summary(other)}}, "L0") is None


def test_one_process_plays_a_run(tmp_path, capsys):
    with alone(tmp_path):
        with pytest.raises(UserError, match="another process plays the run"):
            with alone(tmp_path):
                pass
        arguments = ["--config=configs/toy.py", f"--workdir={tmp_path}"]
        assert exit_code(main, arguments) == 2
        assert "another process plays" in capsys.readouterr().err
    assert not tmp_path.exists()  # nothing was written
    with alone(tmp_path):
        (tmp_path / "config.json").touch()
    with alone(tmp_path):
        pass
    assert (tmp_path / "config.json").exists()
