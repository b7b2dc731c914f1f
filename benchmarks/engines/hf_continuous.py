"""transformers' continuous batching, with its sharing of whole blocks of equal beginnings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import transformers

from benchmarks.engines.requests import Server

PAGE = 16  # tokens, as ours


class _Server:
    def __init__(self, manager):
        self.manager = manager

    def submit(self, name: str, tokens: list[int], new: int) -> None:
        self.manager.add_request(tokens, request_id=name, max_new_tokens=new, eos_token_id=-1)

    def collect(self) -> list[tuple[str, list[int]]]:
        out = None
        while out is None:
            out = self.manager.get_result(timeout=1.0)
            if out is None and not self.manager.is_running():
                raise RuntimeError("the server has stopped")
        if out.error:
            raise RuntimeError(out.error)
        return [(out.request_id, list(out.generated_tokens))]


@contextlib.contextmanager
def serve(model, rows: int, path_tokens: int) -> Iterator[Server]:
    """`model`: of `benchmarks.engines.hf.load`. Small pages, since only whole ones are shared, and
    room for twice the open paths, as ours has: left alone it takes half of the memory."""
    pages_of_a_path = -(-path_tokens // PAGE) + 1
    cache = transformers.ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=2 * rows * pages_of_a_path,
        max_batch_tokens=max(256, 32 * rows),
        max_requests_per_batch=rows,
    )
    config = transformers.GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0, max_new_tokens=1
    )
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=cache
    ) as manager:
        yield _Server(manager)
