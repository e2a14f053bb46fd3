"""Signals that wait for the end of an iteration: stopped inside one, a training's state would be torn.

Ctrl-C (SIGINT), SIGTERM (`docker stop`, preemption, the end of a job) and SIGHUP (a lost connection) mean the same:
come to a good end. So does SIGUSR1, which SLURM sends where it is asked to (`--signal=USR1@120`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Hold these signals back within the block; what it yields tells whether one came.

    However many come, the block goes on: a second one tears nothing that is saved in it. Outside the main thread Python
    receives no signals, and nothing is held back.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def end_like_interrupt() -> None:
    """Let all of these signals raise KeyboardInterrupt, as Ctrl-C does, for the rest of the process."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


def leave_to_parent(_: int) -> None:
    """As `deaf_children`, within a process that torch started to load data; the argument is its number."""
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Let processes that are started within the block never hear these signals, which reach all of a command at once.

    But SIGTERM, by which they are ended. Here they raise KeyboardInterrupt, after the block where they came within.
    """
    with held_back() as asked:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS} - {signal.SIGTERM})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if asked():
        raise KeyboardInterrupt
