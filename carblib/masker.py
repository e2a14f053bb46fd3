"""The CLIP masker: pseudo-masks from images and image-level labels, without training (METHOD.md, 2).

Similarity of each patch to each class, gated by the image-level labels, resized bilinearly, argmax. Every pixel gets
a class that is present in the image; there is no threshold.

An image is resized to the nearest multiple of CLIP's patch, so that the patch grid covers exactly the image. With
`clip_pixels="official"` zeros are appended at the right and bottom instead, and the similarities of the padded image
stretched over the true one, as the official code does (off by at most a patch there).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carblib.base.contents import Contents
from carblib.base.device import computing, sent
from carblib.base.errors import CarbError, nearest
from carblib.classes import IGNORE
from carblib.clip_attention import STRATEGIES, resnet_features, vit_features
from carblib.clip_files import clip_digest
from carblib.clip_models import ClipModel, load_clip
from carblib.params import Params
from carblib.prompts import TextEmbeddings, text_embeddings
from carblib.transforms import IMAGENET_MEAN, IMAGENET_STD, resize_maps, resized_argmax, window_starts

_WINDOWS_AT_ONCE = 32  # windows CLIP sees together: bounds the memory, whatever the image size

Size = tuple[int, int]


class Masker(nn.Module):
    """A frozen CLIP and text embeddings that turn images into similarity maps and pseudo-masks.

    `strategy`: what CLIP's last block does, see `carblib.clip_attention`. `gate`: how image-level labels act, see
    `pseudo_mask`. `clip_pixels`: "clean" = CLIP's own mean and standard deviation, "official" = ImageNet's.
    `window`, `stride` (H, W) in pixels: CLIP slides over the image and similarities are averaged where windows
    overlap; None = the whole image at once, and half a window. `scales`, `flip`: similarities are averaged over these
    sizes of the image and its mirror image. `precision`: what CLIP's image tower computes in; features, similarities
    and text embeddings are float32 in either. Raises CarbError for a strategy or window the model cannot have.
    """

    def __init__(
        self,
        clip_model: ClipModel,
        text: TextEmbeddings,
        strategy: str = "value_path",
        gate: str = "labels",
        clip_pixels: str = "clean",
        window: Size | None = None,
        stride: Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        precision: str = "32-true",
    ):
        super().__init__()
        if strategy not in STRATEGIES:
            hint = nearest(strategy, STRATEGIES) or f"known are {', '.join(STRATEGIES)}"
            raise CarbError(f"masker '{strategy}': no such strategy; {hint}")
        if not clip_model.is_vit and strategy != "value_path":
            raise CarbError(f"masker '{strategy}': CLIP '{clip_model.name}' is a ResNet, which has value_path only")
        self.clip = clip_model
        self.text = text
        self.strategy = strategy
        self.gate = gate
        self.official_pixels = clip_pixels == "official"
        self.window = _in_cells(window, clip_model, "mask_window")
        half = self.window and (max(self.window[0] // 2, 1), max(self.window[1] // 2, 1))
        self.stride = _in_cells(stride, clip_model, "mask_stride") or half
        self.scales = tuple(scales)
        self.flip, self.precision = flip, precision
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if self.official_pixels else (clip_model.mean, clip_model.std)
        self.register_buffer("mean", torch.as_tensor(mean).detach().clone().view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.as_tensor(std).detach().clone().view(3, 1, 1), persistent=False)
        self.register_buffer("vectors", text.vectors.detach().clone(), persistent=False)
        counts = text.class_of.bincount(minlength=len(text.mean_per_class)).tolist()
        self.words_of = counts if len(text.class_of) > len(counts) else None

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return unit-norm patch features (B, D, h, w) float32 of images (B, 3, H, W), uint8 or float 0–255.

        The whole image at its own size, whatever windows, scales and flip are set for similarities.
        """
        return self._dense(self._pixels(images, 1.0))

    @torch.no_grad()
    def similarity(self, images: Tensor) -> Tensor:
        """Return cosine similarities (B, C, h, w) float32 of patches and classes; of a class's words the highest.

        `images` (B, 3, H, W) uint8 or float 0–255. Averaged over windows, scales and flip, at the finest scale's grid.
        """
        maps = []
        for scale in self.scales:
            pixels = self._pixels(images, scale)
            maps.append(self._windows(pixels))
            if self.flip:
                maps.append(self._windows(pixels.flip(-1)).flip(-1))
        if len(maps) == 1:
            return maps[0]
        grid = max((similarity.shape[-2:] for similarity in maps), key=lambda size: size[0] * size[1])
        return torch.stack([resize_maps(similarity, grid) for similarity in maps]).mean(0)

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor | None = None, size: Size | None = None) -> Tensor:
        """Return pseudo-masks (B, H, W) uint8 train ids of images (B, 3, H, W), uint8 or float 0–255.

        `labels` (B, C) bool image-level labels; `size` (H, W) of the masks, the images' own if None. See `pseudo_mask`.
        """
        return pseudo_mask(self.similarity(images), labels, size or tuple(images.shape[-2:]), self.gate)

    def _pixels(self, images: Tensor, scale: float) -> Tensor:
        """Normalise, and bring to a size CLIP can cut into patches."""
        patch, size = self.clip.patch, tuple(images.shape[-2:])
        images = images.float()
        if self.official_pixels:
            wanted = tuple(max(round(length * scale), 1) for length in size)
        else:
            wanted = tuple(max(round(length * scale / patch), 1) * patch for length in size)
        if wanted != size:
            # antialias changes nothing when enlarging; when shrinking it averages instead of skipping pixels.
            images = F.interpolate(images, size=wanted, mode="bilinear", align_corners=False, antialias=True)
        pixels = (images / 255 - self.mean) / self.std
        if self.clip.is_vit or self.window:
            bottom, right = (-length % patch for length in pixels.shape[-2:])
            pixels = F.pad(pixels, (0, right, 0, bottom)) if bottom or right else pixels
        return pixels

    def _dense(self, pixels: Tensor) -> Tensor:
        visual = self.clip.visual
        with computing(pixels.device, self.precision):
            dense = vit_features(visual, pixels, self.strategy) if self.clip.is_vit else resnet_features(visual, pixels)
        return F.normalize(dense.float(), dim=1)

    def _classify(self, pixels: Tensor) -> Tensor:
        features = self._dense(pixels)
        # Cosines of classes differ in the third digit: too fine for a caller's bfloat16, and cheap.
        with torch.autocast(pixels.device.type, enabled=False):
            similarity = torch.einsum("bdhw,kd->bkhw", features, self.vectors)
        if self.words_of is None:
            return similarity
        return torch.stack([words.amax(1) for words in similarity.split(self.words_of, dim=1)], dim=1)

    def _windows(self, pixels: Tensor) -> Tensor:
        """Similarities of the whole image, or averaged over sliding windows on the patch grid."""
        if self.window is None:
            return self._classify(pixels)
        patch, count = self.clip.patch, len(pixels)
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        h, w = (min(cells, length) for cells, length in zip(self.window, grid, strict=True))
        rows, columns = window_starts(grid[0], h, self.stride[0]), window_starts(grid[1], w, self.stride[1])
        corners = [(y, x) for y in rows for x in columns]
        crops = [pixels[..., y * patch : (y + h) * patch, x * patch : (x + w) * patch] for y, x in corners]
        at_once = max(_WINDOWS_AT_ONCE // count, 1) * count
        parts = torch.cat([self._classify(some) for some in torch.cat(crops).split(at_once)])
        total = parts.new_zeros(count, parts.shape[1], *grid)
        times = parts.new_zeros(grid)
        for (y, x), part in zip(corners, parts.split(count), strict=True):
            total[..., y : y + h, x : x + w] += part
            times[y : y + h, x : x + w] += 1
        return total / times


def build_masker(params: Params, device: str | torch.device = "cpu") -> Masker:
    """Return the masker a run's parameters describe, on `device`; text embeddings are kept in runs/.cache/text.

    The last CLIP stays in memory, so that running a notebook again does not load it again; its weights must not change.
    """
    cache = params.run_dir.parent / ".cache"
    digest = clip_digest(params.clip, params.clip_folder, Contents(cache / "contents.json"))
    clip_model = _last_clip(params.clip, params.clip_folder, params.official_clip, digest, torch.device(device))
    return Masker(
        clip_model,
        text_embeddings(clip_model, params.class_set, params.synonyms, cache / "text"),
        strategy=params.masker,
        gate=params.gate,
        clip_pixels=params.clip_pixels,
        window=params.mask_window,
        stride=params.mask_stride,
        scales=params.mask_scales,
        flip=params.mask_flip,
        precision=params.precision,
    ).to(device)


@lru_cache(maxsize=1)
def _last_clip(name: str, folder: str, official: bool, digest: str, device: torch.device) -> ClipModel:
    return load_clip(name, folder, official).to(device)


@torch.inference_mode()
def mask_image(masker: Masker, image: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the pseudo-mask (H, W) uint8 train ids of one image (H, W, 3) uint8 RGB, at its size.

    labels: (C,) bool image-level labels, as `ClassSet.labels` makes them; None = every class competes.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(masker.mean.device)
    present = None if labels is None else torch.from_numpy(labels)[None]
    gate = "none" if labels is None else masker.gate
    return pseudo_mask(masker.similarity(pixels), present, tuple(image.shape[:2]), gate)[0].cpu().numpy()


def pseudo_mask(similarity: Tensor, labels: Tensor | None, size: Size, gate: str = "labels") -> Tensor:
    """Turn similarities (B, C, h, w) and image-level labels (B, C) bool into masks (B, H, W) uint8 of `size`.

    Bilinear resize (align_corners=False), gate, argmax. `gate` "labels": only present classes compete, as if absent
    ones scored −∞ (METHOD.md, 7.1); an image without any label is 255 throughout. "official": scores
    are multiplied by the labels, so that absent classes score 0 and win where all present ones are negative; ties go
    to the lowest id. "none": all classes compete, `labels` may be None. Labels are best left on the host, which asks
    them which classes compete: then it waits for no device. Raises CarbError for labels that are missing.
    """
    if gate == "none":
        labels = torch.ones(similarity.shape[:2], dtype=torch.bool)
    elif labels is None:
        raise CarbError(f"gate '{gate}' needs image-level labels; give them, or set gate: none")
    masks = similarity.new_full((len(similarity), *size), IGNORE, dtype=torch.uint8)
    for mask, scores, present in zip(masks, similarity, labels.cpu(), strict=True):
        if gate == "official":
            mask.copy_(resized_argmax(scores * sent(present, scores.device)[:, None, None], size))
            continue
        # Leaving absent classes out is gating with −∞, without their work.
        classes = sent(present.nonzero().flatten(), scores.device)
        if len(classes):
            mask.copy_(classes[resized_argmax(scores[classes], size).long()])
    return masks


def _in_cells(size: Size | None, clip_model: ClipModel, key: str) -> Size | None:
    if size is None:
        return None
    patch = clip_model.patch
    if any(length % patch for length in size):
        near = [max(round(length / patch), 1) * patch for length in size]
        raise CarbError(f"{key} {list(size)}: must be multiples of CLIP's patch of {patch} pixels, such as {near}")
    return (size[0] // patch, size[1] // patch)
