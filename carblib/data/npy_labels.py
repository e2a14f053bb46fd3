"""A safe reader for image-level labels in NumPy's pickled .npy form, as the official code ships them.

NumPy reads such files with the full pickle machine, which runs whatever the file says. Here a pickle may name only the
five functions NumPy itself writes into it, and each of them is replaced by a harmless stand-in of plain Python.
"""

from __future__ import annotations

import collections
import math
import pickle
import tokenize
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from carblib.base.errors import CarbError

_LARGEST = 2**28  # bytes; labels of a million images with 25 classes are a tenth of that
# What a damaged or made-up file can lead to, in NumPy's header reader, the unpickler or the conversion to arrays.
_DAMAGED = (
    *(ValueError, TypeError, EOFError, KeyError, IndexError, AttributeError, pickle.UnpicklingError),
    *(OSError, MemoryError, OverflowError, RecursionError, SyntaxError, tokenize.TokenError),
)


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
            return {str(name): np.asarray(row) for name, row in content.items()}
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise CarbError(f"{path}: not a safe .npy file of labels ({reason}); get the original or write CSV") from error
    if isinstance(content, np.ndarray) and content.dtype != object:
        return content
    raise CarbError(f"{path}: holds neither an array nor a dictionary name → array; not a file of image-level labels")


def _read(file: BinaryIO) -> Any:
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = header[version](file)
    if not dtype.hasobject:
        if math.prod(shape) * dtype.itemsize > _LARGEST:
            raise ValueError(f"its header announces an array of {shape}")
        file.seek(0)
        return np.load(file, allow_pickle=False)
    content = _plain(_Unpickler(file).load())
    return content[0] if shape == () and isinstance(content, list) and len(content) == 1 else content


class _Dtype:
    """Stand-in for numpy.dtype: keeps the code, and admits only plain numbers."""

    def __init__(self, code: str, *_: Any):
        self.is_object = code in ("O", "O8")
        self.dtype = None if self.is_object else np.dtype(str(code))
        if self.dtype is not None and self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"values of type {code}")

    def __setstate__(self, state: tuple) -> None:
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stand-in for numpy.ndarray: takes the state NumPy pickles and keeps a list, or an array read from the bytes."""

    content: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if dtype.is_object:
            self.content = list(data)
            return
        order = "F" if fortran else "C"
        self.content = np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # How Python 2's pickle protocol writes bytes; no other codec has a place in such a file.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


_ALLOWED = {
    ("multiarray", "_reconstruct"): _reconstruct,
    ("multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in; raise UnpicklingError for every other name."""
        short = "multiarray" if module in ("numpy.core.multiarray", "numpy._core.multiarray") else module
        if (short, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array")
        return _ALLOWED[short, name]


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return _plain(value.content)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
