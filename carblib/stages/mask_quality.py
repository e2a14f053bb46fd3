"""How good pseudo-masks are before anything is trained: the ways of making them, side by side on one split.

The paper's way stands first; every other one changes one thing about it. It writes runs/<run>/maskers.json, from which
the figure and the table are drawn: `carb quality params/x.yaml`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from carblib import __version__
from carblib.base import files
from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.base.memory import lowering
from carblib.base.parallel import in_order
from carblib.base.progress import bar_options
from carblib.clip_models import ClipModel
from carblib.data.checks import check_split
from carblib.data.labels import training_labels
from carblib.data.split import Split
from carblib.masker import build_masker
from carblib.metrics import bootstrap, confusion, miou
from carblib.params import Params
from carblib.stages.evaluate import plain
from carblib.stages.pseudo_masks import middle_scale, tiled_local_masks
from carblib.transforms import load_sized, resize_mask

LOCAL = "local_views"
# What each way changes about the paper's masker on the whole image. Windows get their size from CLIP itself.
WAYS: dict[str, dict[str, Any]] = {
    "value_path": {},
    "value_path, no labels": {"gate": "none"},
    "value_path, local views": {LOCAL: True},
    "value_path, windows": {"mask_window": "CLIP's resolution", "mask_stride": None},
    "value_path, scales and flip": {"mask_scales": (1.0, 1.25), "mask_flip": True},
    "value_path, synonyms": {"synonyms": True},
    "no_residual": {"masker": "no_residual"},
    "query_query": {"masker": "query_query"},
    "key_key": {"masker": "key_key"},
    "sclip": {"masker": "sclip"},
    "clearclip": {"masker": "clearclip"},
    "naclip": {"masker": "naclip"},
}
# The paper's way: the defaults of whatever any way changes.
PLAIN = {key: Params.model_fields[key].default for way in WAYS.values() for key in way if key != LOCAL}


def maskers_path(params: Params) -> Path:
    """Return runs/<run>/maskers.json."""
    return params.run_dir / "maskers.json"


def compare_maskers(params: Params, split: Split, images: int = 12) -> list[dict[str, Any]]:
    """Measure every way of making pseudo-masks on at most `images` images of a split, evenly spaced.

    Writes runs/<run>/maskers.json and returns its rows {masker, miou, small_miou (0–1 or None), miou_interval,
    small_miou_interval (95 %, by bootstrap over the images), seconds (per image), split, images, version}. Ways that
    this CLIP or this image size cannot have are left out. Raises CarbError for a split without masks.
    """
    if not split.has_masks:
        raise CarbError(f"split {split.name}: has no masks to measure pseudo-masks against; {split.mask_note}")
    check_split(params, split, masks=True)
    chosen = np.unique(np.linspace(0, len(split) - 1, min(images, len(split))).round().astype(int)).tolist()
    labels = torch.from_numpy(training_labels(params.updated(gate="labels"), split))
    rows, clip_model = [], build_masker(params).clip
    with tqdm(total=len(WAYS), desc="ways of making masks", **bar_options()) as bar:
        for name, changes in WAYS.items():
            changed = _changed(params, changes, clip_model)
            if changed is not None:
                rows.append({"masker": name} | _measure(changed, split, chosen, labels, LOCAL in changes))
            bar.update()
    files.write_json(maskers_path(params), rows)
    return rows


def _changed(params: Params, changes: Mapping[str, Any], clip_model: ClipModel) -> Params | None:
    """Return the parameters of one way, None where this CLIP cannot have it."""
    own = {key: value for key, value in changes.items() if key != LOCAL}
    if "masker" in own and not clip_model.is_vit:
        return None
    if "mask_window" in own:
        own["mask_window"] = (clip_model.resolution, clip_model.resolution)
        if min(params.image_size) < clip_model.resolution:
            return None
    return params.updated(**PLAIN | own)


@lowering("image_size or patch")
@torch.inference_mode()
def _measure(params: Params, split: Split, chosen: list[int], labels: Tensor, local: bool) -> dict[str, Any]:
    device = torch_device(params.device)
    masker = build_masker(params, device)
    class_set, times, matrices = split.class_set, [], []

    def read(i: int) -> tuple[int, Tensor, np.ndarray]:
        return i, load_sized(split.image(i), params.image_size), split.mask(i)

    for i, image, truth in in_order(read, chosen, params.workers):
        image, present, started = image.to(device), labels[i], time.perf_counter()
        if local:
            mask = tiled_local_masks(masker, image, present, params.patch, middle_scale(params))
        else:
            mask = masker(image[None], present[None], params.image_size)[0]
        mask = mask.cpu().numpy()  # waits for the device
        times.append(time.perf_counter() - started)
        matrices.append(confusion(resize_mask(mask, truth.shape), truth, len(class_set)))
    total = np.sum(matrices, 0)
    intervals = bootstrap(np.stack(matrices), class_set.small_ids, params.bootstrap, params.seed)
    return {
        "miou": plain(miou(total)),
        "small_miou": plain(miou(total, class_set.small_ids)),
        "miou_interval": plain(intervals.miou),
        "small_miou_interval": plain(intervals.small_miou),
        "seconds": float(np.median(times)),  # the first image also pays for what is set up once
        "split": split.name,
        "images": len(chosen),
        "version": __version__,
    }
