"""Joint transforms of an image, its mask and its valid pixels. Every draw comes from the torch.Generator given.

The order is the field's: resize by a random ratio, flip, random crop with padding, photometric distortion. The masker
gets the clean crop (`clip_image`), the network the distorted one (`image`); both are uint8, and normalisation is the
business of the model that needs it. Padding has ImageNet's mean colour (0 once normalised, as in the official
code), 255 in the mask and False in `valid`. Only what the crop shows is resized, and the distortion is drawn with the
sample but may be applied later, to a whole batch on its device (`distorted`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from torch import Tensor

from carblib.classes import IGNORE
from carblib.params import CACHE_STRIDE, Params

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])  # of RGB in 0–1
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])
_BAND = 64  # rows of full size that are compared at once
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


def resized_argmax(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (C, h, w) to `size` (H, W) and return which is highest at each pixel, (H, W) uint8.

    As `resize_maps(maps[None], size)[0].argmax(0)`, the first of equals included, but never with C maps of full size in
    memory: width first, then rows in bands, each of which goes from interpolation to argmax while it is in the cache.
    """
    (height, width), coarse = size, maps.shape[1]
    wide = resize_maps(maps[None], (coarse, width))[0]
    if coarse == height:
        return wide.max(0).indices.byte()  # max is as argmax, and five times as fast on a CPU
    row = ((torch.arange(height, device=maps.device) + 0.5) * (coarse / height) - 0.5).clamp(min=0)
    above = row.long()
    below, part = (above + 1).clamp(max=coarse - 1), (row - above).to(maps.dtype)[:, None]
    highest = torch.empty(height, width, dtype=torch.uint8, device=maps.device)
    for start in range(0, height, _BAND):
        band = slice(start, start + _BAND)
        highest[band] = (wide[:, above[band]] * (1 - part[band]) + wide[:, below[band]] * part[band]).max(0).indices
    return highest


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


def load_part(image: np.ndarray, size: Sequence[int], box: Sequence[int], part: Sequence[int]) -> Tensor:
    """Return what `load_sized(image, size)` shows from the box (top, left) on, (3, h, w) of `part`.

    Bit for bit where the CPU has AVX; without, torch may round the other way. An image that is enlarged need not be as
    a whole. The kernel is told scales but no offset, so what it is given begins at the corner nearest to the part.
    """
    if image.shape[:2] == tuple(size):
        image = image[box[0] : box[0] + part[0], box[1] : box[1] + part[1]]
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).contiguous()
    spans = [_span(*of_side) for of_side in zip(image.shape[:2], size, box, part, strict=True)]
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    for dim, span in zip((2, 3), spans, strict=True):
        pixels = pixels.narrow(dim, pixels.shape[dim] - span.need if span.mirrored else 0, span.need)
    mirrored = [dim for dim, span in zip((-2, -1), spans, strict=True) if span.mirrored]
    pixels = (pixels.flip(mirrored) if mirrored else pixels).contiguous(memory_format=torch.channels_last)
    scales = [span.scale for span in spans]
    sized = F.interpolate(pixels, scale_factor=scales, mode="bilinear", antialias=True, recompute_scale_factor=False)[0]
    for dim, span, length in zip((1, 2), spans, part, strict=True):
        sized = sized.narrow(dim, span.first, length)
    return sized.flip(mirrored).contiguous() if mirrored else sized.contiguous()


class _Span(NamedTuple):
    # Of one side: `need` pixels from the near end, or with `mirrored` from the far one, give what begins at `first`.
    mirrored: bool
    need: int
    first: int
    scale: float


def _span(whole: int, sized: int, start: int, length: int) -> _Span:
    # The kernel makes floor(need * scale) pixels: rounding must not make that one too few.
    scale = float(np.nextafter(sized / whole, np.inf))
    if sized <= whole:  # where an image shrinks, how finely weights are rounded depends on all of them
        return _Span(False, whole, start, scale)
    mirrored = sized - start - length < start
    first = sized - start - length if mirrored else start
    need = min(whole, math.ceil((first + length) / scale) + 2)
    if math.floor(need * scale) == need:  # as many pixels as before: the kernel would leave them as they are
        need = whole
    return _Span(mirrored, need, first, scale)


def resize_mask_part(mask: np.ndarray, size: Sequence[int], box: Sequence[int], part: Sequence[int]) -> np.ndarray:
    """Return `resize_mask(mask, size)` from the box (top, left) on, (h, w) of `part`, which lies within."""
    for axis, (whole, sized, start, length) in enumerate(zip(mask.shape, size, box, part, strict=True)):
        places = resize_mask(np.arange(whole, dtype=np.float32)[:, None], (sized, 1))[start : start + length, 0]
        mask = mask.take(places.astype(np.int64), axis)
    return mask


def photometric_draws(generator: torch.Generator) -> Tensor:
    """Draw a photometric distortion: (5,) of brightness, contrast, saturation, hue, and contrast after these two.

    Each with probability one half. Brightness shifts by up to 32 of 255, contrast and saturation scale by 0.5–1.5, hue
    turns by up to 18 of 180 (OpenCV's half degrees); contrast comes before or after saturation and hue, at even odds.
    Source: the SSD paper's distortion with the field's standard parameters (METHOD.md, 6).
    """
    brightness = _uniform(-32, 32, generator) if _coin(generator) else 0.0
    contrast = _uniform(0.5, 1.5, generator) if _coin(generator) else 1.0
    contrast_first = _coin(generator)
    saturation = _uniform(0.5, 1.5, generator) if _coin(generator) else 1.0
    hue = _uniform(-18, 18, generator) / 180 if _coin(generator) else 0.0
    first, last = (contrast, 1.0) if contrast_first else (1.0, contrast)
    return torch.tensor([brightness, first, saturation, hue, last])


def photometric_distortion(images: Tensor, draws: Tensor) -> Tensor:
    """Distort images (…, 3, H, W) uint8 as was drawn for each, (…, 5) of `photometric_draws`, on any device."""
    brightness, first, saturation, hue, last = draws[..., None, None, None].unbind(-4)
    pixels = images.float().add_(brightness).clamp_(0, 255).mul_(first).clamp_(0, 255)
    # A GPU is not asked what the draws are: that would wait for it.
    if images.device.type != "cpu" or bool((saturation != 1).any() | (hue != 0).any()):
        pixels = _coloured(pixels, saturation.squeeze(-3), hue.squeeze(-3))
    return pixels.mul_(last).round_().clamp_(0, 255).to(torch.uint8)


def _coloured(pixels: Tensor, saturation: Tensor, turn: Tensor) -> Tensor:
    """Scale the saturation of pixels (…, 3, H, W) and turn their hue by up to a tenth of the circle, in HSV."""
    red, green, blue = pixels.unbind(-3)
    top = torch.maximum(torch.maximum(red, green), blue)
    chroma = top - torch.minimum(torch.minimum(red, green), blue)
    # The hue in sixths of the circle: 0 is red, 2 green, 4 blue.
    hue = torch.where(green == top, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    hue = torch.where(red == top, green - blue, hue).div_(chroma.clamp(min=1e-6)).add_(6 * turn)
    hue += 6 * (hue < 0)
    chroma = torch.minimum(chroma.mul_(saturation), top)
    # A channel is highest within a sixth of its own hue, and lowest from two sixths on.
    return torch.stack([
        torch.addcmul(top - chroma, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1)),
        torch.addcmul(top, chroma, (hue - 2).abs_().sub_(1).clamp_(0, 1), value=-1),
        torch.addcmul(top, chroma, (hue - 4).abs_().sub_(1).clamp_(0, 1), value=-1),
    ], -3)  # fmt: skip


class TrainTransform:
    """The transform of one training sample; the parameters give base size, ratio range, crop, flip and distortion."""

    def __init__(self, params: Params):
        self.image_size, self.resize_ratio, self.crop = params.image_size, params.resize_ratio, params.crop
        self.flip, self.photometric = params.flip, params.photometric
        self.step = CACHE_STRIDE if params.cache_features else 1

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Transform an image (H, W, 3) uint8 and its mask (H, W) uint8 or None, of any size.

        Returns image (3, h, w) uint8, not yet `distorted`, mask (h, w) uint8 (all 255 for None), valid (h, w) bool,
        box (2,) (top, left of the crop in the resized and flipped image), flipped () bool, and draws (5,) with
        `photometric`.
        """
        low, high = self.resize_ratio
        ratio = _uniform(low, high, generator)
        size = tuple(max(1, round(side * ratio)) for side in self.image_size)
        flipped = _uniform(0, 1, generator) < self.flip
        box = random_box(size, self.crop, self.step, generator)
        height, width = part = [min(whole, side) for whole, side in zip(size, self.crop, strict=True)]
        place = (box[0], size[1] - box[1] - width if flipped else box[1])  # before the flip

        pixels = PADDING.repeat(1, *self.crop)
        shown = load_part(image, size, place, part)
        pixels[:, :height, :width] = shown.flip(-1) if flipped else shown
        ids = torch.full(self.crop, IGNORE, dtype=torch.uint8)
        if mask is not None:
            shown = torch.from_numpy(resize_mask_part(mask, size, place, part))
            ids[:height, :width] = shown.flip(-1) if flipped else shown
        valid = torch.zeros(self.crop, dtype=torch.bool)
        valid[:height, :width] = True
        sample = {
            "image": pixels,
            "mask": ids,
            "valid": valid,
            "box": torch.tensor(box),
            "flipped": torch.tensor(flipped),
        }
        return sample | ({"draws": photometric_draws(generator)} if self.photometric else {})


def distorted(sample: dict[str, Any], params: Params) -> dict[str, Any]:
    """Return a sample or a batch of them with its draws applied to `image`, and with `clip_image`, what CLIP sees.

    CLIP sees the same pixels as the network only with the official switch (METHOD.md, 7.4); padding stays as it is.
    """
    clean, draws = sample["image"], sample.get("draws")
    image = clean
    if draws is not None:
        image = torch.where(sample["valid"].unsqueeze(-3), photometric_distortion(clean, draws), clean)
    kept = {key: value for key, value in sample.items() if key != "draws"}
    return kept | {"image": image, "clip_image": clean if params.clip_pixels == "clean" else image}


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def _coin(generator: torch.Generator) -> bool:
    return _uniform(0, 1, generator) < 0.5


def mix_seed(seed: int, use: int, number: int) -> int:
    """Return a generator seed for the number-th draw of one use (0 orders, 1 samples, 2 local views)."""
    # Seeds that differ in one number must give unrelated streams; SeedSequence hashes them.
    return int(np.random.SeedSequence((seed, use, number)).generate_state(1, np.uint64)[0] >> 1)
