from __future__ import annotations

import contextlib
import copy
import pickle
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image
from places import CAMVID_ROOT

from carblib.base import files, images
from carblib.base.errors import CarbError
from carblib.base.parallel import in_order
from carblib.classes import CAMVID, CITYSCAPES, WILDDASH2, WILDDASH2_CITYSCAPES
from carblib.data import label_maps
from carblib.data.readers import open_split

WORDS = [{"name": word} for word in ("sky", "road", "tram")]
WILD = [f"{code}{number:04d}_100000" for code in ("ar", "us", "ro") for number in range(4)]


def write(form: str, root: Path):
    """Write a tree; return its parameters and truth."""
    if form == "wilddash2":
        truth = trees.write_wilddash2(root, WILD)
        val = {name: mask for name, mask in truth.items() if label_maps.wilddash_split(name) == "val"}
        train = {name: mask for name, mask in truth.items() if name not in val}
        return trees.params(root, "wilddash2", "wilddash2"), {"train": train, "val": val}
    if form == "folder":
        truth = {"train": trees.write_folder(root / "train", ["b.JPG", "a.png", "c.jpeg"], root / "trainannot")}
        return trees.params(root, "folder", WORDS), truth
    writer, dataset, classes = {
        "segnet": (trees.write_segnet, "camvid", "camvid"),
        "scenes": (trees.write_segnet, "scenes", "camvid"),
        "camvid_carb": (trees.write_camvid_carb, "camvid", "camvid"),
        "camvid_original": (trees.write_camvid_original, "camvid", "camvid"),
        "camvid_colour_folders": (trees.write_camvid_colour_folders, "camvid", "camvid"),
        "cityscapes": (trees.write_cityscapes, "cityscapes", "cityscapes"),
        "wilddash2_carb": (trees.write_wilddash2_carb, "wilddash2", "wilddash2"),
    }[form]
    return trees.params(root, dataset, classes), writer(root)


FORMS = ["segnet", "scenes", "camvid_carb", "camvid_original", "camvid_colour_folders", "cityscapes", "wilddash2"]
FORMS += ["wilddash2_carb", "folder"]


def mask_files(root: Path) -> list[Path]:
    """Everything that tells of truth: masks and, for WildDash2, panoptic.json."""
    endings = ("annot/", "mask/", "LabeledApproved_full/", "_labels/", "gtFine/", "panoptic")
    return [p for p in root.rglob("*") if p.is_file() and any(e in p.relative_to(root).as_posix() for e in endings)]


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_gives_the_same_sample(form, tmp_path):
    params, truth = write(form, tmp_path)
    for name, masks in truth.items():
        if form == "cityscapes" and name == "test":
            continue
        split = open_split(params, name)
        assert (split.name, split.class_set, split.has_masks) == (name, params.class_set, True)
        assert split.names == sorted(masks) and len(split) == len(masks)
        for i, key in enumerate(split.names):
            image, mask = split.image(i), split.mask(i)
            assert split.image_paths[i].is_file() and key in split.image_paths[i].name
            assert image.dtype == np.uint8 and image.shape == (*mask.shape, 3)
            assert mask.dtype == np.uint8 and mask.flags.writeable and mask.flags.c_contiguous
            np.testing.assert_array_equal(mask, masks[key])


@pytest.mark.parametrize("form", FORMS)
def test_masks_are_not_needed_nor_read_to_open(form, tmp_path):
    params, truth = write(form, tmp_path)
    names = open_split(params, "train").names
    for path in mask_files(tmp_path):
        path.write_bytes(b"nothing that can be read")
    assert open_split(params, "train").names == names
    with pytest.raises(CarbError, match=re.escape(str(tmp_path))):
        open_split(params, "train").mask(0)
    assert mask_files(tmp_path)
    for path in mask_files(tmp_path):
        path.unlink()
    for _ in range(2):  # first with the empty folders, then without
        split = open_split(params, "train")
        assert split.names == names and not split.has_masks
        assert split.image(0).shape[2] == 3
        with pytest.raises(CarbError, match=f"{re.escape(split.image_paths[0].name)}: has no mask; looked for"):
            split.mask(0)
        for folder in sorted((p for p in tmp_path.rglob("*") if p.is_dir() and not any(p.iterdir())), reverse=True):
            folder.rmdir()


@pytest.mark.parametrize("form", FORMS)
def test_one_absent_mask_is_an_error_when_it_is_asked_for(form, tmp_path):
    params, truth = write(form, tmp_path)
    split = open_split(params, "train")
    split.mask_paths[1].unlink()
    split = open_split(params, "train")
    assert split.has_masks
    split.mask(0)
    with pytest.raises(CarbError, match=re.escape(f"{split.image_paths[1]}: has no mask")):
        split.mask(1)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_files_are_one_line_errors_that_name_the_file(form, tmp_path):
    params, truth = write(form, tmp_path)
    split = open_split(params, "train")
    path, whole = split.mask_paths[0], split.mask_paths[0].read_bytes()

    def refused(expected):
        for opened in (split, open_split(params, "train")):
            with pytest.raises(CarbError, match=expected) as caught:
                opened.mask(0)
            assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)

    path.write_bytes(whole[: len(whole) // 2])
    refused("truncated")

    stored = images.open_mask_png(trees.save(path, np.array(Image.open(_restored(path, whole))))).values
    stored[3, 4] = 77 if stored.ndim == 2 else (1, 2, 3)
    trees.save(path, stored)
    refused("value 77 is no class" if stored.ndim == 2 else "colour 1 2 3 .*is unknown")

    _restored(path, whole)
    trees.save(path, np.array(Image.open(path))[:-1])
    refused(r"mask of \d+×\d+ \(H×W\) for an image of \d+×\d+")

    _restored(path, whole)
    np.testing.assert_array_equal(split.mask(0), truth["train"][split.names[0]])
    image = split.image_paths[0]
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(CarbError, match=re.escape(str(image))):
        split.image(0)


def _restored(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_splits_can_be_sent_to_workers(form, tmp_path):
    params, _ = write(form, tmp_path)
    split = open_split(params, "train")
    sent = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(sent.mask(1), split.mask(1))


# --- CamVid --------------------------------------------------------------------------------------------------------


def test_camvid_colours_are_the_published_32():
    assert len(label_maps.camvid_colours()) == 32
    fold = {
        "building": "Building Bridge Wall Tunnel Archway",
        "pole": "Column_Pole TrafficCone",
        "road": "Road LaneMkgsDriv LaneMkgsNonDriv",
        "sidewalk": "Sidewalk ParkingBlock RoadShoulder",
        "tree": "Tree VegetationMisc",
        "signsymbol": "SignSymbol Misc_Text TrafficLight",
        "car": "Car SUVPickupTruck Truck_Bus Train OtherMoving",
        "pedestrian": "Pedestrian Child CartLuggagePram Animal",
        "bicyclist": "Bicyclist MotorcycleScooter",
        "sky": "Sky",
        "fence": "Fence",
    }
    target = {old: CAMVID.index(new) for new, olds in fold.items() for old in olds.split()} | {"Void": 255}
    for line in trees.LABEL_COLORS.splitlines():
        red, green, blue, name = line.split()
        assert label_maps.camvid_colours()[int(red) + 256 * int(green) + 65536 * int(blue)] == target[name]


def test_camvid_standard_split_of_the_701_frames():
    # Frames of the four sequences that are labelled: every 30th, and every 2nd in the 15 Hz stretch of 0016E5.
    names = [f"0001TP_{f:06d}" for f in range(6690, 10381, 30)] + [f"0006R0_f{f:05d}" for f in range(930, 3931, 30)]
    names += [f"Seq05VD_f{f:05d}" for f in range(0, 5101, 30)] + [f"0016E5_{f:05d}" for f in range(7959, 8160, 2)]
    kinds = [label_maps.camvid_split(name) for name in names]
    assert (kinds.count("train"), kinds.count("val"), kinds.count("test")) == (62 + 101, 101, 233)
    assert label_maps.camvid_split("0001TP_006690_L") is None


def test_camvid_original_by_list_files(tmp_path):
    truth = trees.write_camvid_original(tmp_path)
    params = trees.params(tmp_path, "camvid")
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/Seq05VD_f00000.png /SegNet/CamVid/trainannot/x.png;\n\n")
    split = open_split(params, "train")
    assert split.names == ["Seq05VD_f00000"]
    np.testing.assert_array_equal(split.mask(0), truth["test"]["Seq05VD_f00000"])
    with pytest.raises(CarbError, match=r"val.txt: no such list beside train.txt"):
        open_split(params, "val")
    (tmp_path / "val.txt").write_text("Seq05VD_f00000\nnowhere.png\n")
    with pytest.raises(CarbError, match=r"val.txt: lists nowhere.png, which is not among"):
        open_split(params, "val")


def test_camvid_original_has_no_other_split(tmp_path):
    trees.write_camvid_original(tmp_path)
    with pytest.raises(CarbError, match="no image belongs to split 'minival'"):
        open_split(trees.params(tmp_path, "camvid"), "minival")


@pytest.mark.parametrize("void", [11, 255])
def test_camvid_carb_masks_may_hold_either_void(tmp_path, void):
    truth = trees.write_camvid_carb(tmp_path, void)
    split = open_split(trees.params(tmp_path, "camvid"), "val")
    np.testing.assert_array_equal(split.mask(0), truth["val"][split.names[0]])


def camvid_root() -> Path:
    if not (CAMVID_ROOT / "trainannot").is_dir():
        pytest.skip(f"no CamVid in {CAMVID_ROOT}: set CARB_CAMVID_ROOT to run on the real files")
    return CAMVID_ROOT


def test_real_camvid_has_its_published_pixel_shares():
    split = open_split(trees.params(camvid_root(), "camvid"), "train")
    assert len(split) == 367 and len(open_split(trees.params(camvid_root(), "camvid"), "val")) == 101
    counts, present = np.zeros(256), 0
    for i in range(len(split)):
        found = np.bincount(split.mask(i).ravel(), minlength=256)
        counts += found
        present += (found[:11] > 0).sum()
    assert split.image(0).shape == (360, 480, 3)
    shares = 100 * counts / counts.sum()
    expected = [16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3]
    np.testing.assert_allclose(shares[[*range(11), 255]], [*expected, 4.0], atol=0.06)
    assert shares[11:255].sum() == 0
    assert present / len(split) == pytest.approx(9.6, abs=0.05)


def test_real_camvid_lists_follow_the_standard_split():
    for name in ("train", "val"):
        split = open_split(trees.params(camvid_root(), "camvid"), name)
        assert {label_maps.camvid_split(key) for key in split.names} == {name}


def test_real_camvid_images_with_words_of_ones_own(tmp_path):
    (tmp_path / "train").symlink_to(camvid_root().resolve() / "val", target_is_directory=True)
    words = [{"name": word} for word in ("sky", "asphalt", "house", "parked car", "leaves")]
    split = open_split(trees.params(tmp_path, "folder", words), "train")
    assert len(split) == 101 and not split.has_masks and split.class_set.names[3] == "parked car"
    assert split.image(7).shape == (360, 480, 3)


# --- Cityscapes ----------------------------------------------------------------------------------------------------


def test_cityscapes_takes_label_train_ids_where_present(tmp_path):
    truth = trees.write_cityscapes(tmp_path)["val"]
    split = open_split(trees.params(tmp_path, "cityscapes", "cityscapes"), "val")
    assert [path.name.split("_")[-1] for path in split.mask_paths] == ["labelIds.png"] * 3
    own = np.roll(truth[split.names[1]], 5)
    path = Path(str(split.mask_paths[1]).replace("labelIds", "labelTrainIds"))
    trees.save(path, own)
    split = open_split(trees.params(tmp_path, "cityscapes", "cityscapes"), "val")
    np.testing.assert_array_equal(split.mask(1), own)
    np.testing.assert_array_equal(split.mask(0), truth[split.names[0]])
    trees.save(path, np.full_like(own, 19))
    with pytest.raises(CarbError, match="value 19 is no class"):
        split.mask(1)


def test_cityscapes_test_has_no_truth(tmp_path):
    trees.write_cityscapes(tmp_path)
    params = trees.params(tmp_path, "cityscapes", "cityscapes")
    split = open_split(params, "test")
    assert split.names == ["berlin_000000_000019", "bonn_000000_000019"] and not split.has_masks
    with pytest.raises(CarbError, match="keeps the truth of test to itself"):
        split.mask(0)


def test_cityscapes_without_cities(tmp_path):
    (tmp_path / "leftImg8bit" / "train").mkdir(parents=True)
    with pytest.raises(CarbError, match="unzip leftImg8bit_trainvaltest.zip again"):
        open_split(trees.params(tmp_path, "cityscapes", "cityscapes"), "train")


# --- WildDash2 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "view"), [("wilddash2", trees.WILDDASH_25), ("wilddash2_cityscapes", trees.WILDDASH_19)]
)
def test_wilddash2_views(tmp_path, classes, view):
    truth = trees.write_wilddash2(tmp_path, WILD, view)
    params = trees.params(tmp_path, "wilddash2", classes)
    train, val = open_split(params, "train"), open_split(params, "val")
    assert sorted(train.names + val.names) == sorted(truth) and len(val) > 0
    for split in (train, val):
        for i, name in enumerate(split.names):
            np.testing.assert_array_equal(split.mask(i), truth[name])
    with pytest.raises(CarbError, match="no image belongs to split 'test'"):
        open_split(params, "test")


def test_wilddash2_fold_ins_are_those_of_the_policy():
    folded = {
        "pole": "polegroup, traffic sign frame, utility pole",
        "rider": "motorcyclist, bicyclist, other rider",
        "road": "manhole, pothole, bike lane, crosswalk-plain, crosswalk zebra, tram track, service lane, catch basin, "
        "pedestrian area",
        "sidewalk": "curb, curb cut, bike lane sidewalk, manhole sidewalk",
        "terrain": "curb terrain",
        "wall": "other barrier",
        "motorcycle": "autorickshaw",
        "ego vehicle": "dashcam mount",
        "streetlight": "street-light",
        "roadmarking": "road-marking",
    }
    for name, others in folded.items():
        for category in (name, *others.split(", ")):
            assert label_maps.wilddash_class(category, WILDDASH2) == WILDDASH2.index(name), category
    assert {label_maps.wilddash_class(name, WILDDASH2) for name in WILDDASH2.names} == set(range(25))
    assert {label_maps.wilddash_class(name, WILDDASH2_CITYSCAPES) for name in CITYSCAPES.names} == set(range(19))
    changed = {"pickup": "truck", "van": "car", "roadmarking": "road", "on rails": "train", "curb": "sidewalk"}
    for category, name in changed.items():
        assert label_maps.wilddash_class(category, WILDDASH2_CITYSCAPES) == CITYSCAPES.index(name)
    for category in ("ego vehicle", "guard rail", "billboard", "streetlight", "pole group", "dashcam mount"):
        assert label_maps.wilddash_class(category, WILDDASH2_CITYSCAPES) == 255
    assert label_maps.wilddash_class("spaceship", WILDDASH2) is None


def test_wilddash2_split_keeps_videos_whole_and_never_changes():
    names = [f"{code}{video:04d}_{frame:06d}" for code in ("us", "de") for video in range(800) for frame in (0, 1)]
    kinds = [label_maps.wilddash_split(name) for name in names]
    assert kinds[::2] == kinds[1::2]
    assert kinds.count("val") / len(kinds) == pytest.approx(1 / 8, abs=0.02)
    kept = {"us0000_100000": "val", "us0005_100000": "train", "frame 7": "train"}
    assert {name: label_maps.wilddash_split(name) for name in kept} == kept


def test_wilddash2_by_list_files(tmp_path):
    trees.write_wilddash2(tmp_path, WILD)
    for split, names in (("train", WILD[3:5]), ("val", WILD[8:11])):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{name}.jpg" for name in names))
    assert open_split(trees.params(tmp_path, "wilddash2", "wilddash2"), "val").names == sorted(WILD[8:11])


def test_wilddash2_json_errors_name_the_file(tmp_path):
    trees.write_wilddash2(tmp_path, WILD[:8])
    params, path = trees.params(tmp_path, "wilddash2", "wilddash2"), tmp_path / "panoptic.json"
    good = files.read_json(path)

    def refused(change, expected):
        content = copy.deepcopy(good)
        change(content)
        files.write_json(path, content)
        with pytest.raises(CarbError, match=expected) as caught:
            open_split(params, "train").mask(0)
        assert str(path) in str(caught.value)

    image = good["annotations"][0]["file_name"]
    refused(
        lambda c: c["categories"][7].update(name="rode"),
        rf"panoptic.json: {image} has a segment of the unknown category 'rode' \(did you mean 'road'\?\); .*rename it",
    )
    refused(lambda c: c.pop("annotations"), "no COCO panoptic file")
    refused(lambda c: c["annotations"][0]["segments_info"][0].update(category_id=999), "no COCO panoptic file")
    refused(lambda c: c["annotations"][0]["segments_info"][0].update(id=1 << 24), "does not fit in a colour")
    refused(lambda c: c["annotations"].clear(), "no annotation for .*must be of one package")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CarbError, match=r"panoptic.json: not readable as JSON .*; unzip it from the package again$"):
        open_split(params, "train").mask(0)
    path.unlink()
    split = open_split(params, "train")
    assert not split.has_masks
    with pytest.raises(CarbError, match=re.escape(f"looked for {path}")):
        split.mask(0)


def test_wilddash2_json_is_parsed_by_one_of_the_threads_that_read(tmp_path, monkeypatch):
    trees.write_wilddash2(tmp_path, WILD)
    split, both = open_split(trees.params(tmp_path, "wilddash2", "wilddash2"), "train"), threading.Barrier(2)
    parsed, parse = [], label_maps.panoptic_segments

    def parsing(*given):
        parsed.append(threading.get_ident())
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # a second one that parses would get here, too
        return parse(*given)

    monkeypatch.setattr(label_maps, "panoptic_segments", parsing)
    assert len([*in_order(split.mask, range(len(split)), 2)]) == len(split) and len(parsed) == 1


def test_a_wilddash2_category_that_no_segment_is_of_does_no_harm(tmp_path):
    truth, path = trees.write_wilddash2(tmp_path, WILD), tmp_path / "panoptic.json"
    content = files.read_json(path)
    content["categories"].append({"id": 999, "name": "spaceship"})
    files.write_json(path, content)
    split = open_split(trees.params(tmp_path, "wilddash2", "wilddash2"), "train")
    np.testing.assert_array_equal(split.mask(0), truth[split.names[0]])
    # What the message advises for one that is used makes it void.
    content["categories"][7]["name"] = "unlabeled"
    files.write_json(path, content)
    again = open_split(trees.params(tmp_path, "wilddash2", "wilddash2"), "train").mask(0)
    assert not np.array_equal(again, split.mask(0)) and (again[again != split.mask(0)] == 255).all()


def test_wilddash2_carb_masks_in_the_19_class_view(tmp_path):
    truth = trees.write_wilddash2_carb(tmp_path)["val"]
    split = open_split(trees.params(tmp_path, "wilddash2", "wilddash2_cityscapes"), "val")
    expected = {7: 5, 16: 14, 20: 14, 21: 13, 24: 0, 0: 255, 6: 255, 22: 255, 23: 255, 255: 255}
    mask, old = split.mask(0), truth[split.names[0]]
    for value, train_id in expected.items():
        assert (old == value).any() and (mask[old == value] == train_id).all()


# --- folder, and what does not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["trainannot", "masks/train", "masks"])
def test_folder_masks_in_any_of_three_places(tmp_path, masks):
    truth = trees.write_folder(tmp_path / "train", ["x.1.jpg", "y.png"], tmp_path / masks)
    (tmp_path / "train" / "._y.png").write_bytes(b"left by another system")
    (tmp_path / "train" / "notes.txt").write_text("no image")
    split = open_split(trees.params(tmp_path, "folder", WORDS), "train")
    assert split.names == ["x.1", "y"]
    for i, name in enumerate(split.names):
        np.testing.assert_array_equal(split.mask(i), truth[name])


def test_bare_folder_is_any_split_unless_it_has_truth(tmp_path):
    trees.write_folder(tmp_path, ["b.jpg", "a.jpg"])
    params = trees.params(tmp_path, "folder", WORDS)
    for name in ("train", "test"):
        split = open_split(params, name)
        assert split.names == ["a", "b"] and not split.has_masks
    trees.write_folder(tmp_path, ["b.jpg", "a.jpg"], tmp_path / "masks")
    assert open_split(params, "train").has_masks
    with pytest.raises(CarbError, match="the very images that 'train' trains on"):
        open_split(params, "test")


def test_photos_taken_upright_have_upright_masks(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    (tmp_path / "train").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "train" / "a.jpg", exif=exif)
    trees.save(tmp_path / "masks" / "a.png", np.zeros((30, 20), np.uint8))
    split = open_split(trees.params(tmp_path, "folder", WORDS), "train")
    assert split.image(0).shape[:2] == split.mask(0).shape == (30, 20)


@pytest.mark.parametrize("value", [3, 254, 256, 65535])
def test_folder_masks_hold_classes_or_void(tmp_path, value):
    trees.write_folder(tmp_path / "train", ["a.png"], tmp_path / "masks")
    kind = np.uint8 if value < 256 else np.uint16
    trees.save(tmp_path / "masks" / "a.png", np.full(trees.SIZE, value, kind))
    with pytest.raises(CarbError, match=rf"masks/a.png: value {value} is no class \(0–2, 255 are\)"):
        open_split(trees.params(tmp_path, "folder", WORDS), "train").mask(0)


def test_masks_of_the_wrong_kind_say_so(tmp_path):
    trees.write_folder(tmp_path / "train", ["a.png"], tmp_path / "masks")
    trees.photo(tmp_path / "masks" / "a.png", 0)
    with pytest.raises(CarbError, match="masks/a.png: a colour image, not an index mask"):
        open_split(trees.params(tmp_path, "folder", WORDS), "train").mask(0)
    trees.write_camvid_original(tmp_path / "camvid")
    split = open_split(trees.params(tmp_path / "camvid", "camvid"), "train")
    trees.save(split.mask_paths[0], np.zeros(trees.SIZE, np.uint8))
    with pytest.raises(CarbError, match="_L.png: an index mask, where colours are expected"):
        split.mask(0)


def test_two_files_of_one_name(tmp_path):
    trees.write_folder(tmp_path / "train", ["a.png", "a.jpg"])
    with pytest.raises(CarbError, match=r"a.png: shares its name with a.jpg"):
        open_split(trees.params(tmp_path, "folder", WORDS), "train")


@pytest.mark.parametrize(
    ("dataset", "classes", "looked"),
    [
        ("camvid", "camvid", "img/train/ (CARB form), train/ (SegNet form), 701_StillsRaw_full/ (original frames)"),
        ("scenes", "camvid", "train/ (SegNet form)"),
        ("cityscapes", "cityscapes", "leftImg8bit/train/ (official form)"),
        ("wilddash2", "wilddash2", "img/train/ (CARB form), images/ (official package)"),
        ("folder", WORDS, "train/ ("),
    ],
)
def test_nothing_found_says_what_was_looked_for(tmp_path, dataset, classes, looked):
    (tmp_path / "trian").mkdir()
    with pytest.raises(CarbError, match=re.escape(f"{tmp_path}: no split 'train': looked for ")) as caught:
        open_split(trees.params(tmp_path, dataset, classes), "train")
    assert looked in str(caught.value) and "there are trian" in str(caught.value)
    with pytest.raises(CarbError, match="no such folder for dataset"):
        open_split(trees.params(tmp_path / "absent", dataset, classes), "train")


def test_empty_folder(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(CarbError, match=re.escape(f"{tmp_path / 'train'}: no image")):
        open_split(trees.params(tmp_path, "camvid"), "train")


@pytest.mark.parametrize("second", ["img/train", "701_StillsRaw_full"])
def test_two_forms_at_once(tmp_path, second):
    trees.write_segnet(tmp_path)
    (tmp_path / second).mkdir(parents=True)
    with pytest.raises(CarbError, match="SegNet form.* at once .*move one elsewhere"):
        open_split(trees.params(tmp_path, "camvid"), "train")


@pytest.mark.parametrize(("dataset", "other"), [("camvid", "train_labels"), ("folder", "masks")])
def test_two_mask_folders_at_once(tmp_path, dataset, other):
    trees.write_segnet(tmp_path)
    (tmp_path / other).mkdir()
    with pytest.raises(CarbError, match=f"both trainannot .*{other}.* hold masks; move one away"):
        open_split(trees.params(tmp_path, dataset), "train")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "folder"])
def test_classes_must_be_the_datasets_own(form, tmp_path):
    params, _ = write(form, tmp_path)
    with pytest.raises(CarbError, match="classes: the masks of dataset .* are in the classes of"):
        open_split(params.updated(classes=WORDS), "train")
    renamed = [{"name": name, "words": ["thing", name]} for name in params.class_set.names]
    assert open_split(params.updated(classes=renamed), "train").class_set.words[0][0] == "thing"


def test_order_does_not_depend_on_the_disk(tmp_path):
    truth = trees.write_segnet(tmp_path / "a")["train"]
    for source in sorted((tmp_path / "a" / "train").iterdir(), reverse=True):
        (tmp_path / "b" / "train").mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "b" / "train")
    assert open_split(trees.params(tmp_path / "b", "camvid"), "train").names == sorted(truth)


def test_masks_are_painted_in_the_palette_and_void_is_black():
    painted = label_maps.colour_mask(np.uint8([[0, 10, 255]]), CAMVID)
    assert painted.dtype == np.uint8 and painted.tolist() == [[[128, 128, 128], [0, 128, 192], [0, 0, 0]]]
