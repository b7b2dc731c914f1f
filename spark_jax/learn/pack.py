"""Trees into rows of fixed shape. Plain numpy, deterministic.

A tree is laid out in depth-first order, each shared token once. Several trees share a row; a tree
too large for a row is split by leaves into pieces that repeat the shared prefix as context only:
every segment is a target in exactly one piece, so the sum over rows is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spark_jax.learn.credit import SegmentWeights, context_targets
from spark_jax.types import Node, Task, Tree, UserError


class PackedBatch(NamedTuple):
    """R rows of T tokens with M targets each; indices count inside the row.

    tokens, position (depth on the path), end (one past the subtree of the token's node; padding
    j + 1): int32 [R, T]. Per target: `target` is where the sampled token sits, `pred` where its
    predecessor on the path sits, int32; `old_logp`, `ref_logp`, and the four weights of
    `SegmentWeights`, float. Padding has no weight; context tokens have only nll.
    """

    tokens_RT: np.ndarray
    position_RT: np.ndarray
    end_RT: np.ndarray
    target_RM: np.ndarray
    pred_RM: np.ndarray
    old_logp_RM: np.ndarray
    ref_logp_RM: np.ndarray
    a_plus_RM: np.ndarray
    a_minus_RM: np.ndarray
    n_RM: np.ndarray
    nll_RM: np.ndarray

    @property
    def seen_RM(self) -> np.ndarray:
        """Bool: a target, not padding."""
        return (self.n_RM > 0) | (self.nll_RM > 0)


class PackStats(NamedTuple):
    """Counts of tokens; `linear_tokens` is what the leaves are as separate rows without padding."""

    packed_tokens: int
    linear_tokens: int
    targets: int
    pieces: int
    rows: int  # rows with something in them
    fill: float  # packed_tokens / (rows * row_tokens)


@dataclasses.dataclass
class _Piece:
    tree: Tree
    weights: SegmentWeights
    order: list[int]  # nodes, depth-first
    owned: set[int]  # nodes whose tokens are targets in this piece
    tokens: int
    targets: int


def _segment_tokens(tree: Tree, children: list[list[int]]) -> list[int]:
    # What follows a leaf's response predicts nothing: it is left out.
    return [
        len(node.response_ids) + (len(node.context_ids) if children[node.id] else 0)
        for node in tree.nodes
    ]


def _targets(tree: Tree, weights: SegmentWeights) -> list[int]:
    """Tokens of each node that carry loss."""
    response = [len(node.response_ids) for node in tree.nodes]
    context = context_targets(tree)
    return [
        response[i] * (weights.n_G[i] > 0) + int(context[i]) * (weights.context_nll_G[i] > 0)
        for i in range(len(tree.nodes))
    ]


def _leaves_depth_first(children: list[list[int]]) -> list[int]:
    leaves, stack = [], [0]
    while stack:
        node = stack.pop()
        if not children[node] and node > 0:
            leaves.append(node)
        stack.extend(reversed(children[node]))
    return leaves


def _pieces(tree: Tree, weights: SegmentWeights, row_tokens: int, row_targets: int) -> list[_Piece]:
    """The tree as few pieces that each fit a row: leaves in depth-first order, a new piece whenever
    the next leaf no longer fits."""
    children = tree.children()
    size = _segment_tokens(tree, children)
    wanted = _targets(tree, weights)
    pieces: list[_Piece] = []
    owned_before: set[int] = set()
    held: set[int] = set()
    for leaf in _leaves_depth_first(children):
        path = tree.path(leaf)
        fresh = [i for i in path if i not in owned_before]
        more_targets = sum(wanted[i] for i in fresh)
        new = [i for i in path if i not in held]
        more_tokens = sum(size[i] for i in new)
        if (
            not pieces
            or pieces[-1].tokens + more_tokens > row_tokens
            or pieces[-1].targets + more_targets > row_targets
        ):
            new, held = path, set()
            more_tokens = sum(size[i] for i in path)
            if more_tokens > row_tokens or more_targets > row_targets:
                what, limit, key = (
                    (f"{more_tokens} tokens", row_tokens, "train.row_tokens")
                    if more_tokens > row_tokens
                    else (f"{more_targets} target tokens", row_targets, "train.row_targets")
                )
                raise UserError(
                    f"one path of a {tree.task.type!r} tree has {what} and a training row holds "
                    f"{limit}; raise {key}."
                )
            pieces.append(_Piece(tree, weights, [], set(), 0, 0))
        piece = pieces[-1]
        piece.order.extend(new)
        piece.owned.update(fresh)
        piece.tokens += more_tokens
        piece.targets += more_targets
        held.update(new)
        owned_before.update(fresh)
    return pieces


def _place(pieces: Sequence[_Piece], row_tokens: int, row_targets: int) -> list[list[_Piece]]:
    """First-fit decreasing."""
    rows: list[list[_Piece]] = []
    room: list[tuple[int, int]] = []
    for piece in sorted(pieces, key=lambda p: -p.tokens):  # stable: ties keep their order
        fits = (
            r
            for r, (tokens, targets) in enumerate(room)
            if piece.tokens <= tokens and piece.targets <= targets
        )
        r = next(fits, len(rows))
        if r == len(rows):
            rows.append([])
            room.append((row_tokens, row_targets))
        rows[r].append(piece)
        room[r] = room[r][0] - piece.tokens, room[r][1] - piece.targets
    return rows


def _write(piece: _Piece, batch: PackedBatch, row: int, start: int, first: int) -> None:
    """Lays the piece into `row` from token `start` and from target `first` on."""
    tree = piece.tree
    inside = set(piece.order)
    children = tree.children()
    last_of: dict[int, int] = {}  # node -> index of the last token on the path down to it
    depth_of: dict[int, int] = {}  # node -> tokens on the path down to it
    at, m = start, first
    spans: dict[int, tuple[int, int]] = {}
    for i in piece.order:
        node = tree.nodes[i]
        ids = node.response_ids + (node.context_ids if children[i] else [])
        pred = last_of.get(node.parent, -1)
        depth = depth_of.get(node.parent, 0)
        stop = at + len(ids)
        batch.tokens_RT[row, at:stop] = ids
        batch.position_RT[row, at:stop] = np.arange(depth, depth + len(ids))
        spans[i] = (at, stop)
        if i in piece.owned:
            m = _write_targets(piece, node, at, stop, pred, batch, row, m)
        last_of[i] = stop - 1 if ids else pred
        depth_of[i] = depth + len(ids)
        at = stop
    subtree_end: dict[int, int] = {}
    for i in reversed(piece.order):
        below = [subtree_end[c] for c in children[i] if c in inside]
        subtree_end[i] = max([spans[i][1], *below])
        batch.end_RT[row, spans[i][0] : spans[i][1]] = subtree_end[i]


def _write_targets(piece, node, at: int, stop: int, pred: int, batch, row: int, m: int) -> int:
    """Targets of the node that lies at tokens `at` to `stop`, from target `m` on; `pred` is the
    token before it. Returns where the next target goes."""
    i, weights = node.id, piece.weights
    middle = at + len(node.response_ids)
    if node.logprobs and len(node.logprobs) != middle - at:
        raise ValueError(f"node {i}: {middle - at} tokens, {len(node.logprobs)} log-probs")
    response = {
        "a_plus_RM": weights.a_plus_G[i],
        "a_minus_RM": weights.a_minus_G[i],
        "n_RM": weights.n_G[i],
        "nll_RM": weights.nll_G[i],
    }
    if node.logprobs:
        response["old_logp_RM"] = node.logprobs
    spans = []
    if weights.n_G[i] > 0:
        spans.append((at, middle, response))
    if weights.context_nll_G[i] > 0:
        after = middle + (node.parent < 0)  # nothing comes before a prompt's first token
        spans.append((after, stop, {"nll_RM": weights.context_nll_G[i]}))
    for first, last, values in spans:
        if last <= first:
            continue
        if first == at and pred < 0:
            raise ValueError("a response needs at least one token before it on its path")
        targets = slice(m, m + last - first)
        batch.target_RM[row, targets] = np.arange(first, last)
        batch.pred_RM[row, targets] = np.arange(first, last) - 1
        if first == at:
            batch.pred_RM[row, m] = pred
        for name, value in values.items():
            getattr(batch, name)[row, targets] = value
        m = targets.stop
    return m


def default_row_targets(row_tokens: int) -> int:
    """Targets of a row when nothing else is asked for: half of its tokens."""
    return max(row_tokens // 2, 1)


def pack_trees(
    items: Sequence[tuple[Tree, SegmentWeights]],
    row_tokens: int,
    row_targets: int | None = None,
    rows_multiple: int = 1,
    dtype: np.dtype | type = np.float32,
) -> tuple[PackedBatch, PackStats]:
    """Packs whole trees; the number of rows is a multiple of `rows_multiple` (the rows of a
    micro-batch), at least one multiple.

    Raises UserError if a single path does not fit a row.
    """
    if row_targets is None:
        row_targets = default_row_targets(row_tokens)
    pieces = [p for tree, w in items for p in _pieces(tree, w, row_tokens, row_targets)]
    rows = _place(pieces, row_tokens, row_targets)
    count = max(-(-len(rows) // rows_multiple), 1) * rows_multiple
    own_end = np.arange(1, row_tokens + 1, dtype=np.int32)
    batch = PackedBatch(
        tokens_RT=np.zeros((count, row_tokens), np.int32),
        position_RT=np.zeros((count, row_tokens), np.int32),
        end_RT=np.repeat(own_end[None], count, axis=0),
        target_RM=np.zeros((count, row_targets), np.int32),
        pred_RM=np.zeros((count, row_targets), np.int32),
        **{
            name: np.zeros((count, row_targets), dtype)
            for name in ("old_logp_RM", "ref_logp_RM", "a_plus_RM", "a_minus_RM", "n_RM", "nll_RM")
        },
    )
    for r, row in enumerate(rows):
        start = first = 0
        for piece in row:
            _write(piece, batch, r, start, first)
            start += piece.tokens
            first += piece.targets
    packed = sum(piece.tokens for piece in pieces)
    stats = PackStats(
        packed_tokens=packed,
        linear_tokens=sum(linear_tokens(tree) for tree, _ in items),
        targets=sum(piece.targets for piece in pieces),
        pieces=len(pieces),
        rows=len(rows),
        fill=packed / (len(rows) * row_tokens) if rows else 0.0,
    )
    return batch, stats


def node_sums(
    items: Sequence[tuple[Tree, SegmentWeights]],
    value_RM: np.ndarray,
    row_tokens: int,
    row_targets: int,
) -> list[np.ndarray]:
    """What `value_RM`, a number a target of `pack_trees(items, row_tokens, row_targets)`, adds up
    to over the targets of each node: [G] for each tree."""
    out = [np.zeros(len(tree.nodes)) for tree, _ in items]
    number = {id(tree): i for i, (tree, _) in enumerate(items)}
    pieces = [p for tree, w in items for p in _pieces(tree, w, row_tokens, row_targets)]
    for r, row in enumerate(_place(pieces, row_tokens, row_targets)):
        first = 0
        for piece in row:
            wanted = _targets(piece.tree, piece.weights)
            for i in piece.order:
                if i in piece.owned:
                    out[number[id(piece.tree)]][i] = value_RM[r, first : first + wanted[i]].sum()
                    first += wanted[i]
    return out


def linear_tokens(tree: Tree) -> int:
    """Tokens of all leaves as separate sequences."""
    size = _segment_tokens(tree, tree.children())
    return sum(size[i] for leaf in tree.leaf_ids() for i in tree.path(leaf))


def micro_batches(batch: PackedBatch, rows: int) -> list[PackedBatch]:
    """Slices of `rows` rows, all of one shape."""
    count = batch.tokens_RT.shape[0]
    if count % rows:
        raise ValueError(f"{count} rows do not divide into micro-batches of {rows}")
    return [PackedBatch(*(x[i : i + rows] for x in batch)) for i in range(0, count, rows)]


def chain_tree(
    prompt_ids: Sequence[int],
    turns: Sequence[tuple[Sequence[int], Sequence[int]]],
    task: Task | None = None,
    rebuilt: bool = False,
) -> Tree:
    """A dialogue as a tree without forks, so that the warm-up packs and trains like RL.

    `turns` are (response ids, context ids after it) in order; the last context is not used. With
    `rebuilt` a context is the whole prompt of the next response.
    """
    task = task or Task(env="", type="dialogue", variation=0)
    nodes = [Node(id=0, parent=-1, step=0, context_ids=list(prompt_ids))]
    for step, (response, context) in enumerate(turns, start=1):
        nodes.append(
            Node(
                id=step,
                parent=step - 1,
                step=step,
                response_ids=list(response),
                context_ids=list(context),
            )
        )
    nodes[-1].done = len(nodes) > 1
    return Tree(
        task=task, leaves=1, roots=1, branch=1, signal="never", nodes=nodes, rebuilt=rebuilt
    )
