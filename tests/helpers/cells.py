"""Cells that a kernel has run, for what reads its parameters from them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from carblib.run import notebook


def have_run(monkeypatch: pytest.MonkeyPatch, *sources: str, **given: object) -> None:
    """Let the cells of these sources have run, and a parameters cell that holds the `given` values."""
    cell = "\n".join(f"{name} = {value!r}" for name, value in given.items())
    shell = SimpleNamespace(user_ns={"In": ["", *sources, cell]})
    monkeypatch.setattr(notebook, "get_ipython", lambda: shell)
