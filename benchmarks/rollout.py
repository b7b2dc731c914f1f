"""Sampling of one recorded tree workload by our engine and by others: one run, one table.

    python benchmarks/rollout.py --model smollm2 --rows 8,32

Every engine writes the same numbers of tokens after the same numbers of tokens (which tokens does
not matter) with the same weights. What counts is unique response tokens per second: an engine
that samples separate episodes computes the shared beginnings again and is not paid for it. Each
engine runs in a process of its own, one after the other. An engine that is not installed is listed
as not measured, with the reason. Engines that cannot be installed side by side may have
environments of their own (each with this project in it):

    python benchmarks/rollout.py --pythons tunix=envs/tunix/bin/python,vllm=envs/vllm/bin/python
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measured import peak_gb  # noqa: E402
from benchmarks.workload import Shape, load  # noqa: E402

WORKLOAD = ROOT / "benchmarks" / "workloads" / "scienceworld.json"
OURS = {
    "tree": "ours",
    "unshared": "ours, sharing off",
    "episodes": "ours, separate episodes",
    "xla": "ours, attention by plain XLA",
}
PEERS = {
    "transformers": "transformers generate, cache carried over",
    "continuous": "transformers continuous batching",
    "tunix": "tunix sampler",
    "llama.cpp": "llama.cpp",
    "vllm": "vLLM",
}
NAMES = OURS | PEERS
ENGINES = tuple(NAMES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="smollm2", help="a preset, or random:NAME (smollm2, qwen1.5b, qwen7b)"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", default="8,32", help="active leaves")
    parser.add_argument("--trees", type=int, default=4, help="of the recorded ones, from the first")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--workload", type=pathlib.Path, default=WORKLOAD)
    parser.add_argument("--pythons", default="", help="ENGINE=PYTHON, comma separated")
    parser.add_argument(
        "--limit", type=float, default=math.inf,
        help="seconds of sampling after which a peer is measured by what it did",
    )  # fmt: skip
    parser.add_argument(
        "--loading", type=float, default=300,
        help="seconds that a peer may load and compile beside them, where there is a limit",
    )  # fmt: skip
    parser.add_argument("--out", type=pathlib.Path, help="write the results as JSON too")
    parser.add_argument("--one", type=pathlib.Path, help=argparse.SUPPRESS)  # the child's result
    options = parser.parse_args()
    trees = load(options.workload)[: options.trees]
    if options.one:
        result = _run(options, trees)
        options.one.write_text(json.dumps(result))
        return
    leaves = sum(len(tree.leaves) for tree in trees)
    unique = sum(tree.response_tokens for tree in trees)
    episodes = sum(s.response_tokens for tree in trees for s in tree.separate())
    print(
        f"{len(trees)} trees, {leaves} leaves, {unique} unique response tokens "
        f"({episodes} as separate episodes), {options.model} in {options.dtype}, "
        f"{os.cpu_count()} cores of {_processor()}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    wrong = [name for name in options.engines.split(",") if name not in NAMES]
    if wrong:
        parser.error(f"there is no engine {wrong[0]!r}; choose from {', '.join(ENGINES)}")
    pythons = dict(pair.split("=", 1) for pair in options.pythons.split(",") if pair)
    results = []
    for rows in map(int, options.rows.split(",")):
        for engine in options.engines.split(","):
            result = {"engine": engine, "rows": rows}
            python = pythons.get(engine, sys.executable)
            result |= _in_a_process(python, engine, rows, options)
            results.append(result)
            print(_line(result, unique), flush=True)
    print("\n" + table(results, unique))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


def _processor() -> str:
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return names[0].split(":", 1)[1].strip() if names else platform.machine()


def _cpuinfo() -> list[str]:
    path = pathlib.Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _in_a_process(python: str, engine: str, rows: int, options) -> dict:
    """Measures one engine in a process of its own, with its own interpreter."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        arguments = [f"--engines={engine}", f"--rows={rows}", f"--one={out.name}"]
        passed = ("model", "dtype", "trees", "limit")
        arguments += [f"--{name}={getattr(options, name)}" for name in passed]
        command = [python, __file__, *arguments, f"--workload={options.workload}"]
        most = None if math.isinf(options.limit) else options.limit + options.loading
        try:
            code = subprocess.run(command, stdout=sys.stderr, timeout=most).returncode
        except subprocess.TimeoutExpired:
            return {"reason": f"stopped after {most:.0f} s, loading included"}
        text = pathlib.Path(out.name).read_text()
    return json.loads(text) if text else {"reason": f"its process ended with exit code {code}"}


def _run(options, trees: list[Shape]) -> dict:
    try:
        return _measure(
            options.engines, options.model, options.dtype, trees, int(options.rows), options.limit
        )
    except ImportError as error:
        return {"reason": f"not installed: {error}"}
    except Exception as error:  # noqa: BLE001  one engine must not end the table
        traceback.print_exc()
        return {"reason": f"{type(error).__name__}: {error}"}


def _measure(
    engine: str, model: str, dtype: str, trees: list[Shape], rows: int, limit: float
) -> dict:
    from benchmarks.model import load_benchmark_model
    from spark_jax.run.compilations import keep_on_disk

    keep_on_disk()
    loaded = load_benchmark_model(model, dtype)
    episodes = [s for tree in trees for s in tree.separate()]
    longest = max(tree.longest() for tree in trees)
    if engine in PEERS:
        measured = _measure_peer(engine, loaded, dtype, trees, episodes, rows, longest, limit)
        return measured._asdict() | {"peak_gb": peak_gb()}

    from benchmarks.engines import ours
    from benchmarks.limits import least_seconds, measure

    backend = "xla" if engine == "xla" else "auto"
    sampler = ours.make_engine(loaded, rows, longest, engine != "unshared", backend)
    measured = ours.play(sampler, episodes if engine == "episodes" else trees)
    out = measured._asdict() | {"peak_gb": peak_gb()}
    if engine == "tree":
        limits = measure(loaded.config, rows)
        least = least_seconds(loaded.config, trees, rows, measured.read_tokens, limits)
        out |= {"least_seconds": least, "limits": limits._asdict()}
    return out


def _measure_peer(
    engine, loaded, dtype: str, trees, episodes, rows: int, longest: int, limit: float
):
    """The imports are here: each peer is installed or not by itself."""
    vocab_size = loaded.config.vocab_size
    if engine == "transformers":
        from benchmarks.engines import hf

        return hf.play(hf.load(loaded, dtype), episodes, rows, limit)
    if engine == "tunix":
        from benchmarks.engines import tunix_sampler

        sampler = tunix_sampler.load(loaded, dtype, longest)
        return tunix_sampler.play(sampler, episodes, rows, vocab_size, limit)
    if engine == "llama.cpp":
        from benchmarks.engines import llama_cpp_batch

        threads = len(os.sched_getaffinity(0))
        context = llama_cpp_batch.Context(loaded, dtype, rows, longest, threads)
        return llama_cpp_batch.play(context, trees, rows, vocab_size, limit)
    from benchmarks.engines import requests

    if engine == "vllm":
        from benchmarks.engines import vllm_server

        serving = vllm_server.serve(loaded, dtype, rows, longest)
    else:
        from benchmarks.engines import hf, hf_continuous

        serving = hf_continuous.serve(hf.load(loaded, dtype), rows, longest)
    with serving as server:
        return requests.play(server, trees, rows, vocab_size, limit)


def _line(result: dict, unique: int) -> str:
    name = NAMES.get(result["engine"], result["engine"])
    if "reason" in result:
        return f"{name}, {result['rows']} rows: not measured ({result['reason']})"
    return (
        f"{name}, {result['rows']} rows: {_seconds(result)} s, "
        f"{_useful_rate(result, unique):.0f} useful tokens/s"
    )


def _seconds(result: dict) -> str:
    """Of one that was stopped, what all would take at the same rate."""
    share = result.get("share", 1.0)
    if share == 1.0:
        return f"{result['seconds']:.1f}"
    whole = result["seconds"] / share if share else math.inf
    return f"about {whole:.0f} (stopped after {result['seconds']:.0f} with {share:.0%})"


def _useful_rate(result: dict, unique: int) -> float:
    return unique * result.get("share", 1.0) / result["seconds"]


def share(x: float, digits: int = 0) -> str:
    return "" if math.isnan(x) else f"{x:.{digits}%}"


def table(results: list[dict], unique: int) -> str:
    """Markdown. `of the limit`: least time of the tree workload over the time taken."""
    lines = [
        "| engine | rows | seconds | useful tokens/s | of the limit | host | wasted rows "
        "| tokens computed | peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    least = {r["rows"]: r["least_seconds"] for r in results if "least_seconds" in r}
    for r in results:
        name = NAMES.get(r["engine"], r["engine"])
        if "reason" in r:
            lines.append(f"| {name} | {r['rows']} | not measured: {r['reason']} |||||||")
            continue
        limit = ""
        if r["rows"] in least:
            limit = f"{least[r['rows']] * r.get('share', 1.0) / r['seconds']:.0%}"
        lines.append(
            f"| {name} | {r['rows']} | {_seconds(r)} | {_useful_rate(r, unique):.0f} | {limit} "
            f"| {share(r['host_share'], 1)} | {share(r['wasted'])} | {r['computed_tokens']} "
            f"| {r['peak_gb']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
