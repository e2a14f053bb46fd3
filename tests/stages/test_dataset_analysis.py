from __future__ import annotations

import numpy as np
import pytest
import trees
from places import CAMVID_ROOT

from carblib.base.errors import CarbError
from carblib.base.files import read_json
from carblib.data.readers import open_split
from carblib.data.sources import label_stamp
from carblib.stages import dataset_analysis
from carblib.stages.dataset_analysis import analyse_split, analysis_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CARB_HOME", str(tmp_path / "home"))
    return tmp_path


def test_counts_are_those_of_the_masks(home):
    names = ["a.png", "b.jpg", "c.png"]
    trees.write_folder(home / "own" / "train", names)
    masks = np.full((3, *trees.SIZE), 255, np.uint8)
    masks[0, :9], masks[0, 12:14, 3:8], masks[0, 16:, 3:8] = 0, 1, 1
    masks[1, :, :16], masks[1, :, 16:] = 0, 2
    masks[2, 0, 0] = 2
    for name, mask in zip("abc", masks, strict=True):
        trees.save(home / "own" / "masks" / "train" / f"{name}.png", mask)
    classes = [{"name": "road"}, {"name": "sign", "small": True}, {"name": "sky"}]
    params = trees.params(home / "own", "folder", classes, run="mine")
    result = analyse_split(open_split(params, "train"), params)
    assert result == read_json(analysis_path(params))
    pixels = [9 * 32 + 18 * 16, 20, 18 * 16 + 1]
    np.testing.assert_allclose(result["pixel_share"], np.divide(pixels, sum(pixels)))
    assert result["void_share"] == pytest.approx(1 - sum(pixels) / masks.size)
    assert result["cooccurrence"] == [[2, 1, 1], [1, 1, 0], [1, 0, 2]]
    np.testing.assert_allclose(result["image_share"], [2 / 3, 1 / 3, 2 / 3])
    assert result["classes_per_image"] == [2, 2, 1] and result["size"] == [18, 32] and result["images"] == 3
    assert result["object_areas"] == {"road": [288, 288], "sign": [10, 10], "sky": [288, 1]}
    assert result["object_count"] == {"road": 2, "sign": 2, "sky": 2}
    assert result["small_ids"] == [1] and result["class_names"] == ["road", "sign", "sky"]


def test_specks_of_large_images_are_no_objects(home):
    mask = np.zeros((256, 512), np.uint8)
    mask[3:6, 3:6], mask[50:60, 50:60] = 1, 1
    trees.photo(home / "own/train/a.png", 0, mask.shape)
    trees.save(home / "own/masks/train/a.png", mask)
    params = trees.params(home / "own", "folder", ["road", "sign"])
    assert analyse_split(open_split(params, "train"), params)["object_areas"]["sign"] == [100]


def test_a_split_without_masks_is_refused(home):
    trees.write_folder(home / "own" / "train", ["a.png"])
    params = trees.params(home / "own", "folder", ["road", "sky"])
    with pytest.raises(CarbError, match="no masks to analyse"):
        analyse_split(open_split(params, "train"), params)


@pytest.mark.skipif(not CAMVID_ROOT.is_dir(), reason="no CamVid in ../shared/data/camvid or $CARB_CAMVID_ROOT")
def test_real_camvid_has_its_published_shares(home):
    params = trees.params(CAMVID_ROOT.resolve(), "camvid", run="camvid")
    result = analyse_split(open_split(params, "train"), params)
    # Published shares are of all pixels, void (4.0 %) included.
    published = [16.9, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.6, 0.3]
    of_all = 100 * np.array(result["pixel_share"]) * (1 - result["void_share"])
    np.testing.assert_allclose(of_all, published, atol=0.11)
    assert result["images"] == 367 and np.mean(result["classes_per_image"]) > 9
    assert sum(share > 0.9 for share in result["image_share"]) >= 7


def test_a_mask_that_changes_while_masks_are_read_leaves_a_stale_analysis(home, monkeypatch):
    trees.write_segnet(home / "camvid")
    params = trees.params(home / "camvid", "camvid", run="r")
    split = open_split(params, "val")
    before, path = label_stamp(params, split).digest, split.mask_paths[0]
    monkeypatch.setattr(dataset_analysis, "audit", lambda *_: trees.save(path, np.zeros(trees.SIZE, np.uint8)) and [])
    assert analyse_split(split, params)["made_from"] == before != label_stamp(params, split).digest
