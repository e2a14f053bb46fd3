"""Features of a frozen backbone, computed once per image and mirror image.

A frozen backbone gives the same features in every epoch as long as crops start at multiples of its stride and images
are not resized at random or distorted (`Params` checks that). Then only the ASPP head is left to compute.
A crop of the cached features sees the image around it, where a network run on the crop would see zero padding; it is
the features of the whole image that are cropped, as in whole-image inference.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from carblib.base.errors import CarbError
from carblib.base.memory import available
from carblib.base.progress import bar_options
from carblib.data.split import Split
from carblib.network import SegmentationNetwork
from carblib.transforms import load_sized

MOST = 0.5  # of the memory there is; what is larger goes to a file


class FeatureCache:
    """Backbone features in bfloat16 of some images of a split: (N, 2, F, h, w) with mirror images, else (N, 1, …).

    What memory cannot hold, where `sharers` processes of this machine each hold as much, lies in a file in `folder`,
    which is gone with the process, however that ends. Raises CarbError where the disk cannot hold it either.
    """

    @torch.inference_mode()
    def __init__(
        self,
        network: SegmentationNetwork,
        split: Split,
        chosen: Sequence[int],
        size: tuple[int, int],
        device: torch.device,
        mirrored: bool,
        folder: Path,
        show: bool = True,
        sharers: int = 1,
    ):
        network.to(device).eval()
        self.stride = network.stride
        bar = tqdm(chosen, desc=f"{split.name} features", disable=not show, **bar_options())
        for row, i in enumerate(bar):
            image = load_sized(split.image(i), size).to(device)
            features = network.features(torch.stack([image, image.flip(2)] if mirrored else [image]))
            if row == 0:
                self.values = _room((len(chosen), *features.shape), folder, sharers)
            self.values[row] = features

    def crop(self, index: Tensor, flipped: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
        """Return features (B, F, h, w) bfloat16 of crops: index, flipped (B,), top-left box (B, 2), size in pixels."""
        high, wide = -(-size[0] // self.stride), -(-size[1] // self.stride)
        rows = zip(index.tolist(), flipped.tolist(), (box // self.stride).tolist(), strict=True)
        return torch.stack([self.values[i, int(f), :, y : y + high, x : x + wide] for i, f, (y, x) in rows])

    def whole(self, row: int) -> Tensor:
        """Return the features (1, F, h, w) float32 of a whole image, not mirrored."""
        return self.values[row, :1].float()


def _room(shape: Sequence[int], folder: Path, sharers: int) -> Tensor:
    """Return an empty tensor in bfloat16, in memory or, where it would take too much of it, in a file."""
    count, free = math.prod(shape), available() / sharers
    if 2 * count <= MOST * free:
        return torch.empty(*shape, dtype=torch.bfloat16)
    size = f"{2 * count / 1e9:.3g} GB of features"
    print(f"{folder}: {size}, kept in a file here, since {free / 1e9:.3g} GB of memory are free for it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as file:  # its name goes at once, its content with the process
            # Where the disk filled up later, writing into a mapped file would end the process without a word.
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, 2 * count)
            return torch.from_file(file.name, shared=True, size=count, dtype=torch.bfloat16).view(*shape)
    except OSError as error:
        raise CarbError(
            f"{folder}: no room for {size} ({error}); free some, set cache_features: false, or lower image_size"
        ) from error
