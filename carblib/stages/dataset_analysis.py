"""Dataset analysis: why image-level labels are weak on driving scenes. Class frequency, co-occurrence, object sizes.

Only masks are read, no image. The result is plain data, `runs/<run>/analysis.json`, that figures are drawn from.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from carblib import __version__
from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.progress import bar_options
from carblib.data.readers import Split
from carblib.data.sources import label_stamp
from carblib.params import Params
from carblib.small_objects import components, size_edges


def analysis_path(params: Params) -> Path:
    """Return runs/<run>/analysis.json."""
    return params.run_dir / "analysis.json"


def analyse_split(split: Split, params: Params) -> dict[str, Any]:
    """Read all masks of a split, write runs/<run>/analysis.json and return what it holds, in plain Python types.

    pixel_share (C,): share of the pixels that are not void; void_share: void pixels of all; image_share (C,): share of
    the images a class is in; cooccurrence (C, C): images that hold both; classes_per_image (N,); object_areas: per
    class the pixels of its 8-connected components, the specks smaller than the smallest object left out
    (`objects.size_edges`), and object_count their number; size: the commonest (H, W). Shares are 0–1. Raises CarbError
    for a split without masks.
    """
    if not split.has_masks:
        raise CarbError(f"split {split.name}: has no masks to analyse; {split.mask_note}")
    classes = len(split.class_set)
    pixels, present = np.zeros(256, np.int64), np.zeros((len(split), classes), bool)
    areas: list[list[int]] = [[] for _ in range(classes)]
    sizes: Counter[tuple[int, int]] = Counter()
    for index in tqdm(range(len(split)), desc=f"analyse {split.name}", unit="image", **bar_options()):
        mask = split.mask(index)
        counts = np.bincount(mask.ravel(), minlength=256)
        pixels += counts
        present[index] = counts[:classes] > 0
        found = components(mask, np.flatnonzero(present[index]))
        kept = found.pixels >= size_edges(*mask.shape)[0]
        for class_id in np.unique(found.class_ids[kept]):
            areas[class_id] += found.pixels[kept & (found.class_ids == class_id)].tolist()
        sizes[mask.shape] += 1
    result = _result(split, params, pixels, present, areas) | {"size": list(sizes.most_common(1)[0][0])}
    result["made_from"] = label_stamp(params, split).digest
    files.write_json(analysis_path(params), result)
    return result


def _result(
    split: Split, params: Params, pixels: np.ndarray, present: np.ndarray, areas: list[list[int]]
) -> dict[str, Any]:
    names, classes = split.class_set.names, len(split.class_set)
    together = present.astype(np.int64)
    return {
        "run": params.run,
        "split": split.name,
        "images": len(split),
        "version": __version__,
        "class_names": list(names),
        "small_ids": list(split.class_set.small_ids),
        "pixel_share": (pixels[:classes] / max(pixels[:classes].sum(), 1)).tolist(),
        "void_share": float(pixels[classes:].sum() / pixels.sum()),
        "image_share": present.mean(0).tolist(),
        "cooccurrence": (together.T @ together).tolist(),
        "classes_per_image": present.sum(1).tolist(),
        "object_areas": dict(zip(names, areas, strict=True)),
        "object_count": dict(zip(names, map(len, areas), strict=True)),
    }
