"""Decoded images in files that all processes map (`cache_images`): an epoch then costs the transform alone.

An image lies under the digest of its file, at its own size and as it is read from there. So nothing in the folder is
ever stale, splits and runs share it, a process that is killed loses one image, and it may be deleted at any time.
"""

from __future__ import annotations

import math
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.locks import one_of_writers
from carblib.base.parallel import in_order
from carblib.base.progress import bar_options, note
from carblib.data.checks import headers
from carblib.data.sources import image_digests
from carblib.data.split import Split
from carblib.params import Params, resolve

VERSION = 1  # raised when an image is read to other pixels from the same file
_CHECK = 4  # bytes of CRC-32 that follow the pixels


class DecodedImages:
    """The images of a split, decoded into the folder `cache_images` where they are not there yet.

    Where several processes begin at once, one decodes and the others wait. Raises CarbError for an image that cannot be
    read, and, before anything is decoded, where the disk is too small.
    """

    def __init__(self, params: Params, split: Split):
        self.folder = resolve(params.cache_images)
        self.paths = [self.folder / f"{digest}.v{VERSION}.npy" for digest in image_digests(params, split).values()]
        self._sound: set[int] = set()
        while lacking := self._lacking():
            note(f"{self.folder}: {len(lacking)} images of {split.name} are still to be decoded")
            with one_of_writers(self.folder, lambda: self._decode(params, split)):
                pass

    def _lacking(self) -> list[int]:
        first = {path: i for i, path in reversed([*enumerate(self.paths)])}  # copies of a file are decoded once
        return sorted(i for path, i in first.items() if not path.is_file())

    def _decode(self, params: Params, split: Split) -> None:
        lacking, table = self._lacking(), headers(params)
        if not lacking:
            return  # another process has done it meanwhile
        need = sum(3 * math.prod(table.of(split.image_paths[i]).upright) for i in lacking)
        free = shutil.disk_usage(self.folder).free
        what = f"{len(lacking)} decoded images of {split.name} take {need / 1e9:.3g} GB"
        if need > free:
            raise CarbError(f"{self.folder}: {what}, {free / 1e9:.3g} GB are free; free some, or set cache_images: ''")
        print(f"{self.folder}: {what}, {free / 1e9:.3g} GB are free", flush=True)

        def decode(i: int) -> None:
            image = split.image(i)
            with files.atomic(self.paths[i]) as file:
                np.save(file, image)
                file.write(zlib.crc32(image).to_bytes(_CHECK, "big"))

        done = in_order(decode, lacking, params.workers)
        for _ in tqdm(done, f"{split.name} decoded", len(lacking), unit="image", **bar_options()):
            pass

    def image(self, i: int) -> np.ndarray:
        """Return image i, (H, W, 3) uint8 RGB, mapped: only what is used of it is read.

        It is checked byte by byte when a process first asks for it. Raises CarbError where it is gone or damaged.
        """
        path = self.paths[i]
        try:
            image = np.asarray(np.load(path, mmap_mode="c"))  # "c": what might be written stays in this process
            sound = i in self._sound or zlib.crc32(image) == _written(path)
        except (OSError, ValueError, EOFError):
            sound = False
        if not sound:
            raise CarbError(f"{path}: gone or damaged; delete it and start again: it is decoded again")
        self._sound.add(i)
        return image


def _written(path: Path) -> int:
    with open(path, "rb") as file:
        file.seek(-_CHECK, os.SEEK_END)
        return int.from_bytes(file.read(), "big")
