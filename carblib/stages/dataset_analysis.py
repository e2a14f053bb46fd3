"""Dataset analysis: why image-level labels are weak on driving scenes. Class frequency, co-occurrence, object sizes.

Only masks are read, of images their headers. The result is plain data, `runs/<run>/analysis.json`, that figures are
drawn from.
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
from carblib.base.parallel import in_order
from carblib.base.progress import bar_options
from carblib.data.audit import audit
from carblib.data.checks import check_split
from carblib.data.sources import label_stamp
from carblib.data.split import Split
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
    (`objects.size_edges`), and object_count their number; size: the commonest (H, W); odd: what is odd about the data,
    a line each (`carblib.data.audit`). Shares are 0–1. Raises CarbError for a split without masks, and, before any is
    read, for files that cannot be used.
    """
    if not split.has_masks:
        raise CarbError(f"split {split.name}: has no masks to analyse; {split.mask_note}")
    check_split(params, split, masks=True)
    made_from, classes = label_stamp(params, split).digest, len(split.class_set)
    pixels, present, total = np.zeros(classes, np.int64), np.zeros((len(split), classes), bool), 0
    areas: list[list[int]] = [[] for _ in range(classes)]
    sizes: Counter[tuple[int, ...]] = Counter()
    counted = in_order(lambda index: _count(split.mask(index), classes), range(len(split)), params.workers)
    bar = tqdm(counted, f"analyse {split.name}", len(split), unit="image", **bar_options())
    for index, (counts, objects, size) in enumerate(bar):
        pixels += counts
        present[index] = counts > 0
        for class_id, found in objects.items():
            areas[class_id] += found
        sizes[size] += 1
        total += size[0] * size[1]
    result = _result(split, params, pixels, total, present, areas) | {"size": list(sizes.most_common(1)[0][0])}
    result["odd"] = audit(params, split, present, result["void_share"])
    result["made_from"] = made_from
    files.write_json(analysis_path(params), result)
    return result


def _count(mask: np.ndarray, classes: int) -> tuple[np.ndarray, dict[int, list[int]], tuple[int, ...]]:
    """Return the pixels of each class (C,) of a mask, those of its objects by class, and its size."""
    found = components(mask, range(classes))
    counts = np.zeros(classes, np.int64)
    np.add.at(counts, found.class_ids, found.pixels)
    kept = found.pixels >= size_edges(*mask.shape)[0]
    of_class = {int(c): found.pixels[kept & (found.class_ids == c)].tolist() for c in np.flatnonzero(counts)}
    return counts, of_class, mask.shape


def _result(
    split: Split, params: Params, pixels: np.ndarray, total: int, present: np.ndarray, areas: list[list[int]]
) -> dict[str, Any]:
    names, together = split.class_set.names, present.astype(np.int64)
    return {
        "run": params.run,
        "split": split.name,
        "images": len(split),
        "version": __version__,
        "class_names": list(names),
        "small_ids": list(split.class_set.small_ids),
        "pixel_share": (pixels / max(pixels.sum(), 1)).tolist(),
        "void_share": float((total - pixels.sum()) / total),
        "image_share": present.mean(0).tolist(),
        "cooccurrence": (together.T @ together).tolist(),
        "classes_per_image": present.sum(1).tolist(),
        "object_areas": dict(zip(names, areas, strict=True)),
        "object_count": dict(zip(names, map(len, areas), strict=True)),
    }
