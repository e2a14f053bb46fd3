"""Global and local views: where a patch is cut, how CLIP zooms into it, and its pseudo-mask (paper, Global-Local View).

The global view is the training crop. In every step one patch of it is cut, enlarged and shown to CLIP alone; the mask,
made at the patch's own size, supervises the same patch of the network's global logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from carblib.base.errors import CarbError


@dataclass(frozen=True)
class LocalView:
    """One patch per image, all of one size, and the factor by which CLIP sees them enlarged.

    boxes: (B, 4) long on the CPU, (top, left, bottom, right) in pixels of the crop, the last two exclusive.
    official: the enlarged size is cut down to whole pixels, as in the official code, instead of rounded.
    """

    boxes: Tensor
    scale: float
    official: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """The patches' (H, W) in pixels."""
        top, left, bottom, right = self.boxes[0].tolist()
        return bottom - top, right - left


def sample_local_view(
    batch: int,
    crop: tuple[int, int],
    patch: tuple[int, int],
    rate: float,
    offset: float,
    generator: torch.Generator,
    official: bool = False,
) -> LocalView:
    """Draw one box per image and one scale m = rate · U(0, 1) + offset for the batch (METHOD.md, 4).

    crop, patch: (H, W) in pixels; one scale keeps the batch one CLIP call. Every position is equally likely.
    official: one box for the whole batch, and the last position is never drawn (an exclusive upper bound).
    Raises CarbError where the patch is larger than the crop or the scale could fall to 0.
    """
    if not (0 < patch[0] <= crop[0] and 0 < patch[1] <= crop[1]):
        raise CarbError(f"patch: {list(patch)} does not fit into the crop {list(crop)}; make it smaller")
    if rate < 0 or offset <= 0:
        raise CarbError(f"patch_rate, patch_offset: {rate}, {offset} give no positive scale; use rate >= 0, offset > 0")
    corners = []
    for whole, part in zip(crop, patch, strict=True):
        room = whole - part
        drawn = torch.zeros(1, dtype=torch.long)
        if room:
            high, count = (room, 1) if official else (room + 1, batch)
            drawn = torch.randint(high, (count,), generator=generator)
        corners.append(drawn.expand(batch))
    scale = (rate * torch.rand((), generator=generator) + offset).item()
    top, left = corners
    return LocalView(torch.stack([top, left, top + patch[0], left + patch[1]], dim=1), scale, official)


def _boxes(view: LocalView, size: tuple[int, int] | torch.Size, batch: int) -> list[list[int]]:
    """Return each image's (top, left, bottom, right) within `size` (H, W)."""
    if len(view.boxes) != batch:
        raise ValueError(f"{len(view.boxes)} boxes for a batch of {batch}")
    if int(view.boxes.min()) < 0 or int(view.boxes[:, 2].max()) > size[0] or int(view.boxes[:, 3].max()) > size[1]:
        raise ValueError(f"a box reaches out of the {size[0]}x{size[1]} image")
    return view.boxes.tolist()


def crop_view(tensor: Tensor, view: LocalView) -> Tensor:
    """Cut every image's patch: (B, ..., H, W) of any type -> (B, ..., h, w). Differentiable.

    Raises ValueError where the boxes are not of this batch or reach out of the images.
    """
    boxes = _boxes(view, tensor.shape[-2:], len(tensor))
    return torch.stack([one[..., t:b, le:r] for one, (t, le, b, r) in zip(tensor, boxes, strict=True)])


def paste_view(patches: Tensor, view: LocalView, size: tuple[int, int] | torch.Size, fill: int) -> Tensor:
    """Put (B, h, w) patches back where they were cut from: (B, H, W), `fill` elsewhere; the inverse of crop_view."""
    canvas = patches.new_full((len(patches), *size), fill)
    for one, patch, (top, left, bottom, right) in zip(canvas, patches, _boxes(view, size, len(patches)), strict=True):
        one[top:bottom, left:right] = patch
    return canvas


def zoom(images: Tensor, scale: float, official: bool = False) -> Tensor:
    """Resize (B, 3, H, W) bilinearly by a factor; bytes stay bytes, floats stay floats.

    The new size is H · scale, W · scale rounded, at least 1; official: cut down to whole pixels.
    """
    whole = int if official else round
    height, width = (max(1, whole(side * scale)) for side in images.shape[-2:])
    if (height, width) == tuple(images.shape[-2:]):
        return images
    resized = F.interpolate(images.float(), (height, width), mode="bilinear", align_corners=False)
    return resized if images.is_floating_point() else resized.round_().to(images.dtype)


@torch.no_grad()
def local_pseudo_mask(
    masker: Callable[..., Tensor], clip_images: Tensor, labels: Tensor | None, view: LocalView
) -> Tensor:
    """Let CLIP zoom into the patches and name their pixels (METHOD.md, 4).

    clip_images: (B, 3, H, W) uint8, the clean pixels of the global view; labels: (B, C) bool image-level labels.
    Returns the pseudo-mask (B, h, w) uint8 at the patches' own size, as `masker(images, labels, size)` makes it.
    """
    patches = crop_view(clip_images, view)
    if view.official:
        patches = patches.float()  # the official code enlarges normalised floats, and so rounds nothing
    return masker(zoom(patches, view.scale, view.official), labels, view.size)
