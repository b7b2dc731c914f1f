"""The comparison of methods: what each run gets, who plays it, and what the tables say."""

import json
import pathlib
import subprocess
import sys

import pytest
from small_run import SETTINGS

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from benchmarks import evidence
from benchmarks.evidence import Plan, Run
from benchmarks.evidence_report import ended, report
from spark_jax.run import loop
from spark_jax.run.command_line import exit_code
from spark_jax.run.config import load_config, read_config, start_or_resume
from spark_jax.run.costs import rows_after_warmup, spent
from spark_jax.run.evalfile import EpisodeResult, add_evaluation
from spark_jax.types import Task, UserError

ROOT = pathlib.Path(__file__).parents[1]
TOY = str(ROOT / "configs" / "toy.py")
PLAN = Plan(TOY, (), "", 0, 0)
COUNTS = {
    "rollout/groups": 4, "rollout/informative_groups": 1, "rollout/leaves": 24,
    "rollout/forks": 8, "rollout/splitting_forks": 3, "rollout/explore_forks": 6,
    "rollout/explore_splitting_forks": 3, "rollout/responses": 50, "rollout/explore_rate": 0.2,
    "rollout/env_steps": 40, "rollout/replay_steps": 10, "rollout/path_success_rate": 0.25,
    "train/kl": 0.5, "time/rollout_s": 6.0, "time/update_s": 2.0,
}  # fmt: skip


def finish(runs, run, before, after, tokens=(600, 600), **counts):
    """A work folder as a run leaves it; `before` and `after`: the episodes that succeed, of 10."""
    folder = evidence.folder(runs, run)
    settings = [f"seed={run.seed}"]
    warm = run.method in evidence.WARMUPS
    if warm:
        settings += [*evidence.WARMUPS[run.method], "rl.iterations=0"]
    if run.method == "sft":
        settings += ["algo.name=sft", "sft.extra_seconds=9"]
    start_or_resume(folder, load_config(TOY, settings))
    rows = [{"step": 1, "phase": "sft", "train/packed_tokens": 900, "time/update_s": 3.0}]
    rows = rows if warm else []
    rows.append({"step": 2, "phase": "eval"})
    for i, count in enumerate(tokens if not warm else ()):
        row = {"step": 3 + i, "phase": "rl", "rollout/response_tokens": count} | COUNTS | counts
        if run.method == "sft":
            row = {"step": 3 + i, "phase": "sft", "time/update_s": 4.0}
        rows.append(row)
    if warm:
        rows[0]["train/loss"] = 0.125
        (folder / "warmup.jsonl").write_text("{}\n" * 5)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    names = [("after warm-up", 2, before)]
    if not warm:
        names.append(("after more SFT" if run.method == "sft" else "after RL", 9, after))
    for name, step, good in names:
        episodes = [EpisodeResult(Task("toy", "a", i), i in good, 0.0, 1) for i in range(10)]
        add_evaluation(folder, name, step, 0.4, {"L1": episodes})


def settings(runs, run, plan=PLAN):
    items = evidence.overrides(runs, plan, run)
    out = dict(item.split("=", 1) for item in items)
    assert len(out) == len(items), "a key stands there twice"
    return out


def test_every_method_starts_from_the_warm_up_of_its_seed_with_the_same_budget(tmp_path):
    finish(tmp_path, Run("spark", 0), {1}, {1}, tokens=(700, 600))
    finish(tmp_path, Run("spark", 1), {1}, {1}, tokens=(1, 1), **{"rollout/explore_rate": 0.1})
    for method in evidence.METHODS | evidence.MORE_METHODS:
        got = settings(tmp_path, Run(method, 1))
        warm = "warmup-rlvmr" if method == "rlvmr" else "warmup"
        assert got.pop("sft.from_run") == str(tmp_path / warm / "seed1")
        assert got.pop("seed") == "1" and got.pop("eval.episodes") == "0"
        assert got.pop("rl.sampled_tokens", "0") == ("0" if method == "sft" else "1300")
        config = load_config(TOY, evidence.overrides(tmp_path, PLAN, Run(method, 1)))
        assert config.algo.name == got.pop("algo.name", "spark")
        own = {item.split("=")[0] for item in (evidence.METHODS | evidence.MORE_METHODS)[method]}
        assert set(got) <= own, "nothing else differs"
    assert settings(tmp_path, Run("random", 1))["tree.signal_rate"] == "0.1000"
    assert settings(tmp_path, Run("random", 0))["tree.signal_rate"] == "0.2000"
    assert settings(tmp_path, Run("sft", 0))["sft.extra_seconds"] == "16.0"
    assert "rl.sampled_tokens" not in settings(tmp_path, Run("spark", 0)), "it sets the budget"
    given = PLAN._replace(tokens=77)
    assert settings(tmp_path, Run("spark", 0), given)["rl.sampled_tokens"] == "77"


def test_the_explore_rate_weighs_iterations_by_their_steps(tmp_path):
    finish(tmp_path, Run("spark", 0), {1}, {1})
    path = tmp_path / "spark" / "seed0" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1] |= {"rollout/explore_rate": 0.5, "rollout/responses": 100}
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert evidence.explore_rate(path.parent) == pytest.approx((0.2 * 50 + 0.5 * 100) / 150)


def test_overrides_hold_for_all_and_separate_episodes_get_all_leaves(tmp_path):
    plan = PLAN._replace(overrides=("eval.episodes=8", "tree.leaves=6", "tree.roots=3"), tokens=5)
    for method, roots in (("spark", 3), ("grpo", 6), ("eto", 6)):
        config = load_config(TOY, evidence.overrides(tmp_path, plan, Run(method, 2)))
        assert (config.tree.leaves, config.tree.roots, config.eval.episodes) == (6, roots, 8)


def test_given_warm_ups_are_started_from(tmp_path):
    plan = PLAN._replace(warmup="old/s{seed}")
    assert settings(tmp_path, Run("warmup", 2), plan)["sft.from_run"] == "old/s2"
    assert settings(tmp_path, Run("warmup", 2), plan)["rl.iterations"] == "0"
    assert "sft.from_run" not in settings(tmp_path, Run("warmup-rlvmr", 2), plan)
    assert settings(tmp_path, Run("warmup-rlvmr", 2), plan)["algo.name"] == "rlvmr"


def test_what_a_run_needs_comes_before_it():
    order = evidence.in_order(PLAN, [1], ["random", "rlvmr"])
    assert [str(run) for run in order] == [
        "warmup seed 1", "warmup seed 0", "spark seed 0", "spark seed 1", "random seed 1",
        "warmup-rlvmr seed 1", "rlvmr seed 1",
    ]  # fmt: skip
    alone = evidence.in_order(PLAN._replace(tokens=9), [1], ["grpo"])
    assert alone == [Run("warmup", 1), Run("grpo", 1)]
    full = evidence.in_order(PLAN, evidence.SEEDS, list(evidence.METHODS))
    assert len(full) == 3 * (8 + 2) == len(set(full))
    for i, run in enumerate(full):
        assert set(evidence.needs(PLAN, run)) <= set(full[:i])


@pytest.fixture
def played(monkeypatch):
    """Runs end at once; the list of them, and a set of those that fail."""
    names, bad = [], set()

    def play(runs, plan, run, lock):
        names.append(run)
        if run not in bad:
            finish(runs, run, {1}, {1, 2})

    monkeypatch.setattr(evidence, "play", play)
    return names, bad


def test_a_second_call_plays_what_is_missing(tmp_path, played):
    names, bad = played
    todo = evidence.in_order(PLAN, [0], ["grpo", "random"])
    bad.add(Run("spark", 0))
    failed = evidence.play_all(tmp_path, PLAN, todo)
    assert names == todo[:2], "what needs the run that failed is not started"
    assert failed == [Run("spark", 0), Run("grpo", 0), Run("random", 0)]
    bad.clear()
    assert evidence.play_all(tmp_path, PLAN, todo) == []
    assert names[2:] == todo[1:]


def test_a_run_that_another_process_plays_is_left_to_it(tmp_path, played, capsys):
    names, _ = played
    todo = evidence.in_order(PLAN, [0], ["grpo"])
    with evidence.take(tmp_path / "grpo" / "seed0.lock"):
        assert evidence.play_all(tmp_path, PLAN, todo) == []
    assert names == todo[:-1] and "already running elsewhere: grpo" in capsys.readouterr().out


def test_it_waits_for_what_another_process_plays_where_it_needs_that(tmp_path, played, monkeypatch):
    names, _ = played
    todo = evidence.in_order(PLAN, [0], ["spark", "grpo", "rlvmr"])
    finish(tmp_path, Run("warmup", 0), {1}, {1})
    lock = evidence.take(tmp_path / "spark" / "seed0.lock")
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:  # the other one is done
            finish(tmp_path, Run("spark", 0), {1}, {1})
            lock.close()

    monkeypatch.setattr(evidence.time, "sleep", sleep)
    assert evidence.play_all(tmp_path, PLAN, todo) == []
    assert len(waited) == 3
    assert names == [Run("warmup-rlvmr", 0), Run("grpo", 0), Run("rlvmr", 0)]


def test_a_lock_is_held_by_the_process_that_writes_even_without_its_parent(tmp_path):
    lock = evidence.take(tmp_path / "a.lock")
    assert evidence.take(tmp_path / "a.lock") is None
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),)
    )
    lock.close()  # as when the parent is killed
    assert evidence.take(tmp_path / "a.lock") is None
    child.communicate(b"\n")
    with evidence.take(tmp_path / "a.lock") as again:
        assert again


def test_the_process_of_a_run_is_handed_its_lock_and_its_settings(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        evidence.subprocess, "run", lambda *words, **more: seen.append((words, more))
    )
    with evidence.take(tmp_path / "a.lock") as lock:
        evidence.play(tmp_path, PLAN, Run("warmup", 3), lock)
        ((words,), more) = seen[0]
        assert more == {"pass_fds": (lock.fileno(),)}
    assert f"--config={TOY}" in words and f"--workdir={tmp_path / 'warmup' / 'seed3'}" in words
    assert "--config.seed=3" in words and "--config.rl.iterations=0" in words


def test_a_folder_keeps_its_settings(tmp_path):
    plan = evidence.settle_plan(tmp_path, Plan(TOY, ("tree.leaves=4",), "", 0, 1))
    assert evidence.settle_plan(tmp_path, Plan("", (), "", 0, 2)) == plan, "and its first seed"
    assert evidence.settle_plan(tmp_path, plan) == plan
    for other in (
        plan._replace(overrides=("tree.leaves=5",)),
        plan._replace(config="configs/webshop.py"),
        plan._replace(tokens=5),
        plan._replace(warmup="x"),
    ):
        with pytest.raises(UserError, match="were started with"):
            evidence.settle_plan(tmp_path, other)
    with pytest.raises(UserError, match="tree.leaves"):
        evidence.settle_plan(tmp_path / "new", PLAN._replace(overrides=("tree.leafs=4",)))
    assert not (tmp_path / "new" / "plan.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.tree.signal=never"], "config.tree.signal differs between"),
        (["--config.seed=3"], "config.seed differs between"),
        (["--config.tree.leaves", "4"], "one word"),
        (["--seeds=a"], "--seeds is 'a'"),
        (["--methods=spark,ppo"], "no method 'ppo'"),
        (["--tokens=-1"], "--tokens is -1"),
        (["--table"], "nothing to collect"),
        (["--quick"], "--quick"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, tmp_path, capsys):
    assert exit_code(evidence.main, [f"--runs={tmp_path}/r", *arguments]) == 2
    assert message in capsys.readouterr().err


# --- tables -------------------------------------------------------------------------------------


def cells(text, title):
    """First cell -> the other cells of the table under `title`."""
    table = text[text.index(title) :].split("\n\n")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {row[0]: row[1:] for row in rows}


def folders_of(runs, *named):
    return {run: evidence.folder(runs, run) for run in named}


def test_tables_by_hand(tmp_path):
    named = [Run(m, s) for m in ("spark", "grpo", "rlvmr", "sft") for s in (0, 1)]
    for run in named:
        before, after = {0, 1}, {"spark": {0, 1, 2, 3}, "grpo": {0, 2}}.get(run.method, {0, 1, 2})
        if run.method == "rlvmr":
            before, after = set(range(5)), set(range(8))
        finish(tmp_path, run, before, after, (600, 800))
    for seed in (0, 1):
        finish(tmp_path, Run("warmup", seed), {1}, set())
    warm = folders_of(tmp_path, Run("warmup", 0), Run("warmup", 1))
    text = report(folders_of(tmp_path, *named), warm, PLAN, 1400)
    assert "Partial" not in text and "1,400 sampled tokens" in text
    assert f"evidence.py --config={TOY} --methods=spark,grpo,rlvmr,sft\n" in text

    assert cells(text, "## Cost")["SPARK"] == ["2", "2", "1,400", "100", "20", "16"]
    assert cells(text, "## Cost")["more SFT"] == ["2", "–", "0", "0", "0", "8"]

    success = cells(text, "## L1: success of 10 episodes")
    assert success["SPARK"][:1] == ["2"]
    assert [cell.split(" ")[0] for cell in success["SPARK"][1:]] == [
        "20.0",
        "40.0",
        "+20.0",
        "+20.0",
    ]
    assert [cell.split(" ")[0] for cell in success["GRPO"][1:]] == ["20.0", "20.0", "+0.0", ""]
    # From another warm-up: what it gained is compared, not where it ends.
    assert [cell.split(" ")[0] for cell in success["RLVMR"][1:]] == [
        "50.0",
        "80.0",
        "+30.0",
        "+30.0",
    ]
    # A pairing of episodes: +2 for one of ten and 0 elsewhere has less spread than two samples.
    low, high = success["more SFT"][4].split("[")[1].strip("]").split(", ")
    assert float(low) == 0.0 and float(high) <= 40.0

    bought = cells(text, "## What the tokens bought")
    assert "more SFT" not in bought
    assert bought["SPARK"] == [
        "25.0 % of 16", "75.0 % of 128", "29", "2.0", "50.0 % of 24", "0.0 % of 8",
        "20.0 % of 200", "0.500", "25.0 → 25.0",
    ]  # fmt: skip
    assert "| GRPO | 1 | 20.0 → 20.0 | 1,400 | 16 |" in text
    assert cells(text, "## Warm-ups")["all others"] == ["1", "5", "1", "900", "3", "0.125"]


def test_without_grpo_gains_are_compared_with_those_of_more_sft(tmp_path):
    named = [Run("spark", 0), Run("sft", 0)]
    finish(tmp_path, named[0], {1}, {1, 2, 3})
    finish(tmp_path, named[1], {1}, {1, 2})
    text = report(folders_of(tmp_path, *named), {}, PLAN, 0)
    assert "gain over that of more SFT, points" in text and "GRPO" not in text
    assert cells(text, "## L1")["SPARK"][4].startswith("+10.0")
    assert cells(text, "## L1")["more SFT"][4] == ""


def test_a_partial_table_says_what_is_missing(tmp_path):
    named = [Run("spark", 0), Run("spark", 1), Run("grpo", 1)]
    finish(tmp_path, named[0], {1}, {1, 2})
    start_or_resume(evidence.folder(tmp_path, named[1]), load_config(TOY, ["seed=1"]))  # started
    text = report(folders_of(tmp_path, *named), {}, PLAN, 0)
    assert "**Partial: 2 of 3 runs are missing: SPARK (seed 1); GRPO (seed 1).**" in text
    assert len(cells(text, "## L1")["SPARK"]) == 4, "no run of GRPO to compare with"
    assert "GRPO" not in cells(text, "## Cost")
    nothing = report(folders_of(tmp_path, Run("grpo", 1)), {}, PLAN, 0)
    assert "not known yet" in nothing and "## Cost" not in nothing
    finish(tmp_path, Run("grpo", 1), {1}, {1})
    success = cells(report(folders_of(tmp_path, *named), {}, PLAN, 0), "## L1")
    assert success["SPARK"][4] == "–" and success["GRPO"][4] == "", "none with the same seed"


# --- the whole command --------------------------------------------------------------------------


def test_the_whole_comparison_on_the_toy(tmp_path, monkeypatch, capsys):
    """Runs in this process, so that JAX is started once."""

    def run(command, pass_fds):
        overrides = [word.removeprefix("--config.") for word in command if "--config." in word]
        (workdir,) = [word.partition("=")[2] for word in command if "--workdir" in word]
        loop.run(load_config(TOY, overrides), workdir)

    monkeypatch.setattr(evidence.subprocess, "run", run)
    given = {key: value for key, value in (s.split("=") for s in SETTINGS)}
    given |= {"sft.panel": "0", "sft.epochs": "2", "rl.iterations": "2", "eval.episodes": "2"}
    words = [f"--config.{k}={v}" for k, v in given.items() if not k.startswith("tree.signal")]
    docs = tmp_path / "docs" / "toy.md"
    methods = ("spark", "rlvmr", "random", "sft")
    arguments = [f"--config={TOY}", f"--runs={tmp_path / 'runs'}", f"--docs={docs}", "--seeds=0"]
    assert evidence.main([*arguments, f"--methods={','.join(methods)}", *words]) == 0
    runs = tmp_path / "runs"
    done = ended({Run(m, 0): runs / m / "seed0" for m in methods})
    assert set(done) == set(methods)
    budget = spent(rows_after_warmup(runs / "spark" / "seed0"))["sampled tokens"]
    for method in methods[:-1]:
        tokens = [row["rollout/response_tokens"] for row in done[method][0].rows]
        assert sum(tokens[:-1]) < budget <= sum(tokens), method
    starts = {m: of[0].before["splits"] for m, of in done.items() if m != "rlvmr"}
    assert all(start == starts["spark"] for start in starts.values())
    assert read_config(runs / "rlvmr" / "seed0").tree.roots == 8

    text = docs.read_text()
    assert "8 of 12 runs are missing: SPARK (seeds 1, 2); RLVMR" in text, "of those asked for"
    assert "![success against cost](toy.svg)" in text and docs.with_suffix(".svg").is_file()
    names = {"SPARK", "RLVMR", "random forks", "more SFT"}
    assert set(cells(text, "## L1")) == names == set(cells(text, "## L2"))
    assert text.replace("toy.svg", "evidence.svg") == (runs / "evidence.md").read_text()
    # Again: nothing is played.
    monkeypatch.setattr(evidence, "play", None)
    assert evidence.main([f"--runs={runs}", "--seeds=0", "--methods=random,sft"]) == 0
    assert "8 of 12 runs are missing" in capsys.readouterr().out, "of those begun before, too"
    assert evidence.main([f"--runs={runs}", "--table"]) == 0
    assert "20 of 24 runs are missing: SPARK (seeds 1, 2); GRPO" in capsys.readouterr().out
