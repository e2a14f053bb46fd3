"""Stand-ins for what NumPy's scalars are pickled with: a checkpoint's notes are read as plain numbers, nothing is run.

mmsegmentation's training puts scalars (a learning rate, a score) beside the weights. NumPy's own functions for them
take objects and states that nobody checks, so they are not let in; these take bytes and make Python's numbers.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np


class PlainType:
    """A type of numbers or text by NumPy's code; whatever state a file gives it is left aside."""

    def __init__(self, code: Any, *_: Any):
        self.type = np.dtype(str(code))
        if self.type.kind not in "biufU" or self.type.itemsize > 1 << 16:
            raise pickle.UnpicklingError(f"values of type {code}")

    def __setstate__(self, state: Any) -> None:
        """Take nothing of it: byte order and sizes are in the code."""


def plain_scalar(kind: Any, data: Any) -> bool | int | float | str:
    """Return a pickled scalar's value as Python's own. Raises UnpicklingError for anything but bytes of its size."""
    if not isinstance(kind, PlainType) or not isinstance(data, bytes) or len(data) != kind.type.itemsize:
        raise pickle.UnpicklingError("a scalar that is none")
    return np.frombuffer(data, kind.type)[0].item()


STAND_INS = [
    (plain_scalar, "numpy.core.multiarray.scalar"),
    (plain_scalar, "numpy._core.multiarray.scalar"),
    (PlainType, "numpy.dtype"),
]
