"""Every setting of a run with its default. A config file starts from `base_config()`.

Config stops at the training loop; nothing below it sees a ConfigDict. No JAX here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def base_config() -> ConfigDict:
    """Every key with its default, which is the `tiny` size."""
    config = ConfigDict()
    config.seed = 0  # of everything: parameters, tasks, sampling

    config.env = ConfigDict()
    config.env.name = "scienceworld"  # or alfworld, webshop, toy (tests), MODULE:FUNCTION
    config.env.tasks = "default"  # task types, comma separated (WebShop: synthetic or human goals)
    config.env.data_dir = ""  # WebShop's files or ALFWorld's games ("official"); "": embedded
    config.env.max_steps = 16  # turns of the environment before a path is cut (step_limit)
    config.env.workers = 0  # live environments; 0: what cores and memory allow at the start
    config.env.protocol = "held_out"  # held_out (has L2) or all_types (trains on every type)
    config.env.success = "strict"  # ScienceWorld: strict (score 100) or loose (done, score > 0)
    config.env.simplification = "easy"  # ScienceWorld's own simplification string
    config.env.show_admissible = False  # ALFWorld: each observation lists the actions that work
    config.env.history = 0  # steps in a prompt rebuilt at each step; 0: one growing dialogue
    config.env.prompt = "short"  # short (model trained from scratch) or full (rules, templates)

    config.model = ConfigDict()
    config.model.preset = "tiny"  # tiny, nano (tests), smollm2, qwen1.5b, qwen7b
    config.model.path = ""  # folder, GGUF file or hub name of the weights; "": the preset's own
    config.model.param_dtype = "float32"  # as stored; bfloat16: training keeps a float32 copy
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16

    config.tree = ConfigDict()
    config.tree.leaves = 8  # N: leaves of a tree at most
    config.tree.roots = 4  # M: first steps sampled independently, M <= N
    config.tree.branch = 2  # B: children of a spark point, as the budget allows
    config.tree.signal = "explore"  # what makes a spark point; see CHOICES and docs/methods.md
    config.tree.signal_rate = 0.2  # signal=random: chance that a step is a spark point
    config.tree.signal_rise = 0.2  # signal=entropy, calibrated: nats a token above the first steps
    config.tree.fork_at = "next_step"  # next_step (the paper's Eq. 6) or same_step
    config.tree.reinvest = False  # leaves left in the end go to where the outcome is most open
    config.tree.patience = 0  # refused actions in a row that end a training path; 0: any number
    config.tree.adapt = False  # roots and branch by the success rate of the task's type

    config.algo = ConfigDict()
    config.algo.name = "spark"  # grpo, gigpo, rlvmr: separate episodes; eto; sft; react: prompting
    config.algo.advantage = "leaf_group"  # see CHOICES; formulas in learn/advantage.py
    config.algo.similarity = 1.0  # advantage=gigpo: of observations that are one state; 1: equal
    config.algo.leaf_weight = "uniform"  # uniform (the paper) or path (product of 1/b_eff)
    config.algo.token_mean = "step"  # step: over all tokens of the optimiser step; leaf: per leaf
    config.algo.invalid_penalty = 0.0  # subtracted from the advantage of an invalid step's tokens

    config.sft = ConfigDict()
    config.sft.trajectories = 300  # expert paths of the warm-up; 0: no warm-up
    config.sft.epochs = 16  # passes over them at most (see patience)
    config.sft.batch_paths = 16  # paths of an optimiser step
    config.sft.learning_rate = 3e-3  # peak, decays by a cosine to min_learning_rate
    config.sft.min_learning_rate = 1e-4  # at the end; equal to learning_rate: constant
    config.sft.panel = 32  # episodes of the L0 panel that the warm-up is watched by; 0: none
    config.sft.panel_every = 2  # epochs between panels
    config.sft.patience = 0  # panels without a better one before stopping; 0: never stop early
    config.sft.optimizer = "adamw"  # adamw, or muon: from scratch it needs a third of the epochs
    config.sft.weight_decay = 0.1  # of matrices
    config.sft.rename = 0.0  # share of the dialogues in which names are swapped (run/rename.py)
    config.sft.slips = 0.0  # share of actions got wrong first, judgements more often (run/slips.py)
    config.sft.context_weight = 0.0  # loss of a token the environment wrote, beside 1 of a response
    config.sft.from_run = ""  # work folder of a run whose warm-up this one starts from; "": its own
    config.sft.dialogues = ""  # file of spark_jax.annotate to learn from; "": paths of our own
    config.sft.extra_seconds = 0.0  # algo.name=sft: the warm-up goes on for so long instead of RL

    config.rl = ConfigDict()
    config.rl.iterations = 24  # rollout and update, this many times; 0: no RL
    config.rl.sampled_tokens = 0  # end after this many sampled tokens, not iterations; 0: off
    config.rl.rename = 0.0  # share of the trees whose dialogue swaps names (run/rename.py)
    config.rl.train_on = "all"  # train tasks: all, or (un)seen: with (no) warm-up dialogue
    config.rl.tasks_per_iteration = 8  # trees of an iteration
    config.rl.reward = "success"  # of a leaf: success, 1 or 0 (the paper); score, its share of 100
    config.rl.types = "uniform"  # task types drawn: uniform, or mixed: by how often outcomes differ
    config.rl.learning_rate = 1e-4  # after warmup_steps
    config.rl.decay_to = 1.0  # share of the learning rate that is left at the end; 1: constant
    config.rl.warmup_steps = 0  # optimiser steps over which the learning rate rises to it
    config.rl.kl_coef = 0.01  # of KL(policy || reference)
    config.rl.kl = "k3"  # its estimator: k3, or k2 (gradient does not explode; learn/loss.py)
    config.rl.clip = 0.2  # epsilon of the clipped ratio
    config.rl.dual_clip = 3.0  # bound of the ratio for negative advantages; 0: off
    config.rl.entropy_coef = 0.001  # of the entropy bonus; 0: off
    config.rl.optimizer = "adamw"  # adamw or muon
    config.rl.weight_decay = 0.01  # of matrices
    config.rl.grad_clip = 1.0  # global norm of the gradient at most; used by the warm-up too
    config.rl.temperature = 1.0  # of sampling and of every log-prob in training
    config.rl.minibatches = 2  # optimiser steps an iteration is split into, over whole trees
    config.rl.recompute_old = False  # old log-probs: the sampler's, or (True) the training graph's

    config.train = ConfigDict()
    config.train.row_tokens = 1536  # tokens of a packed row; a longer tree is cut into several rows
    config.train.row_targets = 768  # tokens of a row that carry loss
    config.train.rows = 1  # rows of a micro-batch (on each device of the data and fsdp axes)
    config.train.remat = False  # recompute layers in the backward pass: less memory, more time

    config.rollout = ConfigDict()
    config.rollout.rows = 8  # paths decoded at the same time, on all devices together
    config.rollout.page_slots = 16  # tokens of a page of the key/value cache
    config.rollout.pages = 0  # pages of the pool; 0: enough for `rows` paths of full length
    config.rollout.chunk = 8  # tokens decoded on the device between two looks of the host
    config.rollout.response_tokens = 48  # sampled in one step at most
    config.rollout.path_tokens = 1536  # of a whole path with its prompt at most (token_limit)
    config.rollout.backend = "auto"  # kernels: native (C++, one CPU) if it builds, xla, pallas
    config.rollout.dtype = ""  # of the cache, and of weights as products read them; "": model.dtype
    config.rollout.deterministic = True  # schedule does not depend on environment time

    config.eval = ConfigDict()
    config.eval.temperature = 0.4  # of sampling in evaluations; 0: greedy
    config.eval.splits = ("L0", "L1", "L2")  # L2 only with the held_out protocol
    config.eval.episodes = 64  # of a split, a fixed panel; 0: the whole split
    config.eval.every = 0  # RL iterations between evaluations; 0: before and after only

    config.mesh = ConfigDict()
    config.mesh.data = 0  # devices along the batch; 0: all that fsdp and tensor leave
    config.mesh.fsdp = 1  # devices that parameters and optimiser state are split over
    config.mesh.tensor = 1  # devices that one layer is split over

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 4  # RL iterations between checkpoints
    config.checkpoint.keep = 2  # newest checkpoints that stay
    return config


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """`{"tree.leaves": 8, ...}`, sorted (as ConfigDict sorts its keys). Lists become tuples."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            out.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            out[key] = tuple(value) if isinstance(value, list) else value
    return out
