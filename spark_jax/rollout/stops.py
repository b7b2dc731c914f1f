"""Stop conditions as a table, so that the device can check them token by token.

A closing tag such as `</action>` may be cut anywhere by a tokenizer and may share its last token
with what follows. A byte-level automaton over the token bytes finds it in every case.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXPLORED = "</explore>"


def stop_patterns(fork_at: str) -> tuple[str, ...]:
    """What ends a response; with `tree.fork_at=same_step` the reasoning is one of its own."""
    return ("</action>", EXPLORED) if fork_at == "same_step" else ("</action>",)


def stop_table(token_bytes: Sequence[bytes], patterns: Sequence[str]) -> np.ndarray:
    """Transition table int32 [states, V]: `state = table[state, token]`, start state 0.

    The last state is absorbing and means that one of the patterns has been completed, at or inside
    the token that led there.
    """
    delta = _byte_automaton([pattern.encode() for pattern in patterns])
    states = delta.shape[0]
    longest = max((len(b) for b in token_bytes), default=0)
    padded = np.zeros((len(token_bytes), max(longest, 1)), np.uint8)
    length = np.array([len(b) for b in token_bytes])
    for i, b in enumerate(token_bytes):
        padded[i, : len(b)] = np.frombuffer(b, np.uint8)
    table = np.tile(np.arange(states)[:, None], (1, len(token_bytes)))
    for i in range(longest):
        alive = np.flatnonzero(length > i)
        table[:, alive] = delta[table[:, alive], padded[alive, i][None, :]]
    return table.astype(np.int32)


def state_after(text: str, patterns: Sequence[str]) -> int:
    """The state of `stop_table` after a text that begins in state 0 and completes no pattern."""
    prefixes, tail = _proper_prefixes([pattern.encode() for pattern in patterns]), text.encode()
    return next(prefixes.index(tail[i:]) for i in range(len(tail) + 1) if tail[i:] in prefixes)


def _proper_prefixes(patterns: list[bytes]) -> list[bytes]:
    """By the number of their state."""
    return sorted({p[:i] for p in patterns for i in range(len(p))}, key=lambda s: (len(s), s))


def _byte_automaton(patterns: list[bytes]) -> np.ndarray:
    """Aho-Corasick over bytes: int [states, 256]; the last state is absorbing acceptance."""
    prefixes = _proper_prefixes(patterns)
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    accept = len(prefixes)
    delta = np.full((accept + 1, 256), accept)
    for prefix, state in number.items():
        for byte in range(256):
            text = prefix + bytes([byte])
            if any(text.endswith(p) for p in patterns):
                continue
            while text not in number:
                text = text[1:]
            delta[state, byte] = number[text]
    return delta
