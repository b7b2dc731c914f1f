"""`algo.name=react`: the model as it is, on the panels of a run, and nothing else."""

import json

import pytest
from small_run import SETTINGS

from spark_jax.main import main
from spark_jax.models.presets import load_model, save_model
from spark_jax.run.command_line import exit_code
from spark_jax.run.config import load_config
from spark_jax.run.evalfile import read_evaluations
from spark_jax.run.warmup import expert_examples, texts
from spark_jax.run.worlds import make_world
from spark_jax.types import UserError

OWN = ("sft.", "rl.", "checkpoint.", "tree.", "eval.splits")
REACT = [
    f"--config.{setting}"
    for setting in [*SETTINGS, "eval.splits=L1", "env.prompt=short", "algo.name=react"]
    if setting == "eval.splits=L1" or not setting.startswith(OWN)
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("react") / "weights"
    world = make_world(load_config("configs/toy.py", SETTINGS))
    # The vocabulary of other tests' runs, so that programs are shared with them.
    dialogues = expert_examples(world, 12, 0, 1, None, lambda *_: None)
    save_model(load_model("nano", texts=texts(dialogues)), folder)
    return folder


def test_the_model_is_evaluated_and_nothing_is_trained(weights, tmp_path, capsys):
    workdir = tmp_path / "run"
    command = ["--config=configs/toy.py", f"--workdir={workdir}", *REACT]
    command.append(f"--config.model.path={weights}")
    main(command)
    (entry,) = read_evaluations(workdir)
    assert entry["name"] == "prompted" and entry["step"] == 0
    assert entry["splits"]["L1"]["episodes"] == 6
    (line,) = (workdir / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert (values["step"], values["phase"]) == (0, "eval")
    assert values["eval/L1/success_rate"] == entry["splits"]["L1"]["success_rate"]
    assert "L1" in capsys.readouterr().out
    there = {path.name for path in workdir.iterdir()}
    assert there <= {
        "config.json",
        "eval.json",
        "evaluations",
        "metrics.jsonl",
        "tensorboard",
        ".lock",
    }

    file = workdir / "evaluations" / "prompted.jsonl"  # stopped in the middle, it goes on
    whole = file.read_text()
    cut = whole.splitlines()
    file.write_text("\n".join(cut[:4]) + "\n" + cut[4][:20])
    main(command)
    assert file.read_text().splitlines()[:4] == cut[:4]
    assert len(file.read_text().splitlines()) == len(cut)
    assert read_evaluations(workdir) == [entry]


def test_prompts_are_full_and_training_is_off_unless_the_user_insists():
    config = load_config("configs/scienceworld.py:smollm2", ["algo.name=react"])
    assert (config.sft.trajectories, config.rl.iterations, config.env.prompt) == (0, 0, "full")
    config = load_config("configs/toy.py", ["algo.name=react", "model.path=x"])
    assert config.env.prompt == "full"
    overrides = ["algo.name=react", "model.path=x", "env.prompt=short"]
    assert load_config("configs/toy.py", overrides).env.prompt == "short"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "config.model.preset=tiny has no weights of its own; choose smollm2"),
        (["model.preset=smollm2", "sft.trajectories=3"], "config.sft.trajectories is 3"),
        (["model.preset=smollm2", "rl.iterations=3"], "config.rl.iterations is 3"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config("configs/scienceworld.py", ["algo.name=react", *overrides])


def test_a_folder_with_a_vocabulary_alone_has_nothing_to_prompt(tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text("{}")
    command = ["--config=configs/toy.py", f"--workdir={tmp_path / 'run'}", *REACT]
    assert exit_code(main, [*command, f"--config.model.path={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "no weights to prompt" in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()
