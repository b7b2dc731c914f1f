"""Counts compilations of the process, so that the metrics can show that they end."""

from __future__ import annotations

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_count = 0
_listening = False


def _on_event(name: str, _seconds: float, **_kwargs) -> None:
    global _count
    _count += name == _EVENT


def compilations() -> int:
    """Programs compiled by this process since the first call."""
    global _listening
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_on_event)
        _listening = True
    return _count
