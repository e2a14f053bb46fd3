"""Contents of files by digest, read once: a file whose size and time are unchanged is not read again.

Thousands of images are asked for at every start; the table of digests, kept in a file, answers in milliseconds. A file
is known by what it holds, so data that moved, or are named through a link, are the same data.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from carblib.base.errors import CarbError, refusals
from carblib.base.files import PathLike, write_text

_RACY = 2_000_000_000  # ns: a file this young may still change without its time changing; it is read again
_Row = list  # size, mtime in ns, digest


def digest_of(data: bytes) -> str:
    """Return the digest of some bytes: 32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Contents:
    """Digests of files, remembered in `table` (JSON, which may be deleted at any time) by path, size and time."""

    def __init__(self, table: PathLike):
        self.table = Path(table)
        self._rows: dict[str, _Row] = _read(self.table)
        self._changed = False

    def digest(self, path: PathLike) -> str:
        """Return the digest of a file's content. Raises CarbError where it is missing or cannot be read."""
        return self.digests([path])[0]

    def _digest(self, path: PathLike) -> str:
        place = os.path.realpath(path)
        with refusals():
            if not os.path.isfile(place):
                raise CarbError(f"{path}: no such file; check the path in the parameters")
            now = os.stat(place)
            size, when, known = self._rows.get(place, (None, None, ""))
            if (size, when) == (now.st_size, now.st_mtime_ns):
                return known
            with open(place, "rb") as file:
                found = _hash(file)
        if time.time_ns() - now.st_mtime_ns > _RACY:
            self._rows[place] = [now.st_size, now.st_mtime_ns, found]
            self._changed = True
        return found

    def digests(self, paths: Iterable[PathLike]) -> list[str]:
        """Return the digests of files, and keep the table for the next time."""
        found = [self._digest(path) for path in paths]
        self.save()
        return found

    def save(self) -> None:
        """Write the table where it has grown."""
        if self._changed:
            write_text(self.table, json.dumps(self._rows, separators=(",", ":")))
            self._changed = False


def _hash(file: BinaryIO) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _read(table: Path) -> dict[str, _Row]:
    """Read a table; one that is missing or damaged is empty, since it may always be made again."""
    try:
        rows = json.loads(table.read_text("utf-8"))
        return {path: [int(size), int(when), str(digest)] for path, (size, when, digest) in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
