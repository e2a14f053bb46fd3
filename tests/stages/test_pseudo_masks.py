from __future__ import annotations

import importlib.util
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import trees
from commands import carb

from carblib.base.errors import CarbError
from carblib.base.files import digest_of
from carblib.base.stamps import NAME, read_stamp
from carblib.classes import CAMVID
from carblib.data.labels import labels_path, write_labels
from carblib.data.mask_folders import read_mask, write_mask
from carblib.data.readers import open_split
from carblib.masker import build_masker
from carblib.stages.crf import refine
from carblib.stages.pseudo_masks import export_masks, middle_scale, tiled_local_masks
from carblib.transforms import load_sized


@pytest.fixture
def run(tmp_path, monkeypatch, random_clip_file):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    trees.write_segnet(tmp_path / "camvid")
    size = {"image_size": (32, 64), "crop": (32, 64), "patch": (16, 24)}
    return trees.params(tmp_path / "camvid", "camvid", run="r", clip=str(random_clip_file), device="cpu", **size)


def test_masks_are_the_masker_s_gated_by_the_labels_of_their_image(run, tmp_path):
    split, masker = open_split(run, "train"), build_masker(run)
    labels = np.array([[c in (i, i + 3, 10 - i) for c in range(11)] for i in range(len(split))])
    write_labels(labels_path(run, "train"), dict(zip(split.names, labels, strict=True)), split.class_set)
    folder = export_masks(run, "train")
    assert folder == tmp_path / "home/runs/r/pseudo_masks/train"
    for i, name in enumerate(split.names):
        found = read_mask(folder, name, CAMVID)
        image = load_sized(split.image(i), (32, 64))[None]
        assert np.array_equal(found, masker(image, torch.from_numpy(labels[i])[None])[0].numpy())
    assert sorted(path.stem for path in folder.glob("*.png")) == split.names


def test_labels_gate_the_masks(run, capsys):
    rows = ["name,sky,building,pole,road,sidewalk,tree,signsymbol,fence,car,pedestrian,bicyclist"]
    rows += [f"{name},0,0,1,0,0,0,0,0,1,0,0" for name in trees.CAMVID_NAMES["val"]]
    path = labels_path(run, "val")
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(rows) + "\n")
    folder = export_masks(run, "val")
    assert {int(v) for name in trees.CAMVID_NAMES["val"] for v in np.unique(read_mask(folder, name, CAMVID))} <= {2, 8}
    first, second = (folder / f"{name}.png" for name in trees.CAMVID_NAMES["val"])
    os.utime(second, (1, 1))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("0,0,1", "1,1,0", 1), lines[2]]) + "\n")
    capsys.readouterr()
    export_masks(run, "val")
    assert "val: 1 image changed; what came of just those is made anew" in capsys.readouterr().out
    assert {int(v) for v in np.unique(read_mask(folder, first.stem, CAMVID))} <= {
        0,
        1,
        8,
    } and second.stat().st_mtime == 1
    free = export_masks(run.updated(run="free", gate="none"), "val")
    assert len({int(v) for name in trees.CAMVID_NAMES["val"] for v in np.unique(read_mask(free, name, CAMVID))}) > 1


def test_an_export_goes_on_where_it_was_in_one_process_or_two(run, quick_processes):
    folder = export_masks(run, "train")
    paths = sorted(folder.glob("*.png"))
    before = {path: path.read_bytes() for path in paths}
    for path in paths[1:4]:
        path.unlink()
    os.utime(paths[0], (1, 1))
    export_masks(run, "train", processes=2)
    assert {path: path.read_bytes() for path in folder.glob("*.png")} == before
    assert paths[0].stat().st_mtime == 1 and not list(folder.glob(".*.tmp"))
    with pytest.raises(CarbError, match='masker "value_path" → "naclip"; to make them anew: carb masks .* --renew;'):
        export_masks(run.updated(masker="naclip"), "train")


def test_the_folder_remembers_the_weights_and_the_words(run, random_clip_file):
    stamp = read_stamp(export_masks(run, "val") / NAME)
    assert stamp.upstream == {"CLIP weights": digest_of(random_clip_file.read_bytes())}
    assert stamp.settings["image_size"] == [32, 64] and [*stamp.items] == trees.CAMVID_NAMES["val"]
    assert stamp.settings["classes"][2] == ["pole", ["pole"]], "the only word that CLIP was asked for"
    asked = read_stamp(export_masks(run.updated(run="s", synonyms=True), "val") / NAME)
    assert asked.settings["classes"][2] == ["pole", ["pole", "lamp post", "column"]]


def test_tiles_are_what_clip_sees_zoomed(run):
    masker, labels = build_masker(run), torch.ones(11, dtype=torch.bool)
    image = load_sized(trees.draw(0, [*range(256)], (37, 50)).astype(np.uint8)[..., None].repeat(3, 2), (37, 50))
    found = tiled_local_masks(masker, image, labels, (16, 24), 2.0)
    expected = torch.zeros(37, 50, dtype=torch.uint8)
    for top in (0, 16, 21):  # the last row and column reach back, and count
        for left in (0, 24, 26):
            tile = image[None, :, top : top + 16, left : left + 24].float()
            tile = F.interpolate(tile, (32, 48), mode="bilinear", align_corners=False).round().byte()
            expected[top : top + 16, left : left + 24] = masker(tile, labels[None], (16, 24))[0]
    assert torch.equal(found, expected)
    assert not torch.equal(found, masker(image[None], labels[None])[0])
    whole = tiled_local_masks(masker, image, labels, (37, 50), 1.0)
    assert torch.equal(whole, masker(image[None], labels[None])[0])
    with pytest.raises(CarbError, match="patch: .* does not fit"):
        tiled_local_masks(masker, image, labels, (38, 50), 1.0)


def test_local_masks_have_a_folder_of_their_own(run, tmp_path):
    folder = export_masks(run, "val", local=True)
    assert folder == tmp_path / "home/runs/r/pseudo_masks_local/val"
    split, masker = open_split(run, "val"), build_masker(run)
    labels = torch.from_numpy(np.bincount(split.mask(0).ravel(), minlength=256)[:11] > 0)
    expected = tiled_local_masks(masker, load_sized(split.image(0), (32, 64)), labels, (16, 24), 1.5)
    assert middle_scale(run) == 1.5 and np.array_equal(read_mask(folder, split.names[0], CAMVID), expected.numpy())


@pytest.mark.skipif(importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed (extra 'crf')")
def test_the_command_refines_into_another_folder(run, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(run.to_yaml())
    assert carb("masks", file, "--split", "val", "--crf") == 0
    folder, how = capsys.readouterr().out.splitlines()[-2:]
    assert folder == str(tmp_path / "home/runs/r/pseudo_masks_crf/val")
    assert how.endswith(f"carb train {file} -p crf true"), "what a training needs to read them"
    for name in trees.CAMVID_NAMES["val"]:
        raw, refined = (read_mask(tmp_path / f"home/runs/r/{kind}/val", name, CAMVID) for kind in FOLDERS)
        assert set(np.unique(refined)) <= set(np.unique(raw))
    with pytest.raises(CarbError, match="give one of the two"):
        carb("masks", file, "--crf", "--local")


FOLDERS = ("pseudo_masks", "pseudo_masks_crf")


def test_masks_of_others_are_never_written_only_refined(run, tmp_path):
    given = run.updated(pseudo_masks=str(tmp_path / "mine"), path="single")
    split, folder = open_split(run, "train"), tmp_path / "mine"
    for seed, name in enumerate(split.names):
        write_mask(folder, name, np.random.default_rng(seed).choice(np.uint8([1, 4, 8]), (24, 40)), split.class_set)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert export_masks(given, "train") == folder
    assert export_masks(given, "val") == tmp_path / "home/runs/r/pseudo_masks/val"
    if importlib.util.find_spec("pydensecrf"):
        refined = export_masks(given.updated(crf=True), "train")
        assert refined == tmp_path / "home/runs/r/pseudo_masks_crf/train"
        mask = read_mask(folder, split.names[1], CAMVID)
        image = load_sized(split.image(1), (24, 40)).permute(1, 2, 0).numpy()
        assert np.array_equal(read_mask(refined, split.names[1], CAMVID), refine(image, mask, 11))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_masks_of_another_dataset_are_not_handed_out(run, tmp_path, capsys):
    folder = export_masks(run, "val")
    trees.write_segnet(tmp_path / "other")  # the same pictures elsewhere
    for path in folder.glob("*.png"):
        os.utime(path, (1, 1))
    capsys.readouterr()
    export_masks(run.updated(root=str(tmp_path / "other")), "val")
    assert {path.stat().st_mtime for path in folder.glob("*.png")} == {1} and not capsys.readouterr().out
    for seed, name in enumerate(trees.CAMVID_NAMES["val"], 50):
        trees.photo(tmp_path / "other" / "val" / f"{name}.png", seed)
    export_masks(run.updated(root=str(tmp_path / "other")), "val")
    assert {path.stat().st_mtime for path in folder.glob("*.png")} != {1}
    assert "2 images changed; what came of just those is made anew" in capsys.readouterr().out
