"""Small objects: connected components of the small classes, found or missed, and how well they are outlined.

An object is an 8-connected component of one small class in the human annotation (or in the exact mask of a rendered
scene), of at least `LOWER_EDGES[0]` pixels of a 256×512 image; component edges scale with the image's area. Everything
is counted with bincounts over component labels: no loop runs over pixels or objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import cc3d
import numpy as np

from carblib.base.errors import CarbError
from carblib.classes import IGNORE, ClassSet

# Lower edges of the size bins, in pixels of an image of REFERENCE_AREA pixels; the last bin is open. At 256×512 a
# pedestrian 10 px high falls into the first bin, one 20 px high into the second.
LOWER_EDGES = (10, 40, 160, 640)
REFERENCE_AREA = 256 * 512
FOUND_SHARE = 0.5


@dataclass(frozen=True)
class Components:
    """Connected components of a mask: `labels` (H, W) with 0 = none, 1 … n; `class_ids` and `pixels` of shape (n,)."""

    labels: np.ndarray
    class_ids: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class Objects:
    """The objects of one or more images, one entry each: class id, pixels, size bin, found or not, IoU 0–1."""

    class_ids: np.ndarray
    pixels: np.ndarray
    bins: np.ndarray
    found: np.ndarray
    iou: np.ndarray

    def __len__(self) -> int:
        return len(self.class_ids)

    @property
    def recall(self) -> float | None:
        """Share of the objects that were found, 0–1; None where there is no object."""
        return float(self.found.mean()) if len(self) else None


def components(mask: np.ndarray, class_ids: Sequence[int]) -> Components:
    """Label the 8-connected components of the given classes in a mask (H, W) of train ids."""
    kept = np.zeros(256, np.uint8)
    kept[list(class_ids)] = np.asarray(class_ids, np.uint8) + 1  # 0 is cc3d's background, train ids start at 0
    coded = kept[mask]
    labels, count = cc3d.connected_components(coded, connectivity=8, return_N=True)
    pixels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    of_label = np.zeros(count + 1, np.int64)
    of_label[labels] = coded  # all pixels of a label hold the same value
    return Components(labels, of_label[1:] - 1, pixels)


def size_edges(height: int, width: int) -> np.ndarray:
    """Return the lower edges (bins,) of the size bins in pixels of an image of that size; an object has ≥ edge[0].

    The edges grow with the area, so that an object keeps its bin when the image is enlarged: (10, 40, 160, 640) at
    256×512, (160, 640, 2560, 10240) at 1024×2048.
    """
    return np.maximum(1, np.rint(np.array(LOWER_EDGES) * (height * width / REFERENCE_AREA))).astype(np.int64)


def match_objects(prediction: np.ndarray, truth: np.ndarray, class_ids: Sequence[int]) -> Objects:
    """Measure every object of the given classes in `truth` against `prediction`, both (H, W) uint8 train ids.

    Found: at least half of the object's pixels are predicted as its class. IoU of object o: P is the union of the
    predicted components of o's class that touch o, without pixels of other objects of that class (two people that the
    prediction joins are not held against each other) and without ignored ones; IoU = |o ∩ P| / |o ∪ P|.
    Source: the adjusted segment IoU of SegmentMeIfYouCan (Chan et al. 2021).
    """
    if prediction.shape != truth.shape:
        raise CarbError(f"prediction is {prediction.shape}, truth {truth.shape}; resize the prediction to the truth")
    true = components(truth, class_ids)
    guessed = components(np.where(truth == IGNORE, np.uint8(IGNORE), prediction), class_ids)
    inside, outside = _overlaps(true, guessed)
    edges = size_edges(*truth.shape)
    kept = true.pixels >= edges[0]
    pixels, inside, outside = true.pixels[kept], inside[kept], outside[kept]
    return Objects(
        class_ids=true.class_ids[kept],
        pixels=pixels,
        bins=np.searchsorted(edges, pixels, side="right") - 1,
        found=inside >= FOUND_SHARE * pixels,
        iou=inside / (pixels + outside),
    )


def _overlaps(true: Components, guessed: Components) -> tuple[np.ndarray, np.ndarray]:
    """Per true component: its pixels predicted as its class, and the touching predicted pixels in no true component."""
    both = (true.labels > 0) & (guessed.labels > 0)
    t, g = true.labels[both].astype(np.int64) - 1, guessed.labels[both].astype(np.int64) - 1
    same = true.class_ids[t] == guessed.class_ids[g]
    width = max(len(guessed.pixels), 1)
    pairs, shared = np.unique(t[same] * width + g[same], return_counts=True)
    pair_t, pair_g = pairs // width, pairs % width
    inside = np.bincount(pair_t, shared, len(true.pixels))
    spare = guessed.pixels - np.bincount(pair_g, shared, len(guessed.pixels))
    outside = np.bincount(pair_t, spare[pair_g], len(true.pixels))
    return inside, outside


def join(parts: Sequence[Objects]) -> Objects:
    """Put the objects of one or more images into one."""
    columns = [field.name for field in fields(Objects)]
    return Objects(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns})


def object_table(objects: Objects, class_set: ClassSet, size: tuple[float, float]) -> dict[str, Any]:
    """Return counts, recall and mean IoU by size bin, per small class and for all of them, in plain Python types.

    `bins` holds the lower edges in pixels for an image of `size` (H, W), the last bin being open; `labels` their names.
    Recall and IoU are None in a bin without objects. `total` sums over the bins.
    """
    edges = [int(edge) for edge in size_edges(*size)]
    labels = [f"{low}–{high - 1} px" for low, high in zip(edges, edges[1:], strict=False)] + [f"≥ {edges[-1]} px"]
    of_class = {class_set.names[c]: objects.class_ids == c for c in class_set.small_ids}
    return {
        "bins": edges,
        "labels": labels,
        "per_class": {name: _by_bin(objects, chosen) for name, chosen in of_class.items()},
        "all_small": _by_bin(objects, np.ones(len(objects), bool)),
        "total": {
            "count": len(objects),
            "recall": objects.recall,
            "iou": float(objects.iou.mean()) if len(objects) else None,
        },
    }


def _by_bin(objects: Objects, chosen: np.ndarray) -> dict[str, list]:
    bins, count = objects.bins[chosen], len(LOWER_EDGES)
    number = np.bincount(bins, minlength=count)
    sums = {"recall": objects.found[chosen].astype(float), "iou": objects.iou[chosen]}
    means = {key: np.bincount(bins, value, count) / np.maximum(number, 1) for key, value in sums.items()}
    shown = {key: [float(m) if n else None for m, n in zip(mean, number, strict=True)] for key, mean in means.items()}
    return {"count": [int(n) for n in number], **shown}
