"""Predictions on disk: index masks, colour pictures and overlays of any images, and Cityscapes submissions.

`carb predict params/x.yaml --checkpoint runs/x/train/paper/final.pt --split val` predicts a split;
`--images DIR` a folder of pictures without any masks; `--submission` also writes what Cityscapes' server takes.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from carblib.base import files, images
from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.base.memory import lowering
from carblib.base.parallel import in_order
from carblib.base.processes import is_first
from carblib.base.progress import bar_options, note
from carblib.base.stamps import FILES, MASK, NAME, Stamp, compare, read_stamp, to_make
from carblib.classes import CITYSCAPES, IGNORE, ClassSet
from carblib.data.audit import note_stretching
from carblib.data.checks import check_split, without_bad
from carblib.data.label_maps import cityscapes_label_ids, colour_mask
from carblib.data.mask_folders import read_mask, write_mask
from carblib.data.readers import open_pictures
from carblib.data.sources import contents, prediction_stamp
from carblib.data.split import Split
from carblib.infer import predict_mask
from carblib.params import Params, below_root
from carblib.training.state import load_trained, stamp_and_changes
from carblib.variants import TRAINED

PICTURES = "pictures/"  # before the name of `--images`: no split of a dataset has a / in its name
SOURCE = "pictures.json"  # says of which folder the predictions of pictures are
OPACITY = 0.5
MAX_SIDE = 65_500  # pixels of a JPEG


def prediction_folder(params: Params, variant: str, split: str) -> Path:
    """Return runs/<run>/predictions/<variant>/<split>."""
    return params.run_dir / "predictions" / variant / split


def predict_checkpoint(
    checkpoint: Path,
    split: Split,
    params: Params,
    folder: Path | None = None,
    pictures: bool = True,
) -> Path:
    """Predict every image of a split with a trained network (`final.pt` or `checkpoint.pt`) and return the folder.

    `folder` defaults to `prediction_folder` of the training's and the split's name. As `predict_split` else.
    Raises CarbError for a network of other classes than the parameters', and for a file that changes while it is read.
    """
    checkpoint = Path(checkpoint)
    weights = contents(params).digest(checkpoint)
    network, trained = load_trained(checkpoint)
    if contents(params).digest(checkpoint) != weights:
        raise CarbError(f"{checkpoint}: was written while it was read, by a training; run the command again")
    if trained.class_set.names != split.class_set.names:
        raise CarbError(
            f"{checkpoint}: its network knows the classes of {trained.class_set.name}, not of {split.class_set.name}; "
            "set `classes` to those it was trained with"
        )
    if trained.image_size != params.image_size:
        print(f"{checkpoint}: learnt at image_size {[*trained.image_size]}, predicts at {[*params.image_size]}")
    if not split.name.startswith(PICTURES):
        _note_stale(checkpoint, params)
    folder = folder or prediction_folder(params, checkpoint.parent.name, split.name)
    return predict_split(network.to(torch_device(params.device)), split, params, folder, weights, pictures)


def _note_stale(checkpoint: Path, params: Params) -> None:
    """Say of a training of this run that it is not of what lies there now; another run's is nobody's business here."""
    folder = checkpoint.parent
    if folder.name in TRAINED and folder.resolve() == (params.run_dir / "train" / folder.name).resolve():
        with contextlib.suppress(CarbError):  # the data it was trained on may be gone: the network is as good
            _, changes = stamp_and_changes(folder, params.variant(folder.name))
            if not changes.none:
                renew = params.command("train", "--variant", folder.name, "--renew")
                note(f"{checkpoint}: was trained on other things: {changes}; predicts as it is; to train anew: {renew}")


@lowering("infer_window or infer_scales")
def predict_split(
    network: nn.Module,
    split: Split,
    params: Params,
    folder: Path,
    weights: str,
    pictures: bool = True,
) -> Path:
    """Predict the images of a split that `folder` lacks, at their own size, and return the folder.

    Writes `<name>.png` (train ids with palette) and, with `pictures`, `colour/<name>.png` and `overlay/<name>.jpg`, of
    every second pixel or fewer where JPEG ends (`MAX_SIDE`). `weights`: a digest that tells this network from others.
    Predictions of another network or made otherwise are made anew, and a line says so. Of a launcher's processes each
    predicts its share (`to_make`). Raises CarbError for a folder that holds masks or pictures of anyone else, or
    predictions of another folder of pictures.
    """
    needed = FILES if pictures else MASK
    check_split(params, split, masks=False)
    now = prediction_stamp(params, split, weights)
    source = below_root(split.root) if split.name.startswith(PICTURES) else ""
    if source:
        _check_source(folder, source, now)
    with to_make(folder, now, needed=needed) as names:
        if source and is_first():
            files.write_json(folder / SOURCE, {"folder": source})
        if names:
            note_stretching(params, split)
        place_of = {name: i for i, name in enumerate(split.names)}
        read = in_order(lambda name: (name, split.image(place_of[name])), names, params.workers)
        masks = ((name, image, predict_mask(network, image, params)) for name, image in read)
        written = in_order(lambda made: _write(folder, *made, split.class_set, pictures), masks, params.workers)
        deque(
            tqdm(written, f"predict {split.name}", len(names), unit="image", disable=not is_first(), **bar_options()), 0
        )
    return folder


def _check_source(folder: Path, source: str, now: Stamp) -> None:
    """Raise CarbError where predictions of another folder than `source` would be lost: one that moved loses none."""
    path, before = folder / SOURCE, read_stamp(folder / NAME)
    if before and path.is_file():
        of, changes = files.read_json(path, "delete it").get("folder"), compare(before, now)
        if of != source and (changes.changed or changes.removed):
            raise CarbError(f"{folder}: holds predictions of {of}, not of {source}; choose another folder with --out")


def _write(folder: Path, name: str, image: np.ndarray, mask: np.ndarray, class_set: ClassSet, pictures: bool) -> None:
    if pictures:
        images.write_image(folder / "colour" / f"{name}.png", colour_mask(mask, class_set))
        step = -(-max(mask.shape) // MAX_SIDE)
        images.write_image(folder / "overlay" / f"{name}.jpg", overlay(image, mask, class_set)[::step, ::step], "JPEG")
    write_mask(folder, name, mask, class_set)  # last: an image with a mask counts as done


def overlay(image: np.ndarray, mask: np.ndarray, class_set: ClassSet, opacity: float = OPACITY) -> np.ndarray:
    """Lay a mask (H, W) over its image (H, W, 3) uint8 with `opacity` 0–1; ignored pixels (255) show the image."""
    mixed = image * np.float32(1 - opacity)
    mixed += colour_mask(mask, class_set) * np.float32(opacity)
    ignored = mask == IGNORE
    mixed[ignored] = image[ignored]
    return np.rint(mixed, out=mixed).astype(np.uint8)


def write_submission(folder: Path, split: Split, destination: Path) -> Path:
    """Write a folder of predicted train ids as Cityscapes' server and evaluator take them, and return `destination`.

    One grey PNG of labelIds per image, `<city>_<sequence>_<frame>_pred_labelIds.png`. Ignored pixels (255, which the
    evaluator cannot take) become 0, unlabeled. Raises CarbError for other classes than Cityscapes' 19.
    """
    if split.class_set.names != CITYSCAPES.names:
        raise CarbError(f"--submission: needs the classes of cityscapes, not of {split.class_set.name}; leave it out")
    label_ids = np.zeros(256, np.uint8)
    for label_id, train_id in cityscapes_label_ids().items():
        if train_id != IGNORE:
            label_ids[train_id] = label_id

    def write(name: str) -> None:
        mask = read_mask(folder, name, split.class_set)
        images.write_image(destination / f"{name}_pred_labelIds.png", label_ids[mask])

    deque(tqdm(in_order(write, split.names), "submission", len(split), unit="image", **bar_options()), 0)
    return destination


def open_images(images: Path, params: Params, out: Path | None) -> Split:
    """Open a folder of pictures in place of the dataset's, as a split named pictures/<folder>.

    Raises CarbError where results would land among them.
    """
    where = images.resolve()  # so that "." and ".." have a name
    split = open_pictures(where, params.class_set)
    split = replace(split, name=f"{PICTURES}{split.name}")
    results = params.run_dir / "predictions" if out is None else out
    if results.resolve().is_relative_to(where):
        raise CarbError(
            f"{images}: the predictions would land among its pictures, in {results}; "
            "give the pictures a folder of their own, or choose --out elsewhere"
        )
    return without_bad(params, split) if params.skip_bad else split
