"""llama.cpp through its Python package: one batch of sequences, forks by `seq_cp`, which shares the
cells of the cache. The scheduler around it is ours and as simple as it can be: every step feeds one
token of each row that decodes and the whole new context of each row that has one."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence

import gguf
import llama_cpp
import numpy as np

from benchmarks.measured import Measured, Watch
from benchmarks.workload import Shape
from spark_jax.models.gguf_weights import gguf_name
from spark_jax.models.presets import Model
from spark_jax.models.weights import hf_tensors

BATCH = 512  # tokens of a step at most
MOST_SEQUENCES = 256  # what llama.cpp allows
Stored, Kind = gguf.GGMLQuantizationType, gguf.LlamaFileType
FILE_TYPES = {
    "float32": (Stored.F32, Kind.ALL_F32),
    "float16": (Stored.F16, Kind.MOSTLY_F16),
    "bfloat16": (Stored.BF16, Kind.MOSTLY_BF16),
}


def write_gguf(model: Model, dtype: str, file: pathlib.Path) -> None:
    """The weights as llama.cpp reads them; a vocabulary of numbers, since nothing is tokenised."""
    c = model.config
    stored, file_type = FILE_TYPES[dtype]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_file_type(file_type)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(8192)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.feed_forward)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_tokenizer_model("no_vocab")
    for name, weight in hf_tensors(model.params, c):
        heads = {"q_proj": c.heads, "k_proj": c.kv_heads}.get(name.split(".")[-2])
        if heads:  # the order of channels in which llama.cpp rotates
            rows = weight.shape[0] // heads
            weight = weight.reshape(heads, 2, rows // 2, -1).swapaxes(1, 2).reshape(weight.shape)
        kind = stored if weight.ndim > 1 else Stored.F32
        data = gguf.quants.quantize(weight.astype(np.float32), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Context:
    """A loaded model with its cache."""

    def __init__(self, model: Model, dtype: str, rows: int, path_tokens: int, threads: int):
        llama_cpp.llama_log_set(_silent, None)
        llama_cpp.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "model.gguf"
            write_gguf(model, dtype, file)
            options = llama_cpp.llama_model_default_params()
            options.use_mmap = False
            self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
        if not self.model:
            raise RuntimeError("llama.cpp could not read the model")
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = 2 * rows * path_tokens
        options.n_batch = options.n_ubatch = BATCH
        options.n_seq_max = min(MOST_SEQUENCES, 16 * rows)
        options.n_threads = options.n_threads_batch = threads
        options.kv_unified = True  # sequences share cells
        options.type_k = options.type_v = Stored.F32 if dtype == "float32" else Stored.F16
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_dist(0))
        self.sampler = chain
        self.free = list(range(options.n_seq_max))

    def step(self, work: Sequence[tuple[int, int, list[int], bool]]) -> list[int]:
        """Feeds tokens: (sequence, first position, tokens, sample after the last one?). Returns the
        sampled tokens, in order."""
        batch, n, wanted = self.batch, 0, []
        for sequence, position, tokens, sample in work:
            for i, token in enumerate(tokens):
                batch.token[n] = token
                batch.pos[n] = position + i
                batch.n_seq_id[n] = 1
                batch.seq_id[n][0] = sequence
                batch.logits[n] = sample and i == len(tokens) - 1
                n += 1
            if sample:
                wanted.append(n - 1)
        batch.n_tokens = n
        if llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed: the cache is full")
        return [llama_cpp.llama_sampler_sample(self.sampler, self.context, i) for i in wanted]

    def copy(self, source: int, target: int, tokens: int) -> None:
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, 0, tokens)

    def drop(self, sequence: int) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        self.free.append(sequence)


@llama_cpp.llama_log_callback
def _silent(level, text, data) -> None:
    """It says a line of every tensor."""


@dataclasses.dataclass(eq=False)
class _Row:
    tree: int
    node: int
    sequence: int
    cached: int  # tokens in the cache
    feed: list[int]  # tokens to feed; after the last one comes the next sampled token
    left: int  # tokens still to sample
    waiting: list[int] = dataclasses.field(default_factory=list)  # siblings that fork off here


def play(
    context: Context, trees: Sequence[Shape], rows: int, vocab_size: int, limit: float
) -> Measured:
    """Grows the trees with at most `rows` rows in a step; environments answer at once."""
    rng = np.random.default_rng(0)
    contexts = [[rng.integers(0, vocab_size, n).tolist() for n in tree.context] for tree in trees]
    children = [tree.children for tree in trees]
    unopened = collections.deque(range(len(trees)))
    ready: collections.deque[_Row] = collections.deque()
    running: list[_Row] = []
    prefilled = 0

    def grow(tree: int, node: int, sequence: int, cached: int, last: list[int]) -> None:
        """The first child goes on in the sequence; the others fork off when it has been fed."""
        first, *others = children[tree][node]
        feed = last + contexts[tree][node]
        ready.appendleft(
            _Row(tree, first, sequence, cached, feed, trees[tree].response[first], others)
        )

    watch = Watch(sum(tree.response_tokens for tree in trees), limit)
    while (unopened or ready or running) and not watch.over:
        if unopened and len(running) + len(ready) < rows:
            tree = unopened.popleft()
            grow(tree, 0, context.free.pop(), 0, [])
        while ready and len(running) < rows:
            running.append(ready.popleft())
        room, work, fed = BATCH, [], []
        for row in sorted(running, key=lambda row: len(row.feed)):
            # The last token before a fork is fed by each branch for itself.
            most = len(row.feed) - 1 if row.waiting else len(row.feed)
            tokens = row.feed[: min(most, room)]
            if tokens:
                sample = len(tokens) == len(row.feed)
                work.append((row.sequence, row.cached, tokens, sample))
                fed.append((row, tokens, sample))
                room -= len(tokens)
        sampled = iter(context.step(work))
        for row, tokens, sample in fed:
            row.cached += len(tokens)
            row.feed = row.feed[len(tokens) :]
            prefilled += len(tokens) - sample
            if row.waiting and len(row.feed) == 1:
                for node in row.waiting:
                    sequence = context.free.pop()
                    context.copy(row.sequence, sequence, row.cached)
                    left = trees[row.tree].response[node]
                    ready.append(_Row(row.tree, node, sequence, row.cached, list(row.feed), left))
                row.waiting = []
            if sample:
                row.feed, row.left = [next(sampled)], row.left - 1
                watch.written += 1
                if row.left == 0:
                    running.remove(row)
                    if children[row.tree][row.node]:
                        grow(row.tree, row.node, row.sequence, row.cached, row.feed)
                    else:
                        context.drop(row.sequence)
    return watch.measured(computed_tokens=watch.written, prefill_tokens=prefilled)
