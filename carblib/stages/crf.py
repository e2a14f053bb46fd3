"""Dense-CRF refinement of pseudo-masks (Krähenbühl & Koltun 2011), for the single path.

pydensecrf is imported only when a mask is refined. The settings are the official ones (METHOD.md, 6). A
1024×2048 image takes half a minute on one core, so folders of masks are refined by several processes, resumably;
`carb masks params/x.yaml --crf --processes 8` does so. Threads would not help: pydensecrf holds Python's lock.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from carblib.base.errors import CarbError
from carblib.base.processes import deal, in_processes
from carblib.base.progress import bar_options
from carblib.base.stamps import to_make
from carblib.classes import IGNORE
from carblib.data.mask_folders import read_mask, write_mask
from carblib.data.readers import open_split
from carblib.data.sources import refined_stamp
from carblib.data.split import Split
from carblib.params import Params
from carblib.transforms import load_sized

COMPILERS = ("c++", "g++", "clang++")
# Label confidence 0–1, kernel widths in pixels (sxy) and grey levels (srgb), weights (compat), iterations.
SETTINGS = {
    "gt_prob": 0.7,
    "gaussian_sxy": 3.0,
    "gaussian_compat": 3.0,
    "bilateral_sxy": 50.0,
    "bilateral_srgb": 5.0,
    "bilateral_compat": 10.0,
    "iterations": 10,
}


def load_densecrf() -> ModuleType:
    """Import pydensecrf. Raises CarbError, which says how to install it, where it isn't there."""
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        how = "pip install pydensecrf2==1.1"
        if sys.version_info >= (3, 13):
            how = f"it cannot be built on Python {platform.python_version()}: install carblib under Python 3.12"
        elif not any(map(shutil.which, COMPILERS)):
            how = f"install a C++ compiler (apt install g++), then {how}"
        raise CarbError(
            f"crf: pydensecrf is not installed ({error}); {how}; or do without it: crf: false, no single_crf among "
            "ablation_paths"
        ) from error


def refine(image: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Refine a mask (H, W) uint8 of a set of `classes` with the image (H, W, 3) uint8 it belongs to -> (H, W) uint8.

    Only classes present in the mask take part (time grows with their number), so none is added. A pixel's unary energy
    is −log gt_prob for its label and −log((1 − gt_prob)/(classes − 1)) for every other, as where all classes take part
    (the official code); ignored pixels (255) have no unary preference and stay ignored. A mask of a single class is
    returned as it is.
    """
    if image.shape[:2] != mask.shape:
        raise CarbError(f"crf: the image is {image.shape[:2]}, its mask {mask.shape}; export the masks again")
    present = np.unique(mask[mask != IGNORE])
    if len(present) < 2:
        return mask.copy()
    densecrf = load_densecrf()
    height, width = mask.shape
    field = densecrf.DenseCRF2D(width, height, len(present))
    field.setUnaryEnergy(unary(mask, present, classes, SETTINGS["gt_prob"]))
    field.addPairwiseGaussian(sxy=SETTINGS["gaussian_sxy"], compat=SETTINGS["gaussian_compat"])
    field.addPairwiseBilateral(
        sxy=SETTINGS["bilateral_sxy"],
        srgb=SETTINGS["bilateral_srgb"],
        rgbim=np.ascontiguousarray(image),
        compat=SETTINGS["bilateral_compat"],
    )
    probabilities = np.array(field.inference(SETTINGS["iterations"])).reshape(len(present), height, width)
    refined = present[probabilities.argmax(0)].astype(np.uint8)
    return np.where(mask == IGNORE, np.uint8(IGNORE), refined)


def unary(mask: np.ndarray, present: np.ndarray, classes: int, gt_prob: float) -> np.ndarray:
    """Unary energies (n, H·W) float32 of a mask (H, W) over those n ≥ 2 of the `classes` that are `present`."""
    flat = mask.ravel()
    chance = np.where(flat[None] == present[:, None], gt_prob, (1 - gt_prob) / (classes - 1))
    chance[:, flat == IGNORE] = 1 / classes
    return np.ascontiguousarray(-np.log(chance), dtype=np.float32)


def refine_folder(
    source: Path,
    folder: Path,
    split: Split,
    labels: np.ndarray,
    params: Params,
    processes: int = 1,
    renew: bool = False,
) -> Path:
    """Refine the masks of `source` (`<name>.png`, each at its own size) that `folder` lacks; returns `folder`.

    labels: (N, C) bool, in the split's order. Raises CarbError for a mask that is missing, for a folder of masks made
    otherwise unless `renew` says to make them anew, and where pydensecrf isn't installed.
    """
    load_densecrf()  # asked here once, so that its absence is not told by every process
    now = refined_stamp(params, split, labels, SETTINGS | {"classes": len(split.class_set)})
    command = "" if renew else params.command("masks", "--split", split.name, "--crf")
    with to_make(folder, now, command) as names:
        place_of = {name: i for i, name in enumerate(split.names)}
        todo = [place_of[name] for name in names]
        if todo:
            in_processes(_refine_share, deal(todo, processes), source, folder, split.name, params)
    return folder


def _refine_share(
    share: Sequence[int], show: bool, source: Path, folder: Path, split_name: str, params: Params
) -> None:
    split = open_split(params, split_name)
    for i in tqdm(share, desc=f"{split_name} crf", unit="image", disable=not show, **bar_options()):
        mask = read_mask(source, split.names[i], split.class_set)
        image = load_sized(split.image(i), mask.shape).permute(1, 2, 0).numpy()
        refined = refine(image, mask, len(split.class_set))
        write_mask(folder, split.names[i], refined, split.class_set)
