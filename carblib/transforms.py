"""Joint transforms of an image, its mask and its valid pixels. Every draw comes from the torch.Generator given.

The order is the field's: resize by a random ratio, flip, random crop with padding, photometric distortion. The masker
gets the clean crop (`clip_image`), the network the distorted one (`image`); both are uint8, and normalisation is the
business of the model that needs it. Padding has ImageNet's mean colour (0 once normalised, as in the official
code), 255 in the mask and False in `valid`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from carblib.classes import IGNORE
from carblib.params import CACHE_STRIDE, Params

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])  # of RGB in 0–1
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])
PADDING = (255 * IMAGENET_MEAN).round().to(torch.uint8)[:, None, None]  # ImageNet's mean colour


def load_sized(image: np.ndarray, size: Sequence[int]) -> Tensor:
    """Turn an image (H, W, 3) uint8 into a tensor (3, h, w) uint8 of `size` (h, w), bilinear with antialiasing."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels.contiguous()
    return TF.resize(pixels, list(size), TF.InterpolationMode.BILINEAR, antialias=True).contiguous()


def resize_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a mask (H, W) uint8 of train ids to `size` (h, w), nearest neighbour, pixel centres aligned."""
    # "Exact" takes the pixel under the centre; the plain nearest mode takes the one under the corner.
    ids = torch.from_numpy(np.ascontiguousarray(mask))[None]
    return TF.resize(ids, list(size), TF.InterpolationMode.NEAREST_EXACT)[0].numpy()


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, C, h, w), such as similarities, to `size` (H, W): bilinear, align_corners=False.

    Maps of that size already are returned as they are, not copied.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where the windows begin that cover `length` pixels or cells: every `stride`, the last one ending at the edge."""
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def random_box(size: Sequence[int], crop: Sequence[int], step: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw the top left (row, column) of a crop (h, w) in an image (H, W), in multiples of `step`.

    Every such position is equally likely, the last included; a side that needs padding starts at 0.
    """
    places = [max(whole - part, 0) // step + 1 for whole, part in zip(size, crop, strict=True)]
    top, left = (int(torch.randint(count, (), generator=generator)) for count in places)
    return top * step, left * step


def crop_and_pad(tensor: Tensor, box: tuple[int, int], crop: Sequence[int], fill: int | bool) -> Tensor:
    """Cut (…, h, w) at the box (top, left) out of (…, H, W); what lies outside, below and right, is `fill`."""
    (top, left), (height, width) = box, crop
    part = tensor[..., top : top + height, left : left + width]
    if part.shape[-2:] == (height, width):
        return part.contiguous()
    whole = tensor.new_full((*tensor.shape[:-2], height, width), fill)
    whole[..., : part.shape[-2], : part.shape[-1]] = part
    return whole


def photometric_distortion(image: Tensor, generator: torch.Generator) -> Tensor:
    """Distort brightness, contrast, saturation and hue of an image (3, H, W) uint8, each with probability one half.

    Brightness shifts by up to 32 of 255, contrast and saturation scale by 0.5–1.5, hue turns by up to 18 of 180
    (OpenCV's half degrees); contrast comes before or after saturation and hue, at even odds. Source: the SSD paper's
    distortion with the field's standard parameters (METHOD.md, 6).
    """
    image = image.float()
    if _coin(generator):
        image = (image + _uniform(-32, 32, generator)).clamp(0, 255)
    contrast = _uniform(0.5, 1.5, generator) if _coin(generator) else 1.0
    contrast_first = _coin(generator)
    if contrast_first:
        image = (image * contrast).clamp(0, 255)
    saturation = _uniform(0.5, 1.5, generator) if _coin(generator) else 1.0
    if saturation != 1.0:
        # In HSV, scaling the saturation moves every channel away from or towards the largest one.
        top = image.amax(0, keepdim=True)
        room = (top / (top - image.amin(0, keepdim=True)).clamp(min=1e-6)).clamp(min=1.0)
        image = top - (top - image) * room.clamp(max=saturation)
    if _coin(generator):
        turn = _uniform(-18, 18, generator) / 180
        image = TF.adjust_hue(image / 255, turn) * 255
    if not contrast_first:
        image = (image * contrast).clamp(0, 255)
    return image.round().clamp(0, 255).to(torch.uint8)


class TrainTransform:
    """The transform of one training sample; the parameters give base size, ratio range, crop, flip and distortion."""

    def __init__(self, params: Params):
        self.image_size, self.resize_ratio, self.crop = params.image_size, params.resize_ratio, params.crop
        self.flip, self.photometric = params.flip, params.photometric
        # CLIP sees the same pixels as the network only with the official switch (METHOD.md, 7.4).
        self.clip_sees_clean = params.clip_pixels == "clean"
        self.step = CACHE_STRIDE if params.cache_features else 1

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Transform an image (H, W, 3) uint8 and its mask (H, W) uint8 or None, of any size.

        Returns image and clip_image (3, h, w) uint8, mask (h, w) uint8 (all 255 for None), valid (h, w) bool, box (2,)
        (top, left of the crop in the resized and flipped image), flipped () bool.
        """
        low, high = self.resize_ratio
        ratio = _uniform(low, high, generator)
        size = tuple(max(1, round(side * ratio)) for side in self.image_size)
        flipped = _uniform(0, 1, generator) < self.flip
        box = random_box(size, self.crop, self.step, generator)

        def place(whole: Tensor, fill: int | bool) -> Tensor:
            return crop_and_pad(whole.flip(-1) if flipped else whole, box, self.crop, fill)

        valid = place(torch.ones(size, dtype=torch.bool), False)
        clean = torch.where(valid, place(load_sized(image, size), 0), PADDING)
        distorted = clean
        if self.photometric:
            distorted = torch.where(valid, photometric_distortion(clean, generator), PADDING)
        ids = torch.full(self.crop, IGNORE, dtype=torch.uint8)
        if mask is not None:
            ids = place(torch.from_numpy(resize_mask(mask, size)), IGNORE)
        return {
            "image": distorted,
            "clip_image": clean if self.clip_sees_clean else distorted,
            "mask": ids,
            "valid": valid,
            "box": torch.tensor(box),
            "flipped": torch.tensor(flipped),
        }


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _coin(generator: torch.Generator) -> bool:
    return _uniform(0, 1, generator) < 0.5


def mix_seed(seed: int, use: int, number: int) -> int:
    """Return a generator seed for the number-th draw of one use (0 orders, 1 samples, 2 local views)."""
    # Seeds that differ in one number must give unrelated streams; SeedSequence hashes them.
    return int(np.random.SeedSequence((seed, use, number)).generate_state(1, np.uint64)[0] >> 1)
