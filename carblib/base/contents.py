"""What files hold, by digest or by what a function finds in them, read once: none is read again until it changes.

Thousands of images are asked for at every start; the table of digests, kept in a file, answers in milliseconds. A file
is known by what it holds, so data that moved, or are named through a link, are the same data.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from carblib.base.errors import CarbError, refusals
from carblib.base.files import PathLike, read_json, write_json

T = TypeVar("T")

_RACY = 2_000_000_000  # ns: a file this young may still change without its time changing; it is read again
_Seen = tuple[int, ...]  # size, mtime and ctime in ns, inode


class Remembered(Generic[T]):
    """What `find` says of files, remembered in `table` (JSON, which may be deleted at any time) by path.

    A file is asked again when its size, times or inode differ. Programs can set a file's mtime back (unzip, rsync -t);
    its ctime changes with every change of its content.

    restore: turns what JSON keeps of an answer back into it. An error that `find` raises is not remembered.
    """

    def __init__(self, table: PathLike, find: Callable[[PathLike], T], restore: Callable[[Any], T]):
        self.table, self.find = Path(table), find
        self._rows: dict[str, tuple[_Seen, T]] = _read(self.table, restore)
        self._changed = False

    def of(self, path: PathLike) -> T:
        """Return what `find` says of a file; raises its errors, and CarbError where the file is missing."""
        place = os.path.realpath(path)
        with refusals():
            if not os.path.isfile(place):
                raise CarbError(f"{path}: no such file; check the path")
            now = os.stat(place)
            seen = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino)
            before, known = self._rows.get(place, (None, None))
            if before == seen:
                return known
            found = self.find(path)
        if time.time_ns() - max(now.st_mtime_ns, now.st_ctime_ns) > _RACY:
            self._rows[place] = (seen, found)
            self._changed = True
        return found

    def save(self) -> None:
        """Write the table where it has grown."""
        if self._changed:
            write_json(self.table, self._rows, indent=None)
            self._changed = False


class Contents(Remembered[str]):
    """Digests of files."""

    def __init__(self, table: PathLike):
        super().__init__(table, _hash, str)

    def digest(self, path: PathLike) -> str:
        """Return the digest of a file's content. Raises CarbError where it is missing or cannot be read."""
        return self.digests([path])[0]

    def digests(self, paths: Iterable[PathLike]) -> list[str]:
        """Return the digests of files, and keep the table for the next time."""
        found = [self.of(path) for path in paths]
        self.save()
        return found


def _hash(path: PathLike) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read(table: Path, restore: Callable[[Any], T]) -> dict[str, tuple[_Seen, T]]:
    """Read a table; one that is missing or damaged is empty, since it may always be made again."""
    try:
        rows = read_json(table) if table.is_file() else {}
        return {path: (tuple(map(int, seen)), restore(found)) for path, (seen, found) in rows.items()}
    except (CarbError, ValueError, TypeError, AttributeError):
        print(f"{table}: damaged; what it remembered of files is looked up anew")
        return {}
