"""Files that cannot be used are told at once, before long work, and `skip_bad` leaves them out everywhere."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import trees
from PIL import Image

from carblib.base import contents, files, images
from carblib.base.errors import CarbError
from carblib.base.files import write_text
from carblib.data.checks import check_split
from carblib.data.labels import ensure_labels, training_labels
from carblib.data.readers import open_pictures, open_split
from carblib.params import resolve
from carblib.stages.dataset_analysis import analyse_split
from carblib.stages.evaluate import evaluate_folder
from carblib.stages.predict import open_images, predict_split
from carblib.stages.pseudo_masks import export_masks
from carblib.training.loop import train_variants

CLASSES = ["road", "car", "sky"]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Fifteen images with masks; of the first five and one mask a header tells that they are bad."""
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    names = [f"i{i:02d}.png" for i in range(15)]
    trees.write_folder(tmp_path / "own" / "train", names, tmp_path / "own" / "masks")
    images = tmp_path / "own" / "train"
    (images / "i00.png").write_bytes(b"")
    (images / "i01.png").write_bytes(b"no picture")
    (images / "i02.png").unlink()
    (images / "i02.png").symlink_to("nowhere.png")
    trees.save(images / "i03.png", np.zeros(trees.SIZE, np.uint16))
    (images / "i04.png").write_bytes((images / "i04.png").read_bytes()[:20])
    trees.save(tmp_path / "own" / "masks" / "i05.png", np.zeros((9, 16), np.uint8))
    sizes = {"image_size": [18, 32], "crop": [18, 32], "patch": [9, 16], "val_every": 0, "bootstrap": 0}
    return trees.params(tmp_path / "own", "folder", CLASSES, run="r", test_split="train", path="single", **sizes)


def stages(params, split, tmp_path):
    return {
        "labels": (lambda: ensure_labels(params, split), 6),
        "analysis": (lambda: analyse_split(split, params), 6),
        "masks": (lambda: export_masks(params.updated(gate="none"), "train"), 5),
        "training": (lambda: train_variants(params.updated(gate="none", path="dual"), ["plain"]), 5),
        "ceiling": (lambda: train_variants(params.updated(gate="none"), ["ceiling"]), 6),
        "prediction": (lambda: predict_split(None, split, params, tmp_path / "out", "w"), 5),
        "evaluation": (lambda: evaluate_folder(tmp_path / "own" / "masks", split, params, "x"), 6),
    }


@pytest.mark.parametrize("name", ["labels", "analysis", "masks", "training", "ceiling", "prediction", "evaluation"])
def test_every_stage_tells_all_bad_files_before_it_begins(own, tmp_path, name):
    work, count = stages(own, open_split(own, "train"), tmp_path)[name]
    with pytest.raises(CarbError, match=f"{count} of 15 files of 'train' cannot be used") as error:
        work()
    said = str(error.value)
    for words in ("i00.png: empty", "i01.png: truncated, damaged or not an image", "i02.png: no such",
                  "i03.png: image mode", "i04.png: truncated", "skip_bad: true"):  # fmt: skip
        assert words in said
    assert ("i05.png: mask of 9×16 (H×W) for an image of 18×32" in said) == (count == 6)


def test_more_than_ten_are_listed_in_a_file(own, tmp_path):
    for i in range(6, 14):
        (tmp_path / "own" / "train" / f"i{i:02d}.png").write_bytes(b"")
    with pytest.raises(CarbError, match=r"14 of 15 .* … all in .*r/bad_files/train.txt") as error:
        check_split(own, open_split(own, "train"), masks=True)
    listed = (own.run_dir / "bad_files" / "train.txt").read_text().splitlines()
    assert len(listed) == 14 and "i13.png" in listed[-1] and "i13.png" not in str(error.value)


def test_skip_bad_leaves_them_out_everywhere_and_says_so_once(own, tmp_path, capsys):
    params = own.updated(skip_bad=True)
    split = open_split(params, "train")
    assert split.names == [f"i{i:02d}" for i in range(6, 15)] and len(split.left_out) == 6
    assert training_labels(params, split).shape == (9, 3)
    check_split(params, open_split(params, "train"), masks=False)
    assert capsys.readouterr().out.count("6 of 15 images of split 'train' are left out (skip_bad)") == 1
    pictures = open_images(tmp_path / "own" / "train", params, tmp_path / "out")
    assert len(pictures) == 10, "a folder of pictures has no masks"
    for path in (tmp_path / "own" / "train").iterdir():
        path.unlink()
        path.write_bytes(b"")
    with pytest.raises(CarbError, match="15 of 15 files"):
        open_split(params, "train")


def test_rows_of_images_left_out_as_bad_are_left_out_with_them(own, tmp_path):
    broken, whole = [f"i{i:02d}" for i in range(6)], [f"i{i:02d}" for i in range(6, 15)]
    params, rows = own.updated(labels="mine.csv"), [f"{name},1,0,1" for name in broken + whole]
    write_text(resolve("mine.csv"), "\n".join(["name,road,car,sky", *rows]))
    skipping = params.updated(skip_bad=True)
    split = open_split(skipping, "train")
    assert training_labels(skipping, split).tolist() == [[1, 0, 1]] * 9
    rows.append("i99,1,0,1")
    write_text(resolve("mine.csv"), "\n".join(["name,road,car,sky", *rows]))
    with pytest.raises(CarbError, match="line 17: no image 'i99' in the split"):
        training_labels(skipping, split)


def test_a_png_that_was_cut_is_told_with_the_others(own, tmp_path):
    path = tmp_path / "own" / "train" / "i07.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CarbError, match="^.*7 of 15 files .*i07.png: truncated"):
        check_split(own, open_split(own, "train"), masks=True)
    assert "i07" not in open_split(own.updated(skip_bad=True), "train").names


def test_what_is_damaged_behind_its_header_stops_at_that_file(own, tmp_path):
    path = tmp_path / "own" / "masks" / "i07.png"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    params = own.updated(skip_bad=True)
    with pytest.raises(CarbError, match=r"i07.png: truncated, damaged or not a PNG"):
        ensure_labels(params, open_split(params, "train"))


def test_bad_predictions_are_told_at_once(own, tmp_path):
    params = own.updated(skip_bad=True)
    split = open_split(params, "train")
    for name in split.names:
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / f"{name}.png").write_bytes(b"x")
    with pytest.raises(CarbError, match=r"theirs: 9 of 9 files of 'x' cannot be used: i06.png: truncated"):
        evaluate_folder(tmp_path / "theirs", split, params, "x")


def test_headers_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    first = trees.photo(tmp_path / "own" / "train" / "0000.png", 0)
    monkeypatch.setattr(contents, "_RACY", 0)
    for i in range(1, 3000):
        first.with_name(f"{i:04d}.png").hardlink_to(first)
    params = trees.params(tmp_path / "own", "folder", CLASSES, run="r")
    split = open_split(params, "train")
    check_split(params, split, masks=False)
    monkeypatch.setattr(images, "read_header", lambda path: pytest.fail(f"{path} is read again"))
    started = time.process_time()
    check_split(params, split, masks=False)
    assert time.process_time() - started < 2


def test_too_large_a_picture_is_called_that(tmp_path, monkeypatch):
    path = trees.photo(tmp_path / "a.png", 0, (30, 40))
    assert Image.MAX_IMAGE_PIXELS is None and images.MAX_PIXELS > 500e6, "a panorama of 200 megapixels is read"
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert images.read_image(path).shape == (30, 40, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    for read in (images.read_image, images.open_mask_png, images.read_header):
        with pytest.raises(CarbError, match="a picture of more than the 0 megapixels") as error:
            read(path)
        assert "truncated" not in str(error.value)


def test_names_that_cannot_be_those_of_files_are_told_at_opening(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    images = tmp_path / "own" / "train"
    params = trees.params(tmp_path / "own", "folder", CLASSES, run="r")
    trees.photo(images / ("街" * 82 + ".png"), 0)
    assert open_split(params, "train").names == ["街" * 82]
    files.write_text(tmp_path / ("街" * 82 + ".png"), "written")
    with pytest.raises(CarbError, match="too long.*; shorten the name"):
        files.write_text(tmp_path / ("街" * 85 + ".png"), "")
    deep = trees.photo(images / ("a" * 120) / ("b" * 120) / ("c" * 30 + ".png"), 0)
    with pytest.raises(CarbError, match=r"272 bytes, of which 251 fit a file's name"):
        open_split(params, "train")
    deep.unlink()
    try:
        os.link(images / ("街" * 82 + ".png"), os.fsencode(images) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes no such name")
    for opened in (lambda: open_split(params, "train"), lambda: open_pictures(images, params.class_set)):
        with pytest.raises(CarbError, match="has bytes in its name that are no UTF-8"):
            opened()
