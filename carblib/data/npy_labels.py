"""A safe reader for image-level labels in NumPy's pickled .npy form, as the official code ships them.

A pickle may call whatever it names. This one may name only what NumPy itself writes into such a file, and gets a
stand-in for it that makes arrays of plain numbers or of Python objects and nothing else.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from carblib.base.errors import CarbError

_LARGEST = 2**28  # bytes; labels of a million images with 25 classes are a tenth of that


def read_npy_labels(path: str | Path) -> np.ndarray | dict[str, np.ndarray]:
    """Read a .npy file that holds a numeric array, or a pickled dictionary name → numeric array.

    Raises CarbError for a missing or truncated file and for a pickle that names anything but NumPy arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise CarbError(f"{path}: no such file of labels; check the path")
    if path.stat().st_size > _LARGEST:
        raise CarbError(f"{path}: larger than any file of image-level labels; check the path")
    try:
        with open(path, "rb") as file:
            content = _read(file)
        if isinstance(content, dict) and content:
            return {str(name): _row(row) for name, row in content.items()}
    except Exception as error:  # the header, the unpickler and the arrays raise a dozen types, all about the file
        reason = str(error) or type(error).__name__
        raise CarbError(f"{path}: not a safe .npy file of labels ({reason}); get the original or write CSV") from error
    if isinstance(content, np.ndarray) and content.dtype != object:
        return content
    raise CarbError(f"{path}: holds neither an array nor a dictionary name → array; not a file of image-level labels")


def _read(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = header[version](file)
    if dtype.hasobject:
        content = _Unpickler(file).load()
        return content.item() if isinstance(content, np.ndarray) and content.size == 1 else content
    if math.prod(shape) * dtype.itemsize > _LARGEST:
        raise ValueError(f"its header announces an array of {shape}")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _row(value: Any) -> np.ndarray:
    row = np.asarray(value)
    return np.asarray(row.tolist()) if row.dtype == object else row  # numbers kept as Python objects


class _Array(np.ndarray):
    """An array that checks the state it is given: NumPy trusts the length of a list of objects."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, data = state
        if dtype.hasobject and (min(shape, default=0) < 0 or len(data) != math.prod(shape)):
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(data)} values")
        super().__setstate__(state)


def _reconstruct(*_: Any) -> _Array:
    return np.empty(0).view(_Array)  # whatever size the file asks for, it comes with the state


def _dtype(code: str, *_: Any) -> np.dtype:
    dtype = np.dtype(str(code))  # one of NumPy's own, which no state can change
    if dtype.kind not in "biufO":
        raise pickle.UnpicklingError(f"values of type {code}")
    return dtype


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # How Python 2's pickle protocol writes bytes; no other codec has a place in such a file.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


_ALLOWED = {
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.ndarray": None,  # only ever an argument
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """The restricted unpickler of Python's manual."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of an allowed name; raise UnpicklingError for every other."""
        full = f"{module}.{name}".replace("numpy.core.", "numpy._core.")
        if full not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return _ALLOWED[full]
