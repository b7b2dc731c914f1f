"""Jobs in threads, each with a tool of its own."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Job, Tool, Result = TypeVar("Job"), TypeVar("Tool"), TypeVar("Result")


def in_threads(
    work: Callable[[Tool, Job], Result],
    jobs: Sequence[Job],
    tools: Sequence[Tool],
    on_result: Callable[[Job, Result], None],
    stop: threading.Event | None = None,
) -> None:
    """Does the jobs, as many at a time as there are tools, each of which one thread uses at a time.

    `on_result` is called in the caller's thread, as jobs end. After an error no job is begun; it is
    raised when those that were running have ended, and their results have been handed over. When
    the caller's thread itself is interrupted, `stop` is set, if there is one: what waits should
    end at once.
    """
    free: queue.SimpleQueue[Tool] = queue.SimpleQueue()
    for tool in tools:
        free.put(tool)

    def do(job: Job) -> Result:
        tool = free.get()
        try:
            return work(tool, job)
        finally:
            free.put(tool)

    failed: BaseException | None = None
    with concurrent.futures.ThreadPoolExecutor(len(tools)) as threads:
        running = {threads.submit(do, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(running):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    on_result(running[future], future.result())
                elif failed is None:
                    failed = error
                    for other in running:
                        other.cancel()
        except BaseException:
            if stop is not None:
                stop.set()
            for other in running:
                other.cancel()
            raise
    if failed is not None:
        raise failed
