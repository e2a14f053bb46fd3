"""Predictions on disk: index masks, colour pictures and overlays of any images, and Cityscapes submissions.

`carb predict params/x.yaml --checkpoint runs/x/train/paper/final.pt --split val` predicts a split;
`--images DIR` a folder of pictures without any masks; `--submission` also writes what Cityscapes' server takes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn
from tqdm import tqdm

from carblib.base import files
from carblib.base.device import torch_device
from carblib.base.errors import CarbError
from carblib.base.locks import only_writer
from carblib.base.progress import bar_options
from carblib.base.stamps import settle
from carblib.classes import CITYSCAPES, IGNORE, ClassSet
from carblib.data.label_maps import cityscapes_label_ids, colour_mask
from carblib.data.mask_folders import read_mask, write_mask
from carblib.data.readers import Split, open_pictures
from carblib.data.sources import contents, prediction_stamp
from carblib.infer import predict_mask
from carblib.params import Params
from carblib.training.state import load_trained

OPACITY = 0.5


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

    `folder` defaults to `prediction_folder` of the training's name. As `predict_split` else. Raises CarbError for a
    network of other classes than the parameters'.
    """
    checkpoint = Path(checkpoint)
    network, trained = load_trained(checkpoint)
    if trained.class_set.names != split.class_set.names:
        raise CarbError(
            f"{checkpoint}: its network knows the classes of {trained.class_set.name}, not of {split.class_set.name}; "
            "set `classes` to those it was trained with"
        )
    if trained.image_size != params.image_size:
        print(f"{checkpoint}: learnt at image_size {[*trained.image_size]}, predicts at {[*params.image_size]}")
    folder = folder or prediction_folder(params, checkpoint.parent.name, split.name)
    weights = contents(params).digest(checkpoint)
    return predict_split(network.to(torch_device(params.device)), split, params, folder, weights, pictures)


def predict_split(
    network: nn.Module,
    split: Split,
    params: Params,
    folder: Path,
    weights: str,
    pictures: bool = True,
) -> Path:
    """Predict the images of a split that `folder` lacks, at their own size, and return the folder.

    Writes `<name>.png` (train ids with palette) and, with `pictures`, `colour/<name>.png` and `overlay/<name>.png`.
    `weights`: a digest that tells this network from others. Predictions of another network or made otherwise are made
    anew, and a line says so. Raises CarbError for a folder that holds masks of anyone else.
    """
    needed = ["{}.png", "colour/{}.png", "overlay/{}.png"] if pictures else ["{}.png"]
    now = prediction_stamp(params, split, weights)
    with only_writer(folder):
        names = settle(folder, now, needed=needed)
        for name in tqdm(names, desc=f"predict {split.name}", unit="image", **bar_options()):
            image = split.image(split.names.index(name))
            mask = predict_mask(network, image, params)
            if pictures:
                files.write_image(folder / "colour" / f"{name}.png", colour_mask(mask, split.class_set))
                files.write_image(folder / "overlay" / f"{name}.png", overlay(image, mask, split.class_set))
            write_mask(folder, name, mask, split.class_set)  # last: an image with a mask counts as done
    return folder


def overlay(image: np.ndarray, mask: np.ndarray, class_set: ClassSet, opacity: float = OPACITY) -> np.ndarray:
    """Lay a mask (H, W) over its image (H, W, 3) uint8 with `opacity` 0–1; ignored pixels (255) show the image."""
    mixed = np.rint((1 - opacity) * image + opacity * colour_mask(mask, class_set)).astype(np.uint8)
    return np.where((mask == IGNORE)[..., None], image, mixed)


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
    for name in tqdm(split.names, desc="submission", unit="image", **bar_options()):
        mask = read_mask(folder, name, split.class_set)
        files.write_image(destination / f"{name}_pred_labelIds.png", label_ids[mask])
    return destination


def open_images(images: Path, params: Params, out: Path | None) -> tuple[Params, Split]:
    """Open a folder of pictures in place of the dataset's; raises CarbError where results would land among them."""
    where = images.resolve()  # so that "." and ".." have a name
    split = open_pictures(where, params.class_set)
    results = params.run_dir / "predictions" if out is None else out
    if results.resolve().is_relative_to(where):
        raise CarbError(
            f"{images}: the predictions would land among its pictures, in {results}; "
            "give the pictures a folder of their own, or choose --out elsewhere"
        )
    return params.updated(dataset="folder", root=str(where)), split
