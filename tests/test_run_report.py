"""The report: whole, self-contained, and safe against whatever a model or environment wrote."""

import html.parser
import json
import random
import re

import pytest

from spark_jax import report
from spark_jax.report import write_report
from spark_jax.run.config import start_or_resume
from spark_jax.run.defaults import base_config
from spark_jax.run.evalfile import EpisodeResult, add_evaluation
from spark_jax.run.metrics import MetricsWriter
from spark_jax.run.report_plots import CHARTS, charts
from spark_jax.run.treefile import write_trees
from spark_jax.types import Node, Task, Tree, UserError

EVIL = (
    "</script></script ><script >alert(0)</script ><script>alert(1)</script>"
    "<img src=x onerror=alert(2)>&amp;'\""
)


def random_tree(rng: random.Random, variation: int) -> Tree:
    """A tree with forks after spark points; ten steps deep at most."""
    task = Task("scienceworld", f"find-plant {EVIL}", variation)
    nodes = [Node(0, -1, 0, context_ids=[1] * 40, prompt=f"system\n{EVIL}")]
    running = [(0, 4)]
    while running:
        parent, count = running.pop(0)
        for _ in range(count):
            step = nodes[parent].step + 1
            spark = rng.random() < 0.3
            node = Node(
                len(nodes), parent, step, [2] * 9, [-0.3] * 9, [3] * 20, EVIL, EVIL,
                rng.choice(["look around", "open door", EVIL]), f"You see\n{EVIL}", spark=spark,
                advantage=rng.uniform(-1, 1),
            )  # fmt: skip
            nodes.append(node)
            if step == 10 or rng.random() < 0.1:
                node.done = True
                node.outcome = rng.choice(
                    ["success", "failure", "step_limit", "token_limit", "refused"]
                )
            else:
                node.requested = node.granted = 2 if spark and len(nodes) < 40 else 1
                running.append((node.id, node.granted))
    return Tree(task, 8, 4, 2, "explore", nodes)


def make_run(workdir, iterations=3):
    rng = random.Random(0)
    config = base_config()
    config.tree.leaves = 16
    config.env.tasks = EVIL
    start_or_resume(workdir, config)
    with MetricsWriter(workdir) as writer:
        for step in range(1, 5):
            values = {"train/loss": 2 / step, "sft/panel_success_rate": 0.1 * step}
            writer.write(step, "sft", values)
        for i in range(iterations):
            names = [name for chart in CHARTS if chart.phase == "rl" for name, _ in chart.lines]
            writer.write(5 + i, "rl", {name: rng.uniform(1, 2) for name in names})
            write_trees(workdir, i, [random_tree(rng, v) for v in range(4)])
    for name, step, chance in ((EVIL, 4, 0.3), ("after RL", 5 + iterations, 0.6)):
        results = [
            EpisodeResult(Task("scienceworld", EVIL, v), rng.random() < chance, 50.0, 9)
            for v in range(32)
        ]
        add_evaluation(workdir, name, step, 0.4, {"L0": results, "L2": results[::2]})
    return workdir


class Page(html.parser.HTMLParser):
    """Elements and texts of a page, with a check that they nest."""

    VOID = {"meta", "br", "img", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.ids, self.text = [], [], [], []
        self.attributes = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append((self.stack[-1] if self.stack else "", data))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "<b>run & co")


@pytest.fixture(scope="module")
def path(run):
    return write_report(run)


def test_page_is_whole_and_nothing_in_it_is_markup_of_the_run(run, path):
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 2  # the data and the program
    assert "img" not in page.tags and "b" not in [t for t, _ in page.text if t == "h1"]
    assert ("h1", run.name) in page.text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert len(page.ids) == len(set(page.ids)), "ids of charts collide"


def test_pages_of_the_environment_stand_at_their_nodes(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "tree_views", lambda config: lambda tree: {1: [("button", EVIL)]})
    text = write_report(make_run(tmp_path / "run", iterations=1)).read_text(encoding="utf-8")
    data = next(d for tag, d in Page(text).text if tag == "script" and d.startswith("{"))
    nodes = json.loads(data)["iterations"][0]["trees"][0]["nodes"]
    assert [node.get("view") for node in nodes[:3]] == [None, [["button", EVIL]], None]


def test_page_needs_no_network(path):
    text = path.read_text(encoding="utf-8")
    for tag, name, value in Page(text).attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def data_of(path) -> dict:
    text = path.read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if 'id="tree-data">' in line)
    raw = line.split('id="tree-data">')[1].removesuffix("</script>")
    assert not set("<>&") & set(raw), "a browser may take this for the end of the element"
    return json.loads(raw)


def test_trees_arrive_unchanged(run, path):
    data = data_of(path)
    assert [entry["iteration"] for entry in data["iterations"]] == [0, 1, 2]
    first = json.loads((run / "trees" / "0.jsonl").read_text().splitlines()[0])
    assert data["iterations"][0]["trees"][0] == first
    assert first["nodes"][1]["response"] == EVIL


def test_table_and_curves(path):
    text = path.read_text(encoding="utf-8")
    for chart in CHARTS:
        assert f"<figcaption>{chart.title}</figcaption>" in text
    assert "after RL (step 8)" in text and "change, points" in text
    assert "Success in evaluations" in text
    assert text.count("<svg") == len(CHARTS) + 1
    assert "tree.leaves" in text


def test_report_is_the_same_every_time(run, path):
    before = path.read_bytes()
    assert write_report(run).read_bytes() == before


def test_long_runs_show_a_few_iterations_or_those_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "charts", lambda rows: [])  # slow, and not what this is about
    make_run(tmp_path, iterations=24)
    assert [e["iteration"] for e in data_of(write_report(tmp_path))["iterations"]] == [
        0, 6, 12, 17, 23,
    ]  # fmt: skip
    assert report.exit_code(report.main, [str(tmp_path), "--iterations=3,2"]) == 0
    path = tmp_path / "report.html"
    assert [e["iteration"] for e in data_of(path)["iterations"]] == [2, 3]
    assert "2 of 24 iterations" in path.read_text(encoding="utf-8")


def test_a_run_that_has_just_begun_has_a_page_too(tmp_path):
    start_or_resume(tmp_path, base_config())
    text = write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "No trees yet" in text and "No metrics yet" in text and "not been evaluated" in text


def test_a_folder_of_evaluations_alone_has_a_page_too(tmp_path):
    result = EpisodeResult(Task("toy", "doors-2x3", 4), True, 100.0, 3)
    add_evaluation(tmp_path, "gpt x1", 0, 0.4, {"L1": [result]})
    text = write_report(tmp_path).read_text(encoding="utf-8")
    Page(text)
    assert "gpt x1" in text and "No trees yet" in text and "Success in evaluations" in text


def test_charts_without_their_metrics_are_left_out():
    rows = [{"step": 1, "phase": "rl", "train/kl": 0.1}, {"step": 1, "phase": "eval", "x": 1}]
    assert [title for title, _ in charts(rows)] == ["KL to the reference"]
    assert charts([]) == []


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--iterations=99"], "iteration 99"),
        (["--iterations=x"], "--iterations is 'x'"),
        (["--iteration=1"], "unrecognized"),
    ],
)
def test_mistakes(run, capsys, options, part):
    assert report.exit_code(report.main, [str(run), *options]) == 2
    assert part in capsys.readouterr().err


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="not the work folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
