"""Folders of one's own: capitals, other kinds of pictures, subfolders; nothing is left out without a word."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trees
from PIL import Image

from carblib.base.errors import CarbError
from carblib.classes import class_set
from carblib.data.readers import open_pictures, open_split

WORDS = [{"name": word} for word in ("sky", "road", "tram")]


def params(root, **others):
    return trees.params(root, "folder", WORDS, **others)


def test_endings_in_capitals(tmp_path):
    truth = trees.write_folder(tmp_path / "train", ["a.PNG", "b.JPG", "c.Jpeg"], tmp_path / "trainannot")
    for path in list((tmp_path / "trainannot").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    split = open_split(params(tmp_path), "train")
    assert split.names == ["a", "b", "c"]
    for i, name in enumerate(split.names):
        np.testing.assert_array_equal(split.mask(i), truth[name])
    trees.save(tmp_path / "trainannot" / "b.png", truth["b"])
    with pytest.raises(CarbError, match="b.png: shares its name with b.PNG"):
        open_split(params(tmp_path), "train")


@pytest.mark.parametrize("ending", ["webp", "tif", "TIFF", "bmp"])
def test_further_kinds_of_pictures_are_read(tmp_path, ending):
    trees.photo(tmp_path / "train" / "a.png", 0, (20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    turned = {} if ending == "bmp" else {"exif": exif}
    Image.fromarray(np.full((20, 30, 3), 7, np.uint8)).save(tmp_path / "train" / f"b.{ending}", **turned)
    size = (20, 30) if ending == "bmp" else (30, 20)
    trees.save(tmp_path / "trainannot" / "b.png", np.zeros(size, np.uint8))
    split = open_split(params(tmp_path), "train")
    assert split.names == ["a", "b"]
    assert split.image(1).shape == (*size, 3) and abs(int(split.image(1).mean()) - 7) <= 1
    assert split.mask(1).shape == size


@pytest.mark.parametrize("open_it", [lambda root: open_split(params(root), "train"), None], ids=["split", "pictures"])
def test_pictures_that_cannot_be_read_are_counted(tmp_path, open_it):
    trees.write_folder(tmp_path / "train", ["a.png", "b.png"])
    (tmp_path / "train" / "c.HEIC").write_bytes(b"x")
    (tmp_path / "train" / "notes.txt").write_text("no picture")
    with pytest.raises(CarbError, match=r"c\.HEIC: .*cannot be read \(1 of 3 in .*convert them to PNG"):
        open_it(tmp_path) if open_it else open_pictures(tmp_path / "train", class_set(["road", "car"]))


@pytest.mark.parametrize("masks", ["trainannot", "masks/train", "masks"])
def test_pictures_in_subfolders(tmp_path, masks):
    truth = {}
    for seed, name in enumerate(("x", "front/x", "front/deep/x", "back/y")):
        trees.photo(tmp_path / "train" / f"{name}.jpg", seed)
        truth[name.replace("/", "_")] = trees.draw(seed, [0, 1, 2, 255]).astype(np.uint8)
        trees.save(tmp_path / masks / f"{name}.png", truth[name.replace("/", "_")])
    (tmp_path / "train" / "front" / "up").symlink_to(tmp_path / "train", target_is_directory=True)
    (tmp_path / "train" / ".thumbs").mkdir()
    trees.photo(tmp_path / "train" / ".thumbs" / "t.png", 0)
    split = open_split(params(tmp_path), "train")
    assert split.names == ["back_y", "front_deep_x", "front_x", "x"]
    for i, name in enumerate(split.names):
        np.testing.assert_array_equal(split.mask(i), truth[name])
    trees.photo(tmp_path / "train" / "front_x.png", 9)
    with pytest.raises(CarbError, match=r"front_x\.png: shares its name with front/x\.jpg"):
        open_split(params(tmp_path), "train")


def test_subfolders_beside_pictures_right_in_the_root(tmp_path):
    trees.write_folder(tmp_path, ["a.jpg", "b.jpg"], tmp_path / "masks")
    trees.write_folder(tmp_path / "val", ["c.jpg"])  # the way to hold out images
    trees.write_folder(tmp_path / "test", ["d.jpg"])
    (tmp_path / "notes").mkdir()
    assert open_split(params(tmp_path), "train").names == ["a", "b"]
    assert open_split(params(tmp_path), "val").names == ["c"]
    trees.write_folder(tmp_path / "front", ["a.jpg", "b.jpg"])
    with pytest.raises(CarbError, match=rf"2 pictures in subfolders, such as front/a.jpg, .* into {tmp_path}/train"):
        open_split(params(tmp_path), "train")


def test_masks_that_are_no_images_are_told(tmp_path):
    trees.write_folder(tmp_path / "train", ["a.png", "b.png"])
    trees.write_folder(tmp_path / "masks" / "val", ["c.png"])
    split = open_split(params(tmp_path), "train")
    assert not split.has_masks
    with pytest.raises(CarbError, match=r"a\.png: has no mask; .*masks: one file, val/c\.png, of no image in "):
        split.mask(0)
    trees.write_folder(tmp_path / "trainannot", ["a_mask.png", "b_mask.tif"])
    (tmp_path / "masks").rename(tmp_path / "elsewhere")
    with pytest.raises(CarbError, match=r"trainannot: 2 files, such as a_mask\.png, .*name them <image>\.png"):
        open_split(params(tmp_path), "train")
    trees.save(tmp_path / "trainannot" / "b.png", np.zeros(trees.SIZE, np.uint8))  # masks of some images are welcome
    assert open_split(params(tmp_path), "train").mask(1).shape == trees.SIZE


def test_any_folder_of_pictures(tmp_path):
    trees.write_folder(tmp_path / "drive", ["b.jpg", "c.png", "front_z.png", "front/a.png"], tmp_path / "drive/masks")
    split = open_pictures(tmp_path / "drive", class_set(["road", "car"]))
    assert (split.name, split.names, split.has_masks) == ("drive", ["b", "c", "front_a", "front_z"], False)
    assert split.image(2).shape == (*trees.SIZE, 3) and split.image_paths[2] == tmp_path / "drive/front/a.png"
    with pytest.raises(CarbError, match="has no mask"):
        split.mask(0)


def test_what_is_no_folder_of_pictures(tmp_path):
    trees.write_folder(tmp_path / "only/masks", ["a.png"])
    (tmp_path / "empty").mkdir()
    for where, said in (
        ("nowhere", "no such folder; check --images"),
        ("only/masks/a.png", "is a file; name the folder that holds the pictures"),
        ("empty", "no image (.png, "),
        ("only", "no pictures in it but masks/; check --images"),
    ):
        with pytest.raises(CarbError, match=re.escape(f"{tmp_path / where}: {said}")) as error:
            open_pictures(tmp_path / where, class_set(["road", "car"]))
        assert "root" not in str(error.value).removeprefix(str(tmp_path / where))
