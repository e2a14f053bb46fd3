"""What is odd about data is said, each in a line, and of healthy data nothing is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import trees
from commands import carb
from places import CAMVID_ROOT

from carblib.base.progress import note
from carblib.data.audit import audit, note_stretching, tell
from carblib.data.labels import training_labels
from carblib.data.readers import open_split
from carblib.scenes.folders import ensure_scenes
from carblib.stages.dataset_analysis import analyse_split
from carblib.stages.evaluate import evaluate_masks


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    note.cache_clear()


def write(tmp_path, values, size=trees.SIZE, count=4):
    for i in range(count):
        trees.photo(tmp_path / "own" / "train" / f"i{i}.png", i, size)
        trees.save(tmp_path / "own" / "trainannot" / f"i{i}.png", trees.draw(i, values, size).astype(np.uint8))
    return trees.params(
        tmp_path / "own", "folder", ["road", "car", "sky"], run="r", image_size=[18, 32], crop=[18, 32], patch=[9, 16]
    )


def odd(params):
    return analyse_split(open_split(params, "train"), params)["odd"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 1, 2, 255], []),
        (
            [0, 255, 0, 0],
            ["2 of 3 classes are in no image: car, sky; binary masks", "4 of 4 images hold one class"],
        ),
        ([0], ["2 of 3 classes are in no image: car, sky", "4 of 4 images hold one class only: i0, i1, i2 …"]),
        ([1, 2], ["1 of 3 classes are in no image: road; do the ids begin with 1?"]),
        ([255, 0, 1], ["1 of 3 classes are in no image: sky; were the ids lowered by one"]),
        ([0, 2], ["1 of 3 classes are in no image: car"]),
        ([0, 1, 2, 255, 255, 255, 255, 255], ["of the masks' pixels are void"]),
        ([255], ["4 of 4 images hold no class and teach nothing: i0, i1, i2 …", "100% of the masks' pixels are void"]),
    ],
)
def test_masks_that_are_not_what_was_meant(tmp_path, values, words):
    found = odd(write(tmp_path, values))
    assert len(found) == len(words) and all(word in line for word, line in zip(words, found, strict=True)), found


def test_sizes_stretching_copies_and_shared_splits(tmp_path, capsys):
    params = write(tmp_path, [0, 1, 2])
    images = tmp_path / "own" / "train"
    trees.photo(images / "i4.png", 9, (18, 64))
    trees.save(tmp_path / "own" / "trainannot" / "i4.png", trees.draw(4, [0, 1, 2], (18, 64)).astype(np.uint8))
    shutil.copy(images / "i1.png", images / "i2.png")
    (tmp_path / "own" / "val").mkdir()
    shutil.copy(images / "i3.png", tmp_path / "own" / "val" / "v.png")
    trees.photo(tmp_path / "own" / "val" / "w.png", 77)
    assert odd(params) == [
        "images are of 2 sizes (H×W), 18×32 (4), 18×64 (1); not of the commonest: i4",
        "1 of 5 images, 18×64 and such (i4), become 50% narrower than they are at image_size [18, 32]; "
        "[18, 64] would keep that shape",
        "1 of 5 images are copies of another: i2 = i1",
        "1 of 2 images of split 'val' are also in 'train': v = i3",
    ]
    note_stretching(params, open_split(params, "train"))
    assert capsys.readouterr().out.startswith("note: 1 of 5 images, 18×64"), "not of the first image alone"
    note_stretching(params, open_split(params, "val"))
    assert not capsys.readouterr().out
    (tmp_path / "r.yaml").write_text(params.to_yaml())
    for command in ("labels", "analyse"):
        assert carb(command, tmp_path / "r.yaml") == 0
        assert "odd: 1 of 5 images are copies of another: i2 = i1\n" in capsys.readouterr().out
    tell([])
    assert capsys.readouterr().out == "data: nothing odd\n"


def test_one_folder_for_every_split_shares_nothing(tmp_path):
    for i in range(3):
        trees.photo(tmp_path / "own" / f"i{i}.png", i)
    params = trees.params(tmp_path / "own", "folder", ["road", "car"], run="r", image_size=[18, 32], gate="none",
                          crop=[18, 32], patch=[9, 16])  # fmt: skip
    split = open_split(params, "train")
    assert audit(params, split, training_labels(params, split)) == []


def test_nothing_is_odd_about_scenes(tmp_path):
    sizes = {"scenes_train": 8, "scenes_val": 2, "scenes_test": 2}
    params = trees.params("data/scenes", "scenes", **sizes)
    ensure_scenes(params)
    assert not [line for line in odd(params) if "in no image" not in line]  # eight scenes need not hold every class


def test_nothing_is_odd_about_cityscapes(tmp_path):
    trees.write_cityscapes(tmp_path)
    for seed, path in enumerate(sorted((tmp_path / "leftImg8bit").rglob("*.png"))):
        trees.photo(path, seed, (16, 32))
    sizes = {"image_size": [16, 32], "crop": [16, 32], "patch": [8, 16]}
    assert odd(trees.params(tmp_path, "cityscapes", "cityscapes", **sizes)) == []


@pytest.mark.skipif(not CAMVID_ROOT.is_dir(), reason="no CamVid in ../shared/data/camvid or $CARB_CAMVID_ROOT")
def test_nothing_is_odd_about_camvid():
    params = trees.params(CAMVID_ROOT.resolve(), "camvid", run="camvid")
    split = open_split(params, "val")
    sizes = {"image_size": (360, 480), "crop": (360, 480)}
    assert audit(params.updated(**sizes), split, np.ones((len(split), 11), bool)) == []


def test_masks_that_no_score_counts_are_told(tmp_path, capsys):
    params = write(tmp_path, [0, 255])
    trees.save(tmp_path / "own" / "trainannot" / "i2.png", np.full(trees.SIZE, 255, np.uint8))
    split = open_split(params.updated(bootstrap=0), "train")
    result = evaluate_masks(lambda i: np.zeros(trees.SIZE, np.uint8), split, params, "x")
    assert result["miou"] == 1 and result["per_image"][2]["miou"] is None
    said = capsys.readouterr().out
    assert "2 of 3 classes are in no mask of split 'train', and count only where they are predicted: car, sky" in said
    assert "1 of 4 masks of split 'train' are void throughout and count for nothing: i2" in said
