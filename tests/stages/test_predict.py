from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trees
from commands import carb
from PIL import Image
from torch import nn

from carblib.base import files
from carblib.base.errors import CarbError
from carblib.base.progress import note
from carblib.base.stamps import Stamp, write_stamp
from carblib.classes import CAMVID, CITYSCAPES
from carblib.data.mask_folders import read_mask, write_mask
from carblib.data.readers import open_split
from carblib.infer import predict_mask
from carblib.network import build_network
from carblib.stages import predict
from carblib.stages.predict import overlay, predict_split, write_submission
from carblib.training.state import load_trained

SMALL = {"image_size": (16, 24), "crop": (16, 24), "patch": (8, 8), "device": "cpu"}


class Fake(nn.Module):
    """Logits of 11 classes, pixel by pixel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(3, 11, 1)

    def forward(self, images):
        return self.head(images.float() / 255 - 0.5)


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    trees.write_segnet(tmp_path / "camvid")
    params = trees.params(tmp_path / "camvid", "camvid", run="r", **SMALL)
    return params, open_split(params, "test")


@pytest.fixture
def checkpoint(tmp_path):
    network = {"backbone": "mobilenet_v2", "backbone_weights": "random"}
    params = trees.params("data", "camvid", **SMALL, **network)
    torch.manual_seed(0)
    state = build_network(params, torch.randn(11, 8)).state_dict()
    path = tmp_path / "home/runs/r/train/paper/final.pt"
    files.save_torch(path, {"params": params.model_dump(mode="json"), "iteration": 3, "network": state})
    return path


def test_a_folder_of_predictions(camvid, tmp_path):
    params, split = camvid
    folder = predict_split(Fake().eval(), split, params, tmp_path / "out", "x")
    for i, name in enumerate(split.names):
        mask = predict_mask(Fake().eval(), split.image(i), params)
        assert np.array_equal(read_mask(folder, name, CAMVID), mask) and mask.shape == trees.SIZE
        with Image.open(folder / f"{name}.png") as index, Image.open(folder / "colour" / f"{name}.png") as colour:
            assert np.array_equal(np.array(index.convert("RGB")), np.array(colour))
        with Image.open(folder / "overlay" / f"{name}.jpg") as picture:
            shown = np.asarray(picture, int)
        assert np.abs(shown - overlay(split.image(i), mask, CAMVID)).mean() < 8, "a JPEG, of noise"


def test_predictions_are_resumed_and_kinds_are_not_mixed(camvid, tmp_path, capsys):
    params, split = camvid
    note.cache_clear()
    folder = predict_split(Fake(), split, params, tmp_path / "out", "x", pictures=False)
    assert "note: 3 of 3 images, 18×32 and such" in capsys.readouterr().out, "how image_size stretches them"
    shown = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert shown == sorted([*(f"{n}.png" for n in split.names), "stamp.json"])
    first, second = (folder / f"{name}.png" for name in split.names[:2])
    os.utime(first, (1, 1))
    second.unlink()
    predict_split(Fake(), split, params, folder, "x", pictures=False)
    assert second.is_file() and first.stat().st_mtime == 1 and not capsys.readouterr().out
    flipped = params.updated(infer_flip=True)
    for weights, changed, said in (("y", params, "other network"), ("y", flipped, "infer_flip false → true")):
        os.utime(first, (1, 1))
        predict_split(Fake(), split, changed, folder, weights, pictures=False)
        assert first.stat().st_mtime > 1 and f"{said}; all is made anew" in capsys.readouterr().out
        assert np.array_equal(read_mask(folder, split.names[0], CAMVID), predict_mask(Fake(), split.image(0), changed))


def test_pictures_that_were_not_asked_for_before_are_made(camvid, tmp_path):
    params, split = camvid
    predict_split(Fake(), split, params, tmp_path / "out", "x", pictures=False)
    predict_split(Fake(), split, params, tmp_path / "out", "x")
    for kind in ("colour", "overlay"):
        assert [path.stem for path in sorted((tmp_path / "out" / kind).iterdir())] == split.names


@pytest.mark.parametrize("mine", ["mine.png", "overlay/mine.jpg"])
def test_masks_of_anyone_else_are_not_written_over(mine, camvid, tmp_path):
    params, split = camvid
    trees.save(tmp_path / "out" / mine, np.zeros((2, 2), np.uint8))
    with pytest.raises(CarbError, match=r"out: holds masks, or pictures of them, but no stamp.json says what of"):
        predict_split(Fake(), split, params, tmp_path / "out", "x")
    assert [path.name for path in (tmp_path / "out").rglob("*.*g")] == [mine.split("/")[-1]]


def test_overlay():
    mask = np.uint8([[0, 10, 255]])
    image = np.uint8([[[10, 20, 30], [10, 20, 30], [10, 20, 30]]])
    assert overlay(image, mask, CAMVID, 0.25).tolist() == [[[40, 47, 54], [8, 47, 70], [10, 20, 30]]]


def test_the_command_predicts_a_split_with_a_checkpoint(camvid, checkpoint, tmp_path, monkeypatch, capsys):
    params, split = camvid
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    assert carb("predict", file, "--checkpoint", checkpoint, "--index-only") == 0
    folder = tmp_path / "home/runs/r/predictions/paper/test"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    expected = predict_mask(load_trained(checkpoint)[0], split.image(1), params)
    assert np.array_equal(read_mask(folder, split.names[1], CAMVID), expected) and len(np.unique(expected)) > 1


def test_a_folder_of_dash_cam_pictures_without_masks(camvid, checkpoint, tmp_path, monkeypatch):
    for size, file in (((15, 31), "a.jpg"), ((40, 22), "b.png")):
        trees.photo(tmp_path / "drive" / file, 0, size)
    file = tmp_path / "run.yaml"
    file.write_text(camvid[0].to_yaml())
    arguments = ["predict", file, "--checkpoint", checkpoint, "--images", str(tmp_path / "drive")]
    assert carb(*arguments) == 0
    folder = tmp_path / "home/runs/r/predictions/paper/pictures/drive"
    assert read_mask(folder, "a", CAMVID).shape == (15, 31) and read_mask(folder, "b", CAMVID).shape == (40, 22)
    assert (folder / "overlay" / "a.jpg").is_file()
    with pytest.raises(CarbError, match="--submission: needs the classes of cityscapes"):
        carb(*arguments, "--submission")


@pytest.fixture
def predict_pictures(camvid, checkpoint, tmp_path, capsys):
    """`carb predict --images`; returns the folder it names last, and all that it said."""
    file = tmp_path / "run.yaml"
    file.write_text(camvid[0].to_yaml())
    capsys.readouterr()

    def call(where, *more):
        assert carb("predict", file, "--checkpoint", checkpoint, "--index-only", "--images", where, *more) == 0
        said = capsys.readouterr().out
        return Path(said.split()[-1]), said

    return call


def test_pictures_of_one_folder_are_followed(predict_pictures, tmp_path):
    drive = tmp_path / "a/drive"
    for seed, name in enumerate("xy"):
        trees.photo(drive / f"{name}.png", seed, (20, 20))
    folder, said = predict_pictures(drive)
    assert "anew" not in said and "anew" not in predict_pictures(drive)[1]
    first = read_mask(folder, "x", CAMVID)
    trees.photo(drive / "x.png", 5, (20, 20))
    again, said = predict_pictures(drive)
    assert again == folder and "1 image changed; what came of just those is made anew" in said
    assert not np.array_equal(read_mask(folder, "x", CAMVID), first)
    (drive / "y.png").unlink()
    trees.photo(drive / "z.png", 6, (20, 20))
    assert "1 image added, 1 image removed; " in predict_pictures(drive)[1]
    drive.rename(tmp_path / "drive")  # the same pictures, and one more: nothing is lost
    trees.photo(tmp_path / "drive/y.png", 7, (20, 20))
    again, said = predict_pictures(tmp_path / "drive")
    assert again == folder and "drive: 1 image added; " in said
    (tmp_path / "drive/y.png").unlink()
    assert "drive: 1 image removed; " in predict_pictures(tmp_path / "drive")[1]


@pytest.mark.parametrize("names", ["y", "x", ""], ids=["other names", "the same name", "some of them"])
def test_predictions_of_another_folder_of_that_name_are_kept(names, predict_pictures, tmp_path):
    for name in "wx":
        trees.photo(tmp_path / f"a/drive/{name}.png", 0, (20, 20))
    trees.photo(tmp_path / f"b/drive/{names or 'x'}.png", 1 if names else 0, (20, 20))
    folder, _ = predict_pictures(tmp_path / "a/drive")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused = rf"pictures/drive: holds predictions of {tmp_path}/a/drive, not of {tmp_path}/b/drive; .*--out"
    for _ in range(2):
        with pytest.raises(CarbError, match=refused):
            predict_pictures(tmp_path / "b/drive")
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert predict_pictures(tmp_path / "b/drive", "--out", tmp_path / "out")[0] == tmp_path / "out"
    if names:  # else nothing would be lost
        with pytest.raises(CarbError, match=rf"out: holds predictions of {tmp_path}/b/drive"):
            predict_pictures(tmp_path / "a/drive", "--out", tmp_path / "out")


def test_the_pictures_of_the_root_never_take_the_place_of_a_split(predict_pictures, camvid, tmp_path):
    (tmp_path / "camvid").rename(tmp_path / "test")
    for name in ("trainannot", "valannot", "testannot"):
        shutil.rmtree(tmp_path / "test" / name)
    (tmp_path / "run.yaml").write_text(camvid[0].updated(root=str(tmp_path / "test")).to_yaml())
    folder, _ = predict_pictures(tmp_path / "test")
    assert folder == camvid[0].run_dir / "predictions/paper/pictures/test"
    assert [path.name for path in folder.parent.parent.iterdir()] == ["pictures"]


def test_pictures_are_never_taken_for_the_images_of_the_run(camvid, checkpoint, tmp_path, capsys):
    params, _ = camvid
    file = tmp_path / "run.yaml"
    file.write_text(params.to_yaml())
    write_stamp(checkpoint.with_name("stamp.json"), Stamp("training", 1, {}))
    assert carb("predict", file, "--checkpoint", checkpoint) == 0
    assert "was trained on other things: " in capsys.readouterr().out
    of_split, labels = params.run_dir / "predictions/paper/test", params.run_dir / "labels/train.csv"
    before, made = labels.read_text(), sorted(of_split.iterdir())
    trees.write_folder(tmp_path / "drive/test", ["a.png"], tmp_path / "drive/test/masks")
    assert carb("predict", file, "--checkpoint", checkpoint, "--images", tmp_path / "drive/test") == 0
    said = capsys.readouterr().out
    assert "other things" not in said and said.endswith("predictions/paper/pictures/test\n")
    assert labels.read_text() == before and sorted(of_split.iterdir()) == made


def test_a_checkpoint_that_is_written_while_it_is_read_is_refused(camvid, checkpoint, monkeypatch):
    params, split = camvid

    def load(path):
        found = load_trained(path)
        files.write_bytes(path, path.read_bytes() + b"\0")
        return found

    monkeypatch.setattr(predict, "load_trained", load)
    with pytest.raises(CarbError, match=r"final.pt: was written while it was read"):
        predict.predict_checkpoint(checkpoint, split, params)
    assert not (params.run_dir / "predictions").exists()


def test_an_overlay_longer_than_a_jpeg_is_thinned(camvid, tmp_path):
    trees.photo(tmp_path / "wide/a.png", 0, (2, predict.MAX_SIDE + 1))
    split = predict.open_images(tmp_path / "wide", camvid[0], None)
    folder = predict_split(Fake(), split, camvid[0], tmp_path / "out", "x")
    assert read_mask(folder, "a", CAMVID).shape == (2, predict.MAX_SIDE + 1)
    with Image.open(folder / "overlay/a.jpg") as picture:
        assert picture.size == (predict.MAX_SIDE // 2 + 1, 1)


@pytest.mark.parametrize(("where", "named"), [(".", "drive"), ("..", "drive"), ("../drive", "drive")])
def test_pictures_beside_masks_in_subfolders_and_by_any_name(where, named, camvid, checkpoint, tmp_path, monkeypatch):
    for name in ("a.JPG", "front/a.png", "masks/a.png", "front/night/b.png"):
        trees.photo(tmp_path / "drive" / name, 0, (12, 14))
    file = tmp_path / "run.yaml"
    file.write_text(camvid[0].to_yaml())
    arguments = ["predict", file, "--checkpoint", checkpoint, "--images", where]
    monkeypatch.chdir(tmp_path / "drive" / ("front" if where == ".." else ""))
    assert carb(*arguments) == 0
    folder = tmp_path / "home/runs/r/predictions/paper/pictures" / named
    assert sorted(path.name for path in folder.glob("*.png")) == ["a.png", "front_a.png", "front_night_b.png"]
    assert (folder / "colour/front_a.png").is_file()
    with pytest.raises(CarbError, match="would land among its pictures"):
        carb(*arguments, "--out", str(tmp_path / "drive/out"))


def test_a_network_of_other_classes_is_refused(camvid, checkpoint, tmp_path, monkeypatch):
    trees.write_cityscapes(tmp_path / "city")
    file = tmp_path / "city.yaml"
    file.write_text(trees.params(tmp_path / "city", "cityscapes", "cityscapes", **SMALL).to_yaml())
    with pytest.raises(CarbError, match="final.pt: its network knows the classes of camvid, not of cityscapes"):
        carb("predict", file, "--checkpoint", checkpoint, "--split", "val")


def test_a_submission_is_in_label_ids_and_never_255(tmp_path):
    trees.write_cityscapes(tmp_path / "city")
    split = open_split(trees.params(tmp_path / "city", "cityscapes", "cityscapes"), "test")
    mask = np.append(np.arange(19), 255).astype(np.uint8).reshape(4, 5)
    for name in split.names:
        write_mask(tmp_path / "masks", name, mask, CITYSCAPES)
    folder = write_submission(tmp_path / "masks", split, tmp_path / "sub")
    assert sorted(path.name for path in folder.iterdir())[0] == "berlin_000000_000019_pred_labelIds.png"
    with Image.open(folder / "bonn_000000_000019_pred_labelIds.png") as picture:
        assert picture.mode == "L"
        assert np.array(picture).ravel().tolist() == [*trees.CITYSCAPES_IDS, 0]
