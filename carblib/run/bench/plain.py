"""The official formulation of every stage, written out plainly: what `carb bench` measures carblib against.

One image after the other, by Pillow; attention as a matrix; all classes at full size; a cross-entropy per region
(formulas: METHOD.md). Three things stand as torch or carblib has them on both sides: convolutions and linear layers,
connected components, for which the official code has nothing, and pydensecrf.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from carblib.classes import IGNORE
from carblib.clip_attention import position_embeddings
from carblib.masker import Masker
from carblib.params import Params
from carblib.small_objects import components, match_objects, size_edges
from carblib.stages.crf import SETTINGS, load_densecrf
from carblib.transforms import IMAGENET_MEAN, IMAGENET_STD, PADDING, mix_seed
from carblib.views import LocalView, crop_view, sample_local_view

Size = tuple[int, int]
Heads = tuple[Tensor, Tensor, Tensor]

# --- CLIP's masks ----------------------------------------------------------------------------------------------------


def _soft(a: Tensor, b: Tensor, bonus: Tensor | float = 0.0) -> Tensor:
    return (a @ b.transpose(-1, -2) / a.shape[-1] ** 0.5 + bonus).softmax(-1)


LAST: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "value_path": lambda q, k, v, near: v,
    "no_residual": lambda q, k, v, near: v,
    "query_query": lambda q, k, v, near: _soft(q, q) @ v,
    "key_key": lambda q, k, v, near: _soft(k, k) @ v,
    "sclip": lambda q, k, v, near: (_soft(q, q) + _soft(k, k)) @ v,
    "clearclip": lambda q, k, v, near: _soft(q, q) @ v,
    "naclip": lambda q, k, v, near: _soft(k, k, near) @ v,
}
WITHOUT_RESIDUAL = ("no_residual", "clearclip", "naclip")


def similarity(masker: Masker, images: Tensor) -> Tensor:
    """Cosines (B, C, h, w) of patches and classes; images (B, 3, H, W) uint8, multiples of CLIP's patch."""
    visual = masker.clip.visual
    x = visual.conv1((images.float() / 255 - masker.mean) / masker.std)
    grid = x.shape[2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + position_embeddings(visual, tuple(grid))
    x = visual.ln_pre(x)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        q, k, v = _heads(block, x)
        x = x + _merged(block, _soft(q, k) @ v)
        x = x + block.mlp(block.ln_2(x))
    places = torch.cartesian_prod(*(torch.arange(float(length), device=x.device) for length in grid))
    near = F.pad(torch.exp(-torch.cdist(places, places).square() / 50), (1, 0, 1, 0))  # σ = 5 patches
    y = _merged(last, LAST[masker.strategy](*_heads(last, x), near))
    if masker.strategy not in WITHOUT_RESIDUAL:
        y = x + y
        y = y + last.mlp(last.ln_2(y))
    features = (visual.ln_post(y) @ visual.proj)[:, 1:]
    features = F.normalize(features.float(), dim=-1).transpose(1, 2).unflatten(2, grid)
    return F.conv2d(features, masker.vectors[:, :, None, None])


def _heads(block: nn.Module, x: Tensor) -> Heads:
    packed = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    return packed.unflatten(-1, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()


def _merged(block: nn.Module, heads: Tensor) -> Tensor:
    return block.attn.out_proj(heads.transpose(1, 2).flatten(2))


def masks(scores: Tensor, labels: Tensor, size: Size) -> Tensor:
    """Enlarge all classes, take absent ones out, argmax: (B, C, h, w), (B, C) bool -> (B, H, W)."""
    full = F.interpolate(scores, size, mode="bilinear")
    return full.masked_fill(~labels[:, :, None, None], -torch.inf).argmax(1)


# --- loss and training step ------------------------------------------------------------------------------------------


class Loss:
    """Four cross-entropies at full size; λ from the means of the last five iterations, queues that start at zero."""

    def __init__(self) -> None:
        self.consistent, self.noisy = deque([0.0] * 5, 5), deque([0.0] * 5, 5)

    def __call__(self, logits: Tensor, mask: Tensor, labels: Tensor, view: LocalView, local: Tensor) -> Tensor:
        """Loss of logits (B, C, h, w) by masks (B, H, W) and, of the view's patches, (B, p, q)."""
        full = F.interpolate(logits, mask.shape[1:], mode="bilinear")
        total, weight = 0.0, None
        for scores, target in ((full, mask.long()), (crop_view(full, view), local.long())):
            agree = scores.masked_fill(~labels[:, :, None, None], -torch.inf).argmax(1) == target
            in_r = F.cross_entropy(scores, target.masked_fill(~agree, IGNORE), ignore_index=IGNORE)
            in_n = F.cross_entropy(scores, target.masked_fill(agree, IGNORE), ignore_index=IGNORE)
            if weight is None:
                self.consistent.append(in_r.item())
                self.noisy.append(in_n.item())
                weight = sum(self.consistent) / sum(self.noisy)
            total = total + in_r + weight * in_n
        return total


def step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    masker: Masker,
    params: Params,
    batch: dict[str, Tensor],
    iteration: int,
) -> Tensor:
    """One iteration of the dual path in float32; returns the loss."""
    generator = torch.Generator().manual_seed(mix_seed(params.seed, 2, iteration))
    sizes = params.crop, params.patch, params.patch_rate, params.patch_offset
    view = sample_local_view(len(batch["labels"]), *sizes, generator)
    with torch.no_grad():
        mask = masks(similarity(masker, batch["clip_image"]), batch["labels"], params.crop)
        zoomed = F.interpolate(crop_view(batch["clip_image"], view).float(), scale_factor=view.scale, mode="bilinear")
        local = masks(similarity(masker, zoomed.round()), batch["labels"], view.size)
    total = loss(logits(network, batch["image"]), mask, batch["labels"], view, local)
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.detach()


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Logits of images (B, 3, H, W) uint8 by a network's layers, in the memory format torch has by itself."""
    mean, std = (values.to(images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    features = network.backbone((images.float() / 255 - mean) / std)
    return F.conv2d(network.head(features), network.text[:, :, None, None])


# --- images on disk --------------------------------------------------------------------------------------------------


def sample(path: Path, params: Params, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode, resize the whole, flip, crop, pad, distort: crops (h, w, 3) uint8, distorted and clean."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    ratio = draw(*params.resize_ratio)
    size = [round(side * ratio) for side in params.image_size]
    flipped = draw(0, 1) < params.flip
    whole = np.asarray(Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR))
    whole = whole[:, ::-1] if flipped else whole
    room = [max(length - part, 0) + 1 for length, part in zip(size, params.crop, strict=True)]
    top, left = (int(torch.randint(places, (), generator=generator)) for places in room)
    part = whole[top : top + params.crop[0], left : left + params.crop[1]]
    crops = []
    for pixels in (_distorted(part, draw), part):
        crop = np.empty((*params.crop, 3), np.uint8)
        crop[:] = PADDING.flatten()
        crop[: part.shape[0], : part.shape[1]] = pixels
        crops.append(crop)
    return tuple(crops)


def _distorted(image: np.ndarray, draw: Callable[[float, float], float]) -> np.ndarray:
    """Brightness, contrast, saturation, hue, contrast; colours turn by way of Pillow's HSV."""

    def coin() -> bool:
        return draw(0, 1) < 0.5

    pixels = image.astype(np.float32)
    if coin():
        pixels = (pixels + draw(-32, 32)).clip(0, 255)
    contrast = draw(0.5, 1.5) if coin() else 1.0
    first = coin()
    if first:
        pixels = (pixels * contrast).clip(0, 255)
    saturation = draw(0.5, 1.5) if coin() else 1.0
    turn = draw(-18, 18) / 180 if coin() else 0.0
    hsv = np.asarray(Image.fromarray(pixels.round().astype(np.uint8)).convert("HSV")).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + 256 * turn) % 256
    hsv[..., 1] = (hsv[..., 1] * saturation).clip(0, 255)
    pixels = np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")).astype(np.float32)
    return (pixels if first else (pixels * contrast).clip(0, 255)).round().astype(np.uint8)


def _pixels(path: Path, size: Size | None = None) -> Tensor:
    image = Image.open(path).convert("RGB")
    image = image.resize(size[::-1], Image.Resampling.BILINEAR) if size else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _write(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8)).save(path)


@torch.no_grad()
def export(masker: Masker, paths: list[Path], labels: np.ndarray, size: Size, folder: Path) -> Path:
    """Masks of images, resized to `size` first, by CLIP."""
    for path, row in zip(paths, torch.from_numpy(labels), strict=True):
        device = masker.mean.device
        scores = similarity(masker, _pixels(path, size).to(device))
        _write(folder / path.name, masks(scores, row[None].to(device), size)[0].cpu().numpy())
    return folder


@torch.no_grad()
def predict(network: nn.Module, paths: list[Path], folder: Path) -> Path:
    """Predictions: enlarge, softmax, argmax. The network in evaluation mode, images of the size it takes."""
    for path in paths:
        pixels = _pixels(path)
        scores = logits(network, pixels.to(network.text.device))
        _write(folder / path.name, upsampled_argmax(scores, tuple(pixels.shape[2:])).cpu().numpy())
    return folder


def upsampled_argmax(scores: Tensor, size: Size) -> Tensor:
    """Enlarge, softmax, argmax: (1, C, h, w) -> (H, W)."""
    return F.interpolate(scores, size, mode="bilinear").softmax(1).argmax(1)[0]


def evaluate(predictions: list[Path], truths: list[Path], classes: int, small: tuple[int, ...]) -> np.ndarray:
    """Confusion (C, C) of all pixels of all images, with their small objects matched."""
    total = np.zeros((classes, classes), np.int64)
    for pair in zip(predictions, truths, strict=True):
        prediction, truth = (np.array(Image.open(path)) for path in pair)
        total += confusion(prediction, truth, classes)
        match_objects(prediction, truth, small)
    return total


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Mask the ignored pixels, then one bincount of int64."""
    keep = truth < classes
    code = classes * truth[keep].astype(np.int64) + prediction[keep]
    return np.bincount(code, minlength=classes**2).reshape(classes, classes)


def analyse(paths: list[Path], classes: int) -> tuple[np.ndarray, int]:
    """Share of the pixels of each class (C,), and how many objects there are in all."""
    pixels, objects = np.zeros(256, np.int64), 0
    for path in paths:
        mask = np.array(Image.open(path))
        mask[mask >= classes] = IGNORE
        pixels += np.bincount(mask.ravel(), minlength=256)
        found = components(mask, np.unique(mask[mask != IGNORE]))
        objects += int((found.pixels >= size_edges(*mask.shape)[0]).sum())
    return pixels[:classes] / pixels[:classes].sum(), objects


def crf(image: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Dense CRF of all classes, present or not."""
    height, width = mask.shape
    energy = np.full((classes, height, width), -np.log((1 - SETTINGS["gt_prob"]) / (classes - 1)), np.float32)
    np.put_along_axis(energy, mask[None].astype(np.int64), -np.log(SETTINGS["gt_prob"]), 0)
    field = load_densecrf().DenseCRF2D(width, height, classes)
    field.setUnaryEnergy(energy.reshape(classes, -1))
    field.addPairwiseGaussian(sxy=SETTINGS["gaussian_sxy"], compat=SETTINGS["gaussian_compat"])
    widths = {"sxy": SETTINGS["bilateral_sxy"], "srgb": SETTINGS["bilateral_srgb"]}
    field.addPairwiseBilateral(**widths, rgbim=np.ascontiguousarray(image), compat=SETTINGS["bilateral_compat"])
    return np.array(field.inference(SETTINGS["iterations"])).reshape(classes, height, width).argmax(0)
