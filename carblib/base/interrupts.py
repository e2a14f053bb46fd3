"""Ctrl-C that waits for the end of an iteration: stopped inside one, a training's state would be torn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold Ctrl-C (SIGINT) back within the block; calling what it yields raises the KeyboardInterrupt that came.

    Outside the main thread Python receives no signals, and nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())

    def let_through() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    try:
        yield let_through
    finally:
        signal.signal(signal.SIGINT, before if before is not None else signal.default_int_handler)
