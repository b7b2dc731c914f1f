"""Imports go one way, and the environments stay free of JAX."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "spark_jax"

# What each layer may import besides itself. `run` offers the commands its readers and writers;
# main, annotate, evaluate, export and report are the top: they import anything but each other.
ALLOWED = {
    "types": set(),
    "keep": set(),
    "threads": set(),
    "ops": {"types", "keep"},
    "models": {"types", "ops"},
    "cache": {"types", "ops", "models"},
    "envs": {"types", "keep", "threads"},
    "rollout": {"types", "ops", "models", "cache", "envs"},
    "learn": {"types", "ops", "models", "cache", "rollout"},
    "run": {"types", "keep", "threads", "ops", "models", "cache", "envs", "rollout", "learn"},
}
TOP = {"main", "annotate", "evaluate", "export", "report"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def layer(path: pathlib.Path) -> str:
    """`ops` for spark_jax/ops/rope.py, `main` for spark_jax/main.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Full names of everything a file imports, anywhere in it."""
    names = set()
    package = ("spark_jax", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def layers_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("spark_jax.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own, used = layer(path), layers_of(imported(path))
    if own in ("__init__", *TOP):
        allowed = set(ALLOWED) | ({own} if own in TOP else set())
    else:
        assert own in ALLOWED, f"{own} is no layer: add it to ALLOWED"
        allowed = ALLOWED[own] | {own}
    if own == "main":
        allowed |= {"evaluate", "report"}  # a run ends with an evaluation and its page
    assert used <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_the_tests(path):
    for name in imported(path):
        assert name.split(".")[0] not in ("tests", "conftest", "pytest", "hypothesis", "configs")


WITHOUT_JAX = [p for p in SOURCES if layer(p) in ("envs", "threads", "types")]


@pytest.mark.parametrize("path", WITHOUT_JAX, ids=lambda p: str(p.relative_to(ROOT)))
def test_environments_do_not_import_jax(path):
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "torch", "transformers"}
    assert not {name.split(".")[0] for name in imported(path)} & heavy


def test_environments_do_not_load_jax_through_others():
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in WITHOUT_JAX
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'jaxlib', 'torch'}))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"


def test_reading_a_config_does_not_load_jax():
    """Mistakes on the command line are answered at once, not after JAX has found its devices."""
    code = (
        "import sys\n"
        "from spark_jax.run.config import load_config\n"
        "load_config('configs/scienceworld.py')\n"
        "print('jax' in sys.modules)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
