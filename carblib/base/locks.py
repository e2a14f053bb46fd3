"""One writer per folder: a second process that would write into it is told, and never writes beside the first.

The processes of a launcher, which share out the work, write together.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from carblib.base.errors import CarbError, refusals

_SEVERAL = ", one of several,"
_SETTLING = 10.0  # seconds after which, on a network's disk too, who holds a lock alone has signed it
_ABANDONED = 3600.0  # seconds after which an unfinished file is one of a process that died


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder's lock within the block; it is released with the process, however that ends.

    Files that a killed process left unfinished, in folders within too, are removed once they are an hour old. Raises
    CarbError where another process holds the lock.
    """
    with _lock_of(folder) as file:
        if not _taken(file):
            raise CarbError(f"{folder}: {_holder(file)} is writing here; wait for it, or choose another 'run'")
        _begin(folder, file)
        yield


@contextmanager
def one_of_writers(folder: Path, settle: Callable[[], object]) -> Iterator[None]:
    """Hold a folder's lock within the block together with other processes of a launcher.

    `settle` makes the folder ready: it is called while no other process writes, and not by one that comes when others
    are at work. Raises CarbError where a process that is none of these holds the lock.
    """
    with _lock_of(folder) as file:
        started = time.monotonic()
        while True:
            if _taken(file):
                _begin(folder, file, _SEVERAL)
                settle()
            if _taken(file, shared=True):
                break
            if time.monotonic() - started > _SETTLING and _SEVERAL not in _holder(file):
                raise CarbError(f"{folder}: {_holder(file)} is writing here alone; wait for it, or end it")
            time.sleep(0.1)
        yield


@contextmanager
def _lock_of(folder: Path) -> Iterator[TextIO]:
    with refusals():
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 (held open: the lock is the open file's)
    with file:
        yield file


def _taken(file: TextIO, shared: bool = False) -> bool:
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:  # Windows, and some shared disks
        what = f"cannot be locked against a second writer ({error})"
        raise CarbError(f"{file.name}: {what}; work in a folder of a file system that knows flock") from error
    return True


def _holder(file: TextIO) -> str:
    # Opened again: on NFS what another machine wrote is not seen in a file that was open before.
    return Path(file.name).read_text("utf-8").strip() or "another process"


def _begin(folder: Path, file: TextIO, more: str = "") -> None:
    """Sign the lock, which this process alone holds, and remove what killed ones left."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{more}")
    file.flush()
    os.fsync(file.fileno())
    for path in folder.rglob(".*.tmp"):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            path.unlink(missing_ok=True)
