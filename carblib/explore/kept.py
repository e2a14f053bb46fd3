"""What the explorer keeps, so that nothing slow is done twice."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

QUALITY = 90  # of the JPEG on the page; figures are drawn from the image itself


class Kept:
    """Results by key, for several threads; those not asked for longest go first once all exceed `limit` bytes."""

    def __init__(self, limit: int = 512 * 2**20):
        self.limit, self.bytes = limit, 0
        self._items: OrderedDict[tuple, Any] = OrderedDict()
        self._lock = threading.Lock()  # not held while something is made: a quick result never waits for a slow one

    def __contains__(self, key: tuple) -> bool:
        return key in self._items

    def get(self, key: tuple, make: Callable[[], Any]) -> Any:
        """Return the result kept under `key`, making it where there is none. The newest is always kept."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        made = make()
        with self._lock:
            self.bytes += _bytes(made) - _bytes(self._items.pop(key, None))
            self._items[key] = made
            while self.bytes > self.limit and len(self._items) > 1:
                self.bytes -= _bytes(self._items.popitem(last=False)[1])
        return made


def as_jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8 for the page."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=QUALITY, subsampling=0)
    return data.getvalue()


def _bytes(value: Any) -> int:
    if isinstance(value, tuple):
        return sum(map(_bytes, value))
    return len(value) if isinstance(value, bytes) else getattr(value, "nbytes", 0)
