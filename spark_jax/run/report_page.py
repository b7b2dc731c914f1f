"""The report's HTML: one page that needs nothing beside it, with every text of the run escaped."""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spark_jax.run.evalfile import own
from spark_jax.run.progress import duration
from spark_jax.run.summary import summary_rows

_HERE = pathlib.Path(__file__).parent


def page(
    title: str,
    config: Mapping[str, Any],
    changed: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    figures: Sequence[tuple[str, str]],
    trees: Mapping[int, Sequence[Mapping[str, Any]]],
    all_iterations: Sequence[int],
) -> str:
    """The whole page.

    Args:
      title: name of the work folder.
      config: flat config.
      changed: the keys of it that are not the default.
      rows: lines of metrics.jsonl.
      evaluations: entries of eval.json.
      figures: (title, SVG element) each; the SVG is trusted, the title is not.
      trees: iteration -> trees (as read from its file) that the page shows.
      all_iterations: iterations that have a tree file, shown or not.
    """
    style = (_HERE / "report_page.css").read_text(encoding="utf-8")
    script = (_HERE / "report_page.js").read_text(encoding="utf-8")
    data = {"iterations": [{"iteration": i, "trees": list(trees[i])} for i in sorted(trees)]}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # Nothing is loaded from anywhere, even if a text of the run got past the escaping.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
        f"<title>{_text(title)} – spark_jax</title><style>{style}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        '<nav><a href="#evaluation">Evaluation</a><a href="#curves">Curves</a>'
        '<a href="#trees-title">Trees</a><a href="#settings">Settings</a></nav>',
        _facts(rows),
        '<h2 id="evaluation">Evaluation</h2>',
        _evaluation(evaluations),
        '<h2 id="curves">Curves</h2>',
        _figures(figures),
        '<h2 id="trees-title">Trees</h2>',
        _trees(data, all_iterations),
        '<h2 id="settings">Settings</h2>',
        _settings(config, changed),
        f'<script type="application/json" id="tree-data">{_json(data)}</script>',
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    line = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{line}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _total(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(row.get(name, 0) for row in rows)


def _facts(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the run did so far, in a few numbers."""
    rl = [row for row in rows if row["phase"] == "rl"]
    facts = [
        ("warm-up epochs", f"{sum(row['phase'] == 'sft' for row in rows)}"),
        ("RL iterations", f"{len(rl)}"),
    ]
    if rl:
        sampled, prefilled = (
            _total(rl, f"rollout/{name}_tokens") for name in ("response", "prefill")
        )
        facts += [
            ("leaves", f"{_total(rl, 'rollout/leaves'):,.0f}"),
            ("tokens sampled", f"{sampled:,.0f}"),
        ]
        linear, packed = _total(rl, "rollout/linear_tokens"), _total(rl, "train/packed_tokens")
        if linear and sampled + prefilled:
            facts.append(("tokens computed in rollouts; separate episodes: 100 %",
                          f"{100 * (sampled + prefilled) / linear:.0f} %"))  # fmt: skip
        if packed and _total(rl, "train/linear_tokens"):
            facts.append(("tokens computed in updates; separate episodes: 100 %",
                          f"{100 * packed / _total(rl, 'train/linear_tokens'):.0f} %"))  # fmt: skip
    spent = sum(_total(rows, f"time/{name}_s") for name in ("rollout", "update", "eval"))
    if spent:
        facts.append(("time in rollouts, updates, evaluations", duration(spent)))
    cells = "".join(f"<div><b>{_text(v)}</b><span class=dim>{_text(k)}</span></div>"
                    for k, v in facts)  # fmt: skip
    return f'<div class="facts">{cells}</div>'


def _evaluation(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return '<p class="dim">This run has not been evaluated yet.</p>'
    head = ["split", "episodes", *(f"{e['name']} (step {e['step']})" for e in evaluations)]
    if len(evaluations) > 1:
        head += ["change, points", "p"]
    out = [
        '<p class="dim">Success rate in % with its 95 % interval (Wilson; over tasks where they '
        "were played several times); the change, between the run's own evaluations, is paired over "
        "the same episodes (bootstrap interval, sign-flip p value).</p>",
        _table(head, summary_rows(evaluations)),
    ]
    last = (own(evaluations) or evaluations)[-1]
    measures = {name for s in last["splits"].values() for name in s.get("measures", {})}
    if measures:
        names = [name for name in _first(last)["measures"] if name in measures]
        body = [
            [split, *(_measure(summary["measures"].get(name)) for name in names)]
            for split, summary in last["splits"].items()
        ]
        head = ["split", *(name.replace("_", " ") for name in names)]
        out.append(
            f"<details><summary>Other measures, {_text(last['name'])}, with 95 % bootstrap "
            f"intervals</summary>{_table(head, body)}</details>"
        )
    for split, summary in last["splits"].items():
        body = [
            [name, counts["episodes"], counts["successes"]]
            for name, counts in summary["types"].items()
        ]
        out.append(
            f"<details><summary>{_text(split)} by task type, {_text(last['name'])}</summary>"
            f"{_table(['task type', 'episodes', 'successes'], body)}</details>"
        )
    return "\n".join(out)


def _first(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(entry["splits"].values()))


def _measure(values: Sequence[float] | None) -> str:
    if values is None:
        return "–"
    estimate, low, high = values
    return f"{estimate:.3g} [{low:.3g}, {high:.3g}]"


def _figures(figures: Sequence[tuple[str, str]]) -> str:
    if not figures:
        return '<p class="dim">No metrics yet.</p>'
    cells = "".join(
        f"<figure><figcaption>{_text(title)}</figcaption>{svg}</figure>" for title, svg in figures
    )
    return f'<div class="charts">{cells}</div>'


_LEGEND = (
    ("dot", "background:#fff", "step"),
    ("diamond", "", "spark point (×: children it got)"),
    ("dot", "background:var(--success)", "success"),
    ("dot", "background:var(--failure)", "failure"),
    ("dot", "background:var(--step_limit)", "step limit"),
    ("dot", "background:var(--token_limit)", "token limit"),
    ("dot", "background:var(--refused)", "refused too often"),
)


def _trees(data: Mapping[str, Any], all_iterations: Sequence[int]) -> str:
    if not data["iterations"]:
        return '<p class="dim">No trees yet.</p>'
    shown = [entry["iteration"] for entry in data["iterations"]]
    note = ""
    if len(shown) < len(all_iterations):
        note = (
            f'<span class="dim">{len(shown)} of {len(all_iterations)} iterations; choose others '
            "with --iterations=0,5,10 or all</span>"
        )
    legend = "".join(
        f'<span><i class="{kind}" style="{style}"></i>{_text(text)}</span>'
        for kind, style, text in _LEGEND
    )
    return f"""<noscript><p>The trees need JavaScript.</p></noscript>
<div id="picker"><label>Show <select id="iteration"></select></label>{note}</div>
<div id="trees"><div id="list"></div><div>
<div class="legend">{legend}</div>
<p class="dim">Click a node, or move with the arrow keys. A is the advantage of a leaf.</p>
<div id="map"></div>
<h3 id="siblings-title">Siblings</h3><div id="siblings"></div>
<h3>Path to the chosen node <button id="open-all" type="button">open or close all</button></h3>
<div id="path"></div>
</div></div>"""


def _settings(config: Mapping[str, Any], changed: Mapping[str, Any]) -> str:
    rows = [(key, value) for key, value in config.items()]
    return (
        f"<p>Not the default:</p>{_table(['key', 'value'], list(changed.items()))}"
        if changed
        else "<p>All settings are the default.</p>"
    ) + f"<details><summary>All settings</summary>{_table(['key', 'value'], rows)}</details>"
