"""The process that plays the games of one environment.

`python -m spark_jax.envs.alfworld.worker FD` answers requests on the socket FD, which it inherited,
until the other side closes it: so it ends with its parent, however that ends. Requests are
("translate", problem), ("start", problem, translation) and ("step", action), as the methods of
`Engine`; answers ("done", what the method returned), ("failed", why), ("no engine", why) where a
package is missing, or ("broken", why) where it is no fault of the game (no memory, a full disk).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import BinaryIO, NamedTuple

from spark_jax.envs.alfworld.engine import INSTALL, Answer, Engine
from spark_jax.types import UserError

_ROOT = Path(__file__).resolve().parents[3]  # the folder that holds the package spark_jax
_ANSWER_TIMEOUT_S = 120.0  # opening the largest game takes a few seconds on a busy machine
_LAST_LINES, _LONGEST_LINE = 3, 200  # of what a dead process said, in the sentence about its death


class Worker(NamedTuple):
    """A running process and the line to it."""

    process: subprocess.Popen
    line: Connection
    said: BinaryIO  # a nameless file with what it wrote to stderr: a pipe would have to be emptied


class Refused(Exception):
    """A method of the engine raised; the process lives on."""


def start_worker() -> Worker:
    """Start one (1-2 s until its first answer, 130 MB)."""
    said = tempfile.TemporaryFile()
    ours, theirs = Pipe()
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    with theirs:
        # Its own process group: Ctrl-C must not kill environments that a clean stop still needs.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the planner is talkative
            stderr=said,
            pass_fds=(theirs.fileno(),),
            process_group=0,
            # alfworld makes its data folder on import, wherever that is; nothing here reads it.
            env={**os.environ, "PYTHONPATH": path, "ALFWORLD_DATA": tempfile.gettempdir()},
        )
    return Worker(process, ours, said)


def ask(worker: Worker, method: str, *arguments: str | bytes) -> Answer | bytes:
    """What a method of its engine returns. Raises Refused with what the engine said, UserError when
    a package is missing, RuntimeError when the process has ended, does not answer or is broken:
    another one may do better."""
    try:
        worker.line.send((method, *arguments))
        if not worker.line.poll(_ANSWER_TIMEOUT_S):
            silence = f"its process did not answer for {_ANSWER_TIMEOUT_S:g} s"
            raise RuntimeError(silence + _last_words(worker))
        outcome, value = worker.line.recv()
    except (EOFError, OSError) as error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)  # the line closes a moment before there is a code
        end = f"its process {worker.process.pid} ended (code {worker.process.poll()})"
        raise RuntimeError(end + _last_words(worker)) from error
    if outcome == "no engine":
        raise UserError(f"ALFWorld's engine cannot be opened ({value}): run `{INSTALL}` again.")
    if outcome == "broken":
        raise RuntimeError(f"its process failed ({value})")
    if outcome == "failed":
        raise Refused(value)
    return value


def stop_worker(worker: Worker) -> None:
    """End it, dead or alive, and reap it (it holds nothing worth saving)."""
    with contextlib.suppress(OSError):
        worker.line.close()
    with contextlib.suppress(OSError):
        worker.process.kill()
    worker.process.wait()
    worker.said.close()


def _last_words(worker: Worker) -> str:
    """What it wrote last, for the end of a sentence; "" if it wrote nothing."""
    worker.said.seek(max(0, worker.said.seek(0, os.SEEK_END) - 4096))
    lines = worker.said.read().decode(errors="replace").splitlines()
    last = [line.strip()[:_LONGEST_LINE] for line in lines if line.strip()][-_LAST_LINES:]
    return f", after it wrote: {' / '.join(last)}" if last else ""


def serve(line: Connection) -> None:
    """Answer requests until the line is closed."""
    engine = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, *arguments = line.recv()
            try:
                engine = engine or Engine()
            except (ImportError, UserError) as error:
                line.send(("no engine", _text(error)))
                continue
            except Exception as error:
                line.send(("broken", _text(error)))
                continue
            try:
                reply = "done", getattr(engine, method)(*arguments)
            except (MemoryError, OSError) as error:  # no fault of the game
                reply = "broken", _text(error)
            except (Exception, SystemExit) as error:  # the translator exits on some bad problems
                reply = "failed", _text(error)
            line.send(reply)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
