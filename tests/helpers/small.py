"""Parameters that a test can afford: the demo's (rendered scenes, small CLIP, small backbone), with changes."""

from __future__ import annotations

from places import REPOSITORY

from carblib.params import Params, load_params


def small_params(**changes: object) -> Params:
    """The demo's parameters with some keys changed."""
    return load_params(REPOSITORY / "params" / "demo.yaml", changes)
