"""Memory: how much of it there is, and one line with the keys to lower where it ran out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from carblib.base.errors import CarbError

_SIGNS = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
# Which groups of processes this one is in (a container, a job of SLURM), and where their limits are.
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# The limit, what is held of it, and which of that are files, given up at once: cgroup 2, cgroup 1.
_TWO = ("memory.max", "memory.current", "inactive_file")
_ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available() -> int:
    """Return the bytes of memory that are free, or are at once, and not beyond the limit of a container or job."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, LookupError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return min([free, *_allowed()])


def _allowed() -> Iterator[int]:
    """Yield how many bytes more each group of processes with a limit may take of those that this one is in."""
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            (limit, used, files), root = (_ONE, _GROUPS / "memory") if kinds else (_TWO, _GROUPS)
            own = root / name.lstrip("/")
            for group in (own, *own.parents):
                with contextlib.suppress(OSError, LookupError, ValueError):  # "max": no limit
                    most, held = (int((group / file).read_text()) for file in (limit, used))
                    kept = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())[files]
                    yield max(most - held + int(kept), 0)


@contextlib.contextmanager
def lowering(keys: str) -> Iterator[None]:
    """Within the block, or the function decorated with it, turn memory that ran out into a CarbError: lower `keys`."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        text = f"{type(error).__name__} {error}".lower()
        if not isinstance(error, MemoryError) and not any(sign in text for sign in ("outofmemory", *_SIGNS)):
            raise
        what = "the GPU's memory" if "cuda" in text or "cublas" in text else "memory"
        raise CarbError(f"{what} ran out; lower {keys}, or end other programs that use it") from error
