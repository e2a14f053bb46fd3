"""Pseudo-masks of a whole split on disk: what the single path trains from, and what is measured and shown.

An image is resized to the base size (`image_size`), CLIP makes its mask at that size, and the mask is saved at that
size as an index PNG: training resizes images to it as well. `carb masks params/x.yaml --split train` exports a split; a
run that was stopped goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.base.memory import lowering
from carblib.base.parallel import in_order
from carblib.base.processes import deal, in_processes
from carblib.base.progress import bar_options
from carblib.base.stamps import NAME, compare, read_stamp, to_make, wait_for
from carblib.data.audit import note_stretching
from carblib.data.checks import check_split
from carblib.data.labels import training_labels
from carblib.data.mask_folders import are_given, clip_masks, pseudo_mask_folder, write_mask
from carblib.data.readers import open_split
from carblib.data.sources import mask_stamp
from carblib.masker import Masker, build_masker
from carblib.params import Params
from carblib.stages.crf import refine_folder
from carblib.training.state import is_done
from carblib.transforms import load_sized
from carblib.views import LocalView, local_pseudo_mask

BATCH = 4  # images, and tiles of local views, that CLIP sees at once


def export_masks(
    params: Params,
    split_name: str,
    processes: int = 1,
    local: bool = False,
    renew: bool = False,
    folder: Path | None = None,
) -> Path:
    """Make the pseudo-masks of a split that are not there, or not of what is there now; return their folder.

    One index PNG `<name>.png` (H, W) = `params.image_size` per image. `local`: masks put together from local views
    (`tiled_local_masks`), at the middle of the training's zoom range. With several processes each loads CLIP by itself;
    the masks are the same. Of a launcher's processes each makes its share (`to_make`). With `params.crf` the masks are
    refined afterwards and the folder of the refined ones is returned. Masks that `params.pseudo_masks` names are not
    made, only refined if asked for. `folder`: where else than in `pseudo_mask_folder`. Raises CarbError where the
    folder holds masks made otherwise, unless `renew` says to make them anew.
    """
    plain, split = params.updated(crf=False), open_split(params, split_name)
    labels = training_labels(params, split)  # made once, before processes start
    check_split(params, split, masks=False)
    folder = folder or pseudo_mask_folder(plain, split_name, local)
    command = "" if renew else params.command("masks", "--split", split_name, *["--local"] * local)
    if local or not are_given(params, split_name):
        now, before = mask_stamp(plain, split, labels, local), read_stamp(folder / NAME)
        if renew and before and compare(before, now).made_otherwise:
            build_masker(plain)  # what it refuses is refused before anything is deleted
        with to_make(folder, now, command) as names:
            place_of = {name: i for i, name in enumerate(split.names)}
            todo = [place_of[name] for name in names]
            if todo:
                note_stretching(params, split)
                in_processes(_export_share, deal(todo, processes), plain, split_name, labels, folder, local)
    if not params.crf or local:
        return folder
    return refine_folder(folder, pseudo_mask_folder(params, split_name), split, labels, params, processes, renew)


def ensure_masks(params: Params, variants: Sequence[str] = (), renew: bool = False) -> None:
    """Make what is missing of the pseudo-masks a run's trainings read from disk, refined if `crf` says so.

    Nothing is made on the dual path, of masks of the user's own (`pseudo_masks`), nor if all of `variants`, where they
    are given, are finished or learn from true masks. Raises CarbError where there are masks made otherwise, unless
    `renew` says to make them anew.
    """
    learners = [(params.run_dir / "train" / name, params.variant(name)) for name in variants]
    waiting = [own for folder, own in learners if own.supervision == "clip" and not is_done(folder, own)]
    if params.path == "single" and (waiting or not variants):
        folder = export_masks(params, params.train_split, renew=renew)
        if params.crf or not are_given(params, params.train_split):
            wait_for(folder, open_split(params, params.train_split).names)


def export_clip_masks(params: Params, split_name: str) -> dict[str, Path]:
    """Make `clip_masks` where they are missing, and return their folders, each whole.

    Raises CarbError for masks of the run's own that were made otherwise; those without labels are made anew.
    """
    found = clip_masks(params, split_name)
    for masks in found.values():
        other = masks.params.gate != params.gate
        export_masks(masks.params, split_name, local=masks.local, renew=other, folder=masks.folder)
    names = open_split(params, split_name).names
    return {variant: wait_for(masks.folder, names) for variant, masks in found.items()}


def middle_scale(params: Params) -> float:
    """Return the mean of the local views' zoom, rate · 1/2 + offset (METHOD.md, 4)."""
    return params.patch_rate / 2 + params.patch_offset


@lowering("mask_window, mask_scales, image_size or --processes")
def _export_share(
    share: Sequence[int],
    show: bool,
    params: Params,
    split_name: str,
    labels: np.ndarray,
    folder: Path,
    local: bool,
) -> None:
    """Export the masks of the images `share`; runs in a process of its own, so it builds everything itself."""
    device = torch_device(params.device)
    masker, split = build_masker(params, device), open_split(params, split_name)
    name = f"{split_name} {folder.parent.name}"
    read = in_order(lambda i: load_sized(split.image(i), params.image_size), share, params.workers)

    def made() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(share), BATCH):
            chosen = list(share[start : start + BATCH])
            images = torch.stack([*islice(read, len(chosen))]).to(device)
            yield from zip(chosen, _masks(masker, images, labels[chosen], params, local), strict=True)

    def write(one: tuple[int, Tensor]) -> None:
        write_mask(folder, split.names[one[0]], one[1].cpu().numpy(), split.class_set)

    written = in_order(write, made(), params.workers)
    deque(tqdm(written, name, len(share), unit="image", disable=not show, **bar_options()), 0)


@torch.inference_mode()
def _masks(masker: Masker, images: Tensor, labels: np.ndarray, params: Params, local: bool) -> Tensor:
    """Pseudo-masks (B, H, W) of equally large images (B, 3, H, W) uint8 with labels (B, C) bool."""
    known = torch.from_numpy(labels)
    if not local:
        return masker(images, known, params.image_size)
    scale = middle_scale(params)
    pairs = zip(images, known, strict=True)
    return torch.stack([tiled_local_masks(masker, image, row, params.patch, scale) for image, row in pairs])


@torch.no_grad()
def tiled_local_masks(
    masker: Masker, image: Tensor, labels: Tensor | None, patch: Sequence[int], scale: float
) -> Tensor:
    """Put together a pseudo-mask (H, W) uint8 of an image (3, H, W) uint8 from the masks of its local views.

    The image is tiled with boxes of `patch` (h, w); CLIP sees each one enlarged by `scale`, as local views in training
    (METHOD.md, 4). Where the last tile of a row or column reaches back over its neighbour, the last one counts.
    `labels` (C,) bool are those of the whole image. Raises CarbError for a patch larger than the image.
    """
    height, width = image.shape[-2:]
    if patch[0] > height or patch[1] > width:
        raise CarbError(f"patch: {list(patch)} does not fit into the image {[height, width]}; make it smaller")
    tops = [min(top, height - patch[0]) for top in range(0, height, patch[0])]
    lefts = [min(left, width - patch[1]) for left in range(0, width, patch[1])]
    boxes = torch.tensor([(top, left, top + patch[0], left + patch[1]) for top in tops for left in lefts])
    mask = torch.empty(height, width, dtype=torch.uint8, device=image.device)
    for some in boxes.split(BATCH):
        known = None if labels is None else labels.expand(len(some), -1)
        tiles = local_pseudo_mask(masker, image.expand(len(some), -1, -1, -1), known, LocalView(some, scale))
        for (top, left, bottom, right), tile in zip(some.tolist(), tiles, strict=True):
            mask[top:bottom, left:right] = tile
    return mask
