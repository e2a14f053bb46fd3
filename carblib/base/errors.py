"""Errors a user can act on: one line that names the file or key, what is wrong, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator

# What to do about what the system refuses; anything else is a matter of the path.
_REMEDIES = {
    errno.EACCES: "change its permissions or those of its folders, or name another",
    errno.EPERM: "change its permissions or those of its folders, or name another",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.ENAMETOOLONG: "shorten the name",
    errno.ELOOP: "a link in it leads back to itself; mend that link",
}


class CarbError(Exception):
    """A mistake the user can mend. The message is one line: file or key, what is wrong, what to do."""

    def __str__(self) -> str:
        # Messages quote other libraries' exceptions, which may span lines; the promise is one line.
        return " ".join(super().__str__().split())

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this method and prints its lines in place of the stack.
        return [f"error: {self}"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C after which work was saved and a sentence has said so: a notebook shows one word instead of the stack."""

    def _render_traceback_(self) -> list[str]:
        return ["interrupted"]


def one_line(error: Exception) -> str:
    """Return an error in one line: a CarbError's own words, what the system refused of which file, or type and text."""
    if isinstance(error, OSError) and error.filename is not None:
        reason = (error.strerror or type(error).__name__).lower()
        return f"{error.filename}: {reason}; {_REMEDIES.get(error.errno, 'check the path')}"
    text = " ".join(str(error).split())
    return text if isinstance(error, CarbError) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Within the block, or the function decorated with it, turn an OSError that names a file into a CarbError."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise CarbError(one_line(error)) from error


def nearest(word: str, options: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the option most like `word`, or "" where none is like it."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean '{by_lower[found[0]]}'?" if found else ""
