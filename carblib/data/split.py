"""A split of a dataset, whatever form it has on disk: names, images, and masks of train ids where there are any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from carblib.base.errors import CarbError
from carblib.base.images import read_header, read_image
from carblib.classes import ClassSet

Decode = Callable[[Path], np.ndarray]


@dataclass(frozen=True)
class Split:
    """Images of one split, ordered by name, and their masks where there are any.

    `names` are unique and good as file names. `root` holds all of it. `mask_paths[i]` is None for an image without a
    mask; `mask_note` then says where masks were looked for. `decode` reads a mask's file. `left_out` says what is wrong
    with each image that `skip_bad` left out, by name.
    """

    name: str
    class_set: ClassSet
    root: Path
    names: list[str]
    image_paths: list[Path]
    mask_paths: list[Path | None]
    mask_note: str
    decode: Decode
    left_out: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def has_masks(self) -> bool:
        """Whether any image has a mask."""
        return any(path is not None for path in self.mask_paths)

    def image(self, i: int) -> np.ndarray:
        """Return image i, (H, W, 3) uint8 RGB. Raises CarbError for a missing or damaged file."""
        return read_image(self.image_paths[i])

    def mask(self, i: int) -> np.ndarray:
        """Return the mask of image i, (H, W) uint8 train ids, 255 void.

        Raises CarbError, naming the file, for a mask that is missing or damaged, has another size than its image, or
        holds a value that is no class.
        """
        path = self.mask_paths[i]
        if path is None:
            raise CarbError(f"{self.image_paths[i]}: has no mask; {self.mask_note}")
        mask = self.decode(path)
        check_sizes(path, mask.shape, read_header(self.image_paths[i]).upright)
        return mask


def check_sizes(mask: Path, of_mask: tuple[int, ...], of_image: tuple[int, int]) -> None:
    """Raise CarbError where a mask's (H, W) is not its image's."""
    if of_mask != of_image:
        lies = "the mask lies on its side: turn it" if of_mask == of_image[::-1] else "resize the mask"
        raise CarbError(
            f"{mask}: mask of {of_mask[0]}×{of_mask[1]} (H×W) for an image of {of_image[0]}×{of_image[1]}; "
            f"both must be of one size: {lies}, nearest neighbour"
        )
