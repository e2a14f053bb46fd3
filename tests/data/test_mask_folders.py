from __future__ import annotations

import numpy as np
import pytest
import trees
from PIL import Image
from small import small_params

from carblib.base.errors import CarbError
from carblib.classes import CAMVID, class_set
from carblib.data.mask_folders import pseudo_mask_folder, read_mask, write_mask

TEN = class_set([str(number) for number in range(10)])
MASK = np.array([[0, 10, 255], [3, 3, 9]], np.uint8)


def test_masks_come_back_as_they_were_with_their_palette(tmp_path):
    write_mask(tmp_path, "a.b_1", MASK, CAMVID)
    assert np.array_equal(read_mask(tmp_path, "a.b_1", CAMVID), MASK)
    with Image.open(tmp_path / "a.b_1.png") as picture:
        assert picture.mode == "P" and tuple(picture.convert("RGB").getpixel((1, 0))) == CAMVID.palette[10]


def test_masks_that_are_none_are_refused(tmp_path):
    trees.save(tmp_path / "high.png", MASK)
    trees.save(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8))
    trees.save(tmp_path / "deep.png", np.zeros((2, 2), np.uint16))
    (tmp_path / "cut.png").write_bytes((tmp_path / "high.png").read_bytes()[:40])
    with pytest.raises(CarbError, match="high.png: value 10 is no class"):
        read_mask(tmp_path, "high", TEN)
    for name, said in (("rgb", "index PNG"), ("deep", "index PNG"), ("cut", "truncated"), ("none", "no such mask")):
        with pytest.raises(CarbError, match=f"{name}.png: .*{said}"):
            read_mask(tmp_path, name, CAMVID)


def test_pseudo_masks_lie_where_figures_and_training_look(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path))
    run = small_params(run="r")
    assert pseudo_mask_folder(run, "train") == tmp_path / "runs/r/pseudo_masks/train"
    assert pseudo_mask_folder(run, "val", local=True) == tmp_path / "runs/r/pseudo_masks_local/val"
    assert pseudo_mask_folder(run.updated(crf=True), "train") == tmp_path / "runs/r/pseudo_masks_crf/train"
    own = run.updated(pseudo_masks="mine")
    assert pseudo_mask_folder(own.updated(crf=True), "train") == tmp_path / "runs/r/pseudo_masks_crf/train"
    assert pseudo_mask_folder(own, "train") == tmp_path / "mine"
    assert pseudo_mask_folder(own, "val") == tmp_path / "runs/r/pseudo_masks/val"
