"""How long work shows its progress: a live bar for a person, one line an interval for a log."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from functools import cache
from typing import Any

from carblib.base.processes import is_first

INTERVAL = 10  # seconds between lines of a log
_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}\n"
_WRITTEN = re.compile(r"^\r?.*: \S+ of \S+, [\d:]+ gone, [\d:?]+ left.*\n+", re.MULTILINE)


def is_live() -> bool:
    """Tell whether a person watches: a terminal, or a notebook in JupyterLab or VS Code (not papermill, not a log)."""
    if "ipykernel" in sys.modules:
        # Jupyter's servers name the session in the environment of the kernels they start; papermill does not.
        return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ
    return sys.stdout.isatty()


def without_progress(text: str) -> str:
    """Return printed text without the lines that `bar_options` puts into a log."""
    return _WRITTEN.sub("", text)


@cache
def note(text: str) -> None:
    """Print a line once, and in the first of several processes alone."""
    if multiprocessing.parent_process() is None and is_first():
        print(f"note: {text}")


def bar_options() -> dict[str, Any]:
    """Options for tqdm, on standard output: a live bar, or a line every 10 s and none for work shorter than that."""
    if is_live():
        return {"file": sys.stdout, "mininterval": 0.2, "dynamic_ncols": True}
    return {
        "file": sys.stdout,
        "mininterval": INTERVAL,
        "maxinterval": INTERVAL,
        "delay": INTERVAL,
        "bar_format": _LINE,
    }
