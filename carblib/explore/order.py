"""Where the explorer begins, and in which order it goes through a split: by name, or what went worst first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from carblib.base.files import read_json
from carblib.data.mask_folders import missing, pseudo_mask_folder, read_mask
from carblib.data.readers import Split
from carblib.explore.explorer import Explorer, ExplorerState
from carblib.params import Params
from carblib.results.saved import MAIN_FIRST
from carblib.small_objects import components
from carblib.stages.evaluate import evaluation_path
from carblib.stages.predict import prediction_folder
from carblib.stages.pseudo_masks import middle_scale
from carblib.transforms import resize_mask

NAME, MIOU, RECALL, DISAGREEMENT = "name", "lowest mIoU", "lowest small-object recall", "highest disagreement"


def first_state(explorer: Explorer) -> ExplorerState:
    """Return the state to begin with: the run's own settings and the network that stands for it, on the first image.

    The split is one that can be sorted, as far as there is one, else val; class and local view
    are those of the image's largest object of a small class, as far as labels and truth tell.
    """
    params, (height, width) = explorer.params, explorer.params.image_size
    network = next((name for name in (*MAIN_FIRST, *explorer.networks) if name in explorer.networks), "")
    offered = {name: len(sorts(params, split, network)) for name, split in explorer.splits.items()}
    state = ExplorerState(
        max(offered, key=offered.get),  # the first of equals
        masker=params.masker,
        gate=params.gate,
        network=network,
        centre=(height // 2, width // 2),
        zoom=middle_scale(params),
    )
    _, truth, labels = explorer.subject(state)
    present = list(range(len(explorer.class_set))) if labels is None else labels.nonzero().flatten().tolist()
    chosen = [c for c in present if c in explorer.class_set.small_ids] or present or [0]
    objects = None if truth is None else components(truth, chosen)
    if objects is None or not len(objects.pixels):
        return replace(state, class_id=chosen[0])
    largest = int(objects.pixels.argmax())
    row, column = np.median(np.argwhere(objects.labels == largest + 1), axis=0).astype(int).tolist()
    return replace(state, class_id=int(objects.class_ids[largest]), centre=(row, column))


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
        mask, other = (read_mask(folder, name, split.class_set) for folder in (ours, theirs))
        shares.append(float(np.mean(mask != resize_mask(other, mask.shape))))
    return shares
