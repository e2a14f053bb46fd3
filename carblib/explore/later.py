"""Slow work beside a kernel that goes on answering."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Later:
    """Does the newest of the jobs it is given in a thread of its own, and tells of it where it was asked.

    A job that has not begun gives way to the next one; the result of one that was overtaken is dropped. Without a
    running event loop (a script, a test) a job is done at once. `lock` is held while a result is told, and must be held
    by who calls `run` or `forget`.
    """

    def __init__(self, lock: threading.RLock):
        self._lock = lock
        self._thread = ThreadPoolExecutor(1, initializer=_give_way)
        self._turn = 0

    def run(self, job: Callable[[], Any], done: Callable[[Any], None], wait: float = 0.0) -> None:
        """Call `done` with what `job` returns, or with the exception it ends in; begin `wait` seconds later."""
        self._turn += 1
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            done(_outcome(job))
            return
        loop.call_later(wait, self._begin, loop, self._turn, job, done)

    def forget(self) -> None:
        """Drop the job that waits or runs."""
        self._turn += 1

    def _begin(self, loop: asyncio.AbstractEventLoop, turn: int, job: Callable, done: Callable) -> None:
        def finish(future: Any) -> None:
            with self._lock:
                if turn == self._turn:
                    done(future.result())

        def work() -> Any:
            return _outcome(job) if turn == self._turn else None

        if turn == self._turn:
            loop.run_in_executor(self._thread, work).add_done_callback(finish)


def _give_way() -> None:
    # A person who moves on must not wait for the image that they left; only Linux knows priorities of threads.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)


def _outcome(job: Callable[[], Any]) -> Any:
    try:
        return job()
    except Exception as error:  # told where it was asked, not in the thread
        return error
