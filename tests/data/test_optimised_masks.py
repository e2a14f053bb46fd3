"""Masks that a lossless optimiser went over: the picture is the same, the numbers in the file are not.

The files are rebuilt with Pillow in the forms that the optimisers make; all must be read as before.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from carblib.base.images import write_index_png
from carblib.classes import CAMVID, CITYSCAPES, class_set
from carblib.data.mask_folders import read_mask
from carblib.data.readers import open_split
from carblib.stages.evaluate import evaluate_folder
from carblib.stages.pseudo_masks import ensure_masks

THREE = class_set(["background", "road", "car"])


def colours_of(path: Path) -> np.ndarray:
    """What a viewer shows of a PNG, (H, W, 3)."""
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def as_palette(path: Path, by: str = "first seen") -> None:
    """Make it a PNG of as few indices as there are colours, dealt as they are first seen, or by how often they are."""
    seen = colours_of(path)
    flat = seen.reshape(-1, 3)
    table, first, inverse, counts = np.unique(flat, axis=0, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort({"first seen": first, "often": -counts, "seldom": counts}[by], kind="stable")
    picture = Image.fromarray(np.argsort(order)[inverse.ravel()].reshape(seen.shape[:2]).astype(np.uint8))
    picture.putpalette(table[order].tobytes())
    bits = next(bits for bits in (1, 2, 4, 8) if len(table) <= 2**bits)
    picture.save(path, bits=bits)


def as_rgb(path: Path) -> None:
    Image.fromarray(colours_of(path)).save(path)


def as_few_bits_of_grey(path: Path) -> None:
    """Make it grey of as few bits as show the same; most values need all 8."""
    values = colours_of(path)[..., 0]
    for bits in (1, 2, 4):
        step = 255 // (2**bits - 1)
        if not (values % step).any():
            trees.save_grey(path, values // step, bits)
            return


OPTIMISERS = [
    as_palette,
    lambda path: as_palette(path, "often"),
    lambda path: as_palette(path, "seldom"),
    as_rgb,
    as_few_bits_of_grey,
]
IDS = ["first seen", "often", "seldom", "rgb", "few bits"]


def spots(values: list[int], seed: int) -> np.ndarray:
    return trees.draw(seed, values).astype(np.uint8)


@pytest.mark.parametrize("optimise", OPTIMISERS[:4], ids=IDS[:4])
@pytest.mark.parametrize("classes", [CAMVID, CITYSCAPES, THREE], ids=lambda classes: classes.name)
def test_our_own_masks(tmp_path, optimise, classes):
    number = len(classes)
    for seed, values in enumerate(([*range(number), 255], [0, 2], [1, 255], [2], [number - 1, 0, 255])):
        mask = spots(values, seed)
        write_index_png(tmp_path / "a.png", mask, classes.palette)
        optimise(tmp_path / "a.png")
        np.testing.assert_array_equal(read_mask(tmp_path, "a", classes), mask)


@pytest.mark.parametrize("optimise", [o for o, name in zip(OPTIMISERS, IDS, strict=True) if name != "rgb"],
                         ids=[name for name in IDS if name != "rgb"])  # fmt: skip
@pytest.mark.parametrize(("form", "void"), [("segnet", 11), ("cityscapes", 0)])
def test_a_dataset_in_index_form(tmp_path, optimise, form, void):
    if form == "segnet":
        truth, params = trees.write_segnet(tmp_path), trees.params(tmp_path, "camvid")
        masks, split_name = [*(tmp_path / "trainannot").iterdir()], "train"
    else:
        truth, params = trees.write_cityscapes(tmp_path), trees.params(tmp_path, "cityscapes", "cityscapes")
        masks, split_name = [*tmp_path.glob("gtFine/val/*/*_labelIds.png")], "val"
    few = np.full(trees.SIZE if form == "segnet" else (16, 32), void, np.uint8)
    few[:5] = 3 if form == "segnet" else 17  # pole, and one bit of 17 with unlabeled
    name = sorted(truth[split_name])[0]
    (chosen,) = [path for path in masks if path.name.startswith(name)]
    trees.save(chosen, few)
    truth[split_name][name] = np.where(few == void, 255, 3 if form == "segnet" else 5)
    for path in masks:
        optimise(path)
    split = open_split(params, split_name)
    for i, image in enumerate(split.names):
        np.testing.assert_array_equal(split.mask(i), truth[split_name][image])


@pytest.mark.parametrize("kind", ["grey", "own palette"])
def test_predictions_measure_as_before(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    truth, folder = trees.write_segnet(tmp_path / "data"), tmp_path / "predictions"
    params = trees.params(tmp_path / "data", "camvid", run="r", bootstrap=0)
    for optimise, (name, mask) in zip(itertools.cycle(OPTIMISERS[:3]), truth["val"].items(), strict=False):
        folder.mkdir(exist_ok=True)
        if kind == "grey":
            trees.save(folder / f"{name}.png", mask)
        else:
            write_index_png(folder / f"{name}.png", mask, CAMVID.palette)
        optimise(folder / f"{name}.png")
    assert evaluate_folder(folder, open_split(params, "val"), params, "theirs")["miou"] == 1


def test_a_folder_of_pseudo_masks_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    truth = trees.write_segnet(tmp_path / "data")
    params = trees.params(tmp_path / "data", "camvid", run="r", pseudo_masks=str(tmp_path / "mine"), path="single")
    for name, mask in truth["train"].items():
        trees.save(tmp_path / "mine" / f"{name}.png", mask)
        as_palette(tmp_path / "mine" / f"{name}.png")
    ensure_masks(params)
    for name, mask in truth["train"].items():
        np.testing.assert_array_equal(read_mask(tmp_path / "mine", name, CAMVID), mask)


def test_colour_masks_that_became_a_palette_or_grey(tmp_path):
    truth = trees.write_camvid_original(tmp_path)
    folder, name = tmp_path / "LabeledApproved_full", trees.CAMVID_NAMES["train"][0]
    for path in folder.iterdir():
        as_palette(path)
    grey = np.zeros(trees.SIZE, np.uint8)
    grey[4:] = 128  # Sky, below Void
    trees.save(folder / f"{name}_L.png", grey)
    truth["train"][name] = np.where(grey == 128, 0, 255)
    split = open_split(trees.params(tmp_path, "camvid"), "train")
    for i, image in enumerate(split.names):
        np.testing.assert_array_equal(split.mask(i), truth["train"][image])


def test_one_class_and_void_are_told_from_two_classes_by_the_other_masks(tmp_path):
    """Background and void become one bit, as a mask of background and road is written by some."""
    void = np.where(spots([0, 1], 0) == 1, 255, 0).astype(np.uint8)
    trees.save(tmp_path / "a.png", void)
    as_few_bits_of_grey(tmp_path / "a.png")
    trees.save(tmp_path / "b.png", spots([0, 1, 2, 255], 1))
    assert set(np.unique(read_mask(tmp_path, "a", THREE))) == {0, 255}
    for name in ("a", "b"):
        trees.save_grey(tmp_path / f"{name}.png", spots([0, 1], 2), 1)
    assert set(np.unique(read_mask(tmp_path, "a", THREE))) == {0, 1}


def test_palettes_that_are_decoration_do_not_count(tmp_path):
    mask = spots([0, 1, 2], 0)
    rainbow = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    steps = [[0, 0, 0], [100, 100, 100], [200, 200, 200]]  # greys that are no classes
    swapped = [THREE.palette[2], THREE.palette[1], THREE.palette[0]]  # a whole palette: colours were changed since
    for name, palette in (("rainbow", rainbow), ("steps", steps), ("swapped", swapped)):
        write_index_png(tmp_path / f"{name}.png", mask, palette)
        np.testing.assert_array_equal(read_mask(tmp_path, name, THREE), mask)
    two = spots([0, 1], 0)
    picture = Image.fromarray(two)
    picture.putpalette([0, 0, 0, 255, 255, 255])
    (tmp_path / "two").mkdir()
    picture.save(tmp_path / "two" / "a.png", bits=1)
    np.testing.assert_array_equal(read_mask(tmp_path / "two", "a", THREE), two)


@pytest.mark.parametrize("classes", [CAMVID, THREE], ids=lambda classes: classes.name)
def test_a_void_mask_of_ours_stays_void(tmp_path, classes):
    for values in ([255], [255, 0]):
        mask = spots(values, 0)
        write_index_png(tmp_path / "a.png", mask, classes.palette)
        np.testing.assert_array_equal(read_mask(tmp_path, "a", classes), mask)
    write_index_png(tmp_path / "a.png", spots([255], 0), classes.palette)  # black alone: its fellows tell
    write_index_png(tmp_path / "b.png", spots([0, 1, 255], 0), classes.palette)
    as_palette(tmp_path / "a.png")
    as_palette(tmp_path / "b.png")
    assert set(np.unique(read_mask(tmp_path, "a", classes))) == {255}
