"""Advantages of the leaves of one tree, as small pure functions (docs/methods.md).

Every function takes the tree and the weights w of its leaves and returns `A_LG`: row l is a leaf
(in the order of `tree.leaf_ids()`), column g a node; only nodes on the path of l mean anything.
Most formulas give one number a leaf (a constant row); `sibling` gives one number a node.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from spark_jax.types import Tree

EPSILON = 1e-6  # added to the standard deviation
GIGPO_DISCOUNT, GIGPO_WEIGHT = 0.95, 1.0  # gamma and omega (arXiv 2505.10978)
RLVMR_WEIGHT, FORMAT_PENALTY = 1.0, 0.1  # of the steps' part; of a response in a bad format

Advantage = Callable[[Tree, np.ndarray], np.ndarray]


def leaf_rewards(tree: Tree) -> np.ndarray:
    """R of each leaf, [L]."""
    return np.array([tree.nodes[i].reward for i in tree.leaf_ids()], np.float64)


def uniform_weights(tree: Tree) -> np.ndarray:
    """w = 1 for every leaf (the paper). A path that forks has more leaves and so weighs more: as
    an estimate of the expected return of the policy this is biased."""
    return np.ones(len(tree.leaf_ids()))


def path_weights(tree: Tree) -> np.ndarray:
    """w = product of 1/b_eff over the forks on the path to the leaf: every root weighs 1, however
    often the paths below it fork. Without forks this is `uniform_weights`."""
    children = tree.children()
    weights = np.ones(len(tree.nodes))
    for node in tree.nodes[1:]:
        siblings = len(children[node.parent]) if node.parent > 0 else 1
        weights[node.id] = weights[node.parent] / siblings
    return weights[tree.leaf_ids()]


def path_success_rate(trees: Sequence[Tree]) -> float:
    """Success of the policy on the tasks of `trees`, each root weighing the same. The plain mean
    over leaves counts a path once more for every fork on it; this one is unbiased, and so can be
    compared between trees of any shape and separate episodes."""
    weights = np.concatenate([path_weights(tree) for tree in trees])
    outcomes = [tree.nodes[leaf].outcome for tree in trees for leaf in tree.leaf_ids()]
    return weighted_mean(np.array([outcome == "success" for outcome in outcomes], float), weights)


LEAF_WEIGHTS: dict[str, Callable[[Tree], np.ndarray]] = {
    "uniform": uniform_weights,
    "path": path_weights,
}


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """sum(w x) / sum(w)."""
    return float((weights * values).sum() / weights.sum())


def weighted_std(values: np.ndarray, weights: np.ndarray, copies: np.ndarray | int = 1) -> float:
    """Sample standard deviation: sqrt(sum(c w (x - mean)^2) / (W - sum(c w^2) / W)), W = sum(c w),
    where value x is seen c times with weight w each. For w = 1 this is ddof = 1."""
    counted = copies * weights
    total = counted.sum()
    freedom = total - (counted * weights).sum() / total
    mean = weighted_mean(values, counted)
    if freedom <= 0.0:
        return 0.0
    return float(np.sqrt((counted * (values - mean) ** 2).sum() / freedom))


def _constant_rows(tree: Tree, advantage_L: np.ndarray) -> np.ndarray:
    return np.repeat(advantage_L[:, None], len(tree.nodes), axis=1)


def _no_variance(rewards: np.ndarray) -> bool:
    # Compared, not computed: the mean of equal numbers can differ from them by a rounding error,
    # which 1 / (0 + 1e-6) would blow up.
    return rewards.size < 2 or bool(np.all(rewards == rewards[0]))


def leaf_group(tree: Tree, weights: np.ndarray) -> np.ndarray:
    """A_l = (R_l - mean) / (std + 1e-6) over the leaves of the group, std with ddof 1 (the paper,
    after GRPO, arXiv 2402.03300). One leaf or no variance: 0."""
    rewards = leaf_rewards(tree)
    if _no_variance(rewards):
        return np.zeros((rewards.size, len(tree.nodes)))
    mean, std = weighted_mean(rewards, weights), weighted_std(rewards, weights)
    return _constant_rows(tree, (rewards - mean) / (std + EPSILON))


def path_steps(tree: Tree) -> np.ndarray:
    """Number of environment turns of each leaf's path, [L]."""
    return np.array(
        [len({tree.nodes[i].step for i in tree.path(leaf)[1:]}) for leaf in tree.leaf_ids()],
        np.float64,
    )


def step_rows(tree: Tree, weights: np.ndarray) -> np.ndarray:
    """As `leaf_group`, but mean and std run over the step rows (every leaf counts once for each of
    its steps), so long episodes weigh more: what the released code of SPARK computes."""
    rewards = leaf_rewards(tree)
    if _no_variance(rewards):
        return np.zeros((rewards.size, len(tree.nodes)))
    steps = path_steps(tree)
    mean = weighted_mean(rewards, weights * steps)
    std = weighted_std(rewards, weights, steps)
    return _constant_rows(tree, (rewards - mean) / (std + EPSILON))


def no_std(tree: Tree, weights: np.ndarray) -> np.ndarray:
    """A_l = R_l - mean (Dr. GRPO, arXiv 2503.20783)."""
    rewards = leaf_rewards(tree)
    if _no_variance(rewards):
        return np.zeros((rewards.size, len(tree.nodes)))
    return _constant_rows(tree, rewards - weighted_mean(rewards, weights))


def node_values(tree: Tree, weights: np.ndarray) -> np.ndarray:
    """Weighted mean R of the leaves below each node, [G]."""
    total, mass = np.zeros(len(tree.nodes)), np.zeros(len(tree.nodes))
    leaves = tree.leaf_ids()
    total[leaves], mass[leaves] = weights * leaf_rewards(tree), weights
    for node in reversed(tree.nodes[1:]):
        total[node.parent] += total[node.id]
        mass[node.parent] += mass[node.id]
    return total / np.where(mass > 0.0, mass, 1.0)


def sibling(tree: Tree, weights: np.ndarray) -> np.ndarray:
    """For child c of a fork: A = mean R of the leaves below c - mean of that over the fork's
    children. The roots are siblings too; between forks the nearest fork above applies; a node
    without any fork above gets 0."""
    children = tree.children()
    value_G = node_values(tree, weights)
    advantage_G = np.zeros(len(tree.nodes))
    for node in tree.nodes[1:]:
        siblings = children[node.parent]
        if len(siblings) > 1:
            advantage_G[node.id] = value_G[node.id] - value_G[siblings].mean()
        else:
            advantage_G[node.id] = advantage_G[node.parent]
    return np.repeat(advantage_G[None, :], len(tree.leaf_ids()), axis=0)


def anchor_steps(
    tree: Tree,
    weights: np.ndarray,
    discount: float = GIGPO_DISCOUNT,
    similarity: float = 1.0,
) -> np.ndarray:
    """Steps taken in the same state are compared with each other (GiGPO, arXiv 2505.10978): a state
    is the last observation before the step; the value of a step of leaf l is R_l discounted by the
    turns that were left; within a state values are normalised like rewards in `leaf_group`. A state
    that was met once says nothing: 0.

    `similarity`: observations that are so similar are one state (`groups_of_similar`).
    """
    rewards, steps = leaf_rewards(tree), path_steps(tree)
    seen: dict[str, list[tuple[int, int]]] = {}  # observation -> (leaf, node) that acted there
    for leaf, end in enumerate(tree.leaf_ids()):
        for node in tree.path(end)[1:]:
            seen.setdefault(_state(tree, tree.nodes[node].parent), []).append((leaf, node))
    met: dict[str, list[tuple[int, int]]] = {}  # the same by state
    states = groups_of_similar(seen, similarity)
    for text, acted in seen.items():
        met.setdefault(states[text], []).extend(acted)
    left_LG = steps[:, None] - np.array([node.step for node in tree.nodes])
    # At nodes off the path of a leaf the power may be any number: none of them is looked at.
    return _normalised_within(met.values(), rewards[:, None] * discount**left_LG, weights)


def groups_of_similar(texts: Iterable[str], similarity: float) -> dict[str, str]:
    """Text -> the first text of its group, for distinct texts.

    As the released code of GiGPO does it: a text joins the first group to whose first text its
    similarity is at least `similarity`, else it begins a group. The similarity is
    `difflib.SequenceMatcher.ratio`, 2 * (words in common, in order) / (words of both); of words,
    where that code takes characters: cheaper, and what differs counts the same however long it is.
    With 1 only equal texts are in one group.
    """
    if similarity >= 1.0:
        return {text: text for text in texts}
    firsts: dict[str, list[str]] = {}  # first text of a group -> its words
    out = {}
    for text in texts:
        # The second sequence is the one that difflib prepares for being compared with many.
        matcher = difflib.SequenceMatcher(isjunk=None, b=text.split(), autojunk=False)
        for first, words in firsts.items():
            matcher.set_seq1(words)
            bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
            if all(bound() >= similarity for bound in bounds):
                out[text] = first
                break
        else:
            firsts[text] = text.split()
            out[text] = text
    return out


def _normalised_within(
    groups: Iterable[Sequence[tuple[int, int]]], value_LG: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(value - mean) / (std + 1e-6) within each group of (leaf, node), as `leaf_group` does it; 0
    in groups without variance and for what is in no group."""
    out = np.zeros_like(value_LG)
    for members in groups:
        leaf_V, node_V = np.array(members).T
        value_V = value_LG[leaf_V, node_V]
        if not _no_variance(value_V):
            mean = weighted_mean(value_V, weights[leaf_V])
            std = weighted_std(value_V, weights[leaf_V])
            out[leaf_V, node_V] = (value_V - mean) / (std + EPSILON)
    return out


def tag_rewards(tree: Tree) -> np.ndarray:
    """What a step of leaf l earns by its tag, [L, G] (RLVMR, arXiv 2507.22844): `planning` 1 if the
    episode succeeds; `explore` 1 if its action is new in the episode; `reflection` 1 if the action
    before was invalid and this one is another; `monitor` and what has no tag 0."""
    leaves = tree.leaf_ids()
    out = np.zeros((len(leaves), len(tree.nodes)))
    for row, leaf in enumerate(leaves):
        path = [tree.nodes[i] for i in tree.path(leaf)[1:]]
        done: set[str] = set()
        for before, node in zip([None, *path], path, strict=False):
            if node.tag == "planning":
                out[row, node.id] = tree.nodes[leaf].outcome == "success"
            elif node.tag == "explore":
                out[row, node.id] = node.action not in done
            elif node.tag == "reflection" and before is not None:
                out[row, node.id] = not before.valid and node.action != before.action
            done.add(node.action)
    return out


def tagged_steps(tree: Tree, weights: np.ndarray) -> np.ndarray:
    """The rewards of `tag_rewards`, normalised within all steps of the task that have the same tag;
    a step whose response has a bad format, and so no tag, gets -0.1 instead."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for leaf, end in enumerate(tree.leaf_ids()):
        for node in tree.path(end)[1:]:
            groups.setdefault(tree.nodes[node].tag, []).append((leaf, node))
    untagged = groups.pop("", [])
    out = _normalised_within(groups.values(), tag_rewards(tree), weights)
    for leaf, node in untagged:
        out[leaf, node] = -FORMAT_PENALTY
    return out


def _state(tree: Tree, node: int) -> str:
    """What the environment said last at a node: nodes without an action did not ask it."""
    while node > 0 and not tree.nodes[node].action:
        node = tree.nodes[node].parent
    return tree.nodes[node].observation


def mix(parts: Sequence[tuple[float, Advantage]]) -> Advantage:
    """A = sum of coefficient * A_part."""

    def mixed(tree: Tree, weights: np.ndarray) -> np.ndarray:
        return sum(coefficient * part(tree, weights) for coefficient, part in parts)

    return mixed


def gigpo(similarity: float = 1.0) -> Advantage:
    """GiGPO's A = A_episode + omega * A_step, with omega = 1."""
    steps = functools.partial(anchor_steps, similarity=similarity)
    return mix(((1.0, leaf_group), (GIGPO_WEIGHT, steps)))


ADVANTAGES: dict[str, Advantage] = {
    "leaf_group": leaf_group,
    "step_rows": step_rows,
    "no_std": no_std,
    "sibling": sibling,
    "gigpo": gigpo(),
    "rlvmr": mix(((1.0, leaf_group), (RLVMR_WEIGHT, tagged_steps))),
    "mix": mix(((0.5, leaf_group), (0.5, sibling))),
}


def make_advantage(name: str, similarity: float = 1.0) -> Advantage:
    """The formula that `algo.advantage` names. `similarity`: of `gigpo`."""
    return gigpo(similarity) if name == "gigpo" else ADVANTAGES[name]
