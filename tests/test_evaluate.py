"""The evaluation command: any checkpoint, several samples, resumed, compared, leaks counted."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from small_run import OVERRIDES, SETTINGS

from spark_jax.evaluate import main
from spark_jax.export import main as export_command
from spark_jax.models.presets import load_model
from spark_jax.models.transformer import causal_attend, forward, unembed
from spark_jax.run.checkpoint import saved_parameters
from spark_jax.run.command_line import exit_code
from spark_jax.run.config import load_config
from spark_jax.run.costs import evaluated
from spark_jax.run.evalfile import EpisodeResult, own, read_evaluations, split_summary
from spark_jax.run.loop import run
from spark_jax.run.policy import load_policy
from spark_jax.run.seen import leaked, seen_tasks
from spark_jax.run.summary import summary_rows, type_rows
from spark_jax.types import Task

CHANGED = ["rl.iterations=1", "eval.episodes=4", "eval.splits=L1"]
KEYS = tuple(setting.split("=")[0] for setting in CHANGED)
RUN = [setting for setting in SETTINGS if not setting.startswith(KEYS)] + CHANGED


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    run(load_config("configs/toy.py", RUN), workdir)
    return workdir


def episodes(workdir, name):
    lines = (workdir / "evaluations" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_a_checkpoint_is_evaluated_as_the_run_did_it(trained, capsys):
    main([str(trained), "--splits=L1", "--episodes=4", "--name=again"])
    by_name = {e["name"]: e for e in read_evaluations(trained)}
    assert by_name["again"]["splits"]["L1"] == by_name["after RL"]["splits"]["L1"]
    main([str(trained), "--splits=L1", "--episodes=4", "--name=warm", "--checkpoint=reference"])
    by_name = {e["name"]: e for e in read_evaluations(trained)}
    warm, before = by_name["warm"], by_name["after warm-up"]
    assert warm["splits"]["L1"]["results"] == before["splits"]["L1"]["results"]
    out = capsys.readouterr().out
    assert "mean over types" in out and "L1: 0 of 4 episodes play a task of the training" in out


def test_samples_differ_and_a_stopped_evaluation_goes_on(trained, capsys):
    arguments = [str(trained), "--splits=L0", "--episodes=6", "--samples=3", "--temperature=1"]
    main([*arguments, "--name=samples"])
    whole = episodes(trained, "samples")
    assert len(whole) == 18 and {e["sample"] for e in whole} == {0, 1, 2}
    ends = [[e["response_tokens"] for e in whole if e["sample"] == s] for s in range(3)]
    assert ends[0] != ends[1] or ends[1] != ends[2]
    assert "pass@2" in capsys.readouterr().out
    assert len(whole) == len({(e["sample"], str(e["task"])) for e in whole})
    # A killed process leaves whole lines and half of one.
    file = trained / "evaluations" / "samples.jsonl"
    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join(text[:8]) + text[8][:20])
    first = read_evaluations(trained)
    main([*arguments, "--name=samples"])
    assert read_evaluations(trained) == first
    assert sorted(map(str, episodes(trained, "samples"))) == sorted(map(str, whole))
    # Other settings under the same name start over; nothing is thrown away.
    main([*arguments[:-1], "--temperature=0", "--name=samples"])
    assert (trained / "evaluations" / "samples.old0.jsonl").is_file()
    greedy = episodes(trained, "samples")
    keys = ("task", "score", "steps", "response_tokens")
    by_sample = [[{k: e[k] for k in keys} for e in greedy if e["sample"] == s] for s in range(3)]
    assert by_sample[0] == by_sample[1] == by_sample[2]


def test_the_leaves_of_a_tree_vote(trained):
    arguments = [str(trained), "--splits=L0", "--episodes=6", "--temperature=1"]
    main([*arguments, "--name=alone"])
    main([*arguments, "--name=voted", "--fork"])
    alone, voted = episodes(trained, "alone"), episodes(trained, "voted")
    assert [e["task"] for e in alone] == [e["task"] for e in voted]
    # The tokens of all paths are paid for.
    total = [sum(e["response_tokens"] for e in which) for which in (alone, voted)]
    assert total[1] > 1.5 * total[0]


def test_only_what_matters_starts_an_evaluation_over(trained):
    """The shape of trees matters to a vote alone."""
    arguments = [str(trained), "--splits=L0", "--episodes=2", "--config=configs/toy.py", *OVERRIDES]
    for name, options, starts_over in [
        ("plain", [], False),
        ("plain", ["--config.tree.branch=3", "--config.tree.signal=explore"], False),
        ("plain", ["--config.tree.signal=explore", "--config.tree.fork_at=same_step"], True),
        ("forked", ["--fork"], False),
        ("forked", ["--fork", "--config.tree.branch=3"], True),
    ]:
        main([*arguments, f"--name={name}", *options])
        assert (trained / "evaluations" / f"{name}.old0.jsonl").exists() == starts_over


def test_the_training_data_is_known(trained, tmp_path, capsys):
    config = load_config("configs/toy.py", RUN)
    seen = seen_tasks(trained, config, "newest")
    trees = (trained / "trees" / "0.jsonl").read_text()
    played = [Task(**json.loads(line)["task"]) for line in trees.splitlines()]
    unknown = Task("toy", "doors-2x3", 9999)
    assert len(seen) >= 12 and leaked([*played, unknown], seen, config) == len(played) > 0
    other = load_config("configs/toy.py", [*RUN, "env.data_dir=other/data"])
    assert leaked(played, seen, other) is None  # other games, or the same under another name
    warm = seen_tasks(trained, config, "reference")
    assert warm < seen and all(key[2] == "doors-2x3" for key in warm)
    # The split that a task was drawn for does not make it another one.
    assert leaked([Task(**{**vars(played[0]), "split": "L1"})], seen, config) == 1
    main([str(trained), "--splits=L1", "--episodes=2", "--name=unseen"])
    assert "L1: 0 of 2 episodes play a task of the training data" in capsys.readouterr().out
    assert read_evaluations(trained)[-1]["leaked"] == {"L1": 0}

    # An export says what it was trained on; without that nobody knows.
    exported = tmp_path / "exported"
    export_command([str(trained), str(exported)])
    config = load_config("configs/toy.py", [*RUN, f"model.path={exported}"])
    assert seen_tasks(tmp_path / "new", config, "initial") == seen
    assert seen_tasks(tmp_path / "new", config, "newest") is None
    (exported / "training_tasks.json").unlink()
    prompted = ["--config=configs/toy.py", *OVERRIDES, f"--config.model.path={exported}"]
    main([str(tmp_path / "new"), *prompted, "--checkpoint=initial", "--splits=L1", "--episodes=1"])
    assert "trained on these tasks is not known" in capsys.readouterr().out
    assert read_evaluations(tmp_path / "new")[0]["leaked"] == {"L1": None}
    config = load_config("configs/toy.py", [*RUN, "model.preset=smollm2"])
    assert seen_tasks(tmp_path / "new", config, "initial") == set()  # as the hub has it
    config = load_config("configs/toy.py", [*RUN, "model.preset=smollm2", f"model.path={exported}"])
    assert seen_tasks(tmp_path / "new", config, "initial") is None


def test_episodes_of_other_settings_are_not_taken_over(trained, capsys):
    arguments = [str(trained), "--splits=L1", "--episodes=3", "--name=longer"]
    main([*arguments, "--config=configs/toy.py", *OVERRIDES])
    main([*arguments, "--config=configs/toy.py", *OVERRIDES, "--config.env.max_steps=1"])
    assert all(e["steps"] == 1 for e in episodes(trained, "longer"))
    assert "settings than the run's: env.max_steps=1 (trained with 6)" in capsys.readouterr().err


def test_two_runs_are_compared_on_what_both_played(trained, tmp_path, capsys):
    main([str(trained), "--splits=L1", "--episodes=3", "--name=three, of L1"])
    names = ["after warm-up", "three, of L1"]
    main(["--compare", str(trained), str(trained), "--evaluations", *names])
    out = capsys.readouterr().out
    assert "L1, B - A on the 3 tasks that both played" in out
    for title in ("success, points", "score", "steps", "tokens"):
        number = r"[+-]\d+\.\d"
        assert re.search(rf"{title}: {number} \[{number}, {number}\], p = \d\.\d{{3}}", out)


def test_tasks_of_other_data_are_not_paired(trained, tmp_path, capsys):
    """Equal numbers, other games."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(trained / "eval.json", other)
    config = json.loads((trained / "config.json").read_text())
    config["env"]["data_dir"] = "other/games"
    (other / "config.json").write_text(json.dumps(config))
    assert exit_code(main, ["--compare", str(trained), str(other)]) == 2
    assert "cannot be paired" in capsys.readouterr().err
    (other / "config.json").unlink()
    entries = json.loads((trained / "eval.json").read_text())
    for entry in entries["evaluations"]:
        for split in entry["splits"].values():
            for played in split["results"]:
                played["variation"] += 10**6
    (other / "eval.json").write_text(json.dumps(entries))
    assert exit_code(main, ["--compare", str(trained), str(other)]) == 2
    assert "no task in common" in capsys.readouterr().err


def test_an_evaluation_asked_for_is_not_part_of_the_runs_course(trained):
    before = summary_rows(own(read_evaluations(trained)))
    main([str(trained), "--splits=L1", "--episodes=4", "--temperature=1", "--name=later"])
    entries = read_evaluations(trained)
    (later,) = (e for e in entries if e["name"] == "later")
    asked = {"checkpoint": "newest", "fork": False, "samples": 1, "seed": 0}
    assert later["asked"].items() >= asked.items() and later not in own(entries)
    assert [row[-2:] for row in summary_rows(entries) if row[0] == "L1"] == [
        row[-2:] for row in before if row[0] == "L1"
    ]
    assert len(evaluated(trained, "L1")) == 2


def test_a_policy_is_exported_as_a_hub_folder(trained, tmp_path, capsys):
    """The weights come back, and transformers' tokenizer writes the same conversation."""
    export_command([str(trained), str(tmp_path / "out")])
    assert "the model of step" in capsys.readouterr().out
    config = load_config("configs/toy.py", RUN)
    policy = load_policy(config, trained, None)
    params, _ = saved_parameters(trained, policy.params, "newest")
    loaded = load_model("nano", str(tmp_path / "out"))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, loaded.params)
    assert all(jax.tree.leaves(same)) and loaded.config == policy.config
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    codec = policy.codec
    ids = codec.encode_prompt("", "open <action>") + codec.encode_response("<think>a</think>")
    ids += codec.encode_turn("A door.", ended=False)
    messages = [
        {"role": "user", "content": "open <action>"},
        {"role": "assistant", "content": "<think>a</think>"},
        {"role": "user", "content": "A door."},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.eos_token_id == codec.end_of_turn_id
    described = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert described.eos_token_id == codec.end_of_turn_id and described.bos_token_id is None
    assert described.pad_token_id == codec.pad_id
    assert described.max_position_embeddings == policy.config.context
    code = exit_code(export_command, [str(trained), str(tmp_path / "out")])
    assert code == 2 and "is not empty" in capsys.readouterr().err


def test_transformers_gives_the_logits_of_an_exported_policy(trained, tmp_path):
    torch = pytest.importorskip("torch", reason="torch, which transformers computes with, is away")
    export_command([str(trained), str(tmp_path / "out")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    model = load_model("nano", str(tmp_path / "out"))
    ids = model.codec.encode_prompt("", "open the red door")
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    hidden, _ = forward(
        model.params, model.config, jnp.array(ids), jnp.arange(len(ids)), causal_attend(1)
    )
    logits = unembed(model.params, model.config, hidden)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "name a work folder"),
        (["{run}", "--samples=0"], "--samples has to be 1 or more"),
        (["{run}", "--name=../x"], "would be a path"),
        (["{run}", "--temperature=-1"], "--temperature=-1 has to be 0"),
        (["{run}", "--temperature=nan"], "--temperature=nan has to be 0"),
        (["{run}", "--checkpoint=best"], "no checkpoint 'best'"),
        (["{run}", "--splits=L7"], "L7"),
        (["/nowhere/at/all"], "/nowhere/at/all"),
        (["{new}", "--config=configs/toy.py"], "holds no checkpoint"),
        (["{new}", "--config=configs/toy.py", "--checkpoint=initial"], "has no vocabulary"),
        (["--compare", "{run}", "{run}", "--evaluations", "x", "y"], "no evaluation 'x'; it"),
        (["{run}", "--name=after RL"], "of the run itself"),
        (["{run}", "--name=iteration 2"], "of the run itself"),
    ],
)
def test_mistakes_end_in_one_sentence(trained, capsys, arguments, message):
    new = trained.parent / "new"
    places = {"{run}": str(trained), "{new}": str(new)}
    code = exit_code(main, [places.get(a, a) for a in arguments])
    assert not new.exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and message in error


def result(variation, success, kind="a"):
    return EpisodeResult(Task("toy", kind, variation), bool(success), 100.0 * success, 3)


def test_pass_at_k_and_averages_by_hand():
    results = [result(v, s) for v, s in ((0, 1), (1, 0), (0, 0), (1, 0), (0, 1), (1, 0))]
    results += [result(2, 1, "b")] * 3
    summary = split_summary(results)
    assert {k: rate[0] for k, rate in summary["pass_at"].items()} == {
        "2": pytest.approx((1 + 0 + 1) / 3),
        "3": pytest.approx(2 / 3),
    }
    assert summary["pass_at"]["3"][1:] == [0.0, 1.0]
    rows = type_rows({"name": "x", "splits": {"L1": summary}})
    named = {row[1]: row[3] for row in rows}
    assert named["mean over episodes"].startswith("55.6 [0.0, 100.0]")
    assert named["mean over types"].startswith(f"{100 * (2 / 6 + 1) / 2:.1f}")
    # Three samples of a task say less than three tasks: the interval is over tasks.
    assert summary["interval"][0] == 0.0 and summary["interval"][1] == 1.0
    assert summary["macro"][0] == pytest.approx((2 / 6 + 1) / 2)
    once = split_summary([result(0, 1), result(1, 0)])
    assert once["pass_at"] == {}
    # One interval for one number: with one episode a task the table shows Wilson's.
    named = {row[1]: row[3] for row in type_rows({"name": "x", "splits": {"L1": once}})}
    low, high = (100 * x for x in once["interval"])
    assert named["mean over episodes"] == f"50.0 [{low:.1f}, {high:.1f}]"
