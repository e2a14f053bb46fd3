"""Folders of masks, `<folder>/<name>.png` of train ids: where they lie, written whole, read and checked.

What a folder's masks were made from stands in its `stamp.json` (`carblib.base.stamps`, `carblib.data.sources`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from carblib.base import images
from carblib.base.errors import CarbError
from carblib.base.stamps import lacking
from carblib.classes import IGNORE, ClassSet
from carblib.data.label_maps import own_indices
from carblib.data.optimised_masks import read_indices
from carblib.params import Params, resolve


def pseudo_mask_folder(params: Params, split: str, local: bool = False) -> Path:
    """Return where a split's pseudo-masks lie.

    runs/<run>/pseudo_masks/<split>, with the suffix _crf after dense-CRF refinement and _local for masks put together
    from local views; for the train split `params.pseudo_masks`, if it is given, as long as nothing is to be refined.
    """
    if are_given(params, split) and not local and not params.crf:
        return resolve(params.pseudo_masks)
    kind = "pseudo_masks_local" if local else "pseudo_masks_crf" if params.crf else "pseudo_masks"
    return params.run_dir / kind / split


def are_given(params: Params, split: str) -> bool:
    """Tell whether the user names a folder of pseudo-masks of this split, whoever made them."""
    return bool(params.pseudo_masks) and split == params.train_split


class ClipMasks(NamedTuple):
    """Masks of CLIP's that a run is compared with: parameters, whether of local views, and where they lie."""

    params: Params
    local: bool
    folder: Path


def clip_masks(params: Params, split_name: str) -> dict[str, ClipMasks]:
    """Return the masks of a split that a run is compared with, by row of `carblib.variants`.

    As CLIP makes them, unrefined: without image-level labels (unless the run has none), with them, and of local views.
    """
    own = params.updated(crf=False, pseudo_masks="")
    found = {
        "pseudo_masks_no_labels": ClipMasks(
            own.updated(gate="none"), False, params.run_dir / "pseudo_masks_no_labels" / split_name
        ),
        "pseudo_masks_global": ClipMasks(own, False, pseudo_mask_folder(own, split_name)),
        "pseudo_masks_local": ClipMasks(own, True, pseudo_mask_folder(own, split_name, local=True)),
    }
    if params.gate == "none":
        del found["pseudo_masks_no_labels"]
    return found


def mask_path(folder: Path, name: str) -> Path:
    """Return the path of an image's mask in a folder of masks."""
    return Path(folder) / f"{name}.png"


def whole_pseudo_masks(params: Params, split: str, names: Sequence[str]) -> Path:
    """Return where a split's pseudo-masks lie; raises CarbError where one of these images' is missing."""
    folder = pseudo_mask_folder(params, split)
    without = lacking(folder, names)
    if without:
        remedy = f"make them with {params.command('masks', '--split', split)}"
        if are_given(params, split) and not params.crf:
            remedy = "`pseudo_masks` names this folder: write them, or set pseudo_masks: '' for CLIP's"
        first = mask_path(folder, without[0])
        raise CarbError(f"{first}: no such pseudo-mask ({len(without)} missing); {remedy}")
    return folder


def write_mask(folder: Path, name: str, mask: np.ndarray, class_set: ClassSet) -> None:
    """Write a mask (H, W) uint8 of train ids as an index PNG with the class set's palette, atomically."""
    images.write_index_png(mask_path(folder, name), mask, class_set.palette)


def read_mask(folder: Path, name: str, class_set: ClassSet) -> np.ndarray:
    """Read the mask of an image from a folder of masks, as `read_mask_file`."""
    return read_mask_file(mask_path(folder, name), class_set)


def read_mask_file(path: Path, class_set: ClassSet) -> np.ndarray:
    """Read a mask (H, W) uint8 of train ids of these classes, or 255; a lossless optimiser may have gone over it.

    Raises CarbError where it is missing or no mask of these classes, whoever made it.
    """
    if not path.is_file():
        raise CarbError(f"{path}: no such mask; make it first, or check the folder and the image names")
    classes = len(class_set)
    mask = read_indices(path, own_indices(classes), class_set.palette)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise CarbError(f"{path}: not an index PNG of train ids; write one channel of 8 bits")
    strange = mask[(mask >= classes) & (mask != IGNORE)]
    if strange.size:
        raise CarbError(f"{path}: value {strange[0]} is no class; train ids are 0 to {classes - 1}, and 255 for ignore")
    return mask
