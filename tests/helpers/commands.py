"""Runs `carb` in this process."""

from __future__ import annotations

from carblib.__main__ import carb as group


def carb(*words: object) -> int:
    """Run a sub-command; returns its exit code, and raises the CarbError that the command line shows in one line."""
    return group.main([str(word) for word in words], "carb", standalone_mode=False) or 0
