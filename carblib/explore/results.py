"""Confusions and small objects of a split, scores and failures of its images, for the explorer's page to click on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from carblib.data.split import Split
from carblib.explore.explorer import Explorer
from carblib.explore.order import CLASS, MIOU, NAME, RECALL, measured
from carblib.metrics import iou
from carblib.results.words import percent
from carblib.small_objects import object_table


def results_of(explorer: Explorer, split: Split, network: str) -> dict[str, Any]:
    """Return the confusion matrix in shares of each true class, and how many small objects were missed by size.

    {} where no evaluation of these images is on disk.
    """
    results, classes = measured(explorer.params, split, network), explorer.class_set
    if results is None:
        return {}
    matrix = results.confusion.sum(0)
    total = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    table = object_table(results.objects, classes, explorer.params.image_size)
    rows = []
    for class_id in classes.small_ids:
        of_class = results.objects.class_ids == class_id
        bins, found = results.objects.bins[of_class], results.objects.found[of_class]
        count = np.bincount(bins, minlength=len(table["bins"]))
        missed = np.bincount(bins[~found], minlength=len(table["bins"]))
        rows.append({"class_id": class_id, "count": count.tolist(), "missed": missed.tolist()})
    return {
        "title": f"confusions and missed small objects of {network or 'CLIP'} on {split.name}: click to list images",
        "confusion": [[None if np.isnan(share) else float(share) for share in row] for row in shares],
        "bins": table["labels"],
        "objects": rows,
    }


def table_of(
    explorer: Explorer, split: Split, network: str, class_id: int, indices: Sequence[int]
) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Return columns {title, by, class_id} and a row of texts for each of a split's images, as far as it was evaluated.

    `by` is the order of a column (`Choice`), absent where there is none. The name and the tags are not in the rows.
    """
    results, names = measured(explorer.params, split, network), explorer.class_set.names
    first, last = {"title": "image", "by": NAME, "class_id": 0}, {"title": "tags"}
    if results is None:
        return [first, last], [[] for _ in indices]
    by_score = {"mIoU": (MIOU, 0), "small recall": (RECALL, 0), f"IoU of {names[class_id]}": (CLASS, class_id)}
    columns = [{"title": title, "by": by, "class_id": c} for title, (by, c) in by_score.items()]
    columns += [{"title": "worst confusion, of all pixels"}, {"title": "small objects missed"}]
    matrices, missed = results.confusion[[*indices]], results.image[~results.objects.found]
    texts = [[percent(values[i]) for i in indices] for values in (results.miou, results.recall)]
    texts.append([percent(one) for one in iou(matrices)[:, class_id]])
    texts.append([_worst(matrix, (*names, "void")) for matrix in matrices])
    texts.append([f"{np.sum(missed == i)} of {np.sum(results.image == i)}" for i in indices])
    return [first, *columns, last], [list(row) for row in zip(*texts, strict=True)]


def _worst(matrix: np.ndarray, names: Sequence[str]) -> str:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    truth, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    if not wrong.any():
        return "none"
    return f"{names[truth]} → {names[predicted]} {percent(wrong.max() / matrix.sum())} %"
