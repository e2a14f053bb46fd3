"""Metrics: confusion matrix, IoU, mIoU, the mean over small classes, bootstrap intervals over images.

Maths on arrays. One confusion matrix per image, summed once over the split: the Cityscapes mIoU, no mean over images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from carblib.base.errors import CarbError
from carblib.classes import IGNORE

INTERVAL = (2.5, 97.5)  # percentiles: a 95 % interval
_AT_ONCE = 2**18  # draws of the bootstrap at once: memory does not grow with the number of images


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by truth (row) and prediction (column) -> (C, C+1) int64, with one bincount.

    Both masks are (H, W) uint8 train ids. Pixels whose truth is 255 don't count; a predicted 255 goes to the last
    column and is a miss of the true class, as Cityscapes' own evaluator has it. Raises CarbError for other values ≥ C.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise CarbError(f"prediction is {prediction.shape}, truth {truth.shape}; both must have one size")
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if mask.dtype != np.uint8:
            raise CarbError(f"{name}: masks are uint8 train ids, not {mask.dtype}")
    # All 256×256 pairs are counted, then cut: cheaper than masking pixels first, and strange values can't hide.
    code = truth.astype(np.uint16) * np.uint16(256) + prediction
    table = np.bincount(code.ravel(), minlength=65536).reshape(256, 256)
    for name, values in (
        ("truth", table[classes:IGNORE].sum(1)),
        ("prediction", table[:IGNORE].sum(0)[classes:IGNORE]),
    ):
        if values.any():
            strange = classes + int(values.argmax())
            raise CarbError(f"{name} holds the value {strange}; train ids are 0 to {classes - 1}, and 255 for ignore")
    return np.concatenate([table[:classes, :classes], table[:classes, IGNORE:]], 1)


def iou(matrix: np.ndarray) -> np.ndarray:
    """IoU per class, (…, C, C+1) -> (…, C) in 0–1; nan for a class that is in neither truth nor prediction."""
    matrix = np.asarray(matrix)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return _ratio(hits, matrix.sum(-1) + matrix[..., :-1].sum(-2) - hits)


def miou(matrix: np.ndarray, class_ids: Sequence[int] | None = None) -> np.ndarray:
    """Mean IoU over the classes that are in truth or prediction, or over those of `class_ids`; (…, C, C+1) -> (…).

    nan where none of the classes is there.
    """
    return mean_of(iou(matrix), class_ids)


def mean_of(ious: np.ndarray, class_ids: Sequence[int] | None = None) -> np.ndarray:
    """Mean over the last axis of IoUs (…, C), or over `class_ids` of it, leaving out nan; nan where nothing is left."""
    chosen = ious if class_ids is None else ious[..., list(class_ids)]
    there = ~np.isnan(chosen)
    return _ratio(np.where(there, chosen, 0.0).sum(-1), there.sum(-1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


@dataclass(frozen=True)
class Intervals:
    """95 % bootstrap intervals: per class (C, 2), of mIoU (2,), of the small-class mean (2,); nan where undefined."""

    iou: np.ndarray
    miou: np.ndarray
    small_miou: np.ndarray


def bootstrap(matrices: np.ndarray, small_ids: Sequence[int], samples: int, seed: int) -> Intervals:
    """Intervals over images: `samples` times, draw N of the N images with replacement and measure their sum.

    `matrices` (N, C, C+1). Draws are matrix products, weights (some samples, N) @ matrices (N, C·(C+1)); sums stay
    exact in float64. A class that a draw leaves out is left out of that draw's means. Percentile bootstrap, seeded.
    """
    images, classes = len(matrices), matrices.shape[1]
    generator = torch.Generator().manual_seed(seed)
    flat = torch.from_numpy(matrices.reshape(images, -1).astype(np.float64))
    sums = torch.empty(samples, flat.shape[1], dtype=torch.float64)
    for some in sums.split(max(1, _AT_ONCE // images)):
        drawn = torch.randint(images, (len(some), images), generator=generator)
        ones = torch.ones((), dtype=torch.float64).expand(drawn.shape)
        torch.mm(torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones), flat, out=some)
    ious = iou(sums.numpy().reshape(samples, classes, classes + 1))
    return Intervals(_interval(ious), _interval(mean_of(ious)), _interval(mean_of(ious, small_ids)))


def _interval(values: np.ndarray) -> np.ndarray:
    """(samples, …) -> (…, 2): the percentiles of the values that are not nan."""
    defined = ~np.isnan(values).all(0)
    edges = np.full((*values.shape[1:], 2), np.nan)
    if defined.any():
        edges[defined] = np.moveaxis(np.nanpercentile(values[..., defined], INTERVAL, axis=0), 0, -1)
    return edges
