"""One writer per folder: a second process that would write into it is told, and never writes beside the first."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carblib.base.errors import CarbError, refusals

_ABANDONED = 3600.0  # seconds after which an unfinished file is one of a process that died


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock within the block; it is released with the process, however that ends.

    Files that a killed process left unfinished are removed. Raises CarbError where another process holds the lock.
    """
    import fcntl

    with refusals():
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held open: the lock is the open file's)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise CarbError(
                f"{folder}: {file.read().strip() or 'another process'} is writing here; wait for it, "
                "or choose another 'run'"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        for path in folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        yield
    finally:
        file.close()
