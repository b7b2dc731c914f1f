"""Config: presets, overrides, and one clear sentence for every mistake."""

import ast
import json
import pathlib
import re

import pytest
from ml_collections import ConfigDict

from spark_jax.run.command_line import Parser, exit_code, parse
from spark_jax.run.config import load_config, read_config, start_or_resume
from spark_jax.run.defaults import base_config, flatten
from spark_jax.run.rules import CHOICES
from spark_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[1]
SCIENCEWORLD = str(ROOT / "configs" / "scienceworld.py")


def sentence(*overrides: str, source: str = SCIENCEWORLD) -> str:
    """The one sentence that a wrong config ends in."""
    with pytest.raises(UserError) as error:
        load_config(source, overrides)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_default_is_the_tiny_preset_with_the_papers_tree():
    config = load_config(SCIENCEWORLD)
    assert config.model.preset == "tiny"
    assert (config.tree.leaves, config.tree.roots, config.tree.branch) == (8, 4, 2)
    assert config == load_config(SCIENCEWORLD + ":tiny")
    assert config.is_locked


def test_number_of_keys():
    assert len(flatten(base_config())) <= 91


def test_every_key_has_a_comment():
    text = (ROOT / "spark_jax" / "run" / "defaults.py").read_text(encoding="utf-8")
    body = text[text.index("def base_config") : text.index("return config")]
    for key in flatten(base_config()):
        assert re.search(rf"config\.{re.escape(key)} = .+  # \S", body), key


@pytest.mark.parametrize("preset", CHOICES["model.preset"])
def test_every_preset_is_valid(preset):
    config = load_config(f"{SCIENCEWORLD}:{preset}")
    assert config.model.preset == preset


def test_qwen_presets_are_the_papers():
    config = load_config(SCIENCEWORLD + ":qwen7b")
    assert (config.rl.iterations, config.rl.tasks_per_iteration) == (120, 16)
    assert (config.rl.learning_rate, config.rl.kl_coef, config.rl.clip) == (1e-6, 0.01, 0.2)
    assert (config.env.max_steps, config.rollout.response_tokens) == (30, 512)
    assert (config.sft.trajectories, config.sft.learning_rate, config.sft.epochs) == (300, 1e-5, 3)
    assert (config.eval.temperature, config.eval.episodes) == (0.4, 128)
    assert config.env.tasks == "paper"
    for other in ("alfworld", "webshop"):
        assert load_config(f"{ROOT}/configs/{other}.py:qwen7b").env.tasks == "default"


def test_overrides_of_every_kind():
    config = load_config(
        SCIENCEWORLD,
        [
            "tree.leaves=16",
            "rl.learning_rate=1e-5",
            "rl.recompute_old=true",
            "env.tasks=find-plant,find-animal",
            "eval.splits=L0,L2",
            "rl.iterations=1e2",
            "rl.kl_coef=0",
        ],
    )
    assert config.tree.leaves == 16
    assert config.rl.learning_rate == 1e-5
    assert config.rl.recompute_old is True
    assert config.env.tasks == "find-plant,find-animal"
    assert config.eval.splits == ("L0", "L2")
    assert config.rl.iterations == 100 and isinstance(config.rl.iterations, int)
    assert config.rl.kl_coef == 0.0
    # The rest is as it was, and nothing of one call leaks into the next.
    plain = flatten(load_config(SCIENCEWORLD))
    assert {key for key, value in flatten(config).items() if value != plain[key]} == {
        "tree.leaves", "rl.learning_rate", "rl.recompute_old", "env.tasks", "eval.splits",
        "rl.iterations", "rl.kl_coef",
    }  # fmt: skip
    assert plain["tree.leaves"] == 8 and plain["rl.kl_coef"] == 0.05


@pytest.mark.parametrize(
    "text", ["L0", "L0,", "('L0',)", '["L0"]', " L0 "], ids=["name", "comma", "tuple", "list", "sp"]
)
def test_lists_of_names_may_be_written_in_any_way(text):
    assert load_config(SCIENCEWORLD, [f"eval.splits={text}"]).eval.splits == ("L0",)


def test_the_last_of_two_overrides_wins():
    assert load_config(SCIENCEWORLD, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("tre.leafs=3", "tree.leaves"),
        ("tree.leave=3", "tree.leaves"),
        ("leaves=3", "tree.leaves"),
        ("rl.clipp=0.1", "rl.clip"),
        ("sft.clip=0.1", "rl.clip"),
        ("rl.lr=0.1", "rl"),
        ("sede=1", "seed"),
    ],
)
def test_unknown_key_names_the_nearest(override, nearest):
    text = sentence(override)
    assert override.split("=")[0] in text
    assert f"config.{nearest}" in text


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["tree.leaves=many"], "a whole number"),
        (["tree.leaves=2.5"], "a whole number"),
        (["rl.clip=x"], "a number"),
        (["rl.recompute_old=maybe"], "True or False"),
        (["tree=3"], "tree.leaves"),
        (["tree.leaves"], "--config.tree.leaves=VALUE"),
        (["tree.roots=9"], "more roots than leaves"),
        (["tree.branch=0"], "1 or more"),
        (["env.history=-1"], "0 or more"),
        (["tree.signal=explor"], "did you mean explore?"),
        (["tree.fork_at=last_step"], "same_step"),
        (["algo.name=ppo"], "spark, grpo"),
        (["algo.advantage=gae"], "leaf_group"),
        (["env.protocol=all"], "held_out"),
        (["env.success=lose"], "did you mean loose?"),
        (["env.protocol=all_types"], "L2"),
        (["env.simplification=easy,openDoors"], "easy, or some of teleportAction"),
        (["eval.splits=L0,L3"], "L3"),
        (["eval.splits=L0,L0"], "twice"),
        (["rl.learning_rate=0"], "more than 0"),
        (["rl.learning_rate=-1e-3"], "more than 0"),
        (["rl.learning_rate=nan"], "finite"),
        (["rl.clip=1.5"], "between 0 and 1"),
        (["rl.temperature=0"], "more than 0"),
        (["rl.dual_clip=1.1"], "rl.dual_clip"),
        (["rl.minibatches=99"], "whole trees"),
        (["rollout.response_tokens=5000"], "rollout.path_tokens"),
        (["rollout.path_tokens=3000"], "train.row_tokens"),
        (["rl.sampled_tokens=9", "rl.iterations=0"], "rl.iterations"),
        (["rl.sampled_tokens=-9"], "0 or more"),
        (["train.row_targets=4096"], "train.row_tokens"),
        (["rollout.response_tokens=100"], "train.row_targets"),
        (["rollout.pages=40"], "rollout.pages"),
        (["rollout.backend=pallas", "rollout.page_slots=24"], "rollout.page_slots is 24"),
        (["sft.slips=15"], "between 0 and 1"),
        (["sft.dialogues=paths.jsonl", "sft.trajectories=0"], "sft.trajectories"),
        (["env.tasks="], "env.tasks"),
        (["sft.min_learning_rate=1"], "sft.learning_rate"),
        (["algo.name=grpo", "tree.signal=explore"], "never"),
        (["algo.name=grpo", "tree.roots=4"], "tree.roots"),
        (["algo.name=grpo", "tree.reinvest=True"], "tree.reinvest"),
        (["algo.name=gigpo", "tree.adapt=True"], "tree.adapt"),
        (["algo.name=gigpo", "algo.similarity=0"], "more than 0 and at most 1"),
        (["algo.name=grpo", "algo.similarity=0.9"], "algo.advantage=gigpo"),
        (["tree.signal=entropy", "tree.fork_at=same_step"], "next_step"),
        (["tree.signal=always", "tree.fork_at=same_step"], "next_step"),
        (["tree.signal=random", "tree.fork_at=same_step"], "next_step"),
        (["tree.signal_rise=-1"], "0 or more"),
        (["algo.advantage=rlvmr"], "tags"),
        (["algo.name=eto", "algo.advantage=no_std"], "pairs"),
        (["algo.name=eto", "rl.rename=0.5"], "rl.rename"),
        (["algo.name=eto", "sft.trajectories=0"], "train_on=all"),
        (["algo.name=rlvmr", "tree.fork_at=same_step"], "next_step"),
        (["algo.name=rlvmr", "tree.signal=explore"], "never"),
    ],
)
def test_wrong_values_get_one_sentence(overrides, part):
    assert part in sentence(*overrides)


def test_separate_episode_algorithms_need_no_more_than_their_name():
    config = load_config(SCIENCEWORLD, ["algo.name=grpo", "tree.leaves=16"])
    assert (config.tree.signal, config.tree.roots) == ("never", 16)
    gigpo = load_config(SCIENCEWORLD, ["algo.name=gigpo"])
    assert gigpo.algo.advantage == "gigpo" and gigpo.tree.roots == gigpo.tree.leaves
    assert config.algo.advantage == "leaf_group"
    eto = load_config(SCIENCEWORLD, ["algo.name=eto"])
    assert (eto.rl.train_on, eto.rl.rename, eto.tree.signal) == ("seen", 0.0, "never")
    assert (config.algo.invalid_penalty, eto.algo.invalid_penalty) == (0.5, 0.0)
    rlvmr = load_config(SCIENCEWORLD, ["algo.name=rlvmr"])
    assert rlvmr.algo.advantage == "rlvmr" and rlvmr.tree.roots == rlvmr.tree.leaves
    same = load_config(SCIENCEWORLD, ["algo.name=grpo", "tree.signal=never", "tree.roots=8"])
    assert (same.tree.signal, same.tree.roots) == ("never", 8)


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("def get_config(preset=''):\n    return {'a': 1}\n", "ConfigDict"),
        ("def get_config(preset=''):\n    return 1 / 0\n", "at line 2"),
        ("def get_config(preset='')\n", "at line 1"),
        ("x = 1\n", "get_config"),
        ("{base}    config.tree.leafs = 3\n    return config\n", "config.tree.leaves"),
        ("{base}    config.tree.leaves = 'x'\n    return config\n", "fails with TypeError"),
        ("{base}    del config.tree.leaves\n    return config\n", "lacks config.tree.leaves"),
    ],
    ids=["dict", "division", "syntax", "missing", "unknown key", "type", "lacking key"],
)
def test_mistakes_in_a_config_file(tmp_path, body, part):
    base = (
        "from spark_jax.run.defaults import base_config\n"
        "def get_config(preset=''):\n    config = base_config()\n"
    )
    path = tmp_path / "mine.py"
    path.write_text(body.replace("{base}", base))
    assert part in sentence(source=str(path))


def test_missing_file_and_preset():
    assert "nowhere.py" in sentence(source="nowhere.py")
    assert "qwen1.5b" in sentence(source=SCIENCEWORLD + ":qwen3b")


def test_resume_checks_the_config(tmp_path):
    constant = "rl.decay_to=1"
    config = load_config(SCIENCEWORLD, [constant])
    assert start_or_resume(tmp_path, config) is False
    assert start_or_resume(tmp_path, config) is True
    assert flatten(read_config(tmp_path)) == flatten(config)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)

    longer = load_config(
        SCIENCEWORLD, [constant, "rl.iterations=50", "eval.splits=L0", "env.workers=1"]
    )
    assert start_or_resume(tmp_path, longer) is True
    assert json.loads((tmp_path / "config.json").read_text())["rl"]["iterations"] == 50

    assert start_or_resume(tmp_path, load_config(SCIENCEWORLD, [constant, "rl.sampled_tokens=9"]))
    start_or_resume(tmp_path, longer)

    falling = load_config(SCIENCEWORLD, ["rl.decay_to=0"])
    start_or_resume(tmp_path / "falling", falling)
    (tmp_path / "falling" / "eval.json").touch()
    with pytest.raises(UserError, match=r"config\.rl\.iterations"):  # every rate would differ
        start_or_resume(
            tmp_path / "falling", load_config(SCIENCEWORLD, ["rl.decay_to=0", "rl.iterations=50"])
        )

    with pytest.raises(UserError, match=r"config\.tree\.leaves = 8, not 16"):
        start_or_resume(
            tmp_path, load_config(SCIENCEWORLD, [constant, "tree.leaves=16", "tree.roots=2"])
        )
    assert flatten(read_config(tmp_path)) == flatten(
        longer
    )  # a refused config leaves the folder as it was


def test_settings_may_be_corrected_before_anything_is_learned(tmp_path):
    start_or_resume(tmp_path, load_config(SCIENCEWORLD))
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-1").mkdir(parents=True)
    (tmp_path / "warmup.jsonl").write_text("of the old settings")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("of the old settings")
    assert start_or_resume(tmp_path, load_config(SCIENCEWORLD)) is True
    assert (tmp_path / "warmup.jsonl").exists() and (tmp_path / "tokenizer").exists()

    other = load_config(SCIENCEWORLD, ["sft.trajectories=40"])
    assert start_or_resume(tmp_path, other) is False
    assert flatten(read_config(tmp_path)) == flatten(other)
    assert not (tmp_path / "warmup.jsonl").exists() and not (tmp_path / "tokenizer").exists()


def test_resume_notices_keys_that_came_or_went(tmp_path):
    config = base_config()
    start_or_resume(tmp_path, config)
    (tmp_path / "checkpoints" / "reference").mkdir(parents=True)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["rl"]["clip"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"no key config\.rl\.clip"):
        start_or_resume(tmp_path, config)


def test_damaged_and_missing_work_folders(tmp_path):
    with pytest.raises(UserError, match="not the work folder"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        start_or_resume(tmp_path / "file", base_config())


def command(argv):
    parser = Parser(prog="command")
    parser.add_argument("--workdir", default="runs/x")
    options, config = parse(parser, argv)
    print(options.workdir, None if config is None else config.tree.leaves)


def test_command_line(capsys):
    assert exit_code(command, ["--workdir=w"]) == 0
    argv = ["--config.tree.leaves=16", "--config", SCIENCEWORLD, "--config.seed", "3"]
    assert exit_code(command, argv) == 0
    assert capsys.readouterr().out == "w None\nruns/x 16\n"


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--workdr=w"], "--workdir"),
        (["--config.tree.leaves=3"], "--config="),
        (["--config", SCIENCEWORLD, "--config.tree.leafs=3"], "config.tree.leaves"),
        (["--config", SCIENCEWORLD, "--config.tree.leaves"], "VALUE"),
        (["--workdir"], "expected one argument"),
    ],
)
def test_mistakes_on_the_command_line_exit_with_2(capsys, argv, part):
    assert exit_code(command, argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and part in err


def keys_read(source: str) -> set[str]:
    """Keys that a file reads: `config.a.b`, `this.config.a.b`, or `a.b` after `a = config.a`."""
    tree = ast.parse(source)
    aliases = {"config": ""}
    for _ in range(2):  # an alias may be made from an alias
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                targets, values = [node.targets[0]], [node.value]
                if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                    targets, values = node.targets[0].elts, node.value.elts
                for target, value in zip(targets, values, strict=False):
                    name = dotted(value, aliases)
                    if isinstance(target, ast.Name) and name is not None:
                        aliases[target.id] = name
    return {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (name := dotted(node, aliases))
    }


def dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """`rl.clip` for the expression `config.rl.clip`; None if it does not start at a config."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    if node.attr == "config":  # this.config
        return ""
    base = dotted(node.value, aliases)
    return None if base is None else f"{base}.{node.attr}".lstrip(".")


def test_every_key_is_read_by_the_code():
    """No dead keys: each one is read somewhere outside its own definition and checks."""
    here = [ROOT / "spark_jax" / "run" / name for name in ("defaults.py", "rules.py", "config.py")]
    read = set()
    for path in (ROOT / "spark_jax").rglob("*.py"):
        if path not in here:
            read |= keys_read(path.read_text(encoding="utf-8"))
    dead = [key for key in flatten(base_config()) if key not in read]
    assert dead == []


def test_keys_read_sees_aliases_and_nothing_else():
    source = (
        "def f(this):\n    config, rl = this.config, this.config.rl\n    rl.clip; config.seed\n"
    )
    assert keys_read(source) >= {"rl.clip", "seed"}
    assert keys_read("other.rl.clip; rl.clip") == set()


def test_choices_are_what_the_code_knows():
    from spark_jax.learn.advantage import ADVANTAGES, LEAF_WEIGHTS
    from spark_jax.rollout.signals import make_signal

    for name in CHOICES["tree.signal"]:
        assert callable(make_signal(name, 0.5))
    assert CHOICES["algo.advantage"] == tuple(ADVANTAGES)
    assert CHOICES["algo.leaf_weight"] == tuple(LEAF_WEIGHTS)


def test_flatten_turns_lists_into_tuples():
    assert flatten(ConfigDict({"b": {"x": [1, 2]}, "a": 3})) == {"b.x": (1, 2), "a": 3}
