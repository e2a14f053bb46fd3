"""Features of a frozen backbone, computed once per image and mirror image.

A frozen backbone gives the same features in every epoch as long as crops start at multiples of its stride and images
are not resized at random or distorted (`Params` checks that). Then only the ASPP head is left to compute.
A crop of the cached features sees the image around it, where a network run on the crop would see zero padding; it is
the features of the whole image that are cropped, as in whole-image inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from carblib.base.progress import bar_options
from carblib.data.readers import Split
from carblib.network import SegmentationNetwork
from carblib.transforms import load_sized


class FeatureCache:
    """Backbone features in bfloat16 of some images of a split: (N, 2, F, h, w) with mirror images, else (N, 1, …)."""

    @torch.inference_mode()
    def __init__(
        self,
        network: SegmentationNetwork,
        split: Split,
        chosen: Sequence[int],
        size: tuple[int, int],
        device: torch.device,
        mirrored: bool,
        show: bool = True,
    ):
        network.to(device).eval()
        self.stride = network.stride
        bar = tqdm(chosen, desc=f"{split.name} features", disable=not show, **bar_options())
        for row, i in enumerate(bar):
            image = load_sized(split.image(i), size).to(device)
            features = network.features(torch.stack([image, image.flip(2)] if mirrored else [image]))
            if row == 0:
                self.values = torch.empty(len(chosen), *features.shape, dtype=torch.bfloat16)
            self.values[row] = features

    def crop(self, index: Tensor, flipped: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
        """Return features (B, F, h, w) bfloat16 of crops: index, flipped (B,), top-left box (B, 2), size in pixels."""
        high, wide = -(-size[0] // self.stride), -(-size[1] // self.stride)
        rows = zip(index.tolist(), flipped.tolist(), (box // self.stride).tolist(), strict=True)
        return torch.stack([self.values[i, int(f), :, y : y + high, x : x + wide] for i, f, (y, x) in rows])

    def whole(self, row: int) -> Tensor:
        """Return the features (1, F, h, w) float32 of a whole image, not mirrored."""
        return self.values[row, :1].float()
