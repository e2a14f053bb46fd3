"""Errors a user can act on: one line that names the file or key, what is wrong, and what to do."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn


class CarbError(Exception):
    """A mistake the user can mend. The message is one line: file or key, what is wrong, what to do."""

    def __str__(self) -> str:
        # Messages quote other libraries' exceptions, which may span lines; the promise is one line.
        return " ".join(super().__str__().split())

    def _render_traceback_(self) -> list[str]:
        # IPython asks for this method and prints its lines in place of the stack.
        return [f"error: {self}"]


def nearest(word: str, options: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the option most like `word`, or "" where none is like it."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"did you mean '{by_lower[found[0]]}'?" if found else ""


def cli(main: Callable[[], int | None]) -> NoReturn:
    """Run a command's `main` and exit with its code: a CarbError prints one line and exits 2, Ctrl-C exits 130."""
    try:
        code = main()
    except CarbError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
