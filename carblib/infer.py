"""Inference: whole image or sliding windows, one or several scales, with or without the mirrored image.

One image at a time, of any size; the mask has the image's own size. (METHOD.md, 6.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carblib.base.device import computing
from carblib.params import Params
from carblib.transforms import load_sized, resize_maps, resized_argmax, window_starts


@torch.inference_mode()
def predict_mask(network: nn.Module, image: np.ndarray, params: Params) -> np.ndarray:
    """Predict the mask (H, W) uint8 train ids of an image (H, W, 3) uint8 RGB, at the image's size; never 255.

    The image is resized to `params.image_size` times each of `params.infer_scales`; the rest as in `probabilities`.
    """
    if len(params.infer_scales) == 1 and not params.infer_flip:
        # Softmax keeps the order, so one view needs none.
        logits = _view_logits(network, image, params, params.infer_scales[0], False)
        return resized_argmax(logits, image.shape[:2]).cpu().numpy()
    return probabilities(network, image, params).argmax(0).byte().cpu().numpy()


@torch.inference_mode()
def probabilities(network: nn.Module, image: np.ndarray, params: Params) -> Tensor:
    """Class probabilities (C, H, W) float32 of an image (H, W, 3) uint8, at its size, on the network's device.

    The mean of the softmax over `params.infer_scales` and, with `params.infer_flip`, over the image and its mirror
    image. Logits are upsampled to the image's size first (bilinear, align_corners=False).
    """
    flips = (False, True) if params.infer_flip else (False,)
    views = [(scale, flip) for scale in params.infer_scales for flip in flips]
    size, total = image.shape[:2], 0
    for scale, flip in views:
        total += resize_maps(_view_logits(network, image, params, scale, flip)[None], size)[0].softmax(0)
    return total / len(views)


def _view_logits(network: nn.Module, image: np.ndarray, params: Params, scale: float, flip: bool) -> Tensor:
    """Logits (C, h, w) float32 as the network gives them, from one scale, mirrored or not (and mirrored back)."""
    device = next(network.parameters()).device
    pixels = load_sized(image, [max(1, round(side * scale)) for side in params.image_size])[None].to(device)
    if flip:
        pixels = pixels.flip(-1)
    with _evaluating(network), computing(device, params.precision):
        if params.infer_window is None:
            logits = network(pixels)
        else:
            half = [max(1, side // 2) for side in params.infer_window]
            logits = window_logits(network, pixels, params.infer_window, params.infer_stride or half)
    if flip:
        logits = logits.flip(-1)
    return logits[0].float()


def window_logits(network: nn.Module, pixels: Tensor, window: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Logits (1, C, H, W) of an image (1, 3, H, W) uint8, from windows (h, w) every `stride` (h, w) pixels.

    Every pixel is covered: the last window of a row or column is moved back to the image's edge, and a window larger
    than the image is cut to it. Where windows overlap, their logits are averaged.
    """
    height, width = pixels.shape[-2:]
    window = min(window[0], height), min(window[1], width)
    total, weight = None, torch.zeros(height, width, device=pixels.device)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            area = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = network(pixels[area]).float()
            if total is None:
                total = logits.new_zeros(1, logits.shape[1], height, width)
            total[area] += F.interpolate(logits, window, mode="bilinear", align_corners=False)
            weight[area] += 1
    return total / weight


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode and back: batch statistics of one image are no statistics."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
