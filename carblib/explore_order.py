"""In which order the explorer goes through a split: by name, or the images first that went worst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from carblib.evaluate import evaluation_path
from carblib.files import read_json
from carblib.mask_folders import missing, pseudo_mask_folder, read_mask
from carblib.params import Params
from carblib.predict import prediction_folder
from carblib.readers import Split
from carblib.transforms import resize_mask

NAME, MIOU, RECALL, DISAGREEMENT = "name", "lowest mIoU", "lowest small-object recall", "highest disagreement"


def sorts(params: Params, split: Split, network: str) -> list[str]:
    """Return the orders whose results are on disk, for a trained variant or, with "", for CLIP's masks."""
    found = [NAME, MIOU, RECALL] if _scores(params, split, network) else [NAME]
    there = network and not any(missing(folder, split.names) for folder in _folders(params, split, network))
    return [*found, DISAGREEMENT] if there else found


def order(params: Params, split: Split, network: str, by: str = NAME) -> list[int]:
    """Return the indices of the split's images, worst first, or by name; images without a score come last.

    mIoU and small-object recall are read from runs/<run>/evaluation; disagreement is the share of pixels to which the
    pseudo-mask and the variant's prediction on disk give different classes.
    """
    values: list[float | None] = [None] * len(split)
    if by == DISAGREEMENT:
        values = [-share for share in _disagreement(params, split, network)]
    elif by != NAME:
        scores, key = _scores(params, split, network), "miou" if by == MIOU else "small_recall"
        values = [scores.get(name, {}).get(key) for name in split.names]
    return sorted(range(len(values)), key=lambda i: (values[i] is None, values[i] or 0.0, i))


def _scores(params: Params, split: Split, network: str) -> dict[str, dict[str, Any]]:
    path = evaluation_path(params, network or "pseudo_masks_global", split.name)
    evaluation = read_json(path) if path.is_file() else {}
    if evaluation.get("class_names") != list(split.class_set.names):
        return {}
    return {row["name"]: row for row in evaluation["per_image"]}


def _folders(params: Params, split: Split, network: str) -> tuple[Path, Path]:
    return pseudo_mask_folder(params.updated(crf=False), split.name), prediction_folder(params, network, split.name)


def _disagreement(params: Params, split: Split, network: str) -> list[float]:
    ours, theirs = _folders(params, split, network)
    shares = []
    for name in split.names:
        mask, other = (read_mask(folder, name, len(split.class_set)) for folder in (ours, theirs))
        shares.append(float(np.mean(mask != resize_mask(other, mask.shape))))
    return shares
