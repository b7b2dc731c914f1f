"""transformers' continuous batching, with its sharing of whole blocks of equal beginnings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import transformers

from benchmarks.engines.requests import Server


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
def serve(model) -> Iterator[Server]:
    """`model`: of `benchmarks.engines.hf.load`."""
    config = transformers.GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0, max_new_tokens=1
    )
    with model.continuous_batching_context_manager(generation_config=config) as manager:
        yield _Server(manager)
