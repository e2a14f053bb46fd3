"""How long work shows its progress: a live bar for a person, one line an interval for a log."""

from __future__ import annotations

import os
import sys
from typing import Any


def is_live() -> bool:
    """Tell whether a person watches: a terminal, or JupyterLab (papermill and logs are not live)."""
    if "ipykernel" in sys.modules:
        return os.environ.get("CARB_HEADLESS", "") == "" and "PAPERMILL_OUTPUT_PATH" not in os.environ
    return sys.stdout.isatty()


def bar_options() -> dict[str, Any]:
    """Options for tqdm: a live bar, or at most one line every 10 s on standard output."""
    return {"file": sys.stdout, "mininterval": 0.2 if is_live() else 10, "dynamic_ncols": is_live(), "leave": True}
