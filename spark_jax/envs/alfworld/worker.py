"""The process that plays the games of one environment.

`python -m spark_jax.envs.alfworld.worker FD` answers JSON requests on the socket FD, which it
inherited, until the other side closes it: so it ends with its parent, however that ends.

    {"start": PROBLEM} or {"step": ACTION}  ->  {"answer": [text, won, admissible]}
                                            or  {"failed": why}
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

from spark_jax.envs.alfworld.engine import Answer, Engine

_ROOT = Path(__file__).resolve().parents[3]  # the folder that holds the package spark_jax
_ANSWER_TIMEOUT_S = 120.0  # opening the largest game takes a few seconds on a busy machine


class Worker(NamedTuple):
    """A running process and the line to it."""

    process: subprocess.Popen
    line: Connection


class Refused(Exception):
    """The engine raised; the worker lives on."""


def start_worker() -> Worker:
    """Start one (1-2 s until its first answer, 130 MB)."""
    ours, theirs = Pipe()
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    with theirs:
        # Its own process group: Ctrl-C must not kill environments that a clean stop still needs.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the planner is talkative
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=0,
            env={**os.environ, "PYTHONPATH": path},
        )
    return Worker(process, ours)


def ask(worker: Worker, request: str, value: str) -> Answer:
    """Its answer to {request: value}. Raises Refused with what the engine said, or RuntimeError
    when the process has ended or does not answer."""
    try:
        worker.line.send_bytes(json.dumps({request: value}).encode())
        if not worker.line.poll(_ANSWER_TIMEOUT_S):
            raise RuntimeError(f"its process did not answer for {_ANSWER_TIMEOUT_S:.0f} s")
        reply = json.loads(worker.line.recv_bytes())
    except (EOFError, OSError) as error:
        code = worker.process.poll()
        raise RuntimeError(f"its process {worker.process.pid} ended (code {code})") from error
    if "failed" in reply:
        raise Refused(reply["failed"])
    text, won, admissible = reply["answer"]
    return Answer(text, won, tuple(admissible))


def stop_worker(worker: Worker) -> None:
    """End it, dead or alive, and reap it (it holds nothing worth saving)."""
    with contextlib.suppress(OSError):
        worker.line.close()
    with contextlib.suppress(OSError):
        worker.process.kill()
    worker.process.wait()


def serve(line: Connection) -> None:
    """Answer requests until the line is closed."""
    engine = None
    while True:
        try:
            ((request, value),) = json.loads(line.recv_bytes()).items()
        except (EOFError, OSError):
            return
        try:
            engine = engine or Engine()
            answer = engine.start(value) if request == "start" else engine.step(value)
            reply = {"answer": answer}
        except (Exception, SystemExit) as error:  # the translator exits on some bad problems
            reply = {"failed": f"{type(error).__name__}: {error}"}
        try:
            line.send_bytes(json.dumps(reply).encode())
        except OSError:
            return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
