"""Compiled programs: counted, so that the metrics can show that they end, and kept on disk."""

from __future__ import annotations

import jax

from spark_jax.keep import cache_folder

_EVENT = "/jax/core/compile/backend_compile_duration"
_count = 0
_listening = False


def _on_event(name: str, _seconds: float, **_kwargs) -> None:
    global _count
    _count += name == _EVENT


KEPT_BYTES = 2**30  # of compiled programs on disk; the least recently used make room


def keep_on_disk() -> None:
    """Compiled programs outlive the process: a resumed run, or one of the same shapes, loads them.

    In the folder of JAX_COMPILATION_CACHE_DIR, else in ~/.cache/spark_jax/programs.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("programs")))
        jax.config.update("jax_compilation_cache_max_size", KEPT_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def compilations() -> int:
    """Programs compiled by this process since the first call."""
    global _listening
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_on_event)
        _listening = True
    return _count
